"""What workers report, and when that means *drained*. Pure: no store, no clock.

The argument: a worker counts a request before it reads the state, and moves what is in
flight to ``old`` before it reports a new epoch. So a worker that reports the epoch and
nothing old runs no request that an older epoch admitted, and will not start one.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from .state import EPOCH_LIMIT, MaintenanceState

Outcome = Literal["drained", "busy", "lost", "superseded", "too_few", "unknown"]
Liveness = Literal["alive", "silent", "dead"]

HEARTBEAT: Final = 1.0
"""Seconds between two reports of a worker that has nothing new to say."""

SILENT_AFTER: Final = 3.0
"""Seconds without a report after which a store calls a worker silent."""

LOST_AFTER: Final = 5.0
"""Seconds without an answer, by the coordinator's own clock, after which it is lost."""

RETURN_GRACE: Final = 2 * HEARTBEAT
"""Seconds in which a worker that was silent before the first look may answer."""

SETTLING: Final = 3.0
"""Seconds that a new roster is given for workers that remember an older one."""

_NAMES_SHOWN: Final = 5

Count = Annotated[int, Field(ge=0)]


class Oldest(BaseModel):
    """The oldest request in flight on a worker.

    Attributes:
        route: How it is shown, such as ``POST /orders``.
        seconds: How long it has been running.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    route: str
    seconds: FiniteFloat


class WorkerReport(BaseModel):
    """What a worker says of itself, and what a store adds when it lists it.

    Attributes:
        id: Unique for one worker of one process.
        host: The machine's name, for people.
        pid: The process, in its own pid namespace.
        process: What tells the process from every other one; see ``processes.py``.
        generation: The roster that the worker remembers; None before it has joined.
        seen: The epoch that it has adopted.
        tag: The tag of that publication.
        current: Requests in flight that were admitted under ``seen``.
        old: Requests in flight, and threads left behind, from before ``seen``.
        oldest: The oldest of them; of the current ones if there is no old one.
        left_behind: How many of ``old`` are threads whose request has ended.
        uncounted: Work in flight that cannot be followed. If it is not 0, a drain is
            *unknown*.
        lock: The inode of the worker's lock file, where a directory is the store.
        liveness: Added by the store: ``dead`` only if that is proven.
        age: Added by the store: seconds since the worker reported.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    id: str
    host: str
    pid: int
    process: str = ""
    generation: str | None = None
    seen: int = Field(default=0, ge=0, lt=EPOCH_LIMIT)
    tag: str = ""
    current: Count = 0
    old: Count = 0
    oldest: Oldest | None = None
    left_behind: Count = 0
    uncounted: Count = 0
    lock: int | None = None
    liveness: Liveness = "alive"
    age: FiniteFloat = 0.0

    @property
    def in_flight(self) -> int:
        """All requests that run on this worker."""
        return self.current + self.old

    @property
    def name(self) -> str:
        """The worker for people, as ``host/pid``."""
        return f"{self.host}/{self.pid}"

    def with_liveness(self, liveness: Liveness, age: float) -> WorkerReport:
        """Return this report with what the store knows of the worker."""
        return self.model_copy(update={"liveness": liveness, "age": max(0.0, age)})


class Receipt(NamedTuple):
    """What a store answers to a report.

    Attributes:
        generation: The roster that the worker is now in.
        complete: Whether no worker has testified that this roster lacks workers.
        replaced: Whether an earlier report of this worker was there.
        young: Whether the server has just started, so that a worker may still write
            back a state that it has lost.
    """

    generation: str
    complete: bool
    replaced: bool
    young: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Who has joined a switch, at one moment.

    Attributes:
        generation: Changes whenever the roster is made again; ``""`` without a roster.
        complete: Whether no worker has testified that workers are missing.
        age: Seconds since it was made, by the store's clock.
        members: The ids of all that have joined and not left.
        workers: Their reports.
        uncounted: Whether workers exist that could not join.
    """

    generation: str = ""
    complete: bool = True
    age: float = 0.0
    members: frozenset[str] = frozenset()
    workers: tuple[WorkerReport, ...] = ()
    uncounted: bool = False

    @property
    def not_dead(self) -> tuple[WorkerReport, ...]:
        """The workers that are not proven dead."""
        return tuple(worker for worker in self.workers if worker.liveness != "dead")


class Membership(BaseModel):
    """The stored form of a roster: who has joined. Stores replace it atomically.

    Attributes:
        generation: As in ``Roster``.
        complete: As in ``Roster``.
        made: When this generation was made, by the store's clock.
        members: The ids of all that have joined and not left.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    generation: str
    complete: bool
    made: FiniteFloat  # NaN would equal no second look at it.
    members: frozenset[str] = frozenset()

    def with_completeness(
        self, generation: str, *, complete: bool, now: float
    ) -> Membership:
        """Mark a generation as complete, or replace it by one that is not."""
        if generation != self.generation:
            return self
        if complete:
            return self.model_copy(update={"complete": True})
        changes = {"generation": new_generation(), "complete": False, "made": now}
        return self.model_copy(update=changes)

    def without(self, worker: str) -> Membership:
        """Take a worker off the list."""
        return self.model_copy(update={"members": self.members - {worker}})


def with_member(
    membership: Membership | None, report: WorkerReport, now: float
) -> Membership:
    """Return the membership with a worker in it, made if there is none.

    A roster is complete when the worker that makes it remembers no older one.
    """
    if membership is None:
        membership = Membership(
            generation=new_generation(), complete=report.generation is None, made=now
        )
    if report.id in membership.members:
        return membership
    return membership.model_copy(update={"members": membership.members | {report.id}})


def roster_of(
    membership: Membership | None,
    workers: Iterable[WorkerReport],
    now: float,
    *,
    uncounted: bool = False,
) -> Roster:
    """Return what a coordinator sees.

    Without a stored membership, the reports that are there are left over from a loss.
    """
    if membership is None:
        return Roster(complete=False, uncounted=uncounted)
    return Roster(
        generation=membership.generation,
        complete=membership.complete,
        # A clock that was put back must not make an old roster new for ever.
        age=abs(now - membership.made),
        members=membership.members,
        workers=tuple(workers),
        uncounted=uncounted,
    )


def new_generation() -> str:
    """Return a mark that no other roster has."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain found.

    Attributes:
        outcome: ``drained``; ``busy``, requests were still running at the end;
            ``lost``, a worker did not answer and is not proven dead, or workers may be
            missing from the list; ``superseded`` by another publication; ``too_few``
            workers had joined; ``unknown``, the store or a worker cannot tell.
        epoch: The epoch that was drained.
        workers: The reports of the last look, without workers that are proven dead.
        seconds: How long the drain took.
        read_only: Whether reads went on.
        reason: One sentence for people, with the remedy where there is one.
    """

    outcome: Outcome
    epoch: int
    workers: tuple[WorkerReport, ...] = ()
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


class Verdict(NamedTuple):
    """What a fence says after one look.

    Attributes:
        outcome: What the drain would answer if it ended now.
        reason: One sentence for people.
        final: Whether waiting longer cannot help.
    """

    outcome: Outcome
    reason: str = ""
    final: bool = False


def has_acknowledged(worker: WorkerReport, state: MaintenanceState) -> bool:
    """Tell whether a worker has adopted a publication, or a later one."""
    if worker.seen == state.epoch:
        return worker.tag == state.tag
    return worker.seen > state.epoch


def count_before(worker: WorkerReport, state: MaintenanceState) -> int:
    """Return how many requests may have been admitted before a publication."""
    return worker.old if has_acknowledged(worker, state) else worker.in_flight


def blocks_drain(worker: WorkerReport, state: MaintenanceState) -> bool:
    """Tell whether a request from before a publication may be running on a worker."""
    if worker.liveness == "dead":
        return False
    # A larger epoch may be of another history. If it follows this publication, the
    # coordinator takes it over as its own.
    return worker.old > 0 or (worker.seen, worker.tag) != (state.epoch, state.tag)


@dataclass(slots=True, eq=False, repr=False)
class Fence:
    """One coordinator's judgement of the rosters that it sees.

    Attributes:
        state: The publication that is fenced.
        roster_before: The roster from before it was published.
        workers: How many workers must have joined; None trusts the roster.
        in_process: Whether the store is this process's memory, where no worker means
            that nothing runs.
        settling: Seconds that a new roster is given.
    """

    state: MaintenanceState
    roster_before: Roster
    workers: int | None = None
    in_process: bool = False
    settling: float = SETTLING
    _expected: set[str] = field(init=False, default_factory=set)
    _generation: str = field(init=False, default="")
    _saw_complete: bool = field(init=False, default=False)
    _answered: dict[str, tuple[WorkerReport, float]] = field(
        init=False, default_factory=dict
    )
    _first: bool = field(init=False, default=True)
    _looked: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        # A worker that joins after a look reads the publication; one that joined after
        # ``roster_before`` was read may not have. So the first look decides.
        self._generation = self.roster_before.generation
        self._expected = set(self.roster_before.members)

    def judge(self, roster: Roster, clock: float, own: str | None = None) -> Verdict:
        """Return what the drain would answer if it ended with this look.

        Args:
            roster: What the store shows now.
            clock: The coordinator's own monotonic clock, in seconds.
            own: The worker on which a request waits for this very drain.
        """
        passed = clock - self._looked
        if passed > SILENT_AFTER:
            # This process was stopped, and has not heard what workers said.
            self.pause()
        self._looked = clock
        self._remember(roster)
        workers = [
            _without_one(worker) if worker.id == own else worker
            for worker in roster.not_dead
        ]
        silent = self._silence(workers, clock, passed)
        pending = [w for w in workers if blocks_drain(w, self.state)]
        missing = self._missing(roster, clock)
        waiting = [w for w in pending if silent[w.id] < LOST_AFTER]
        if waiting:
            return Verdict("busy", _what_runs(waiting, self.state))
        lost = [w for w in pending if silent[w.id] >= LOST_AFTER]
        if lost:
            return Verdict("lost", _lost(lost, silent), final=True)
        if missing:
            return self._judge_missing(missing, clock)
        if roster.uncounted or any(worker.uncounted for worker in workers):
            return Verdict("unknown", _UNCOUNTED, final=True)
        if self._saw_complete and len(workers) >= (self.workers or 1):
            # All that were on the complete list have acknowledged or are gone.
            return Verdict("drained")
        return self._judge_number(roster)

    def pause(self) -> None:
        """Forget how long workers have been silent: the store could not be read."""
        self._answered.clear()

    def _judge_number(self, roster: Roster) -> Verdict:
        if self.in_process and len(roster.not_dead) >= (self.workers or 0):
            return Verdict("drained")
        return judge_number(roster, self.workers, self.settling)

    def _judge_missing(self, missing: Collection[str], clock: float) -> Verdict:
        reason = (
            f"{len(missing)} worker(s) have joined and their reports are missing;"
            " remove those that are gone:"
            f" fastapi-maintenance forget {' '.join(sorted(missing)[:_NAMES_SHOWN])}"
        )
        since = min(self._answered[worker][1] for worker in missing)
        return Verdict("lost", reason, final=clock - since >= LOST_AFTER)

    def _is_settled(self, roster: Roster) -> bool:
        return bool(
            roster.generation and roster.complete and roster.age >= self.settling
        )

    def _remember(self, roster: Roster) -> None:
        """Note which workers must be heard of before this is drained."""
        is_first_complete = not self._saw_complete and self._is_settled(roster)
        stands = roster.generation == self._generation and roster.complete
        if not roster.generation and not self.in_process:
            pass  # No roster is no answer: the last one still counts.
        elif stands or is_first_complete or not self._saw_complete:
            # While a roster stands, a worker leaves it only by leaving in order or by a
            # proof of death. Before one was complete, there is nothing to compare with.
            self._generation = roster.generation
            self._expected = set(roster.members)
        else:
            # It was made again after a loss: from the complete one, none is forgotten.
            self._expected |= roster.members
        self._saw_complete = self._saw_complete or is_first_complete
        self._expected -= {w.id for w in roster.workers if w.liveness == "dead"}

    def _missing(self, roster: Roster, clock: float) -> set[str]:
        listed = {worker.id for worker in roster.workers}
        missing = self._expected - listed
        for worker in missing:
            self._answered.setdefault(worker, (_NOBODY, clock))
        return missing

    def _silence(
        self, workers: Iterable[WorkerReport], clock: float, passed: float
    ) -> dict[str, float]:
        """Return per worker for how long it has said nothing new."""
        silent = {}
        for worker in workers:
            known, since = self._answered.get(worker.id, (None, clock))
            if self._first and worker.age >= LOST_AFTER:
                # It was silent before the first look. After an outage of the store,
                # all workers were, and come back with their next heartbeat.
                since = clock - (LOST_AFTER - RETURN_GRACE)
            elif known is None or _is_newer(worker, known, passed):
                since = clock
            self._answered[worker.id] = worker, since
            silent[worker.id] = clock - since
        self._first = False
        return silent


def judge_number(
    roster: Roster, workers: int | None, settling: float = SETTLING
) -> Verdict:
    """Tell whether the workers that have joined are known to be all."""
    living = len(roster.not_dead)
    if workers == living:
        return Verdict("drained")
    if workers is None and not living:
        reason = (
            "no worker has joined; start the service, or add --workers 0 if it is"
            " stopped"
        )
        return Verdict("too_few", reason, final=True)
    if workers is not None and living < workers:
        return Verdict("too_few", f"{living} of {workers} workers have joined")
    if not roster.complete:
        reason = (
            "workers may be missing from the list, as the store has lost data; add"
            " --workers N with the number of workers that are running:"
            f" --workers {living} if all of them have joined"
        )
        return Verdict("lost", reason, final=not workers)
    if roster.age < settling:
        return Verdict("lost", "the list of workers is new; waiting for others to join")
    return Verdict("drained")


def foresee(roster: Roster, workers: int | None) -> Verdict | None:
    """Return the verdict that no wait can change, if there is one.

    A command asks this before it changes anything.
    """
    silent = {w.id: w.age for w in roster.not_dead if w.age >= LOST_AFTER}
    if silent:
        lost = [worker for worker in roster.not_dead if worker.id in silent]
        return Verdict("lost", _lost(lost, silent), final=True)
    if roster.uncounted or any(worker.uncounted for worker in roster.not_dead):
        return Verdict("unknown", _UNCOUNTED, final=True)
    verdict = judge_number(roster, workers)
    return verdict if verdict.final else None


_UNCOUNTED: Final = "some workers cannot be counted; see their logs for the reason"
_NOBODY: Final = WorkerReport(id="", host="", pid=0)


def _is_newer(worker: WorkerReport, known: WorkerReport, passed: float) -> bool:
    # A worker repeats its report at its heartbeat: the age is less than time alone
    # makes it. Half of a heartbeat is left for a store that answers unevenly.
    repeated = worker.age < known.age + passed - HEARTBEAT / 2
    return repeated or worker.with_liveness("alive", 0) != known.with_liveness(
        "alive", 0
    )


def _without_one(worker: WorkerReport) -> WorkerReport:
    """Return a report without one request, which is an older one if it has any."""
    kind = "old" if worker.old else "current"
    left = max(0, (worker.old or worker.current) - 1)
    return worker.model_copy(update={kind: left})


def distinct_hosts(workers: Iterable[WorkerReport]) -> int:
    """Return on how many machines the workers run."""
    return len({worker.host for worker in workers})


def shown_span(seconds: float) -> str:
    """Return a length of time for people, in two units at most."""
    if seconds < 9.95:  # noqa: PLR2004  # what is shown with a tenth
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for size, unit, smaller, rest_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {rest_unit}" if rest else "")
    return f"{whole} s"


StatusKind = Literal[
    "serving", "waiting", "draining", "drained", "refusing", "silent", "uncounted"
]


class WorkerStatus(NamedTuple):
    """What a worker is doing under a state.

    Attributes:
        kind: For colours and programs; ``waiting`` is for its acknowledgement.
        text: For people, in a few words.
    """

    kind: StatusKind
    text: str


def worker_status(
    worker: WorkerReport, state: MaintenanceState, now: datetime
) -> WorkerStatus:
    """Return what a worker is doing under a state."""
    status = _last_known_status(worker, state, now)
    if worker.liveness != "silent":
        return status
    silent = f"no answer for {shown_span(worker.age)}"
    if status.kind == "drained":
        # Nothing that it does later can change that.
        return WorkerStatus("drained", f"drained, {silent}")
    return WorkerStatus("silent", silent)


def _last_known_status(
    worker: WorkerReport, state: MaintenanceState, now: datetime
) -> WorkerStatus:
    in_force, left = state.in_force(now), count_before(worker, state)
    if worker.uncounted:
        return WorkerStatus("uncounted", "cannot be counted")
    if in_force and left and not state.needs_clock:
        return WorkerStatus("draining", f"draining ({left} left)")
    if not has_acknowledged(worker, state):
        return WorkerStatus("waiting", "not acknowledged")
    if not in_force:
        return WorkerStatus("serving", "serving")
    if state.needs_clock:
        # Requests from before a planned start were admitted under the same epoch.
        return WorkerStatus("refusing", "refusing")
    return WorkerStatus("drained", "drained")


def _what_runs(workers: Collection[WorkerReport], state: MaintenanceState) -> str:
    running = [_running_on(w, state) for w in workers if count_before(w, state)]
    if running:
        return f"still running on {_listing(running)}"
    return f"no answer yet from {_listing([worker.name for worker in workers])}"


def _listing(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    others = f" and {more} more" if more > 0 else ""
    return f"{'; '.join(names[:_NAMES_SHOWN])}{others}"


def _running_on(worker: WorkerReport, state: MaintenanceState) -> str:
    count, oldest = count_before(worker, state), worker.oldest
    if oldest is None:
        return f"{worker.name} ({count} in flight)"
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{worker.name}: {oldest.route}, {shown_span(oldest.seconds)}{more}"


def _lost(workers: Collection[WorkerReport], silent: Mapping[str, float]) -> str:
    names = [
        f"{worker.name} has not answered for"
        f" {shown_span(max(silent[worker.id], worker.age))}"
        for worker in workers
    ]
    ids = " ".join(worker.id for worker in workers)
    return (
        f"{', '.join(names[:_NAMES_SHOWN])}, and nothing proves that it is gone; if it"
        f" is: fastapi-maintenance forget {ids}"
    )
