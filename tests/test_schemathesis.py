"""Generated requests meet documented answers only, and never a server error."""

import os
from typing import Annotated, Any

import pytest
import schemathesis
from fastapi import APIRouter, Depends, FastAPI, File, Header, Path, Query, UploadFile
from hypothesis import settings
from pydantic import BaseModel, Field
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
    control_router,
    maintenance_exception_handler,
    maintenance_exempt,
)

pytestmark = pytest.mark.property

Case = schemathesis.Case[Any]
EXAMPLES = settings(
    max_examples=1_000 if os.environ.get("TEST_BUDGET") == "long" else 10
)

CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


class Order(BaseModel):
    """What is ordered."""

    article: Annotated[str, Field(min_length=1)]
    amount: Annotated[int, Field(ge=1, le=100)]


def build(guard: MaintenanceGuard) -> FastAPI:
    """Return a shop with every kind of parameter, and its control router."""
    # FastAPI answers 400 to a body that cannot be parsed, and does not document it.
    unparsable: dict[int | str, dict[str, Any]] = {  # FastAPI's own type
        400: {"description": "The body cannot be parsed"}
    }
    app = FastAPI(
        dependencies=[Depends(guard)], responses={**guard.responses, **unparsable}
    )
    app.add_exception_handler(MaintenanceError, maintenance_exception_handler())
    orders = APIRouter(prefix="/orders")

    @orders.get("/{number}")
    async def order(
        number: Annotated[int, Path(ge=1)],
        verbose: Annotated[bool, Query()] = False,
        x_trace: Annotated[str | None, Header(max_length=40)] = None,
    ) -> Order | None: ...

    @orders.post("", status_code=201)
    async def place(wanted: Order) -> Order | None: ...

    @orders.put("/{number}/invoice")
    async def invoice(
        number: int, file: Annotated[UploadFile, File()]
    ) -> int | None: ...

    app.include_router(orders)

    @app.get("/health")
    @maintenance_exempt
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def anybody() -> None: ...

    app.include_router(control_router(guard, dependencies=[Depends(anybody)]))
    return app


def no_error(_: CheckContext, response: schemathesis.Response, case: Case) -> None:
    """Refuse every server error but the one that is the point."""
    if case.path == "/health":
        assert response.status_code in {200, 405}
    elif response.status_code >= 500:
        assert response.status_code == 503
        assert response.headers["retry-after"]


closed = build(MaintenanceGuard(MemoryStore(enabled=True)))
beside_guard = MaintenanceGuard(MemoryStore(enabled=True))
beside = build(beside_guard)
beside.add_middleware(MaintenanceModeMiddleware, guard=beside_guard)

by_guard = schemathesis.openapi.from_asgi("/openapi.json", closed)
by_middleware = schemathesis.openapi.from_asgi("/openapi.json", beside)


@by_guard.exclude(path_regex="^/maintenance").parametrize()
@EXAMPLES
def test_refusals_are_documented(case: Case) -> None:
    """A closed service answers 503, or as FastAPI does to a bad body: as documented."""
    case.call_and_validate(checks=[no_error, *CHECKS])


@by_middleware.exclude(path_regex="^/maintenance").parametrize()
@EXAMPLES
def test_refusals_of_the_middleware_are_documented(case: Case) -> None:
    """The same holds where the middleware refuses first."""
    case.call_and_validate(checks=[no_error, *CHECKS])


@by_guard.include(path_regex="^/maintenance").parametrize()
@EXAMPLES
def test_control_router_answers_as_documented(case: Case) -> None:
    """Whatever is sent to the control router, its answer is one that it documents."""
    case.call_and_validate(checks=[*CHECKS])
