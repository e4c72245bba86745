"""The coordinator's wait: look, judge, look at the state again, then report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import anyio

from ._checks import is_finite
from .fence import DrainReport, Fence, Outcome, Roster
from .orders import durable
from .state import CLOSE_AFTER, MaintenanceState
from .stores import FencedStore, StoreError

Look = Callable[[Roster, Outcome, str], None]


class FenceRefusedError(ValueError):
    """There is nothing to fence, or it could open by the clock."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """How long, and for whom, a drain waits.

    Attributes:
        timeout: Seconds; 0 looks once.
        workers: How many workers must have joined.
        vouched: Whether ``workers`` are all there are, on a person's word.
        close_after: Seconds after which counted WebSockets are closed.

    Raises:
        ValueError: If a number is negative, not finite or not whole.
        TypeError: If a number of seconds is no number.
    """

    timeout: float = 30.0
    workers: int = 1
    vouched: bool = False
    close_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("timeout", "close_after"):
            value = getattr(self, name)
            if value is None and name == CLOSE_AFTER:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, not {value!r}")
            if not is_finite(value) or value < 0:
                raise ValueError(f"{name} must be zero or more seconds, not {value!r}")
        if type(self.workers) is not int or self.workers < 0:
            raise ValueError(
                f"workers must be a whole number, 0 or more, not {self.workers!r}"
            )

    @classmethod
    def spoken(
        cls, timeout: float, workers: int, close_after: float | None = None
    ) -> Self:
        """Return the plan of who asks in code: more than one worker are all of them.

        Raises:
            ValueError: If a number is negative, not finite or not whole.
            TypeError: If a number of seconds is no number.
        """
        return cls(
            timeout=timeout,
            workers=workers,
            vouched=type(workers) is int and workers > 1,
            close_after=close_after,
        )

    def fenced(self, state: MaintenanceState, now: datetime) -> MaintenanceState:
        """Return a state in the form that can be fenced: in force, on no clock.

        Raises:
            FenceRefusedError: If it is off, has not begun, or opens by itself.
        """
        if not state.active:
            raise FenceRefusedError("maintenance is off: there is nothing to fence")
        if state.auto_off:
            raise FenceRefusedError(
                "auto_off could open it by the clock under running work; publish it"
                " without auto_off to fence it"
            )
        if not state.in_force(now):
            raise FenceRefusedError(
                f"the window begins at {state.since}; nothing can be fenced before"
            )
        extra = durable(state)
        if self.close_after is not None:
            extra[CLOSE_AFTER] = self.close_after
        return state.but(begun=True, extra=extra)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Fenced:
    """What was published to be waited for, and what stood before it.

    Attributes:
        state: The published state.
        before: The state that it replaced.
        roster: The workers from before the publication.
        own: Returns, per worker, the counted requests that wait here themselves.
        holder: The name under which it is held, if it is.
    """

    state: MaintenanceState
    before: MaintenanceState
    roster: Roster
    own: Callable[[], Mapping[str, int]]
    holder: str | None


async def wait_until_drained(
    source: FencedStore,
    name: str,
    fenced: Fenced,
    plan: Plan,
    look: Look | None = None,
) -> DrainReport:
    """Wait until no request older than a fenced state is running, or time is up.

    Args:
        source: Where the rows are.
        name: The switch.
        fenced: What was published, and what stood before. A later state that keeps
            its hold, and is no looser, does not end the wait.
        plan: How long and for whom to wait.
        look: Called with each look, to show it.

    Raises:
        StoreError: If the rows cannot be read.
    """
    started = time.monotonic()
    state = fenced.state
    fence = Fence(
        epoch=state.epoch,
        workers=plan.workers,
        vouched=plan.vouched,
        before=fenced.roster,
    )
    while True:
        roster = await source.roster(name)
        # After the rows: a request that has ended since must not take another one
        # out of the count.
        fence.own = fenced.own()
        outcome, reason = fence.judge(roster)
        if look is not None:
            look(roster, outcome, reason)
        waited = time.monotonic() - started
        final = outcome in {"drained", "unknown"} or waited >= plan.timeout
        if final or roster.epoch > state.epoch:
            # The state decides last: rows can be clean while another operator has
            # opened the service again.
            changed = await _changed(source, name, fenced)
            if changed is not None:
                outcome, reason = changed
                final = outcome == "superseded" or waited >= plan.timeout
        if final:
            if outcome == "drained" and plan.vouched:
                await source.vouch(name, roster.generation)
            return DrainReport(
                outcome=outcome,
                epoch=state.epoch,
                workers=roster.rows,
                seconds=time.monotonic() - started,
                read_only=state.read_only,
                reason=reason,
            )
        await anyio.sleep(min(source.pause, max(0.0, plan.timeout - waited)))


async def _changed(
    source: FencedStore, name: str, fenced: Fenced
) -> tuple[Outcome, str] | None:
    try:
        present = await source.read(name)
    except StoreError as error:
        # Workers keep what they know, but nobody can say what that is.
        return "unknown", f"the state cannot be read any more: {error}"
    if not present.active:
        return "superseded", f"maintenance was switched off by {_who(present)}"
    as_closed = (
        (present.begun or present.since is None)
        and not present.auto_off
        and present.read_only <= fenced.state.read_only
    )
    # A state of the same epoch was edited by hand; a later one that keeps the
    # waiter's hold was published by somebody who holds it too.
    same = present.epoch <= fenced.state.epoch or fenced.holder in present.holders
    if as_closed and same:
        return None
    return "superseded", f"another state was published by {_who(present)}"


def _who(state: MaintenanceState) -> str:
    return state.actor or "somebody"
