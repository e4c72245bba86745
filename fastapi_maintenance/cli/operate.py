"""What ``on``, ``off``, ``wait``, ``status`` and ``forget`` do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import anyio
from rich.console import Group
from rich.live import Live

from ..fence import Roster, WorkerRow
from ..orders import Order, default_actor, durable
from ..state import MaintenanceState
from ..stores import StoreError
from ..waiting import Fenced, Plan
from .display import LINE_INTERVAL, Waiting, workers_table
from .phases import crowd, headline, living
from .signals import InterruptedBySignalError, Signals
from .target import EXIT_CODES, UNREACHABLE, USAGE, FailureError, Target
from .times import clock

STAYS_ON = (
    "maintenance stays on; `fastapi-maintenance wait` waits again, `off` opens it"
)
_LOOK_INTERVAL = 0.5


def carry_out(target: Target, work: Callable[[], Awaitable[int]]) -> int:
    """Run a command's work until it is done or a signal comes.

    Raises:
        FailureError: If a signal came; the line says how the state is left.
    """
    with Signals() as signals:
        try:
            return anyio.run(signals.watch, work)
        except InterruptedBySignalError as error:
            if target.interrupted is None:
                return 0
            raise FailureError(
                128 + error.number, f"{error}; {target.interrupted}"
            ) from None


async def switch_on(
    target: Target,
    order: Order,
    *,
    init: bool,
    token: str | None,
    plan: Plan | None,
    rollback: bool,
) -> int:
    """Publish, and with a plan wait until drained."""
    target.require(init=init)
    if plan is None:
        state = await target.switch.enable(order)
        target.published(state, await target.roster(), token)
        return 0
    fenced = await target.switch.fence(plan, order)
    target.interrupted = STAYS_ON
    target.published(fenced.state, fenced.roster, token)
    return await wait_for(target, fenced, plan, rollback=rollback)


async def wait_again(target: Target, plan: Plan) -> int:
    """Fence the state that stands, and wait until drained."""
    target.require()
    fenced = await target.switch.fence(plan)
    target.interrupted = STAYS_ON
    target.published(fenced.state, fenced.roster)
    return await wait_for(target, fenced, plan, rollback=False)


async def wait_for(
    target: Target, fenced: Fenced, plan: Plan, *, rollback: bool
) -> int:
    """Show a wait, and end with its outcome."""
    try:
        with Waiting(target.out, fenced.state.epoch, plan.timeout) as shown:
            report = await target.switch.wait(fenced, plan, look=shown.look)
    except StoreError as error:
        raise StoreError(f"{error}; {STAYS_ON}") from error
    if report.drained:
        target.drained(report)
        return 0
    text, then = target.not_drained(report), STAYS_ON
    if report.outcome == "superseded":
        then = "the other state stands"
    elif rollback:
        try:
            then = put_back(fenced.before, await target.switch.undo(fenced))
        except StoreError as error:
            then = f"{STAYS_ON}; it could not be put back: {error}"
    raise FailureError(EXIT_CODES[report.outcome], f"{text}; {then}")


def put_back(before: MaintenanceState, state: MaintenanceState | None) -> str:
    """Return how the state is left after it was undone."""
    if state is None or not _same(before, state):
        return "another state was published meanwhile, and stands"
    return f"the state is what it was before: {'on' if before.active else 'off'}"


def _same(before: MaintenanceState, state: MaintenanceState) -> bool:
    if not before.active:
        return not state.active  # Off again is a publication of its own.
    return state.but(epoch=0) == before.but(epoch=0, extra=durable(before))


async def switch_off(target: Target, *, force: bool) -> int:
    """Open again."""
    target.require()
    state = await target.switch.disable(actor=default_actor(), force=force)
    target.published(state, await target.roster())
    return 0


async def show_status(target: Target, *, check: bool) -> int:
    """Show the state and the workers."""
    target.require()
    state = await target.switch.source.read(target.switch.name)
    roster = await target.roster()
    target.describe("status", state, roster)
    if roster is not None and living(roster):
        target.out.say()
        target.out.show(
            workers_table(
                living(roster), state.epoch, fenced=False, live=target.out.live
            )
        )
    target.warn_if_alone(roster)
    _name_the_lost(target, roster)
    if check:
        return 3 if target.switch.in_force(state) else 0
    return UNREACHABLE if roster is None else 0


async def watch_status(target: Target) -> int:
    """Show the state and the workers again and again, until a signal comes."""
    target.require()
    target.interrupted = None
    shown, due = -1, 0.0
    with (
        Live(console=target.out.console, auto_refresh=False)
        if (target.out.live)
        else nullcontext() as live
    ):
        while True:
            state = await target.switch.source.read(target.switch.name)
            roster = await target.switch.source.roster(target.switch.name)
            rows = living(roster)
            if live is not None:
                table = workers_table(rows, state.epoch, fenced=False, live=True)
                live.update(Group(target.view(state, roster), "", table), refresh=True)
            elif state.epoch != shown or time.monotonic() >= due:
                shown, due = state.epoch, time.monotonic() + LINE_INTERVAL
                target.report("status", state, roster)
                flying = sum(row.in_flight for row in rows)
                target.out.say(
                    f"{clock()}  {headline(state, target.now())}"
                    f" Workers: {crowd(roster)}; {flying} in flight"
                )
            await anyio.sleep(_LOOK_INTERVAL)


async def forget(target: Target, worker: str | None, lost_for: float | None) -> int:
    """Drop rows of workers that a person knows to be gone for good."""
    target.require()
    roster = await target.switch.source.roster(target.switch.name)
    if worker is not None:
        gone = [_lost_one(worker, living(roster))]
    else:
        gone = [
            row
            for row in roster.rows
            if row.lost and lost_for is not None and row.report_age >= lost_for
        ]
    await target.switch.source.forget(target.switch.name, [row.id for row in gone])
    target.out.emit("forgotten", workers=[row.id for row in gone])
    for row in gone:
        target.out.say(f"Forgot {row.host}/{row.pid} ({row.id}).")
    if not gone:
        target.out.say("No worker has been lost for so long; nothing was forgotten.")
    return 0


def _lost_one(worker: str, rows: list[WorkerRow]) -> WorkerRow:
    named = [
        row for row in rows if worker in {row.id, f"{row.host}/{row.pid}", str(row.pid)}
    ]
    if not named:
        lost = ", ".join(f"{row.host}/{row.pid}" for row in rows if row.lost)
        raise FailureError(USAGE, f"no worker {worker!r}; lost ones: {lost or 'none'}")
    if len(named) > 1:
        ids = ", ".join(row.id for row in named)
        raise FailureError(
            USAGE, f"{worker!r} names several workers; give one of {ids}"
        )
    if not named[0].lost:
        raise FailureError(
            USAGE,
            f"{worker!r} is not lost: its process is there and counts requests; stop"
            " that process instead",
        )
    return named[0]


def _name_the_lost(target: Target, roster: Roster | None) -> None:
    for row in living(roster) if roster is not None else []:
        if row.lost:
            target.out.say(
                f"Lost: {row.host}/{row.pid}. If that machine is gone for good:"
                f" fastapi-maintenance forget {row.id}"
            )
