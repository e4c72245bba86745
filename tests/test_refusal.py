"""The error and what documents it."""

import pytest
from fastapi import HTTPException
from fastapi.exceptions import WebSocketException

from fastapi_maintenance import MaintenanceError, MaintenanceState
from fastapi_maintenance.refusal import openapi_responses, refuse


def test_error_of_one_s_own_is_complete() -> None:
    """An application can raise it itself, and gets the same answer."""
    error = MaintenanceError()
    assert isinstance(error, HTTPException)
    assert error.status_code == 503
    assert error.detail == "Service temporarily unavailable due to maintenance"
    assert error.headers == {"Retry-After": "60", "Cache-Control": "no-store"}
    assert (error.retry_after, error.state.active) == (60, True)


def test_error_carries_what_it_was_given() -> None:
    """Detail, seconds and state are there for handlers."""
    state = MaintenanceState(active=True, actor="ada")
    error = MaintenanceError("back soon", retry_after=86_400, state=state)
    assert (error.detail, error.retry_after) == ("back soon", 86_400)
    assert error.state is state
    assert error.headers is not None
    assert error.headers["Retry-After"] == "86400"


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


def test_openapi_fragment_is_new_each_time() -> None:
    """An application may change what it got without changing another one's."""
    first = openapi_responses("closed")
    first[503]["headers"].clear()
    assert openapi_responses("closed")[503]["headers"]
