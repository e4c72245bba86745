"""Exempt handlers, one sync and one async; they run while maintenance is on only."""

import asyncio

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from fastapi_maintenance import MaintenanceGuard

BETA_TESTERS = {"ada", "grace"}


def is_beta_tester(connection: HTTPConnection) -> bool:
    """Run in a thread, so that it may block for a moment."""
    return connection.headers.get("X-User") in BETA_TESTERS


async def is_support(connection: HTTPConnection) -> bool:
    """Run on the event loop, so that it must not block."""
    await asyncio.sleep(0)  # Stands for a question to another service.
    return connection.headers.get("X-Team") == "support"


guard = MaintenanceGuard(exempt_handler=[is_beta_tester, is_support])
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
