"""Tables of workers, alive in a terminal and in lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..fence import Outcome, Roster, WorkerRow, holds_up, older
from .output import Output, clean
from .phases import living, plural, row_document, standing
from .times import clock, show_span

LINE_INTERVAL: Final = 5.0
"""Seconds between two lines where no terminal can redraw a table."""

_FRAME: Final = 0.1

_STYLES: Final = {
    "drained": "green",
    "up to date": "green",
    "busy": "yellow",
    "not yet seen": "yellow",
}


def workers_table(
    rows: Iterable[WorkerRow], epoch: int, *, fenced: bool, live: bool
) -> Table:
    """Return one line for each worker; where it is live, as wide as the terminal."""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 0, 0),
        # Long routes are cut, and nothing else.
        expand=live,
    )
    table.add_column("HOST", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("PID", no_wrap=True, justify="right")
    table.add_column("IN FLIGHT", no_wrap=True, justify="right")
    table.add_column("STATE", no_wrap=True)
    table.add_column("OLDEST REQUEST", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        state = standing(row, epoch, fenced=fenced)
        table.add_row(
            Text(clean(row.host)),
            Text(str(row.pid)),
            Text(str(row.in_flight)),
            Text(state, style=_STYLES.get(state, "bold red")),
            Text(oldest(row)),
        )
    return table


def oldest(row: WorkerRow) -> str:
    """Return age and route of the oldest request on a worker."""
    if not row.in_flight or row.oldest_route is None:
        return ""
    age = "" if row.oldest_age is None else f"{show_span(row.oldest_age)}  "
    return age + clean(row.oldest_route)


class Waiting:
    """Shows a wait while it lasts: give ``look`` to the drain, in a ``with`` block.

    Args:
        out: Where to.
        epoch: What is fenced.
        timeout: Seconds after which the wait ends.
    """

    def __init__(self, out: Output, epoch: int, timeout: float) -> None:
        self._out = out
        self._epoch = epoch
        self._timeout = timeout
        self._started = time.monotonic()
        self._next = 0.0
        self._live = Live(console=out.console, auto_refresh=False) if out.live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._out.say()
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self, roster: Roster, outcome: Outcome, reason: str) -> None:
        """Show one look of the drain, when it is time to."""
        waited = time.monotonic() - self._started
        if waited < self._next and outcome != "drained":
            return
        if self._live is not None:
            self._next = waited + _FRAME
            self._draw(self._live, roster, outcome, reason)
            return
        self._next = waited + LINE_INTERVAL
        if outcome == "drained":
            return
        rows = living(roster)
        self._out.emit(
            "waiting",
            outcome=outcome,
            reason=reason,
            seconds=round(waited, 3),
            seconds_left=round(max(0.0, self._timeout - waited), 3),
            workers=[row_document(row, self._epoch) for row in rows],
        )
        self._out.say(
            f"{clock()}  {self._progress(rows)}; {self._left(waited)}; {reason}"
        )

    def _draw(self, live: Live, roster: Roster, outcome: Outcome, reason: str) -> None:
        waited = time.monotonic() - self._started
        rows = living(roster)
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(
            ProgressBar(
                total=max(len(rows), 1),
                completed=self._done(rows),
                width=20,
                complete_style="yellow",
            ),
            Text(self._progress(rows)),
            Text("" if outcome == "drained" else self._left(waited)),
        )
        parts: list[RenderableType] = [head]
        if rows:
            parts.append(workers_table(rows, self._epoch, fenced=True, live=True))
        if outcome not in {"drained", "busy"} and reason:
            parts.append(Text(clean(reason), style="yellow"))
        live.update(Group(*parts), refresh=True)

    def _done(self, rows: list[WorkerRow]) -> int:
        return sum(not holds_up(row, self._epoch) for row in rows)

    def _progress(self, rows: list[WorkerRow]) -> str:
        text = f"{self._done(rows)} of {plural(len(rows), 'worker')} drained"
        left = sum(older(row, self._epoch) for row in rows)
        return text + (f", {plural(left, 'request')} left" if left else "")

    def _left(self, waited: float) -> str:
        return f"{show_span(max(0.0, self._timeout - waited))} to go"
