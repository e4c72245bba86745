"""What a state means at a moment, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

from ..fence import Roster, WorkerRow, distinct_hosts, holds_up, older
from ..state import VERSION, MaintenanceState, phase
from .times import show_moment, show_span


def headline(state: MaintenanceState, now: datetime) -> str:
    """Return the phase as a sentence."""
    return {
        "off": "Maintenance is off.",
        "scheduled": "Maintenance is scheduled, and off until then.",
        "in force": "Maintenance is on"
        + (", reads continue (read-only)." if state.read_only else "."),
        "ending": "Maintenance is on; its announced end has passed (off opens it).",
        "ended": "Maintenance has ended by its clock; the service is open.",
    }[phase(state, now)]


def facts(state: MaintenanceState, now: datetime) -> Iterator[tuple[str, str]]:
    """Return what else is known of a state, label by label."""
    if state.version != VERSION:
        yield "version", f"{state.version}, of a newer release: everything is refused"
    if state.since is not None:
        planned = not state.begun and state.since > now
        label = ("begins" if planned else "since") if state.active else "off since"
        yield label, _with_distance(state.since, now)
    if state.active and state.until is not None:
        how = "opens by itself" if state.auto_off else "announced, `off` opens"
        yield "until", f"{_with_distance(state.until, now)}, {how}"
    if state.message is not None:
        yield "message", state.message
    if state.actor is not None:
        yield "by", state.actor
    if state.holders:
        yield "held by", ", ".join(state.holders)
    if state.active:
        yield (
            "read-only",
            "yes: GET, HEAD and OPTIONS pass" if state.read_only else "no",
        )
        yield "bypass", "yes: a token is set" if state.bypass else "no"


def _with_distance(moment: datetime, now: datetime) -> str:
    away = (moment - now).total_seconds()
    if abs(away) < 1:
        return f"{show_moment(moment)}, now"
    near = f"in {show_span(away)}" if away > 0 else f"{show_span(-away)} ago"
    return f"{show_moment(moment)}, {near}"


def document(state: MaintenanceState) -> dict[str, object]:
    """Return the documented JSON form, with no trace of a token."""
    values: dict[str, object] = json.loads(state.to_json())
    return values | {"bypass": state.bypass is not None}


def row_document(row: WorkerRow, epoch: int) -> dict[str, object]:
    """Return a worker's row for scripts."""
    return {
        "id": row.id,
        "host": row.host,
        "pid": row.pid,
        "in_flight": row.in_flight,
        "older": older(row, epoch),
        "seen": row.seen >= epoch,
        "liveness": row.liveness,
        "oldest_route": row.oldest_route,
        "oldest_age": row.oldest_age,
        "report_age": row.report_age,
    }


def living(roster: Roster) -> list[WorkerRow]:
    """Return the rows that are not proven dead."""
    return [row for row in roster.rows if row.liveness != "dead"]


def crowd(roster: Roster) -> str:
    """Return how many workers on how many machines a store speaks for."""
    rows = living(roster)
    lost = sum(row.lost for row in rows)
    text = headcount(rows) if rows else "none has joined"
    if lost:
        text += f", {lost} of them lost"
    if roster.uncounted:
        text += ", and some that cannot be counted"
    return text


def headcount(rows: list[WorkerRow]) -> str:
    """Return how many workers these are, on how many machines."""
    return f"{plural(len(rows), 'worker')} on {plural(distinct_hosts(rows), 'machine')}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def standing(row: WorkerRow, epoch: int, *, fenced: bool) -> str:
    """Return how a worker stands to an epoch, in one or two words."""
    if row.lost:
        silent = f" {show_span(row.report_age)}" if row.report_age else ""
        return f"LOST{silent}"
    if fenced:
        return "busy" if holds_up(row, epoch) else "drained"
    return "up to date" if row.seen >= epoch else "not yet seen"
