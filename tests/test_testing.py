"""What users' test suites lean on."""

import doctest
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import fastapi_maintenance.testing
from fastapi_maintenance import (
    EnvStore,
    FileStore,
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MaintenanceState,
    MemoryStore,
    Store,
    StoreError,
)
from fastapi_maintenance.fence import Membership, Receipt, Roster, WorkerReport
from fastapi_maintenance.stores import Change, check_growth
from fastapi_maintenance.testing import Clock, check_store, force, frozen_clock

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def build(guard: MaintenanceGuard) -> FastAPI:
    """Return an application with one guarded route for each kind of method."""
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)

    @app.get("/orders")
    async def orders() -> str:
        return "orders"

    @app.post("/orders")
    async def order() -> str:
        return "ordered"

    return app


def test_examples_of_the_documentation_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example in the docstrings gives what it says."""
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(fastapi_maintenance.testing)
    assert found.attempted > 0
    assert found.failed == 0


def test_forced_state_refuses_and_ends_with_its_block() -> None:
    """A forced state refuses inside the block, and nothing is left of it after."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, message="Back at noon", retry_after=7) as state:
        assert state.message == "Back at noon"
        answer = client.get("/orders")
        assert answer.status_code == 503
        assert answer.json() == {"detail": "Back at noon"}
        assert answer.headers["retry-after"] == "7"
    assert client.get("/orders").status_code == 200
    assert not guard.state.enabled


def test_forced_state_touches_no_store(tmp_path: Path) -> None:
    """Forcing a state makes no directory, and a lifespan within it none either."""
    guard = MaintenanceGuard(FileStore(tmp_path / "store"))
    with force(guard), TestClient(build(guard)) as client:
        assert client.get("/orders").status_code == 503
    assert not (tmp_path / "store").exists()


def test_forced_off_opens_what_the_store_has_closed() -> None:
    """``force(guard, enabled=False)`` opens a guard whose store says on."""
    guard = MaintenanceGuard(MemoryStore(enabled=True))
    client = TestClient(build(guard))
    with force(guard, enabled=False):
        assert client.get("/orders").status_code == 200
    assert client.get("/orders").status_code == 503


def test_forced_state_takes_what_enable_takes() -> None:
    """Read-only and bypass token of a forced state mean what they mean when enabled."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, read_only=True, bypass_token="0123456789abcdef"):
        assert client.get("/orders").status_code == 200
        assert client.post("/orders").status_code == 503
        header = {"X-Maintenance-Bypass": "0123456789abcdef"}
        assert client.post("/orders", headers=header).status_code == 200


def test_forced_states_nest() -> None:
    """The inner of two forced states ends first, and the outer one is back then."""
    guard = MaintenanceGuard("memory:")
    with force(guard):
        with force(guard, enabled=False):
            assert not guard.is_active
        assert guard.is_active


def test_failing_block_ends_the_forced_state() -> None:
    """A test that fails leaves no forced state to the next one."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(LookupError), force(guard):
        raise LookupError
    assert not guard.is_active


async def test_forced_guard_can_be_switched_and_drained() -> None:
    """Code under test may switch, drain and admit inside the block."""
    guard = MaintenanceGuard("memory:")
    with force(guard):
        report = await guard.drain(timeout=0)
        assert report.drained
        with pytest.raises(MaintenanceError):
            guard.admit().__enter__()
        await guard.disable()
        with guard.admit():
            pass
    assert guard.state == MaintenanceState()


async def test_forced_guard_asks_its_own_work_to_end() -> None:
    """`guard.closing` speaks for what is counted under the forced state."""
    guard = MaintenanceGuard(MemoryStore())
    with force(guard, enabled=False), guard.admit():
        assert not guard.closing.is_set()
        await guard.enable()
        await guard.drain(timeout=0, close_after=0)
        with anyio.fail_after(30):
            await guard.closing.wait()
        assert guard.closing.is_set()


def test_forced_state_holds_wherever_the_guard_stands() -> None:
    """A wrapped mount and a middleware obey the forced state, beside the guard or not.

    In both directions, whatever the store says.
    """
    guard = MaintenanceGuard("memory:")
    app = build(guard)
    app.mount("/old", guard.wrap(FastAPI()))
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    plain = FastAPI()
    plain.mount("/static", build(MaintenanceGuard("memory:")))
    plain.add_middleware(MaintenanceModeMiddleware, guard=guard)
    with TestClient(app) as client, TestClient(plain) as other:
        with force(guard):
            assert client.get("/orders").status_code == 503
            assert client.get("/old/docs").status_code == 200
            assert other.get("/static/orders").status_code == 503
        assert client.get("/orders").status_code == 200
        assert other.get("/static/orders").status_code == 200


def test_force_refuses_what_enable_refuses() -> None:
    """A forced state that could not be enabled is an error, not a surprise."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(ValueError, match="auto_off needs an end"):
        force(guard, auto_off=True).__enter__()


def test_frozen_clock_decides_when_a_window_begins_and_ends() -> None:
    """A window opens and closes by the frozen clock alone."""
    guard = MaintenanceGuard("memory:")
    hour = timedelta(hours=1)
    with (
        frozen_clock(guard, NOON) as clock,
        force(guard, at=NOON + hour, until=NOON + 2 * hour, auto_off=True),
    ):
        assert not guard.is_active
        clock.advance(hour)
        assert guard.is_active
        clock.advance(3600.0)
        assert not guard.is_active
        clock.set(NOON + 1.5 * hour)
        assert guard.is_active
    assert abs(guard._switch.clock() - datetime.now(UTC)) < timedelta(minutes=1)


def test_frozen_clock_begins_with_the_present() -> None:
    """Without a moment the clock stops at the present one."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard) as clock:
        assert clock() == clock() == clock.now
        assert abs(clock.now - datetime.now(UTC)) < timedelta(minutes=1)


def test_clock_refuses_a_moment_without_a_zone() -> None:
    """A naive moment would mean another one on each machine."""
    with pytest.raises(ValueError, match="has no time zone"):
        Clock(datetime(2026, 11, 22))  # noqa: DTZ001  # what is refused


def test_contract_leaves_switches_off_and_no_workers(tmp_path: Path) -> None:
    """What the suite has used is off, and has no workers, when it is done."""
    store = FileStore(tmp_path)
    check_store(lambda: store)
    names = {path.stem for path in tmp_path.glob("*.json")}
    assert len(names) == 2
    for name in names:
        state = store.read(name)
        assert state is not None
        assert not state.enabled
        assert store.roster(name).members == frozenset()


def test_contract_is_not_for_stores_that_cannot_be_set() -> None:
    """A store that is set at start says so itself."""
    with pytest.raises(StoreError, match="when the service starts"):
        check_store(EnvStore)


def test_contract_refuses_what_is_no_store() -> None:
    """Something else than a store is named in the error."""
    with pytest.raises(TypeError, match="must return a Store, not 7"):
        check_store(lambda: 7)  # type: ignore[arg-type,return-value]  # what is refused
    with pytest.raises(TypeError, match="must be a plain function, not async"):
        check_store(ReadsLater)  # type: ignore[arg-type]  # what is refused


class Whole:
    """A store of a user's own that keeps the contract; the others below break it."""

    def __init__(self) -> None:
        self.states: dict[str, MaintenanceState] = {}
        self.lock = threading.Lock()

    def read(self, name: str) -> MaintenanceState | None:
        """Return the state."""
        return self.states.get(name)

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        with self.lock:
            before = self.read(name)
            state = change(before)
            check_growth(before, state)
            return self.save(name, state)

    def save(self, name: str, state: MaintenanceState) -> MaintenanceState:
        """Keep a state."""
        self.states[name] = state
        return state


class OnFromTheStart(Whole):
    """Says on before it was ever set."""

    def read(self, name: str) -> MaintenanceState | None:
        """Return the state."""
        return self.states.get(name, MaintenanceState(enabled=True))


class ReadsAWord(Whole):
    """Returns something else than a state."""

    def read(self, name: str) -> MaintenanceState | None:
        """Return no state."""
        return "off"  # type: ignore[return-value]  # the mistake


class ReadsLater(Whole):
    """Returns what must be awaited."""

    async def read(self, name: str) -> MaintenanceState | None:  # type: ignore[override]  # the mistake
        """Return what nobody awaits."""


class LosesTheExtra(Whole):
    """Drops the keys that it does not know."""

    def save(self, name: str, state: MaintenanceState) -> MaintenanceState:
        """Keep a state, but for its unknown keys."""
        known = {key: getattr(state, key) for key in MaintenanceState.model_fields}
        return super().save(name, MaintenanceState(**known))


class LosesTheTag(Whole):
    """Stores another publication than the one it was given."""

    def save(self, name: str, state: MaintenanceState) -> MaintenanceState:
        """Keep a state without its tag, and return it whole."""
        super().save(name, state.replace(tag=""))
        return state


class TakesAnyEpoch(Whole):
    """Lets an older publication replace a newer one."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        with self.lock:
            return self.save(name, change(self.read(name)))


class SavesThenRefuses(Whole):
    """Refuses an old epoch when it has already been saved."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, and complain too late."""
        with self.lock:
            before = self.read(name)
            state = self.save(name, change(before))
            check_growth(before, state)
            return state


class MixesNames(Whole):
    """Holds one state for all names."""

    def read(self, name: str) -> MaintenanceState | None:
        """Return the state of any name."""
        return super().read("same")

    def save(self, name: str, state: MaintenanceState) -> MaintenanceState:
        """Keep the state of any name."""
        return super().save("same", state)


class WritesFirst(Whole):
    """Writes before it knows what."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Forget the state, then replace it."""
        with self.lock:
            return self.save(name, change(self.states.pop(name, None)))


class HidesFailures(Whole):
    """Takes a change that fails for one that changes nothing."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, or leave it."""
        try:
            return super().publish(name, change)
        except Exception:  # noqa: BLE001  # the mistake
            return self.states[name]


class TranslatesFailures(Whole):
    """Takes a change that fails for a store that fails."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        try:
            return super().publish(name, change)
        except Exception as error:
            raise StoreError("something failed") from error


class ShowsAnother(Whole):
    """Gives the change another state than the present one."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state by what follows from nothing."""
        with self.lock:
            return self.save(name, change(None))


class LosesRaces(Whole):
    """Lets others in between the reading and the writing."""

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state by what follows from an old one."""
        before = self.read(name)
        state = change(before)
        time.sleep(0.002)
        check_growth(before, state)
        return self.save(name, state)


class StaysOn(Whole):
    """Cannot be switched off."""

    def save(self, name: str, state: MaintenanceState) -> MaintenanceState:
        """Keep a state, and keep it on."""
        before = self.states.get(name)
        on = state.enabled or (before is not None and before.enabled)
        return super().save(name, state.replace(enabled=on))


def test_contract_finds_stores_that_do_not_share_a_place() -> None:
    """Two stores of one place that do not see each other would be two switches."""
    with pytest.raises(AssertionError, match="another worker must read it too"):
        check_store(Whole)


def test_contract_is_kept_by_twenty_lines() -> None:
    """The small store of these tests passes: the others fail for their mistakes."""
    store = Whole()
    check_store(lambda: store)
    assert not any(state.enabled for state in store.states.values())


class RosterOfNothing(MemoryStore):
    """Makes a roster where a coordinator looks."""

    def roster(self, name: str) -> Roster:
        """Return a roster in any case."""
        return replace(super().roster(name), generation="always")


class ConfirmsNothing(MemoryStore):
    """Makes a roster where a person speaks of one."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Return a generation in any case."""
        return super().confirm(name, generation, complete=complete) or "made"


class RemovesNothing(MemoryStore):
    """Makes a roster where a worker leaves."""

    def remove(self, name: str, worker: str) -> None:
        """Leave something."""
        super().remove(name, worker)
        self._memberships.setdefault(
            name, Membership(generation="made", complete=True, made=0)
        )


class ReceivesNothing(MemoryStore):
    """Says nothing to a worker."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Return no receipt."""
        super().report(name, report)
        return None  # type: ignore[return-value]  # the mistake


class MakesIncomplete(MemoryStore):
    """Doubts every roster."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Mark what was just made."""
        return super().report(name, report)._replace(complete=False)


class NeverReplaces(MemoryStore):
    """Takes every report for the first one."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report."""
        return super().report(name, report)._replace(replaced=False)


class DoubtsAloud(MemoryStore):
    """Shows a complete roster as one that is not."""

    def roster(self, name: str) -> Roster:
        """Return a roster that is not complete."""
        return replace(super().roster(name), complete=False)


class HidesMembers(MemoryStore):
    """Does not say who has joined."""

    def roster(self, name: str) -> Roster:
        """Return no members."""
        return replace(super().roster(name), members=frozenset())


class LosesCounts(MemoryStore):
    """Keeps less than it was given."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report without what is old."""
        return super().report(name, report.model_copy(update={"old": 0}))


class BuriesTheLiving(MemoryStore):
    """Calls a worker dead that has just reported."""

    def roster(self, name: str) -> Roster:
        """Return dead workers."""
        found = super().roster(name)
        return replace(
            found, workers=tuple(w.with_liveness("dead", 0) for w in found.workers)
        )


class MixesWorkers(MemoryStore):
    """Has one roster for all names."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report for any name."""
        return super().report("same", report)

    def roster(self, name: str) -> Roster:
        """Return the roster of any name."""
        return super().roster("same")


class ConfirmsAnything(MemoryStore):
    """Marks the present roster, whichever generation was meant."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the present roster."""
        present = super().roster(name).generation
        return super().confirm(name, present, complete=complete)


class MarksInPlace(MemoryStore):
    """Keeps the generation of a roster that is not complete any more."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark, under the same generation."""
        found = self._memberships.get(name)
        if found is not None and found.generation == generation:
            self._memberships[name] = found.model_copy(update={"complete": complete})
        return "" if found is None else found.generation


class CompletesTheWrong(MemoryStore):
    """Completes whichever roster is there."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the present roster as complete, whatever was judged."""
        if complete:
            generation = super().roster(name).generation
        return super().confirm(name, generation, complete=complete)


class ReceiptsOfThePast(MemoryStore):
    """Tells workers of the first roster for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Receipt] = {}

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Return the first receipt."""
        receipt = super().report(name, report)
        first = self.first.setdefault(name, receipt)
        return first._replace(replaced=receipt.replaced)


class NeverCompletes(MemoryStore):
    """Does not take a person's word."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark as incomplete only."""
        present = super().roster(name).generation
        return (
            present
            if complete
            else super().confirm(name, generation, complete=complete)
        )


class ForgetsMembers(MemoryStore):
    """Empties the list when it is marked."""

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark an empty roster."""
        made = super().confirm(name, generation, complete=complete)
        if made and complete:
            found = self._memberships[name]
            self._memberships[name] = found.model_copy(update={"members": frozenset()})
        return made


class RemakesRosters(MemoryStore):
    """Makes another roster for each worker that joins."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report in a roster of its own."""
        if report.generation == "of another roster":
            self._memberships.pop(name)
        return super().report(name, report)


class NeverRemoves(MemoryStore):
    """Lists workers for ever."""

    def remove(self, name: str, worker: str) -> None:
        """Leave it."""


class KeepsTheLast(MemoryStore):
    """Does not let the last worker leave."""

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off, unless it is the last one."""
        if len(super().roster(name).members) > 1:
            super().remove(name, worker)


class ForgetsTheMark(MemoryStore):
    """Begins again when the last worker has left."""

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off, and the roster with the last one."""
        super().remove(name, worker)
        if not super().roster(name).members:
            self._memberships.pop(name, None)


class TrustsEveryone(MemoryStore):
    """Makes complete rosters for workers that remember another one."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report as that of a cold worker."""
        if report.generation == "lost":
            report = report.model_copy(update={"generation": None})
        return super().report(name, report)


class LosesMembers(MemoryStore):
    """Lets a worker that joins take another one's place."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report; one that races replaces the list."""
        receipt = super().report(name, report)
        found = self._memberships[name]
        if len(found.members) > 1 and name.endswith("-2"):
            only = found.model_copy(update={"members": frozenset({report.id})})
            self._memberships[name] = only
        return receipt


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ReadsAWord, "must return a MaintenanceState or None, not 'off'"),
        (OnFromTheStart, "never set must be off"),
        (LosesTheExtra, "must return what change"),
        (LosesTheTag, "must return what was published"),
        (TakesAnyEpoch, r"must raise StoreError for epoch \d+ over \d+"),
        (SavesThenRefuses, "a smaller epoch must change nothing"),
        (MixesNames, "one switch must not set another"),
        (WritesFirst, "a change that fails must change nothing"),
        (HidesFailures, "must raise what change"),
        (TranslatesFailures, r"must raise what change.* not StoreError"),
        (ShowsAnother, "must get the present state"),
        (LosesRaces, "may be saved between the reading and the writing"),
        (StaysOn, "must be possible to switch off"),
        (RosterOfNothing, r"roster\(\) must make no roster"),
        (ConfirmsNothing, r"confirm\(\) must make no roster"),
        (RemovesNothing, r"remove\(\) must make no roster"),
        (ReceivesNothing, "must return a Receipt, not None"),
        (MakesIncomplete, "the first report must make a complete roster"),
        (NeverReplaces, "a second report must replace the first one"),
        (DoubtsAloud, "every worker must see the roster that was made"),
        (HidesMembers, "the roster must list its one member"),
        (LosesCounts, "the roster must have the last report"),
        (BuriesTheLiving, "a worker that has just reported must be alive"),
        (MixesWorkers, "one switch must not have the workers of another"),
        (ConfirmsAnything, r"confirm\(\) of another generation must change nothing"),
        (MarksInPlace, "must put a new generation in place"),
        (CompletesTheWrong, "must hold for the generation that was judged"),
        (ReceiptsOfThePast, "must return the present generation and mark"),
        (NeverCompletes, "must complete the present generation"),
        (ForgetsMembers, "must leave the members as they are"),
        (RemakesRosters, "must be in the roster that is there"),
        (NeverRemoves, "must take one worker and its report"),
        (KeepsTheLast, "must take the last one too"),
        (ForgetsTheMark, "must stay marked when its last worker has left"),
        (TrustsEveryone, "must not be complete"),
        (LosesMembers, "must all be in one roster"),
    ],
)
def test_contract_finds_what_a_store_breaks(
    kind: Callable[[], Store], said: str
) -> None:
    """Each broken promise is found, and named."""
    store = kind()
    with pytest.raises(AssertionError, match=said):
        check_store(lambda: store)
