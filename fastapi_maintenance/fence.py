"""When worker rows mean *drained*: pure, without an engine, a clock or HTTP.

The argument is the one of the classic epoch fence. A worker counts a request
before it reads the epoch, and moves what is in flight to ``old`` before it
reports a newer epoch as seen. So a row that has seen the epoch and holds nothing
old, or that holds nothing at all while its counts are written before the epoch is
read, runs no request that an older epoch admitted, and will not start one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

Outcome = Literal["drained", "busy", "lost", "superseded", "too_few", "unknown"]
Liveness = Literal["alive", "lost", "dead"]

_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One process that has joined a store, as a coordinator sees it.

    Attributes:
        id: Unique for the life of the process, kept when it joins again.
        host: The machine's name.
        pid: The process, in its own pid namespace.
        seen: The newest epoch that this worker has adopted.
        current: Requests in flight that were admitted under ``seen``.
        old: Requests in flight that were admitted before it.
        liveness: ``alive``; ``lost``, silent and not proven dead; or ``dead``,
            which only a proof makes it.
        oldest_route: The route of the oldest request in flight.
        oldest_age: Its age in seconds.
        report_age: Seconds since this row was last known to be current.
        counts_first: Whether this worker's counts are visible here before it
            reads the very epoch that is published here, so that it need not
            acknowledge while it is idle.
    """

    id: str
    host: str
    pid: int
    seen: int
    current: int = 0
    old: int = 0
    liveness: Liveness = "alive"
    oldest_route: str | None = None
    oldest_age: float | None = None
    report_age: float = 0.0
    counts_first: bool = False

    @property
    def in_flight(self) -> int:
        """All requests that run on this worker."""
        return self.current + self.old

    @property
    def lost(self) -> bool:
        """Whether it is silent and nothing proves it dead."""
        return self.liveness == "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """All rows of a store and name, read at one moment.

    Attributes:
        generation: Another value means that the roster was made anew, so that
            rows may be missing.
        rows: The rows, dead ones excluded once they are reaped.
        epoch: The newest published epoch.
        whole: False when the roster is known to have been made anew.
        uncounted: Whether workers exist that cannot be counted.
    """

    generation: str
    rows: tuple[WorkerRow, ...]
    epoch: int
    whole: bool = True
    uncounted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain found.

    Attributes:
        outcome: ``drained``; ``busy``, requests were still running at the end;
            ``lost``, a worker was silent and not proven dead; ``superseded`` by
            another publication; ``too_few`` workers had joined; ``unknown``,
            the store or a worker cannot tell.
        epoch: The epoch that was fenced.
        workers: The rows of the last look.
        seconds: How long the drain took.
        read_only: Whether reads went on meanwhile.
        reason: One sentence for a person.
    """

    outcome: Outcome
    epoch: int
    workers: tuple[WorkerRow, ...] = ()
    seconds: float = 0.0
    read_only: bool = False
    reason: str = ""

    @property
    def drained(self) -> bool:
        """Whether no request of an older epoch is running, and none will."""
        return self.outcome == "drained"


class DrainError(Exception):
    """The work under maintenance was not started: requests may be running.

    Attributes:
        report: What was found instead.
    """

    def __init__(self, report: DrainReport) -> None:
        super().__init__(f"not drained ({report.outcome}): {report.reason}")
        self.report = report


def older(row: WorkerRow, epoch: int) -> int:
    """Return how many requests on a worker may have been admitted before an epoch."""
    return row.old if row.seen >= epoch else row.in_flight


def holds_up(row: WorkerRow, epoch: int) -> bool:
    """Tell whether a request admitted before an epoch may run on a worker."""
    if row.liveness == "dead":
        return False
    return older(row, epoch) > 0 or (row.seen < epoch and not row.counts_first)


@dataclass(slots=True, eq=False, repr=False)
class Fence:
    """One coordinator's judgement of the rosters it sees, for one epoch.

    Attributes:
        epoch: What is fenced.
        workers: How many workers must be there.
        vouched: Whether a person said that ``workers`` are all there are, which
            alone completes a roster that was lost.
        before: The roster before the epoch was published.
        own: Per worker, the requests that wait for this very fence.
    """

    epoch: int
    workers: int
    vouched: bool
    before: Roster
    own: Mapping[str, int] = field(default_factory=dict)
    _known: set[str] = field(init=False, default_factory=set)
    _whole: bool = field(init=False, default=True)
    _blind: bool = field(init=False, default=False)
    _first: bool = field(init=False, default=True)
    _generation: str = field(init=False, default="")

    def judge(self, roster: Roster) -> tuple[Outcome, str]:
        """Return what the fence would answer if it ended with this look."""
        self._remember(roster)
        rows = [self._without_own(row) for row in roster.rows]
        pending = [row for row in rows if holds_up(row, self.epoch)]
        busy = [row for row in pending if not row.lost]
        if busy:
            running = [row for row in busy if older(row, self.epoch)]
            why = _names("still running on", running)
            return "busy", why or _names("no answer yet from", busy)
        missing = self._known - {row.id for row in rows}
        if pending or (missing and not self._whole):
            return "lost", _names("silent, and not proven dead:", pending) or (
                f"{len(missing)} worker(s) seen before have not come back since the"
                " roster was made anew"
            )
        if roster.uncounted:
            return "unknown", (
                "workers that cannot be counted use this store; their log names the"
                " remedy"
            )
        live = [row for row in rows if row.liveness != "dead"]
        if len(live) < self.workers:
            return "too_few", f"{len(live)} of {self.workers} worker(s) have joined"
        acknowledged = sum(row.seen >= self.epoch for row in live)
        if self._blind and not (self.vouched and acknowledged >= self.workers):
            return "lost", (
                "the list of workers is new or was lost, and nobody can tell whether it"
                " is complete; repeat with --workers N, the number that must be there"
            )
        return "drained", ""

    def _remember(self, roster: Roster) -> None:
        # A store that had no roster at all, and has lost none, gets its first one.
        began = self.before.generation or roster.generation
        if self._first:
            self._generation = began
        if roster.generation != self._generation or not roster.whole:
            self._whole = False
        if self._first:
            # A roster that was lost before this coordinator saw it whole can
            # never be completed by waiting: whoever is missing is unknown.
            self._blind = not self._whole or not self.before.whole
            self._first = False
        elif roster.generation == self._generation and not roster.whole:
            # It was not whole when it was seen to be: a worker of an earlier one
            # has come back and said so.
            self._blind = True
        if self._whole:
            # As long as the roster stands, a row leaves it only by a clean
            # leave or a proof of death.
            self._known = {row.id for row in roster.rows}
        else:
            self._known -= {row.id for row in roster.rows if row.liveness == "dead"}

    def _without_own(self, row: WorkerRow) -> WorkerRow:
        aside = self.own.get(row.id, 0)
        if not aside:
            return row
        old = max(0, row.old - aside)
        current = max(0, row.current - (aside - (row.old - old)))
        return replace(row, current=current, old=old)


def distinct_hosts(rows: Iterable[WorkerRow]) -> int:
    """Return on how many machines the workers run."""
    return len({row.host for row in rows})


def _names(what: str, rows: Collection[WorkerRow]) -> str:
    if not rows:
        return ""
    names = [f"{row.host}/{row.pid} ({row.in_flight} in flight)" for row in rows]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what} {', '.join(names[:_NAMED])}{more}"
