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

from .changes import EnableOptions, with_new_epoch
from .fence import Oldest, Receipt, Roster, WorkerReport
from .guard import MaintenanceGuard
from .processes import ProcessIdentity
from .state import MaintenanceState
from .stores import (
    Change,
    FencedStore,
    Store,
    StoreError,
    as_store,
    has_fence,
    location,
)
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
    options = EnableOptions.from_arguments(
        message=message,
        at=at,
        until=until,
        auto_off=auto_off,
        retry_after=retry_after,
        read_only=read_only,
        bypass_token=bypass_token,
    )
    now = known.clock()
    state = options.state(now=now) if enabled else MaintenanceState()
    state = state.replace(epoch=1)
    substitute = Switch(_Forced(state), known.name)
    substitute.clock = known.clock
    substitute.join_blocking()
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
    one, other = _make(make_store), _make(make_store)
    name = f"check-{secrets.token_hex(6)}"
    neighbour = f"{name}-2"
    try:
        _check_states(one, other, name, neighbour)
        _check_failures(one, other, name)
        _check_race(one, other, neighbour)
        _check_end(one, other, name)
        if has_fence(one) and has_fence(other):
            _check_reports(one, other, name, neighbour)
            _check_marks(one, other, name)
            _check_removal(one, other, name)
            _check_joining(one, other, neighbour)
    except AssertionError as error:
        raise AssertionError(f"{location(one)}: {error}") from error.__cause__
    finally:
        for used in (name, neighbour):
            # What was found is worth more than a clean place.
            with contextlib.suppress(Exception):
                one.publish(used, with_new_epoch(lambda _: MaintenanceState()))
            if has_fence(one):
                with contextlib.suppress(Exception):
                    for worker in one.roster(used).members:
                        one.remove(used, worker)


def _make(make_store: MakeStore) -> Store:
    store = make_store()
    if not isinstance(store, Store):
        raise TypeError(f"make_store must return a Store, not {store!r}")
    return as_store(store)


def _require(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _require_off(state: object) -> None:
    _require(
        state is None or isinstance(state, MaintenanceState),
        f"read() must return a MaintenanceState or None, not {state!r}",
    )
    _require(
        not isinstance(state, MaintenanceState) or not state.enabled,
        "a switch that was never set must be off",
    )


def _record(change: Change, seen: list[MaintenanceState | None]) -> Change:
    """Return a change that appends what it got and what it returned."""

    def apply(before: MaintenanceState | None) -> MaintenanceState:
        state = change(before)
        seen[:] = [before, state]
        return state

    return apply


def _check_states(one: Store, other: Store, name: str, neighbour: str) -> None:
    _require_off(one.read(name))
    seen: list[MaintenanceState | None] = []
    one.publish(name, _record(with_new_epoch(lambda _: MaintenanceState()), seen))
    _require_off(seen[0])

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
    returned = one.publish(name, _record(with_new_epoch(lambda _: wanted), seen))
    for what, state in (
        ("publish() must return what change() returned", returned),
        ("read() must return what was published", one.read(name)),
        ("another worker must read it too", other.read(name)),
    ):
        _require(state == seen[1], f"{what}: {state!r} is not {seen[1]!r}")
    state = one.read(neighbour)
    _require(state is None or not state.enabled, "one switch must not set another")


def _check_failures(one: Store, other: Store, name: str) -> None:
    before = one.read(name)
    _require(before is not None, "a published state must stay")
    refusal = RuntimeError("refused by check_store")
    seen: list[MaintenanceState | None] = []

    def refuse(present: MaintenanceState | None) -> MaintenanceState:
        seen.append(present)
        raise refusal

    raised: Exception | None = None
    try:
        one.publish(name, refuse)
    except Exception as error:  # noqa: BLE001  # which one is what is checked
        raised = error
    if raised is not refusal:
        raise AssertionError(
            f"publish() must raise what change() raises, not {raised!r}"
        ) from raised
    _require(seen[-1] == before, "change() must get the present state")
    _require(other.read(name) == before, "a change that fails must change nothing")

    epoch = before.epoch if before is not None else 0
    for older in (epoch, epoch - 1):
        with contextlib.suppress(StoreError):
            one.publish(name, partial(_with_epoch, older))
            _require(
                condition=False,
                what=f"publish() must raise StoreError for epoch {older} over {epoch}",
            )
        _require(other.read(name) == before, "a smaller epoch must change nothing")


def _check_race(one: Store, other: Store, name: str) -> None:
    def enter(number: int) -> int:
        def change(present: MaintenanceState | None) -> MaintenanceState:
            state = present or MaintenanceState()
            return state.replace(holders=(*state.holders, f"racer-{number}"))

        return (one, other)[number % 2].publish(name, with_new_epoch(change)).epoch

    epochs = _at_once(enter)
    state = one.read(name) or MaintenanceState()
    _require(
        len(state.holders) == RACERS,
        f"{RACERS} publications at once left traces of {len(state.holders)}:"
        " nothing may be saved between the reading and the writing",
    )
    _require(
        len(set(epochs)) == RACERS and state.epoch == max(epochs),
        "each publication must have an epoch of its own, the last one the largest",
    )


def _check_end(one: Store, other: Store, name: str) -> None:
    other.publish(name, with_new_epoch(lambda _: MaintenanceState()))
    after = one.read(name)
    _require(
        after is not None and not after.enabled, "it must be possible to switch off"
    )


def _check_reports(
    one: FencedStore, other: FencedStore, name: str, neighbour: str
) -> None:
    for _ in range(2):
        found: object = one.roster(name)
        _require(
            isinstance(found, Roster) and not found.generation,
            f"roster() must make no roster, but returned {found!r}",
        )
    for complete in (True, False):
        made = one.confirm(name, "", complete=complete)
        _require(not made, "confirm() must make no roster")
    report = _new_report()
    one.remove(name, report.id)
    _require(not one.roster(name).generation, "remove() must make no roster")

    receipt = _report(one, name, report)
    _require(
        receipt.generation and receipt.complete and not receipt.replaced,
        "the first report must make a complete roster, as its worker remembers none:"
        f" {receipt!r}",
    )
    report = report.model_copy(
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
    again = _report(one, name, report)
    _require(
        again.replaced and again.generation == receipt.generation,
        f"a second report must replace the first one: {again!r}",
    )
    for store in (one, other):
        roster = store.roster(name)
        _require(
            roster.generation == receipt.generation and roster.complete,
            f"every worker must see the roster that was made: {roster!r}",
        )
        _require(
            roster.members == {report.id},
            f"the roster must list its one member: {roster.members!r}",
        )
        _require(
            [_without_additions(worker) for worker in roster.workers]
            == [_without_additions(report)],
            f"the roster must have the last report: {roster.workers!r} is not"
            f" {report!r}",
        )
        _require(
            roster.workers[0].liveness == "alive",
            "a worker that has just reported must be alive",
        )
    roster = other.roster(neighbour)
    _require(
        not roster.generation and not roster.workers,
        "one switch must not have the workers of another",
    )


def _check_marks(one: FencedStore, other: FencedStore, name: str) -> None:
    roster = one.roster(name)
    known, members = roster.generation, roster.members
    kept = other.confirm(name, "another", complete=False)
    roster = one.roster(name)
    _require(
        kept == known and roster.complete and roster.generation == known,
        "confirm() of another generation must change nothing, and return the present"
        " one",
    )
    new = other.confirm(name, known, complete=False)
    roster = one.roster(name)
    _require(
        new not in {"", known} and roster.generation == new and not roster.complete,
        "confirm(complete=False) must put a new generation in place that is not"
        " complete",
    )
    kept = one.confirm(name, known, complete=True)
    _require(
        kept == new and not one.roster(name).complete,
        "confirm(complete=True) must hold for the generation that was judged",
    )
    receipt = _report(one, name, _without_additions(roster.workers[0]))
    _require(
        receipt.generation == new and not receipt.complete and receipt.replaced,
        f"report() must return the present generation and mark: {receipt!r}",
    )
    kept = one.confirm(name, new, complete=True)
    roster = other.roster(name)
    _require(
        kept == new and roster.generation == new and roster.complete,
        "confirm(complete=True) must complete the present generation",
    )
    _require(roster.members == members, "confirm() must leave the members as they are")


def _check_removal(one: FencedStore, other: FencedStore, name: str) -> None:
    roster = one.roster(name)
    new = other.confirm(name, roster.generation, complete=False)
    second = _new_report(generation="of another roster")
    receipt = _report(other, name, second)
    _require(
        receipt.generation == new and not receipt.replaced,
        f"a worker that joins must be in the roster that is there: {receipt!r}",
    )
    one.remove(name, roster.workers[0].id)
    roster = other.roster(name)
    _require(
        roster.members == {second.id}
        and [worker.id for worker in roster.workers] == [second.id],
        f"remove() must take one worker and its report: {roster!r}",
    )
    other.remove(name, second.id)
    roster = one.roster(name)
    _require(
        not roster.members and not roster.workers,
        f"remove() must take the last one too: {roster!r}",
    )
    receipt = _report(one, name, _new_report())
    _require(
        not receipt.complete and receipt.generation == new,
        "a roster must stay marked when its last worker has left",
    )


def _check_joining(one: FencedStore, other: FencedStore, name: str) -> None:
    receipt = _report(one, name, _new_report(generation="lost"))
    _require(
        not receipt.complete and receipt.generation not in {"", "lost"},
        "a roster that is made by a worker that remembers another one must not be"
        f" complete: {receipt!r}",
    )
    reports = [_new_report() for _ in range(RACERS)]

    def join(number: int) -> str:
        return _report((one, other)[number % 2], name, reports[number]).generation

    generations = set(_at_once(join))
    roster = one.roster(name)
    _require(
        generations == {roster.generation}
        and {report.id for report in reports} <= roster.members,
        f"{RACERS} workers that join at once must all be in one roster, not"
        f" {len(roster.members)} in {len(generations)}",
    )


def _new_report(generation: str | None = None) -> WorkerReport:
    return WorkerReport(
        id=f"{os.getpid()}-{secrets.token_hex(6)}",
        host=socket.gethostname(),
        pid=os.getpid(),
        process=str(ProcessIdentity.own()),
        generation=generation,
    )


def _report(store: FencedStore, name: str, report: WorkerReport) -> Receipt:
    receipt = store.report(name, report)
    _require(
        isinstance(receipt, Receipt), f"report() must return a Receipt, not {receipt!r}"
    )
    return receipt


def _with_epoch(epoch: int, before: MaintenanceState | None) -> MaintenanceState:
    return (before or MaintenanceState()).replace(epoch=epoch, message="too old")


def _without_additions(report: WorkerReport) -> WorkerReport:
    # Without what a store adds: a lock, and what it knows of the worker.
    return report.with_liveness("alive", 0).model_copy(update={"lock": None})


def _at_once(work: Callable[[int], Result]) -> list[Result]:
    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(work, range(RACERS)))
