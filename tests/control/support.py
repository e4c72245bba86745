"""An application with a control router, and clients of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient

from fastapi_maintenance import MaintenanceGuard, Store, control_router

SECRET = {"X-Operator": "ada"}
JSON = {**SECRET, "Content-Type": "application/json"}


async def operators_only(x_operator: Annotated[str | None, Header()] = None) -> None:
    """Let operators in."""
    if x_operator != "ada":
        raise HTTPException(401, "operators only")


def build(guard: MaintenanceGuard) -> FastAPI:
    """Return a guarded application with a control router."""
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    app.include_router(control_router(guard, dependencies=[Depends(operators_only)]))

    @app.post("/shop", include_in_schema=False)
    @app.get("/shop")
    async def shop() -> str:
        return "open"

    return app


@contextmanager
def serving(store: Store | str | MaintenanceGuard = "memory:") -> Iterator[TestClient]:
    """Yield an operator's client of a running application."""
    guard = store if isinstance(store, MaintenanceGuard) else MaintenanceGuard(store)
    with TestClient(build(guard), headers=SECRET) as client:
        yield client


def reason_when(client: TestClient, outcome: str) -> str | None:
    """Ask until the outcome is the expected one, and return the reason.

    A keeper takes a moment to acknowledge, and to collect what clients left open.
    """
    limit = time.monotonic() + 20
    while True:
        shown = client.get("/maintenance").json()
        if shown["outcome"] == outcome:
            reason: str | None = shown["reason"]
            return reason
        assert time.monotonic() < limit, shown
        time.sleep(0.01)
