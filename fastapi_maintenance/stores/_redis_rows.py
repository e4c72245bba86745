"""Rows in Redis: what a worker reports, and what a coordinator makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Final, NamedTuple

from ..fence import Liveness, WorkerRow
from ._process import ProcessIdentity

LOST_AFTER: Final = 5.0
"""Seconds of silence, by the server's clock, that a reconnecting worker never needs:
a second between heartbeats, two of backoff and one and a half for a command."""

_IDENTITY: Final = tuple(item.name for item in fields(ProcessIdentity))
_UNKNOWN: Final = "unknown"


def kernel_of(identity: ProcessIdentity) -> str:
    """Return what processes share whose death one can prove to the other.

    The same boot of one kernel and the same pid namespace, and nothing less: an
    installation's id is copied with images and proves nothing between machines.
    """
    if not identity.boot or not identity.namespace:
        return _UNKNOWN
    text = f"{identity.boot} {identity.namespace}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def field_of(worker: str, identity: ProcessIdentity) -> str:
    """Return the field of a worker's row."""
    return f"{kernel_of(identity)}/{worker}"


class Entry(NamedTuple):
    """A row, whose it is, and whether that worker cannot count."""

    row: WorkerRow
    identity: ProcessIdentity | None
    uncounted: bool

    @property
    def dead(self) -> bool:
        """Whether it is proven that its process is gone."""
        return self.row.liveness == "dead"


def encode(
    identity: ProcessIdentity,
    *,
    uncounted: bool,
    seen: int,
    current: int,
    old: int,
    oldest: tuple[str, float] | None,
) -> str:
    """Return a row's value; the script puts the server's time before it.

    Args:
        identity: Whose it is.
        uncounted: Whether it cannot count what it admits.
        seen: The adopted epoch, read before the counts.
        current: Requests in flight under it.
        old: Requests in flight from before.
        oldest: Route and age in seconds of the oldest one.
    """
    counts = {"seen": seen, "current": current, "old": old}
    label = [oldest[0][:200], round(oldest[1], 3)] if oldest else None
    rest = {"oldest": label, "uncounted": uncounted}
    return json.dumps({**counts, **rest, **asdict(identity)})


def decode(
    field: str, value: str, *, now: int, epoch: int, observer: ProcessIdentity
) -> Entry:
    """Return what a row says.

    A row that cannot be understood is *lost*: it is never taken for none.

    Args:
        field: Its field.
        value: What was stored there.
        now: The server's clock, in milliseconds.
        epoch: The newest that is stored there.
        observer: Who looks; death is proven in its own process table.
    """
    kernel, _, worker = field.rpartition("/")
    stamp, _, text = value.partition(" ")
    try:
        values = json.loads(text)
        identity = ProcessIdentity(**{name: values[name] for name in _IDENTITY})
        route, age = values["oldest"] or (None, None)
        uncounted = values["uncounted"] is True
        silent = max(0.0, (now - int(stamp)) / 1000)
        # Seen elsewhere, before this server lost it: no word on what is stored now.
        seen = int(values["seen"]) if int(values["seen"]) <= epoch else 0
        row = WorkerRow(
            id=worker,
            host=str(identity.host),
            pid=int(identity.pid),
            seen=seen,
            current=int(values["current"]),
            old=int(values["old"]),
            liveness=_liveness(kernel, identity, observer, silent),
            oldest_route=route,
            oldest_age=None if age is None else float(age) + silent,
            report_age=silent,
        )
    except (ValueError, TypeError, KeyError):
        row = WorkerRow(id=worker, host="?", pid=0, seen=0, liveness="lost")
        return Entry(row, None, uncounted=False)
    return Entry(row, identity, uncounted=uncounted)


def dead_fields(
    rows: Iterable[tuple[str, str]], observer: ProcessIdentity
) -> list[str]:
    """Return the fields of those that are proven dead."""
    return [
        field
        for field, value in rows
        if decode(field, value, now=0, epoch=0, observer=observer).dead
    ]


def identities(entries: Iterable[Entry]) -> dict[str, ProcessIdentity]:
    """Return who the workers of rows are, of those that can be understood."""
    return {
        entry.row.id: entry.identity for entry in entries if entry.identity is not None
    }


def _liveness(
    kernel: str, identity: ProcessIdentity, observer: ProcessIdentity, silent: float
) -> Liveness:
    # Its field says so too: nobody else's row is removed.
    if kernel == kernel_of(identity) and identity.gone(observer):
        return "dead"
    return "lost" if silent > LOST_AFTER else "alive"
