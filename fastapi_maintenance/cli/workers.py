"""What is shown of workers, in tables, lines and JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
    shown_span,
    worker_status,
)
from ..state import MaintenanceState
from .output import clean

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
    table = plain_table(
        # Long routes are cut, and nothing else.
        expand=live
    )
    table.add_column("HOST", no_wrap=True, max_width=24)
    table.add_column("PID", no_wrap=True, justify="right")
    table.add_column("IN FLIGHT", no_wrap=True, justify="right")
    table.add_column("STATUS", no_wrap=True)
    table.add_column("OLDEST REQUEST", no_wrap=True, ratio=1)
    for worker in workers:
        status = worker_status(worker, state, now)
        style = _STYLES.get(status.partition(" ")[0].rstrip(","), "bold red")
        oldest = worker.oldest
        table.add_row(
            Text(clean(worker.host)),
            Text(str(worker.pid)),
            Text(str(worker.in_flight)),
            Text(status, style=style),
            Text(
                f"{shown_span(oldest.seconds)}  {clean(oldest.route)}" if oldest else ""
            ),
        )
    return table


def plain_table(*, expand: bool = False) -> Table:
    """Return a table without lines."""
    return Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 0, 0),
        expand=expand,
    )


def worker_document(
    worker: WorkerReport, state: MaintenanceState, now: datetime
) -> dict[str, object]:
    """Return a worker for scripts."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "in_flight": worker.in_flight,
        "status": worker_status(worker, state, now),
        "older": count_before(worker, state),
        "acknowledged": has_acknowledged(worker, state),
        "liveness": worker.liveness,
        "report_age": round(worker.age, 3),
        "oldest": worker.oldest and worker.oldest.model_dump(),
    }


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
    return f"complete for {shown_span(roster.age)}"


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
