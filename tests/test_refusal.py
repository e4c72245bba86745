"""The error and what documents it."""

from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.exceptions import WebSocketException

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceState,
    maintenance_exempt,
)
from fastapi_maintenance.refusal import openapi_responses, refuse


def test_error_of_one_s_own_is_complete() -> None:
    """An application can raise it itself, and gets the same answer."""
    error = MaintenanceError()
    assert isinstance(error, HTTPException)
    assert error.status_code == 503
    assert error.detail == "Service temporarily unavailable due to maintenance"
    assert error.headers == {"Retry-After": "60", "Cache-Control": "no-store"}
    assert (error.retry_after, error.state.enabled) == (60, True)


def test_error_carries_what_it_was_given() -> None:
    """Detail, seconds and state are there for handlers."""
    state = MaintenanceState(enabled=True, actor="ada")
    error = MaintenanceError("back soon", retry_after=86_400, state=state)
    assert (error.detail, error.retry_after) == ("back soon", 86_400)
    assert error.state is state
    assert error.headers is not None
    assert error.headers["Retry-After"] == "86400"


@pytest.mark.parametrize("seconds", [0, -1, 86_401, 1.5, True, "60"])
def test_error_refuses_seconds_that_no_header_can_carry(seconds: int) -> None:
    """A ``Retry-After`` that would break clients is an error at construction."""
    with pytest.raises(ValueError, match="retry_after must be 1 to 86400"):
        MaintenanceError(retry_after=seconds)


def test_headers_are_of_one_error_alone() -> None:
    """What a handler does to the headers of one refusal is not seen in the next."""
    first, second = MaintenanceError(), MaintenanceError()
    assert first.headers == second.headers
    assert first.headers is not second.headers


@pytest.mark.parametrize(
    ("scope", "kind"),
    [
        ({"type": "http"}, MaintenanceError),
        ({"type": "http", "extensions": {}}, MaintenanceError),
        (
            {"type": "websocket", "extensions": {"websocket.http.response": {}}},
            MaintenanceError,
        ),
        ({"type": "websocket"}, WebSocketException),
        ({"type": "websocket", "extensions": None}, WebSocketException),
        ({"type": "websocket", "extensions": {"tls": {}}}, WebSocketException),
    ],
)
def test_connection_is_refused_as_its_server_can(
    scope: dict[str, object], kind: type[Exception]
) -> None:
    """A response where there can be one, code 1013 where there cannot."""
    error = MaintenanceError()
    with pytest.raises(kind) as refused:
        refuse(scope, error)
    if kind is MaintenanceError:
        assert refused.value is error
    else:
        assert getattr(refused.value, "code", 0) == 1013


def documented() -> dict[str, Any]:  # as FastAPI types a schema
    """Return the schema of an application of three operations."""
    guard = MaintenanceGuard("memory:", detail="Closed for now")
    app = FastAPI(dependencies=[Depends(guard)], responses=guard.responses)

    @app.get("/orders")
    @app.post("/orders")
    async def orders() -> None: ...

    @app.get("/health")
    @maintenance_exempt
    async def health() -> None: ...

    return app.openapi()


def test_schema_has_the_refusal_once() -> None:
    """Every operation refers to one named model, so that clients have it once."""
    schema = documented()
    model = schema["components"]["schemas"]["MaintenanceResponse"]
    assert set(model["properties"]) == {"detail"}
    for operation in schema["paths"]["/orders"].values():
        response = operation["responses"]["503"]
        assert response["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/MaintenanceResponse"
        }
        assert response["content"]["application/json"]["example"] == {
            "detail": "Closed for now"
        }
        assert response["headers"]["Retry-After"]["schema"]["maximum"] == 86_400
    # Once as a model, and nowhere else with its properties.
    assert str(schema).count("Why, in one line") == 1


def test_exempt_operations_document_it_too() -> None:
    """FastAPI merges an application's ``responses`` into every route, exempt or not."""
    assert "503" in documented()["paths"]["/health"]["get"]["responses"]


def test_openapi_fragment_is_new_each_time() -> None:
    """An application may change what it got without changing another one's."""
    first = openapi_responses("closed")
    first[503]["headers"].clear()
    assert openapi_responses("closed")[503]["headers"]
