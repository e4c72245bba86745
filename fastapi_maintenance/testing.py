"""What a test suite needs: a forced state, a clock, a contract for own stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from ._checks import check_aware
from ._contract import check_store
from .guard import MaintenanceGuard
from .orders import Order
from .state import MaintenanceState
from .stores.memory import MemoryStore
from .switch import Switch

__all__ = ["Clock", "check_store", "force", "frozen_clock"]


@contextmanager
def force(
    guard: MaintenanceGuard,
    *,
    active: bool = True,
    message: str | None = None,
    at: datetime | None = None,
    until: datetime | timedelta | None = None,
    auto_off: bool = False,
    retry_after: int | timedelta | None = None,
    read_only: bool = False,
    bypass_token: str | None = None,
) -> Iterator[MaintenanceState]:
    """Force a guard's state for the time of a block, without touching its store.

    Until the block ends, the guard, its doors and its control router use a state in
    memory: what is set within is gone after it. ``on_change`` is not called.

    Args:
        guard: Whose state.
        active: On, or off whatever the store says.
        message: As for ``MaintenanceGuard.enable``; so are the others.
        at: When it begins.
        until: When it is expected to end.
        auto_off: Open by the clock at ``until``.
        retry_after: Seconds for ``Retry-After``.
        read_only: Let GET, HEAD and OPTIONS through.
        bypass_token: Lets requests through.

    Raises:
        ValueError: As ``enable`` does.

    Examples:
        >>> from fastapi import Depends, FastAPI
        >>> from fastapi.testclient import TestClient
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> from fastapi_maintenance.testing import force
        >>> guard = MaintenanceGuard()
        >>> app = FastAPI(dependencies=[Depends(guard)])
        >>> @app.get("/orders")
        ... async def orders() -> list[str]:
        ...     return []
        >>> client = TestClient(app)
        >>> with force(guard, message="Back at noon"):
        ...     client.get("/orders").json()
        {'detail': 'Back at noon'}
        >>> with force(guard, active=False):
        ...     client.get("/orders").status_code
        200
    """
    known = guard._switch  # noqa: SLF001  # what is forced
    order = Order(
        message=message,
        at=at,
        until=until,
        auto_off=auto_off,
        retry_after=retry_after,
        read_only=read_only,
        bypass_token=bypass_token,
    )
    state = MaintenanceState(epoch=1)
    if active:
        state = order.applied(state, known.clock()).but(epoch=1)
    substitute = Switch(_Forced(state), known.name)
    substitute.clock = known.clock
    substitute.worker.join()
    _use(guard, substitute)
    try:
        yield state
    finally:
        _use(guard, known)


class _Forced(MemoryStore):
    location = "fastapi_maintenance.testing.force"

    def __init__(self, state: MaintenanceState) -> None:
        super().__init__()
        self._initial = state


def _use(guard: MaintenanceGuard, switch: Switch) -> None:
    guard._switch = switch  # noqa: SLF001  # both halves share it
    guard._decision.switch = switch  # noqa: SLF001


class Clock:
    """A clock that stands still until it is told otherwise.

    Args:
        now: What it shows.

    Raises:
        ValueError: If that has no time zone.
    """

    def __init__(self, now: datetime) -> None:
        self.set(now)

    def __call__(self) -> datetime:
        """Return what it shows."""
        return self.now

    def set(self, now: datetime) -> None:
        """Show another moment.

        Raises:
            ValueError: If that has no time zone.
        """
        check_aware(now, "now")
        self.now: datetime = now

    def advance(self, by: timedelta | float) -> None:
        """Move on by a duration, or by seconds."""
        self.now += by if isinstance(by, timedelta) else timedelta(seconds=by)


@contextmanager
def frozen_clock(
    guard: MaintenanceGuard, moment: datetime | None = None
) -> Iterator[Clock]:
    """Stop the clock by which a guard judges its state, for the time of a block.

    Args:
        guard: Whose clock; only this guard's, and nobody else's sense of time.
        moment: What it shows first; the present by default.

    Raises:
        ValueError: If the moment has no time zone.

    Examples:
        >>> from datetime import timedelta
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> from fastapi_maintenance.testing import force, frozen_clock
        >>> guard = MaintenanceGuard()
        >>> with frozen_clock(guard) as clock:
        ...     with force(guard, until=timedelta(hours=1), auto_off=True):
        ...         before = guard.is_active
        ...         clock.advance(timedelta(hours=1))
        ...         before, guard.is_active
        (True, False)
    """
    clock = Clock(datetime.now(UTC) if moment is None else moment)
    switch = guard._switch  # noqa: SLF001  # whose clock it is
    known = switch.clock
    switch.clock = clock
    try:
        yield clock
    finally:
        switch.clock = known
