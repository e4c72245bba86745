"""What ``on``, ``off``, ``wait``, ``status``, ``forget`` and ``schema`` do."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Final

import anyio
from rich.console import Group
from rich.live import Live

from ..changes import EnableOptions, default_actor
from ..fence import Roster, WorkerReport, shown_span
from ..state import MaintenanceState
from ..stores import ENVIRONMENT, StoreError
from ..switch import DrainOptions, Publication
from .display import LINE_INTERVAL, WaitDisplay
from .exits import ExitCode, FailureError
from .output import Output
from .signals import InterruptedBySignalError, Signals
from .target import Target
from .times import clock
from .workers import worker_summary

STAYS_ON: Final = (
    "maintenance stays on; `fastapi-maintenance wait` waits again, `off` opens it"
)
_LOOK_INTERVAL: Final = 0.5
_WITHOUT_TABLES: Final = {"", "memory", "env", "file", "redis", "rediss", "unix"}


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
                return ExitCode.DONE
            raise FailureError(
                ExitCode.of_signal(error.number), f"{error}; {target.interrupted}"
            ) from None


async def switch_on(
    target: Target,
    enable: EnableOptions,
    *,
    init: bool,
    token: str | None,
    drain: DrainOptions | None,
    rollback: bool,
) -> int:
    """Publish, and with drain options wait until drained."""
    await target.require(init=init)
    if drain is None:
        publication = await target.switch.enable(enable)
        roster = await target.roster()
        target.published(publication, roster, token=token, acknowledged=True)
        return ExitCode.DONE
    publication = await target.switch.publish_to_drain(drain, enable)
    target.interrupted = STAYS_ON
    target.published(publication, publication.roster, token=token)
    return await wait_for(target, publication, drain, rollback=rollback)


async def wait_again(target: Target, drain: DrainOptions) -> int:
    """Drain the state that is on."""
    await target.require()
    publication = await target.switch.publish_to_drain(drain)
    target.interrupted = STAYS_ON
    target.published(publication, publication.roster)
    return await wait_for(target, publication, drain, rollback=False)


async def wait_for(
    target: Target, publication: Publication, drain: DrainOptions, *, rollback: bool
) -> int:
    """Show a wait, and end with its outcome."""
    state = publication.state
    try:
        with WaitDisplay(target, state, drain.timeout) as display:
            report = await target.switch.wait(publication, drain, progress=display.look)
    except StoreError as error:
        raise StoreError(f"{error}; {STAYS_ON}") from error
    if report.drained:
        target.drained(report, state)
        return ExitCode.DONE
    text, then = target.not_drained(report, state), STAYS_ON
    if report.outcome == "superseded":
        then = "the other state stands"
    elif rollback:
        try:
            then = put_back(publication, await target.switch.undo(publication))
        except StoreError as error:
            then = f"{STAYS_ON}; it could not be put back: {error}"
    raise FailureError(ExitCode.of(report.outcome), f"{text}; {then}")


def put_back(publication: Publication, state: MaintenanceState | None) -> str:
    """Return how the state is left after a publication was undone."""
    before = publication.before or MaintenanceState()
    if state is None or not _is_same(before, state):
        return "another state has been published since, and stands"
    return f"the state is what it was before: {'on' if before.enabled else 'off'}"


def _is_same(before: MaintenanceState, state: MaintenanceState) -> bool:
    if not before.enabled:
        return not state.enabled  # Off again is a publication of its own.
    return _content(before) == _content(state)


def _content(state: MaintenanceState) -> str:
    return state.replace(epoch=0, tag="", close_after=None).to_json()


async def switch_off(target: Target, *, force: bool) -> int:
    """Open again."""
    await target.require()
    publication = await target.switch.disable(actor=default_actor(), force=force)
    target.published(publication, await target.roster(), acknowledged=True)
    return ExitCode.DONE


async def show_status(target: Target, *, check: bool) -> int:
    """Show the state and the workers."""
    await target.require()
    state = await target.switch.read()
    roster = await target.roster()
    view = target.view(state, roster)
    target.out.emit("status", **view.document())
    view.show(target.out)
    if view.workers:
        target.out.say()
        target.out.show(view.table(live=target.out.live))
    target.warn_if_alone(roster)
    for worker in view.workers:
        if worker.liveness == "silent":
            target.out.say(
                f"{worker.name} does not answer. If it is gone for good:"
                f" fastapi-maintenance forget {worker.id}"
            )
    if check:
        in_force = target.switch.in_force(state)
        return ExitCode.IN_FORCE if in_force else ExitCode.DONE
    return ExitCode.UNREACHABLE if roster is None else ExitCode.DONE


async def watch_status(target: Target) -> int:
    """Show the state and the workers again and again, until a signal comes."""
    await target.require()
    target.interrupted = None
    out, shown, due = target.out, -1, 0.0
    with (
        Live(console=out.console, auto_refresh=False) if out.live else nullcontext()
    ) as live:
        while True:
            state = await target.switch.read()
            roster = await target.switch.roster() or Roster()
            view = target.view(state, roster)
            if live is not None:
                parts = Group(view.rendered(), "", view.table(live=True))
                live.update(parts, refresh=True)
            elif state.epoch != shown or time.monotonic() >= due:
                shown, due = state.epoch, time.monotonic() + LINE_INTERVAL
                out.emit("status", **view.document())
                running = sum(worker.in_flight for worker in view.workers)
                out.say(
                    f"{clock()}  {view.headline()} Workers: {worker_summary(roster)};"
                    f" {running} in flight"
                )
            await anyio.sleep(_LOOK_INTERVAL)


async def forget(target: Target, workers: Sequence[str], lost_for: float | None) -> int:
    """Take workers off the list that a person knows to be gone for good."""
    await target.require()
    roster = await target.switch.roster() or Roster()
    if lost_for is None:
        gone = [_silent_one(worker, roster) for worker in workers]
    else:
        gone = [
            worker
            for worker in roster.living
            if worker.liveness == "silent" and worker.age >= lost_for
        ]
    for worker in gone:
        await target.switch.forget(worker.id)
    target.out.emit("forgotten", workers=[worker.id for worker in gone])
    for worker in gone:
        target.out.say(f"Forgot {worker.name} ({worker.id}).")
    if not gone:
        target.out.say(
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
        for worker in roster.living
        if name in {worker.id, worker.name, str(worker.pid)}
    ]
    if not named:
        silent = [w.name for w in roster.living if w.liveness == "silent"]
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
        FailureError: If the store is of another kind.
    """
    url = url or os.environ.get(ENVIRONMENT) or ""
    if url.partition(":")[0] in _WITHOUT_TABLES:
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
