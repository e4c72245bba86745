"""What a command says of a switch: what was set, a wait, its end, a watch."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..fence import DrainReport, Roster, Verdict, WorkerReport, shown_span
from ..state import MaintenanceState
from ..stores import StoreError
from ..switch import DrainOptions, Publication
from .output import Output, clean
from .target import IF_RUNNING, Target
from .times import clock, show_moment
from .view import (
    View,
    WorkerView,
    acknowledged_by,
    plural,
    worker_summary,
    workers_table,
)

NOT_WAITED_FOR: Final = (
    "Not waited for: routes marked exempt, requests let in during maintenance, and"
    " mounts that nothing covers; `fastapi-maintenance routes MODULE:APP` lists them."
)
LINE_INTERVAL: Final = 5.0
"""Seconds between two lines where no terminal can redraw a table."""

_FIRST_LINE: Final = 0.5
"""Seconds before the first: by then it is known who is busy, or it is over."""

_FRAME: Final = 0.1


class Display:
    """Says what a command has found and done, for people or for scripts.

    Args:
        target: The switch.
        out: Where to write.

    Attributes:
        target: The switch.
        out: Where to write.
    """

    def __init__(self, target: Target, out: Output) -> None:
        self.target = target
        self.out = out

    async def roster(self) -> Roster | None:
        """Return the workers, or None with a warning where they cannot be read."""
        try:
            return await self.target.switch.roster()
        except StoreError as error:
            self.out.warn(f"the workers are not known: {error}")
            return None

    def view(self, state: MaintenanceState, roster: Roster | None) -> View:
        """Return the switch at this moment."""
        return View(
            place=self.target.place,
            name=self.target.switch.name,
            state=state,
            roster=roster,
            now=self.target.switch.clock(),
            fixed=self.target.fixed,
        )

    def worker_views(
        self, workers: Iterable[WorkerReport], state: MaintenanceState
    ) -> list[WorkerView]:
        """Return workers under a state at this moment."""
        now = self.target.switch.clock()
        return [WorkerView(worker, state, now) for worker in workers]

    def status(self, state: MaintenanceState, roster: Roster | None) -> None:
        """Show the state and the workers."""
        view = self.view(state, roster)
        self.out.emit("status", **view.to_dict())
        self._facts(view)
        if view.workers:
            self.out.say()
            self.out.show(workers_table(view.workers, live=self.out.live))
        self._warn_if_alone(roster)
        for worker in view.workers:
            if worker.report.liveness == "silent":
                self.out.say(
                    f"{worker.report.name} does not answer. If it is gone for good:"
                    f" fastapi-maintenance forget {worker.report.id}"
                )

    def published(
        self,
        publication: Publication,
        roster: Roster | None,
        *,
        token: str | None = None,
        drain: DrainOptions | None = None,
    ) -> None:
        """Say what was set.

        Args:
            publication: What was published.
            roster: The workers.
            token: The bypass token that was made, which is shown this once.
            drain: How it is waited for. Without a wait, say who has acknowledged.
        """
        view = self.view(publication.state, roster)
        notes = _notes(publication, self.target.switch.clock())
        extra: dict[str, object] = {"notes": notes} if notes else {}
        if token is not None:
            extra["bypass_token"] = token
        if drain is None and roster is not None:
            acknowledged = sum(worker.acknowledged for worker in view.workers)
            extra |= {"acknowledged": acknowledged, "joined": len(view.workers)}
        self.out.emit("published", **view.to_dict(), **extra)
        self._facts(view)
        if token is not None:
            self.out.say(f"  token      {token}")
            self.out.say("             shown once: send it in the header")
            self.out.say("             X-Maintenance-Bypass or the cookie")
            self.out.say("             maintenance_bypass")
        for note in notes:
            self.out.say(note)
        # A wait for workers that are there says so itself, and 0 means none.
        if drain is None or drain.workers:
            self._warn_if_alone(roster)
        if drain is None and view.workers:
            self._acknowledged(view.workers)

    def _facts(self, view: View) -> None:
        if self.out.live:
            self.out.show(view.rendered())
            return
        self.out.say(view.headline())
        for label, value in view.facts():
            self.out.say(f"  {label:<10} {value}".rstrip())

    def _acknowledged(self, workers: Collection[WorkerView]) -> None:
        text = acknowledged_by(workers)
        self.out.say(f"{text[0].upper()}{text[1:]}.")
        missing = [
            f"{worker.report.name} ({worker.status.text})"
            for worker in workers
            if not worker.acknowledged
        ]
        if missing:
            self.out.warn(
                f"not acknowledged by {', '.join(missing)}; look again with"
                " `fastapi-maintenance status`"
            )

    def _warn_if_alone(self, roster: Roster | None) -> None:
        """Warn when no worker has joined: the commonest mistake is another store."""
        if roster is None or roster.not_dead or self.target.fixed:
            return
        if roster.uncounted:
            self.out.warn(
                f"a service uses {self.target} and could not join, so it is not"
                " counted; its log says why"
            )
            return
        self.out.warn(
            f"no worker has joined {self.target}: start the service; {IF_RUNNING}"
        )

    def drained(self, report: DrainReport, state: MaintenanceState) -> None:
        """Say that the wait is over, and what it was not for."""
        workers = self._result(report, state)
        # Each of them has acknowledged, or it would not be drained.
        self.out.say(
            f"Drained after {shown_span(report.seconds)}: {acknowledged_by(workers)};"
            " nothing from before is running."
        )
        self.out.say(NOT_WAITED_FOR)
        if report.read_only:
            self.out.say("Reads continue (read-only): they were not waited for either.")

    def not_drained(self, report: DrainReport, state: MaintenanceState) -> str:
        """Say why the wait failed.

        Returns:
            The same for the error's line, which has to say how the state is left.
        """
        self._result(report, state)
        outcome = report.outcome.replace("_", " ")
        return (
            f"not drained after {shown_span(report.seconds)} ({outcome}):"
            f" {why_not(report, report.workers)}"
        )

    def _result(
        self, report: DrainReport, state: MaintenanceState
    ) -> Collection[WorkerView]:
        workers = self.worker_views(report.workers, state)
        self.out.emit(
            "result",
            outcome=report.outcome,
            drained=report.drained,
            reason=report.reason,
            epoch=report.epoch,
            seconds=round(report.seconds, 3),
            read_only=report.read_only,
            workers=[worker.to_dict() for worker in workers],
            not_waited_for=NOT_WAITED_FOR if report.drained else None,
        )
        return workers


def why_not(found: DrainReport | Verdict, workers: Collection[WorkerReport]) -> str:
    """Return why a wait cannot end well, and what may have been overlooked."""
    if found.outcome == "too_few" and not workers:
        return f"{found.reason}; {IF_RUNNING}"
    return found.reason


def _notes(publication: Publication, now: datetime) -> list[str]:
    """Return what a publication has changed that its author may not expect."""
    before, state = publication.before, publication.state
    if before is None or before.phase(now) in {"off", "ended"} or not state.enabled:
        return []
    notes = []
    if before.starts_at is not None and (state.starts_at or state.since) != (
        before.starts_at
    ):
        notes.append(f"The window planned for {show_moment(before.starts_at)} is gone.")
    if before.read_only and not state.read_only:
        notes.append("Reads are refused now: it was read-only before.")
    return notes


class _LiveDisplay:
    """What is redrawn in a terminal while a ``with`` block lasts."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._out = display.out
        self._live = (
            Live(console=self._out.console, auto_refresh=False)
            if self._out.live
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()


class WaitDisplay(_LiveDisplay):
    """Shows a wait: give ``update`` to the drain, in a ``with`` block.

    Args:
        display: What is drained, and where to write.
        state: The publication that is drained.
        timeout: Seconds after which the wait ends.
    """

    def __init__(
        self, display: Display, state: MaintenanceState, timeout: float
    ) -> None:
        super().__init__(display)
        self._state = state
        self._timeout = timeout
        self._started = time.monotonic()
        self._next = _FIRST_LINE if self._live is None else 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._out.say()
        return super().__enter__()

    def update(self, roster: Roster, verdict: Verdict) -> None:
        """Show one look of the drain, when it is time to."""
        waited = time.monotonic() - self._started
        if waited < self._next and verdict.outcome != "drained":
            return
        workers = self._display.worker_views(roster.not_dead, self._state)
        if self._live is not None:
            self._next = waited + _FRAME
            self._draw(self._live, workers, verdict, waited)
            return
        self._next = waited + LINE_INTERVAL
        if verdict.outcome == "drained":
            return
        self._out.emit(
            "waiting",
            outcome=verdict.outcome,
            reason=verdict.reason,
            seconds=round(waited, 3),
            seconds_left=round(max(0.0, self._timeout - waited), 3),
            workers=[worker.to_dict() for worker in workers],
        )
        self._out.say(
            f"{clock()}  {_progress(workers)}; {self._left(waited)}; {verdict.reason}"
        )

    def _draw(
        self, live: Live, workers: list[WorkerView], verdict: Verdict, waited: float
    ) -> None:
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(
            ProgressBar(
                total=max(len(workers), 1),
                completed=_done(workers),
                width=20,
                complete_style="yellow",
            ),
            Text(_progress(workers)),
            Text("" if verdict.outcome == "drained" else self._left(waited)),
        )
        parts: list[RenderableType] = [head]
        if workers:
            parts.append(workers_table(workers, live=True))
        if verdict.outcome not in {"drained", "busy"}:
            parts.append(Text(clean(verdict.reason), style="yellow"))
        live.update(Group(*parts), refresh=True)

    def _left(self, waited: float) -> str:
        return f"{shown_span(max(0.0, self._timeout - waited))} to go"


def _done(workers: Iterable[WorkerView]) -> int:
    return sum(worker.acknowledged and not worker.left for worker in workers)


def _progress(workers: Collection[WorkerView]) -> str:
    text = f"{_done(workers)} of {plural(len(workers), 'worker')} drained"
    left = sum(worker.left for worker in workers)
    return text + (f", {plural(left, 'request')} left" if left else "")


class WatchDisplay(_LiveDisplay):
    """Shows a switch again and again, in a ``with`` block; an outage, too."""

    def __init__(self, display: Display) -> None:
        super().__init__(display)
        self._answered = clock()
        self._drawn: RenderableType = Text()
        self._shown: int | None = None
        """The epoch of the last line; None before the first, and in an outage."""
        self._next = 0.0

    def update(self, state: MaintenanceState, roster: Roster) -> None:
        """Show the state and the workers, when it is time to."""
        self._answered = clock()
        view = self._display.view(state, roster)
        if self._live is not None:
            table = workers_table(view.workers, live=True)
            self._drawn = Group(view.rendered(), "", table)
            self._live.update(self._drawn, refresh=True)
        elif state.epoch != self._shown or time.monotonic() >= self._next:
            self._shown, self._next = state.epoch, time.monotonic() + LINE_INTERVAL
            self._out.emit("status", **view.to_dict())
            running = sum(worker.report.in_flight for worker in view.workers)
            self._out.say(
                f"{clock()}  {view.headline()} {worker_summary(roster)};"
                f" {running} in flight"
            )

    def no_answer(self, error: StoreError) -> None:
        """Show since when the store has not answered, when it is time to."""
        text = f"the store has not answered since {self._answered}: {error}"
        if self._live is not None:
            note = Text(clean(text), style="bold red")
            self._live.update(Group(self._drawn, "", note), refresh=True)
        elif self._shown is not None or time.monotonic() >= self._next:
            self._shown, self._next = None, time.monotonic() + LINE_INTERVAL
            self._out.warn(text)
