"""What is shown of a switch and its workers: as lines, as table columns, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ..fence import (
    SETTLING,
    Roster,
    StatusKind,
    WorkerReport,
    WorkerStatus,
    count_before,
    distinct_hosts,
    has_acknowledged,
    shown_span,
    worker_status,
)
from ..state import VERSION, MaintenanceState
from .output import clean, plain_table
from .times import show_moment


@dataclass(frozen=True, kw_only=True)
class View:
    """A switch at one moment.

    Attributes:
        place: Where its state lives.
        name: Which switch it is.
        state: What is set.
        roster: Who has joined; None if that cannot be read.
        now: The moment.
        fixed: Whether it is set when a service starts, so that no worker reports.
    """

    place: str
    name: str
    state: MaintenanceState
    roster: Roster | None
    now: datetime
    fixed: bool = False

    @property
    def workers(self) -> list[WorkerView]:
        """The workers that are not proven dead."""
        living = () if self.roster is None else self.roster.not_dead
        return [WorkerView(worker, self.state, self.now) for worker in living]

    def headline(self) -> str:
        """Return the phase as a sentence."""
        reads = ", reads continue (read-only)." if self.state.read_only else "."
        return {
            "off": "Maintenance is off.",
            "scheduled": "Maintenance is scheduled, and off until then.",
            "in force": f"Maintenance is on{reads}",
            "overdue": "Maintenance is on; its expected end has passed.",
            "ended": "Maintenance has ended by its clock; the service is open.",
        }[self.state.phase(self.now)]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Return what is known, label by label."""
        state = self.state
        # No command sees the environment of the service.
        yield "store", f"{self.place}, of this shell" if self.fixed else self.place
        yield "switch", self.name
        if not self.fixed:
            yield from self._of_workers()
        if state.version != VERSION:
            yield (
                "version",
                f"{state.version}, of a newer release: everything is refused",
            )
        yield from self._of_times()
        if state.message is not None:
            yield "message", state.message
        if state.actor is not None:
            yield "by", state.actor
        if state.holders:
            yield "held by", ", ".join(state.holders)
        if state.enabled:
            reads = "yes: GET, HEAD and OPTIONS pass" if state.read_only else "no"
            yield "read-only", reads
            yield "bypass", "yes: a token is set" if state.bypass else "no"
        if state.retry_after is not None:
            yield "retry-after", str(state.retry_after)
        if state.close_after is not None:
            yield "close after", f"{state.close_after:g} s"

    def _of_workers(self) -> Iterator[tuple[str, str]]:
        if self.roster is None:
            yield "workers", "not known"
            return
        yield "workers", worker_summary(self.roster)
        summary = roster_summary(self.roster)
        if summary is not None:
            yield "roster", summary

    def _of_times(self) -> Iterator[tuple[str, str]]:
        state = self.state
        if state.enabled and state.starts_at is not None:
            yield "begins", self._with_distance(state.starts_at)
        if state.since is not None:
            label = "since" if state.enabled else "off since"
            yield label, self._with_distance(state.since)
        if state.enabled and state.until is not None:
            how = (
                "opens by itself"
                if state.auto_off
                else "expected; stays on until `off`"
            )
            yield "until", f"{self._with_distance(state.until)}, {how}"

    def _with_distance(self, moment: datetime) -> str:
        away = (moment - self.now).total_seconds()
        if abs(away) < 1:
            return f"{show_moment(moment)}, now"
        near = f"in {shown_span(away)}" if away > 0 else f"{shown_span(-away)} ago"
        return f"{show_moment(moment)}, {near}"

    def rendered(self) -> RenderableType:
        """Return the same for a terminal, where long texts keep their column."""
        on = self.state.in_force(self.now)
        head = Text(self.headline(), style="bold yellow" if on else "bold green")
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, min_width=12)
        table.add_column(overflow="fold")
        for label, value in self.facts():
            table.add_row(Text(f"  {label}", style="dim"), Text(clean(value)))
        return Group(head, table)

    def to_dict(self) -> dict[str, object]:
        """Return the same for scripts, with no trace of a token."""
        state, roster = self.state, None if self.fixed else self.roster
        stored = json.loads(state.to_json())
        return {
            "store": self.place,
            "name": self.name,
            "phase": state.phase(self.now),
            "in_force": state.in_force(self.now),
            "state": stored | {"bypass": bool(stored.get("bypass"))},
            "workers": None
            if roster is None
            else [worker.to_dict() for worker in self.workers],
            "machines": distinct_hosts(worker.report for worker in self.workers),
            "complete": None if roster is None else roster.complete,
            "roster_age": None if roster is None else round(roster.age, 3),
            "uncounted": roster is not None and roster.uncounted,
        }


@dataclass(frozen=True)
class WorkerView:
    """A worker under a state, at one moment."""

    report: WorkerReport
    state: MaintenanceState
    now: datetime

    @property
    def acknowledged(self) -> bool:
        """Whether it has adopted the state."""
        return has_acknowledged(self.report, self.state)

    @property
    def left(self) -> int:
        """How many requests from before the state it may be running."""
        return count_before(self.report, self.state)

    @property
    def status(self) -> WorkerStatus:
        """What it is doing."""
        return worker_status(self.report, self.state, self.now)

    def to_dict(self) -> dict[str, object]:
        """Return the same for scripts."""
        report = self.report
        return {
            "id": report.id,
            "host": report.host,
            "pid": report.pid,
            "in_flight": report.in_flight,
            "kind": self.status.kind,
            "status": self.status.text,
            "older": self.left,
            "acknowledged": self.acknowledged,
            "liveness": report.liveness,
            "report_age": round(report.age, 3),
            "oldest": report.oldest and report.oldest.model_dump(),
        }


_STYLES: Final[dict[StatusKind, str]] = {
    "serving": "green",
    "drained": "green",
    "draining": "yellow",
    "refusing": "yellow",
    "waiting": "yellow",
    "silent": "bold red",
    "uncounted": "bold red",
}


def _status(worker: WorkerView) -> Text:
    return Text(worker.status.text, style=_STYLES[worker.status.kind])


def _oldest(worker: WorkerView) -> Text:
    oldest = worker.report.oldest
    if oldest is None:
        return Text()
    return Text(f"{shown_span(oldest.seconds)}  {clean(oldest.route)}")


_COLUMNS: Final[tuple[tuple[Column, Callable[[WorkerView], Text]], ...]] = (
    (
        Column("HOST", no_wrap=True, max_width=24),
        lambda worker: Text(clean(worker.report.host)),
    ),
    (
        Column("PID", no_wrap=True, justify="right"),
        lambda worker: Text(str(worker.report.pid)),
    ),
    (
        Column("IN FLIGHT", no_wrap=True, justify="right"),
        lambda worker: Text(str(worker.report.in_flight)),
    ),
    (Column("STATUS", no_wrap=True), _status),
    # Long routes are cut, and nothing else.
    (Column("OLDEST REQUEST", no_wrap=True, ratio=1), _oldest),
)


def workers_table(workers: Iterable[WorkerView], *, live: bool) -> Table:
    """Return one line for each worker; where it is live, as wide as the terminal."""
    # A table keeps its cells in its columns.
    table = plain_table(*(column.copy() for column, _ in _COLUMNS), expand=live)
    for worker in workers:
        table.add_row(*(cell(worker) for _, cell in _COLUMNS))
    return table


def worker_summary(roster: Roster) -> str:
    """Return how many workers on how many machines a store speaks for."""
    living = roster.not_dead
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
            f" {len(roster.not_dead)} if these are all"
        )
    if roster.age < SETTLING:
        return f"new: complete if no other worker reports within {SETTLING:.0f} s"
    return f"complete for {shown_span(roster.age)}"


def acknowledged_by(workers: Collection[WorkerView]) -> str:
    """Return how many workers have acknowledged a state."""
    if not workers:
        return "no worker has joined"
    count = sum(worker.acknowledged for worker in workers)
    total = headcount([worker.report for worker in workers])
    return f"acknowledged by {count} of {total}"


def headcount(workers: Collection[WorkerReport]) -> str:
    """Return how many workers these are, on how many machines."""
    machines = plural(distinct_hosts(workers), "machine")
    return f"{plural(len(workers), 'worker')} on {machines}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
