"""What a test suite needs: a forced state, a clock, a contract for own stores."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from .changes import EnableOptions, published
from .fence import Oldest, Receipt, Roster, WorkerReport
from .guard import MaintenanceGuard
from .processes import ProcessIdentity
from .state import MaintenanceState
from .stores import FencedStore, Store, StoreError, as_store, has_fence, location
from .stores.memory import MemoryStore
from .switch import Switch

__all__ = ["Clock", "check_store", "force", "frozen_clock"]

RACERS: Final = 16
"""How many writers at once a store has to put in order."""

Result = TypeVar("Result")
MakeStore = Callable[[], Store]


@contextmanager
def force(
    guard: MaintenanceGuard,
    *,
    enabled: bool = True,
    message: str | None = None,
    at: datetime | None = None,
    until: datetime | timedelta | None = None,
    auto_off: bool = False,
    retry_after: int | timedelta | None = None,
    read_only: bool = False,
    bypass_token: str | None = None,
) -> Iterator[MaintenanceState]:
    """Force a guard's state for the time of a block, without touching its store.

    Until the block ends, the guard, what it wraps and its control router use a state in
    memory: what is set within is gone after it. ``on_change`` is not called.

    Args:
        guard: Whose state.
        enabled: On, or off whatever the store says.
        message: As for ``MaintenanceGuard.enable``, like all that follow.
        at: When it begins.
        until: When it is expected to end.
        auto_off: Open by the clock at ``until``.
        retry_after: Seconds for ``Retry-After``.
        read_only: Let GET, HEAD and OPTIONS through.
        bypass_token: Lets requests through.

    Raises:
        ValueError: As ``enable`` does.

    Examples:
        >>> from fastapi import Depends, FastAPI
        >>> from fastapi.testclient import TestClient
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> from fastapi_maintenance.testing import force
        >>> guard = MaintenanceGuard()
        >>> app = FastAPI(dependencies=[Depends(guard)])
        >>> @app.get("/orders")
        ... async def orders() -> list[str]:
        ...     return []
        >>> client = TestClient(app)
        >>> with force(guard, message="Back at noon"):
        ...     client.get("/orders").json()
        {'detail': 'Back at noon'}
        >>> with force(guard, enabled=False):
        ...     client.get("/orders").status_code
        200
    """
    known = guard._switch  # noqa: SLF001  # what is forced
    options = EnableOptions.asked(
        message=message,
        at=at,
        until=until,
        auto_off=auto_off,
        retry_after=retry_after,
        read_only=read_only,
        bypass_token=bypass_token,
    )
    now = known.clock()
    state = options.state(now, now) if enabled else MaintenanceState()
    state = state.replace(epoch=1)
    substitute = Switch(_Forced(state), known.name)
    substitute.clock = known.clock
    substitute.join_now()
    _use(guard, substitute)
    try:
        yield state
    finally:
        _use(guard, known)


class _Forced(MemoryStore):
    location = "fastapi_maintenance.testing.force"

    def __init__(self, state: MaintenanceState) -> None:
        super().__init__()
        self._initial = state


def _use(guard: MaintenanceGuard, switch: Switch) -> None:
    guard._switch = switch  # noqa: SLF001  # both halves share it
    guard._decision.switch = switch  # noqa: SLF001


class Clock:
    """A clock that stands still until it is told otherwise.

    Args:
        now: What it shows.

    Raises:
        ValueError: If that has no time zone.
    """

    def __init__(self, now: datetime) -> None:
        self.set(now)

    def __call__(self) -> datetime:
        """Return what it shows."""
        return self.now

    def set(self, now: datetime) -> None:
        """Show another moment.

        Raises:
            ValueError: If that has no time zone.
        """
        if now.utcoffset() is None:
            raise ValueError(f"now has no time zone: {now.isoformat()}; add tzinfo")
        self.now: datetime = now

    def advance(self, by: timedelta | float) -> None:
        """Move on by a duration, or by seconds."""
        self.now += by if isinstance(by, timedelta) else timedelta(seconds=by)


@contextmanager
def frozen_clock(
    guard: MaintenanceGuard, moment: datetime | None = None
) -> Iterator[Clock]:
    """Stop the clock by which a guard judges its state, for the time of a block.

    Args:
        guard: Whose clock; nothing else has another time.
        moment: What it shows first; the present by default.

    Raises:
        ValueError: If the moment has no time zone.

    Examples:
        >>> from datetime import timedelta
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> from fastapi_maintenance.testing import force, frozen_clock
        >>> guard = MaintenanceGuard()
        >>> with frozen_clock(guard) as clock:
        ...     with force(guard, until=timedelta(hours=1), auto_off=True):
        ...         before = guard.is_active
        ...         clock.advance(timedelta(hours=1))
        ...         before, guard.is_active
        (True, False)
    """
    clock = Clock(datetime.now(UTC) if moment is None else moment)
    switch = guard._switch  # noqa: SLF001  # whose clock it is
    known = switch.clock
    switch.clock = clock
    try:
        yield clock
    finally:
        switch.clock = known


def check_store(make_store: MakeStore) -> None:
    """Check that a store of your own keeps the contract that guards rest on.

    A store with two methods is checked for those; one with all six for the reports of
    workers too. It uses switches with names of its own, and leaves them off.

    Args:
        make_store: Returns a store. It is called twice, and both must mean the same
            place, like the stores of two workers. For a store that lives in an object,
            return that object: ``lambda: store``.

    Raises:
        AssertionError: If it does not; the message says what was found.
        TypeError: If what was made is no store, or its methods are async.

    Examples:
        >>> from fastapi_maintenance import MemoryStore
        >>> from fastapi_maintenance.testing import check_store
        >>> store = MemoryStore()
        >>> check_store(lambda: store)
    """
    one, other = _made(make_store), _made(make_store)
    name = f"check-{secrets.token_hex(6)}"
    names = [name, f"{name}-2"]
    try:
        state = _StateContract(one, other, *names)
        state.starts_off()
        state.keeps_every_field()
        state.parts_names()
        state.leaves_a_failed_change()
        state.refuses_an_old_epoch()
        state.orders_a_race()
        state.opens_again()
        if has_fence(one) and has_fence(other):
            reports = _FenceContract(one, other, *names)
            try:
                reports.starts_without_a_roster()
                reports.keeps_every_report()
                reports.keeps_the_roster_of_one_name()
                reports.marks_one_generation()
                reports.takes_workers_off()
                reports.believes_who_remembers()
                reports.lists_all_who_race()
            finally:
                reports.clean()
    finally:
        for used in names:
            # What was found is worth more than a clean place.
            with contextlib.suppress(Exception):
                one.publish(used, published(lambda _: MaintenanceState()))


def _made(make_store: MakeStore) -> Store:
    store = make_store()
    if not isinstance(store, Store):
        raise TypeError(f"make_store must return a Store, not {store!r}")
    return as_store(store)


class _RefusedError(Exception):
    pass


class _Contract:
    def __init__(self, place: str) -> None:
        self._place = place

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise AssertionError(f"{self._place}: {what}")


class _StateContract(_Contract):
    def __init__(self, one: Store, other: Store, name: str, neighbour: str) -> None:
        super().__init__(location(one))
        self._one = one
        self._other = other
        self._name = name
        self._neighbour = neighbour

    def starts_off(self) -> None:
        self._is_off(self._one.read(self._name))
        seen: list[MaintenanceState | None] = []

        def change(before: MaintenanceState | None) -> MaintenanceState:
            seen.append(before)
            return MaintenanceState()

        self._one.publish(self._name, published(change))
        self._is_off(seen[-1])

    def keeps_every_field(self) -> None:
        now = datetime.now(UTC).replace(microsecond=123_000)
        wanted = MaintenanceState(
            enabled=True,
            since=now,
            starts_at=now + timedelta(minutes=1),
            until=now + timedelta(hours=1),
            auto_off=True,
            message="Wir ziehen um ☂",
            retry_after=90,
            read_only=True,
            actor="check_store",
            holders=("check_store#1", "operator"),
            close_after=1.5,
            bypass=f"sha256:{'0' * 64}",
        ).replace(**{"of-a-newer-release": {"kept": [1, 2.5, None]}})
        made: list[MaintenanceState] = []

        def change(before: MaintenanceState | None) -> MaintenanceState:
            made.append(published(lambda _: wanted)(before))
            return made[-1]

        returned = self._one.publish(self._name, change)
        for what, state in (
            ("publish() must return what change() returned", returned),
            ("read() must return what was published", self._one.read(self._name)),
            ("another worker must read it too", self._other.read(self._name)),
        ):
            self._require(state == made[-1], f"{what}: {state!r} is not {made[-1]!r}")

    def parts_names(self) -> None:
        state = self._one.read(self._neighbour)
        self._require(
            state is None or not state.enabled, "one switch must not set another"
        )

    def leaves_a_failed_change(self) -> None:
        before = self._one.read(self._name)

        def change(present: MaintenanceState | None) -> MaintenanceState:
            raise _RefusedError(present)

        try:
            self._one.publish(self._name, change)
        except _RefusedError as error:
            self._require(
                error.args == (before,), "change() must get the present state"
            )
        except Exception as error:
            raise AssertionError(
                f"{self._place}: publish() must raise what change() raises, not"
                f" {error!r}"
            ) from error
        else:
            self._require(False, "publish() must raise what change() raises")  # noqa: FBT003  # a condition
        self._is_unchanged(before, "a change that fails must change nothing")

    def refuses_an_old_epoch(self) -> None:
        before = self._one.read(self._name)
        self._require(before is not None, "a published state must stay")
        epoch = before.epoch if before is not None else 0
        for older in (epoch, epoch - 1):
            with contextlib.suppress(StoreError):
                self._one.publish(self._name, partial(_with_epoch, older))
                self._require(
                    False,  # noqa: FBT003  # a condition
                    f"publish() must raise StoreError for epoch {older} over {epoch}",
                )
            self._is_unchanged(before, "a smaller epoch must change nothing")

    def orders_a_race(self) -> None:
        def enter(number: int) -> int:
            def change(present: MaintenanceState | None) -> MaintenanceState:
                state = present or MaintenanceState()
                return state.replace(holders=(*state.holders, f"racer-{number}"))

            store = (self._one, self._other)[number % 2]
            return store.publish(self._neighbour, published(change)).epoch

        epochs = _at_once(enter)
        state = self._one.read(self._neighbour) or MaintenanceState()
        self._require(
            len(state.holders) == RACERS,
            f"{RACERS} publications at once left traces of {len(state.holders)}:"
            " nothing may be saved between the reading and the writing",
        )
        self._require(
            len(set(epochs)) == RACERS and state.epoch == max(epochs),
            "each publication must have an epoch of its own, the last one the largest",
        )

    def opens_again(self) -> None:
        self._other.publish(self._name, published(lambda _: MaintenanceState()))
        after = self._one.read(self._name)
        self._require(
            after is not None and not after.enabled,
            "it must be possible to switch off",
        )

    def _is_off(self, state: object) -> None:
        self._require(
            state is None or isinstance(state, MaintenanceState),
            f"read() must return a MaintenanceState or None, not {state!r}",
        )
        self._require(
            not isinstance(state, MaintenanceState) or not state.enabled,
            "a switch that was never set must be off",
        )

    def _is_unchanged(self, before: MaintenanceState | None, what: str) -> None:
        self._require(self._other.read(self._name) == before, what)


class _FenceContract(_Contract):
    def __init__(
        self, one: FencedStore, other: FencedStore, name: str, neighbour: str
    ) -> None:
        super().__init__(location(one))
        self._one = one
        self._other = other
        self._name = name
        self._neighbour = neighbour
        self._process = str(ProcessIdentity.own())
        self._used: set[tuple[str, str]] = set()
        self._first = self._new_report()
        self._generation = ""

    def starts_without_a_roster(self) -> None:
        for _ in range(2):
            found: object = self._one.roster(self._name)
            self._require(
                isinstance(found, Roster) and not found.generation,
                f"roster() must make no roster, but returned {found!r}",
            )
        for complete in (True, False):
            made = self._one.confirm(self._name, "", complete=complete)
            self._require(not made, "confirm() must make no roster")
        self._one.remove(self._name, self._first.id)
        roster = self._one.roster(self._name)
        self._require(not roster.generation, "remove() must make no roster")

    def keeps_every_report(self) -> None:
        receipt = self._report(self._one, self._first)
        self._require(
            bool(receipt.generation) and receipt.complete and not receipt.replaced,
            "the first report must make a complete roster, as its worker remembers"
            f" none: {receipt!r}",
        )
        self._generation = receipt.generation
        self._first = self._first.model_copy(
            update={
                "generation": receipt.generation,
                "seen": 7,
                "tag": "of the publication",
                "current": 5,
                "old": 3,
                "oldest": Oldest(route="POST /orders", seconds=1.25),
                "left_behind": 1,
                "uncounted": 2,
            }
        )
        again = self._report(self._one, self._first)
        self._require(
            again.replaced and again.generation == self._generation,
            f"a second report must replace the first one: {again!r}",
        )
        for store in (self._one, self._other):
            roster = store.roster(self._name)
            self._require(
                roster.generation == self._generation and roster.complete,
                f"every worker must see the roster that was made: {roster!r}",
            )
            self._require(
                roster.members == {self._first.id},
                f"the roster must list its one member: {roster.members!r}",
            )
            self._require(
                len(roster.workers) == 1
                and _as_reported(roster.workers[0]) == _as_reported(self._first),
                f"the roster must have the last report: {roster.workers!r} is not"
                f" {self._first!r}",
            )
            self._require(
                roster.workers[0].liveness == "alive",
                "a worker that has just reported must be alive",
            )

    def keeps_the_roster_of_one_name(self) -> None:
        roster = self._other.roster(self._neighbour)
        self._require(
            not roster.generation and not roster.workers,
            "one switch must not have the workers of another",
        )

    def marks_one_generation(self) -> None:
        known = self._generation
        kept = self._other.confirm(self._name, "another", complete=False)
        roster = self._one.roster(self._name)
        self._require(
            kept == known and roster.complete and roster.generation == known,
            "confirm() of another generation must change nothing, and return the"
            " present one",
        )
        new = self._other.confirm(self._name, known, complete=False)
        roster = self._one.roster(self._name)
        self._require(
            new not in {"", known} and roster.generation == new and not roster.complete,
            "confirm(complete=False) must put a new generation in place that is not"
            " complete",
        )
        kept = self._one.confirm(self._name, known, complete=True)
        self._require(
            kept == new and not self._one.roster(self._name).complete,
            "confirm(complete=True) must hold for the generation that was judged",
        )
        receipt = self._report(self._one, self._first)
        self._require(
            receipt.generation == new and not receipt.complete and receipt.replaced,
            f"report() must return the present generation and mark: {receipt!r}",
        )
        kept = self._one.confirm(self._name, new, complete=True)
        roster = self._other.roster(self._name)
        self._require(
            kept == new and roster.generation == new and roster.complete,
            "confirm(complete=True) must complete the present generation",
        )
        self._require(
            roster.members == {self._first.id},
            "confirm() must leave the members as they are",
        )
        self._generation = new

    def takes_workers_off(self) -> None:
        new = self._other.confirm(self._name, self._generation, complete=False)
        second = self._new_report(generation="of another roster")
        receipt = self._report(self._other, second)
        self._require(
            receipt.generation == new and not receipt.replaced,
            f"a worker that joins must be in the roster that is there: {receipt!r}",
        )
        self._one.remove(self._name, self._first.id)
        roster = self._other.roster(self._name)
        self._require(
            roster.members == {second.id}
            and [worker.id for worker in roster.workers] == [second.id],
            f"remove() must take one worker and its report: {roster!r}",
        )
        self._other.remove(self._name, second.id)
        roster = self._one.roster(self._name)
        self._require(
            not roster.members and not roster.workers,
            f"remove() must take the last one too: {roster!r}",
        )
        receipt = self._report(self._one, self._new_report())
        self._require(
            not receipt.complete and receipt.generation == new,
            "a roster must stay marked when its last worker has left",
        )

    def believes_who_remembers(self) -> None:
        receipt = self._report(
            self._one, self._new_report(generation="lost"), self._neighbour
        )
        self._require(
            not receipt.complete and receipt.generation not in {"", "lost"},
            "a roster that is made by a worker that remembers another one must not be"
            f" complete: {receipt!r}",
        )

    def lists_all_who_race(self) -> None:
        reports = [self._new_report() for _ in range(RACERS)]

        def join(number: int) -> str:
            store = (self._one, self._other)[number % 2]
            return self._report(store, reports[number], self._neighbour).generation

        generations = set(_at_once(join))
        roster = self._one.roster(self._neighbour)
        self._require(
            generations == {roster.generation}
            and {report.id for report in reports} <= roster.members,
            f"{RACERS} workers that join at once must all be in one roster, not"
            f" {len(roster.members)} in {len(generations)}",
        )

    def clean(self) -> None:
        for name, worker in self._used:
            for store in (self._one, self._other):
                # What was found is worth more than a clean place.
                with contextlib.suppress(Exception):
                    store.remove(name, worker)

    def _new_report(self, generation: str | None = None) -> WorkerReport:
        return WorkerReport(
            id=f"{os.getpid()}-{secrets.token_hex(6)}",
            host=socket.gethostname(),
            pid=os.getpid(),
            process=self._process,
            generation=generation,
        )

    def _report(
        self, store: FencedStore, report: WorkerReport, name: str | None = None
    ) -> Receipt:
        name = name or self._name
        self._used.add((name, report.id))
        receipt = store.report(name, report)
        self._require(
            isinstance(receipt, Receipt),
            f"report() must return a Receipt, not {receipt!r}",
        )
        return receipt


def _with_epoch(epoch: int, before: MaintenanceState | None) -> MaintenanceState:
    return (before or MaintenanceState()).replace(epoch=epoch, message="too old")


def _as_reported(report: WorkerReport) -> WorkerReport:
    # What a store adds: a lock, and what it knows of the worker.
    return report.listed("alive", 0).model_copy(update={"lock": None})


def _at_once(work: Callable[[int], Result]) -> list[Result]:
    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(work, range(RACERS)))
