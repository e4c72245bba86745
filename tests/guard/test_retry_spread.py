"""Clients are told different times to return, so that they do not return as one."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from fastapi_maintenance import MaintenanceGuard, MaintenanceState
from fastapi_maintenance.testing import force, frozen_clock

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def waits(guard: MaintenanceGuard, state: MaintenanceState) -> int:
    """Return the ``Retry-After`` of a refusal."""
    return guard._decision.error_for(state).retry_after


def at_random(guard: MaintenanceGuard, draw: Callable[[], float]) -> None:
    """Give a guard another source of chance."""
    guard._decision.random = draw


@pytest.mark.parametrize(
    ("spread", "drawn", "seconds"),
    [
        (0.0, 0.99, 600),
        (0.1, 0.0, 600),
        (0.1, 0.5, 630),
        (0.1, 0.999, 659),
        (1, 0.999, 1199),
    ],
)
def test_spread_lengthens_by_a_part(spread: float, drawn: float, seconds: int) -> None:
    """``Retry-After`` grows by the drawn part of the fraction, and never shrinks."""
    guard = MaintenanceGuard("memory:", retry_spread=spread)
    at_random(guard, lambda: drawn)
    with frozen_clock(guard, NOON):
        state = MaintenanceState(enabled=True, until=NOON + timedelta(minutes=10))
        assert waits(guard, state) == seconds


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.integers(0, 10**9))
@pytest.mark.property
def test_spread_stays_within_the_limits(
    spread: float, drawn: float, seconds: int
) -> None:
    """Whatever is drawn, it is whole seconds from 1 to a day, and never too early."""
    guard = MaintenanceGuard("memory:", retry_spread=spread)
    at_random(guard, lambda: drawn)
    state = MaintenanceState(enabled=True, retry_after=seconds)
    plain = max(1, min(seconds, 86_400))
    assert plain <= waits(guard, state) <= min(86_400, plain + plain * spread)


def test_clients_are_told_different_times() -> None:
    """Refused clients get times that differ, and error and header agree."""
    guard = MaintenanceGuard("memory:", retry_after=1_000, retry_spread=1.0)
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/")
    async def root() -> None: ...

    client = TestClient(app)
    with force(guard):
        told = {int(client.get("/").headers["retry-after"]) for _ in range(20)}
    assert len(told) > 10
    assert min(told) >= 1_000
    assert max(told) < 2_000


@pytest.mark.parametrize("bad", [-0.1, 1.01, float("nan"), float("inf"), 10])
def test_fractions_only(bad: float) -> None:
    """A spread beyond 0 and 1 is a mistake of units, refused at construction."""
    with pytest.raises(ValueError, match="retry_spread must be from 0 to 1"):
        MaintenanceGuard("memory:", retry_spread=bad)


@pytest.mark.parametrize("bad", ["0.1", True, None])
def test_numbers_only(bad: float) -> None:
    """A spread that is no number is refused at construction."""
    with pytest.raises(TypeError, match="retry_spread must be a number"):
        MaintenanceGuard("memory:", retry_spread=bad)
