"""A wait while it lasts: alive in a terminal, and in lines elsewhere."""

from __future__ import annotations

import time
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..fence import (
    Roster,
    Verdict,
    WorkerReport,
    count_before,
    has_acknowledged,
    shown_span,
)
from ..state import MaintenanceState
from .output import clean
from .target import Target
from .times import clock
from .workers import plural, workers_table

LINE_INTERVAL: Final = 5.0
"""Seconds between two lines where no terminal can redraw a table."""

_FIRST_LINE: Final = 0.5
"""Seconds before the first: by then it is known who is busy, or it is over."""

_FRAME: Final = 0.1


class WaitDisplay:
    """Shows a wait: give ``look`` to the drain, in a ``with`` block.

    Args:
        target: What is drained, and where to write.
        state: The publication that is drained.
        timeout: Seconds after which the wait ends.
    """

    def __init__(self, target: Target, state: MaintenanceState, timeout: float) -> None:
        self._target = target
        self._out = target.out
        self._state = state
        self._timeout = timeout
        self._started = time.monotonic()
        self._live = (
            Live(console=self._out.console, auto_refresh=False)
            if self._out.live
            else None
        )
        self._next = _FIRST_LINE if self._live is None else 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._out.say()
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self, roster: Roster, verdict: Verdict) -> None:
        """Show one look of the drain, when it is time to."""
        waited = time.monotonic() - self._started
        if waited < self._next and verdict.outcome != "drained":
            return
        if self._live is not None:
            self._next = waited + _FRAME
            self._draw(self._live, roster.living, verdict)
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
            workers=self._target.documents(roster.living, self._state),
        )
        self._out.say(
            f"{clock()}  {self._progress(roster.living)}; {self._left(waited)};"
            f" {verdict.reason}"
        )

    def _draw(
        self, live: Live, workers: tuple[WorkerReport, ...], verdict: Verdict
    ) -> None:
        waited = time.monotonic() - self._started
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(
            ProgressBar(
                total=max(len(workers), 1),
                completed=self._done(workers),
                width=20,
                complete_style="yellow",
            ),
            Text(self._progress(workers)),
            Text("" if verdict.outcome == "drained" else self._left(waited)),
        )
        parts: list[RenderableType] = [head]
        if workers:
            now = self._target.switch.clock()
            parts.append(workers_table(workers, self._state, now, live=True))
        if verdict.outcome not in {"drained", "busy"}:
            parts.append(Text(clean(verdict.reason), style="yellow"))
        live.update(Group(*parts), refresh=True)

    def _done(self, workers: tuple[WorkerReport, ...]) -> int:
        return sum(
            has_acknowledged(worker, self._state)
            and not count_before(worker, self._state)
            for worker in workers
        )

    def _progress(self, workers: tuple[WorkerReport, ...]) -> str:
        text = f"{self._done(workers)} of {plural(len(workers), 'worker')} drained"
        left = sum(count_before(worker, self._state) for worker in workers)
        return text + (f", {plural(left, 'request')} left" if left else "")

    def _left(self, waited: float) -> str:
        return f"{shown_span(max(0.0, self._timeout - waited))} to go"
