"""What ``on``, ``off``, ``wait``, ``status``, ``forget`` and ``schema`` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeVar

import anyio

from ..changes import EnableOptions, default_actor
from ..fence import Roster, WorkerReport, shown_span
from ..state import MaintenanceState
from ..stores import ENVIRONMENT, StoreError, TemporaryStoreError
from ..switch import DrainOptions, Publication
from .display import Display, WaitDisplay, WatchDisplay
from .exits import ExitCode, FailureError
from .output import Output
from .signals import InterruptedBySignalError, Signals

PERHAPS_PUBLISHED: Final = "`fastapi-maintenance status` shows whether it was published"
WAIT_STAYS_ON: Final = (
    "maintenance stays on; `fastapi-maintenance wait` waits again, `off` opens it"
)
_LOOK_INTERVAL: Final = 0.5

T = TypeVar("T")


def carry_out(
    work: Callable[[], Awaitable[int]], *, interrupted: str = "nothing has changed"
) -> int:
    """Run a command's work until it is done or a signal comes.

    Args:
        work: What to do.
        interrupted: How the state is left after a signal.

    Raises:
        FailureError: If a signal came.
    """
    with Signals() as signals:
        return anyio.run(interruptible, signals, work, interrupted)


def carry_out_and_wait(
    display: Display,
    drain: DrainOptions,
    enable: EnableOptions | None = None,
    *,
    init: bool = False,
    token: str | None = None,
    rollback: bool = False,
) -> int:
    """Publish, by default what is on already, and wait until drained.

    Raises:
        FailureError: If it was not drained, or a signal came; the state stays on.
    """

    async def publish() -> Publication:
        await display.target.require(init=init)
        return await display.target.switch.publish_to_drain(drain, enable)

    async def work(signals: Signals) -> int:
        publication = await interruptible(signals, publish, PERHAPS_PUBLISHED)
        display.published(publication, publication.roster, token=token, drain=drain)
        return await interruptible(
            signals,
            lambda: wait_for(display, publication, drain, rollback=rollback),
            WAIT_STAYS_ON,
        )

    with Signals() as signals:
        return anyio.run(work, signals)


async def interruptible(
    signals: Signals, work: Callable[[], Awaitable[T]], interrupted: str
) -> T:
    """Do one step of a command until it is done or a signal comes.

    Raises:
        FailureError: If a signal came; the line says how the state is left.
    """
    try:
        return await signals.watch(work)
    except InterruptedBySignalError as error:
        code = ExitCode.of_signal(error.number)
        raise FailureError(code, f"{error}; {interrupted}") from None


async def switch_on(
    display: Display, enable: EnableOptions, *, init: bool, token: str | None
) -> int:
    """Publish, and say who has acknowledged."""
    await display.target.require(init=init)
    publication = await display.target.switch.enable(enable)
    display.published(publication, await display.roster(), token=token)
    return ExitCode.DONE


async def wait_for(
    display: Display, publication: Publication, drain: DrainOptions, *, rollback: bool
) -> int:
    """Show a wait, and end with its outcome."""
    state, switch = publication.state, display.target.switch
    try:
        with WaitDisplay(display, state, drain.timeout) as shown:
            report = await switch.wait_until_drained(
                publication, drain, progress=shown.update
            )
    except StoreError as error:
        raise StoreError(f"{error}; {WAIT_STAYS_ON}") from error
    if report.drained:
        display.drained(report, state)
        return ExitCode.DONE
    text, then = display.not_drained(report, state), WAIT_STAYS_ON
    if report.outcome == "superseded":
        then = "the other state stands"
    elif rollback:
        try:
            then = put_back(publication, await switch.undo(publication), switch.clock())
        except StoreError as error:
            then = f"{WAIT_STAYS_ON}; it could not be put back: {error}"
    raise FailureError(ExitCode.of(report.outcome), f"{text}; {then}")


def put_back(
    publication: Publication, state: MaintenanceState | None, now: datetime
) -> str:
    """Return how the state is left after a publication was undone."""
    before = publication.before or MaintenanceState()
    if state is None or not _is_same(before, state):
        return "another state has been published since, and stands"
    phase = before.phase(now)
    was = {"in force": "on", "overdue": "on"}.get(phase, phase)
    return f"the state is what it was before: {was}"


def _is_same(before: MaintenanceState, state: MaintenanceState) -> bool:
    if not before.enabled:
        return not state.enabled  # Off again is a publication of its own.
    return _content(before) == _content(state)


def _content(state: MaintenanceState) -> str:
    return state.replace(epoch=0, tag="", close_after=None).to_json()


async def switch_off(display: Display, *, force: bool) -> int:
    """Open again."""
    await display.target.require()
    switch = display.target.switch
    publication = await switch.disable(actor=default_actor(), force=force)
    display.published(publication, await display.roster())
    return ExitCode.DONE


async def show_status(display: Display, *, check: bool) -> int:
    """Show the state and the workers."""
    await display.target.require()
    state = await display.target.switch.read()
    roster = await display.roster()
    display.status(state, roster)
    if check:
        in_force = display.target.switch.in_force(state)
        return ExitCode.IN_FORCE if in_force else ExitCode.DONE
    return ExitCode.UNREACHABLE if roster is None else ExitCode.DONE


def watch_status(display: Display) -> int:
    """Show the state and the workers again and again, until a signal comes."""

    async def work() -> None:
        await display.target.require()
        switch = display.target.switch
        with WatchDisplay(display) as shown:
            while True:
                try:
                    state, roster = await switch.read(), await switch.roster()
                except TemporaryStoreError as error:
                    # A restart or a failover is what an operator watches for.
                    shown.no_answer(error)
                else:
                    shown.update(state, roster or Roster())
                await anyio.sleep(_LOOK_INTERVAL)

    with Signals() as signals, contextlib.suppress(InterruptedBySignalError):
        anyio.run(signals.watch, work)
    return ExitCode.DONE


async def forget(
    display: Display, workers: Sequence[str], lost_for: float | None
) -> int:
    """Take workers off the list that a person knows to be gone for good."""
    await display.target.require()
    switch, out = display.target.switch, display.out
    roster = await switch.roster() or Roster()
    if lost_for is None:
        gone = [_silent_one(worker, roster) for worker in workers]
    else:
        gone = [
            worker
            for worker in roster.not_dead
            if worker.liveness == "silent" and worker.age >= lost_for
        ]
    for worker in gone:
        await switch.forget(worker.id)
    out.emit("forgotten", workers=[worker.id for worker in gone])
    for worker in gone:
        out.say(f"Forgot {worker.name} ({worker.id}).")
    if not gone:
        out.say(
            f"No worker has been silent for {shown_span(lost_for or 0)}; none was"
            " forgotten."
        )
    return ExitCode.DONE


def _silent_one(name: str, roster: Roster) -> WorkerReport:
    missing = roster.members - {worker.id for worker in roster.workers}
    if name in missing:
        # On the list, and its report is gone.
        return WorkerReport(id=name, host="unknown", pid=0)
    named = [
        worker
        for worker in roster.not_dead
        if name in {worker.id, worker.name, str(worker.pid)}
    ]
    if not named:
        silent = [w.name for w in roster.not_dead if w.liveness == "silent"]
        known = ", ".join([*silent, *sorted(missing)]) or "none"
        raise FailureError(
            ExitCode.USAGE, f"no worker {name!r}; those that do not answer: {known}"
        )
    if len(named) > 1:
        ids = ", ".join(worker.id for worker in named)
        raise FailureError(
            ExitCode.USAGE, f"{name!r} names several workers; give one of {ids}"
        )
    if named[0].liveness != "silent":
        raise FailureError(
            ExitCode.USAGE,
            f"{name!r} answers: its process is there and counts requests; stop that"
            " process instead",
        )
    return named[0]


def show_schema(url: str | None, out: Output) -> int:
    """Write the SQL that makes the tables of an SQL store.

    Raises:
        FailureError: If no store is named.
        ValueError: If it is of another kind.
    """
    url = url or os.environ.get(ENVIRONMENT)
    if not url:
        raise FailureError(
            ExitCode.USAGE,
            "only an SQL store has tables; name it, such as"
            " --store postgresql+psycopg://HOST/DATABASE",
        )
    from ..stores.sql import schema  # noqa: PLC0415  # SQLAlchemy, for this one alone

    text = schema(url)
    out.emit("schema", sql=text)
    for line in text.splitlines():
        out.say(line)
    return ExitCode.DONE
