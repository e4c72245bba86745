"""What is shown of a state, in terminals, lines and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..fence import Roster, WorkerReport, distinct_hosts, shown_span
from ..state import VERSION, MaintenanceState
from .output import Output, clean
from .times import show_moment
from .workers import (
    roster_summary,
    worker_document,
    worker_summary,
    workers_table,
)


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
    def workers(self) -> tuple[WorkerReport, ...]:
        """The workers that are not proven dead."""
        return () if self.roster is None else self.roster.living

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
            yield "close-after", str(state.close_after)

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

    def document(self) -> dict[str, object]:
        """Return the same for scripts, with no trace of a token."""
        state, now = self.state, self.now
        roster = None if self.fixed else self.roster
        document = json.loads(state.to_json())
        return {
            "store": self.place,
            "name": self.name,
            "phase": state.phase(now),
            "in_force": state.in_force(now),
            "state": document | {"bypass": bool(document.get("bypass"))},
            "workers": None
            if roster is None
            else [worker_document(worker, state, now) for worker in roster.living],
            "machines": distinct_hosts(self.workers),
            "complete": None if roster is None else roster.complete,
            "roster_age": None if roster is None else round(roster.age, 3),
            "uncounted": roster is not None and roster.uncounted,
        }

    def table(self, *, live: bool) -> Table:
        """Return one line for each worker."""
        return workers_table(self.workers, self.state, self.now, live=live)

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

    def show(self, out: Output) -> None:
        """Write headline and facts for people."""
        if out.live:
            out.show(self.rendered())
            return
        out.say(self.headline())
        for label, value in self.facts():
            out.say(f"  {label:<10} {value}".rstrip())
