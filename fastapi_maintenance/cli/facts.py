"""What is shown of a state: one table of facts, for terminals, lines and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..fence import Roster, WorkerReport, distinct_hosts
from ..state import VERSION, MaintenanceState
from .output import Output, clean
from .times import show_moment, show_span
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
        for label, fact in FACTS.items():
            text = fact(self)
            if text is not None:
                yield label, text
        for name, field in MaintenanceState.model_fields.items():
            value = getattr(self.state, name)
            if name not in _SHOWN and value != field.default:
                yield name.replace("_", "-"), str(value)

    def document(self) -> dict[str, object]:
        """Return the same for scripts, with no trace of a token."""
        state, now, roster = self.state, self.now, self.roster
        known = roster is not None and not self.fixed
        document = json.loads(state.to_json())
        return {
            "store": self.place,
            "name": self.name,
            "phase": state.phase(now),
            "in_force": state.in_force(now),
            "state": document | {"bypass": bool(document.get("bypass"))},
            "workers": [worker_document(worker, state, now) for worker in self.workers]
            if known
            else None,
            "machines": distinct_hosts(self.workers),
            "complete": roster.complete if known and roster else None,
            "roster_age": round(roster.age, 3) if known and roster else None,
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


def _version(view: View) -> str | None:
    if view.state.version == VERSION:
        return None
    return f"{view.state.version}, of a newer release: everything is refused"


def _since(view: View) -> str | None:
    state = view.state
    if not state.enabled or state.since is None:
        return None
    return _with_distance(state.since, view.now)


def _begins(view: View) -> str | None:
    state = view.state
    if not state.enabled or state.starts_at is None:
        return None
    return _with_distance(state.starts_at, view.now)


def _off_since(view: View) -> str | None:
    state = view.state
    if state.enabled or state.since is None:
        return None
    return _with_distance(state.since, view.now)


def _until(view: View) -> str | None:
    state = view.state
    if not state.enabled or state.until is None:
        return None
    how = "opens by itself" if state.auto_off else "expected; stays on until `off`"
    return f"{_with_distance(state.until, view.now)}, {how}"


def _read_only(view: View) -> str | None:
    if not view.state.enabled:
        return None
    return "yes: GET, HEAD and OPTIONS pass" if view.state.read_only else "no"


def _bypass(view: View) -> str | None:
    if not view.state.enabled:
        return None
    return "yes: a token is set" if view.state.bypass else "no"


def _workers(view: View) -> str | None:
    if view.fixed:
        return None
    return "not known" if view.roster is None else worker_summary(view.roster)


def _roster(view: View) -> str | None:
    if view.fixed or view.roster is None:
        return None
    return roster_summary(view.roster)


FACTS: Final[dict[str, Callable[[View], str | None]]] = {
    "store": lambda view: view.place,
    "switch": lambda view: view.name,
    "workers": _workers,
    "roster": _roster,
    "version": _version,
    "begins": _begins,
    "since": _since,
    "off since": _off_since,
    "until": _until,
    "message": lambda view: view.state.message,
    "by": lambda view: view.state.actor,
    "held by": lambda view: ", ".join(view.state.holders) or None,
    "read-only": _read_only,
    "bypass": _bypass,
}

# Fields that these facts tell; any other one is shown by its name.
_SHOWN: Final = frozenset(
    {
        *("epoch", "tag", "version", "enabled", "since", "starts_at", "until"),
        *("auto_off", "message", "read_only", "actor", "holders", "bypass"),
    }
)


def _with_distance(moment: datetime, now: datetime) -> str:
    away = (moment - now).total_seconds()
    if abs(away) < 1:
        return f"{show_moment(moment)}, now"
    near = f"in {show_span(away)}" if away > 0 else f"{show_span(-away)} ago"
    return f"{show_moment(moment)}, {near}"
