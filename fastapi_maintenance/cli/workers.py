"""What is shown of workers: one column for table, lines and JSON alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.table import Table
from rich.text import Text

from ..fence import (
    SETTLING,
    Roster,
    WorkerReport,
    count_before,
    distinct_hosts,
    has_acknowledged,
)
from ..state import MaintenanceState
from .output import clean
from .times import show_span


@dataclass(frozen=True)
class Seen:
    """One worker under a state, at one moment."""

    worker: WorkerReport
    state: MaintenanceState
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Column:
    """One thing that is shown of each worker.

    Attributes:
        key: Its name in JSON.
        value: What JSON has.
        title: The head of its column in tables; without one, it is in JSON alone.
        text: What tables have; the value by default.
        right: Whether it is aligned to the right.
        max_width: Its width at most.
        ratio: Its share of the width that is left.
    """

    key: str
    value: Callable[[Seen], object]
    title: str = ""
    text: Callable[[Seen], str] | None = None
    right: bool = False
    max_width: int | None = None
    ratio: int | None = None

    def cell(self, seen: Seen) -> Text:
        """Return what a table has of a worker."""
        if self.text is not None:
            return Text(self.text(seen))
        text = clean(str(self.value(seen)))
        style = _STYLES.get(text.partition(" ")[0].rstrip(","), "bold red")
        return Text(text, style=style if self.key == "status" else "")


def is_drained(worker: WorkerReport, state: MaintenanceState) -> bool:
    """Tell whether a worker has acknowledged, and runs nothing older."""
    return has_acknowledged(worker, state) and not worker.old


def worker_status(worker: WorkerReport, state: MaintenanceState, now: datetime) -> str:
    """Return what a worker is doing under a state, in a few words."""
    acknowledged = has_acknowledged(worker, state)
    if not state.in_force(now):
        text = "serving" if acknowledged else "not acknowledged"
    elif state.needs_clock:
        # Requests from before its start were admitted under the same epoch.
        text = "refusing" if acknowledged else "not acknowledged"
    elif is_drained(worker, state):
        text = "drained"
    else:
        text = f"draining ({count_before(worker, state)} left)"
    if worker.uncounted:
        text = "cannot be counted"
    if worker.liveness != "silent":
        return text
    silent = f"no answer for {show_span(worker.age)}"
    return f"drained, {silent}" if text == "drained" else silent


def oldest_request(worker: WorkerReport) -> str:
    """Return age and route of the oldest request on a worker."""
    if worker.oldest is None:
        return ""
    return f"{show_span(worker.oldest.seconds)}  {clean(worker.oldest.route)}"


COLUMNS: Final = (
    Column(key="id", value=lambda seen: seen.worker.id),
    Column(key="host", value=lambda seen: seen.worker.host, title="HOST", max_width=24),
    Column(key="pid", value=lambda seen: seen.worker.pid, title="PID", right=True),
    Column(
        key="in_flight",
        value=lambda seen: seen.worker.in_flight,
        title="IN FLIGHT",
        right=True,
    ),
    Column(
        key="status",
        value=lambda seen: worker_status(seen.worker, seen.state, seen.now),
        title="STATUS",
    ),
    Column(key="older", value=lambda seen: count_before(seen.worker, seen.state)),
    Column(
        key="acknowledged",
        value=lambda seen: has_acknowledged(seen.worker, seen.state),
    ),
    Column(key="liveness", value=lambda seen: seen.worker.liveness),
    Column(key="report_age", value=lambda seen: round(seen.worker.age, 3)),
    Column(
        key="oldest",
        value=lambda seen: seen.worker.oldest and seen.worker.oldest.model_dump(),
        title="OLDEST REQUEST",
        text=lambda seen: oldest_request(seen.worker),
        ratio=1,
    ),
)

_STYLES: Final = {
    "serving": "green",
    "drained": "green",
    "draining": "yellow",
    "refusing": "yellow",
    "not": "yellow",
}


def workers_table(
    workers: Iterable[WorkerReport],
    state: MaintenanceState,
    now: datetime,
    *,
    live: bool,
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
    columns = [column for column in COLUMNS if column.title]
    for column in columns:
        table.add_column(
            column.title,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
            max_width=column.max_width,
            ratio=column.ratio,
        )
    for worker in workers:
        table.add_row(*(column.cell(Seen(worker, state, now)) for column in columns))
    return table


def worker_document(
    worker: WorkerReport, state: MaintenanceState, now: datetime
) -> dict[str, object]:
    """Return a worker for scripts."""
    return {column.key: column.value(Seen(worker, state, now)) for column in COLUMNS}


def worker_summary(roster: Roster) -> str:
    """Return how many workers on how many machines a store speaks for."""
    living = roster.living
    text = headcount(living) if living else "no worker has joined"
    silent = sum(worker.liveness == "silent" for worker in living)
    if silent:
        text += f", no answer from {silent} of them"
    if roster.uncounted:
        text += "; at least one is running that cannot be counted"
    return text


def roster_summary(roster: Roster) -> str | None:
    """Return since when the list of workers is complete, or why it is not."""
    if not roster.generation:
        return None
    if not roster.complete:
        return (
            "not complete: the store has lost data; wait with --workers"
            f" {len(roster.living)} if these are all"
        )
    if roster.age < SETTLING:
        return f"new: complete if no other worker reports within {SETTLING:.0f} s"
    return f"complete for {show_span(roster.age)}"


def acknowledged_by(workers: Collection[WorkerReport], state: MaintenanceState) -> str:
    """Return how many workers have acknowledged a state."""
    if not workers:
        return "no worker has joined"
    count = sum(has_acknowledged(worker, state) for worker in workers)
    return f"acknowledged by {count} of {headcount(workers)}"


def headcount(workers: Collection[WorkerReport]) -> str:
    """Return how many workers these are, on how many machines."""
    machines = plural(distinct_hosts(workers), "machine")
    return f"{plural(len(workers), 'worker')} on {machines}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
