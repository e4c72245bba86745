"""The answer to a refused client: the error, its headers, its OpenAPI form."""

import math
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from fastapi import HTTPException
from fastapi.exceptions import WebSocketException
from pydantic import BaseModel, Field

from ._fastapi import Scope
from .state import MaintenanceState

DEFAULT_DETAIL: Final = "Service temporarily unavailable due to maintenance"

LONGEST_WAIT: Final = 86_400
"""The largest ``Retry-After`` in seconds; clients really sleep that long."""

_DENIAL: Final = "websocket.http.response"
_PROBERS: Final = (
    b"kube-probe/",
    b"ELB-HealthChecker/",
    b"GoogleHC/",
    b"Envoy/HC",
    b"Consul Health Check",
    b"Amazon-Route53-Health-Check-Service",
    b"Blackbox Exporter/",
    b"Prometheus/",
)
_TRY_AGAIN_LATER: Final = 1013


class MaintenanceError(HTTPException):
    """The service, or this part of it, is under maintenance.

    An ordinary ``HTTPException`` with status 503, so that an application's own
    handlers, error schema, CORS headers and telemetry apply. One object for each
    refusal: a shared one would grow a traceback with every request.

    Args:
        detail: What the client reads; one line.
        retry_after: Seconds for the ``Retry-After`` header (RFC 9110, 10.2.3).
        state: The state that refused.
        now: The time by which the end is judged; the present by default.

    Raises:
        ValueError: If the header could not carry ``retry_after``.

    Attributes:
        state: The state that refused.
        retry_after: Whole seconds, from 1 to 86400.
        seconds_left: Whole seconds to the announced end; 0 if no end is ahead.
    """

    def __init__(
        self,
        detail: str = DEFAULT_DETAIL,
        *,
        retry_after: int = 60,
        state: MaintenanceState | None = None,
        now: datetime | None = None,
    ) -> None:
        if type(retry_after) is not int or not 1 <= retry_after <= LONGEST_WAIT:
            raise ValueError(
                f"retry_after must be 1 to {LONGEST_WAIT} whole seconds, not"
                f" {retry_after!r}"
            )
        self.state: MaintenanceState = (
            MaintenanceState(enabled=True) if state is None else state
        )
        self.retry_after = retry_after
        self.seconds_left: int = _seconds_left(self.state, now or datetime.now(UTC))
        super().__init__(
            status_code=503,
            detail=detail,
            headers={
                "Retry-After": f"{retry_after:d}",
                # RFC 9111 section 5.2.2.5: caches that keep errors must not keep it.
                "Cache-Control": "no-store",
            },
        )


class MaintenanceResponse(BaseModel):
    """The body of a refusal."""

    detail: str = Field(description="Why, in one line")


def seconds_to_wait(
    state: MaintenanceState, now: datetime, default: int, spread: float = 0.0
) -> int:
    """Return how long a refused client is asked to wait, in whole seconds.

    Args:
        state: The state that refuses.
        now: The time to judge by.
        default: Seconds, if the state names no end that is ahead and no
            ``retry_after``.
        spread: The fraction by which it is lengthened.
    """
    seconds = _seconds_left(state, now)
    if not seconds:
        seconds = default if state.retry_after is None else state.retry_after
    # A zero would invite clients to try in a loop.
    return max(1, min(seconds + int(seconds * spread), LONGEST_WAIT))


def _seconds_left(state: MaintenanceState, now: datetime) -> int:
    if state.until is None or state.until <= now:
        return 0
    return math.ceil((state.until - now).total_seconds())


def prober_of(scope: Scope) -> str | None:
    """Return how a known health checker or scraper names itself, if one is asking."""
    for name, value in scope["headers"]:
        if name == b"user-agent" and value.startswith(_PROBERS):
            text: str = value[:80].decode("latin-1")
            return text
    return None


def refuse(scope: Scope, error: MaintenanceError) -> NoReturn:
    """Raise the error, or ``WebSocketException`` where it could not be answered."""
    if scope["type"] == "websocket" and _DENIAL not in (scope.get("extensions") or {}):
        # A response that the server does not know would leave the handshake hanging.
        raise WebSocketException(code=_TRY_AGAIN_LATER, reason="maintenance")
    raise error


def openapi_responses(detail: str) -> dict[int | str, dict[str, Any]]:
    """Document the 503, for ``FastAPI(responses=...)``."""
    header = {
        "description": "Seconds after which to try again",
        "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_WAIT},
    }
    return {
        503: {
            "model": MaintenanceResponse,
            "description": "Under maintenance; try again later",
            "headers": {"Retry-After": header},
            "content": {"application/json": {"example": {"detail": detail}}},
        }
    }
