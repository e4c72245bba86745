"""What users' test suites lean on."""

import doctest
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
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
from fastapi_maintenance import _contract as contract_module
from fastapi_maintenance.stores import Change
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


@pytest.mark.parametrize("module", [fastapi_maintenance.testing, contract_module])
def test_examples_of_the_documentation_work(module: object) -> None:
    """Every example in the docstrings gives what it says."""
    found = doctest.testmod(module)  # type: ignore[arg-type]  # a module
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
    assert not guard.state.active


def test_forced_state_touches_no_store(tmp_path: Path) -> None:
    """Forcing a state makes no directory, and a lifespan within it none either."""
    guard = MaintenanceGuard(FileStore(tmp_path / "store"))
    with force(guard), TestClient(build(guard)) as client:
        assert client.get("/orders").status_code == 503
    assert not (tmp_path / "store").exists()


def test_forced_off_opens_what_the_store_has_closed() -> None:
    """``force(guard, active=False)`` opens a guard whose store says on."""
    guard = MaintenanceGuard(MemoryStore(active=True))
    client = TestClient(build(guard))
    with force(guard, active=False):
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
        with force(guard, active=False):
            assert not guard.is_active
        assert guard.is_active


def test_failing_block_ends_the_forced_state() -> None:
    """A test that fails leaves no forced state to the next one."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(LookupError), force(guard):
        raise LookupError
    assert not guard.is_active


@pytest.mark.anyio
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
    with force(guard, active=False), guard.admit():
        assert not guard.closing.is_set()
        await guard.enable()
        await guard.drain(timeout=0, close_after=0)
        with anyio.fail_after(30):
            await guard.closing.wait()
        assert guard.closing.is_set()


def test_forced_state_holds_at_every_door() -> None:
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


@pytest.mark.anyio
async def test_stores_of_this_package_keep_the_contract(tmp_path: Path) -> None:
    """The stores that ship here pass the suite, made once or once for each worker."""
    memory = MemoryStore()
    await check_store(lambda: memory)
    await check_store(lambda: FileStore(tmp_path))


@pytest.mark.anyio
async def test_contract_waits_for_a_store_that_is_made_asynchronously() -> None:
    """``make_store`` may be asynchronous, as connecting is."""
    memory = MemoryStore()

    async def make() -> Store:
        return memory

    await check_store(make)


@pytest.mark.anyio
async def test_contract_is_not_for_stores_that_cannot_be_set() -> None:
    """A store that is set at start says so itself."""
    with pytest.raises(StoreError, match="when the service starts"):
        await check_store(EnvStore)


@pytest.mark.anyio
async def test_contract_refuses_what_is_no_store() -> None:
    """Something else than a store is named in the error."""
    with pytest.raises(TypeError, match="must return a Store, not 7"):
        await check_store(lambda: 7)  # type: ignore[arg-type,return-value]  # what is refused


class Whole:
    """A store of a user's own that keeps the contract; the others below break it."""

    def __init__(self) -> None:
        self.states: dict[str, MaintenanceState] = {}

    async def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        return self.states.get(name, MaintenanceState())

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        before = await self.read(name)
        state = change(before).but(epoch=before.epoch + 1)
        self.states[name] = state
        return state


class OnFromTheStart(Whole):
    """Says on before anybody has set it."""

    async def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        return self.states.get(name, MaintenanceState(active=True))


class ReadsAWord(Whole):
    """Returns something else than a state."""

    async def read(self, name: str) -> MaintenanceState:
        """Return no state."""
        return "off"  # type: ignore[return-value]  # the mistake


class LosesTheExtra(Whole):
    """Drops the keys that it does not know."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, but for its extra keys."""
        return await super().publish(name, lambda before: change(before).but(extra={}))


class KeepsTheEpoch(Whole):
    """Never publishes under an epoch of its own."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state under the epoch it had."""
        self.states[name] = change(await self.read(name)).but(epoch=0)
        return self.states[name]


class MixesNames(Whole):
    """Holds one state for all names."""

    async def read(self, name: str) -> MaintenanceState:
        """Return the state of whatever name."""
        return await super().read("same")

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state of whatever name."""
        return await super().publish("same", change)


class WritesFirst(Whole):
    """Writes before it knows what."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Forget the state, then replace it."""
        before = self.states.pop(name, MaintenanceState())
        state = change(before).but(epoch=before.epoch + 1)
        self.states[name] = state
        return state


class HidesFailures(Whole):
    """Takes a change that fails for one that changes nothing."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, or leave it."""
        try:
            return await super().publish(name, change)
        except Exception:  # noqa: BLE001  # the mistake
            return await self.read(name)


class ShowsAnother(Whole):
    """Gives the change another state than the present one."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state by what follows from nothing."""
        epoch = (await self.read(name)).epoch
        self.states[name] = change(MaintenanceState()).but(epoch=epoch + 1)
        return self.states[name]


class LosesRaces(Whole):
    """Lets others in between the reading and the writing."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state by what follows from an old one."""
        before = await self.read(name)
        await anyio.lowlevel.checkpoint()
        state = change(before).but(epoch=(await self.read(name)).epoch + 1)
        self.states[name] = state
        return state


class ForgetsTheEpoch(Whole):
    """Begins again with every switching off."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        state = await super().publish(name, change)
        if not state.active and not state.holders:
            self.states[name] = state = state.but(epoch=1)
        return state


class StaysOn(Whole):
    """Cannot be switched off."""

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, and keep it on."""
        before = await self.read(name)
        state = await super().publish(name, change)
        if before.active:
            self.states[name] = state = state.but(active=True)
        return state


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ReadsAWord, "must return a MaintenanceState, not 'off'"),
        (OnFromTheStart, "nobody has set must be off"),
        (LosesTheExtra, "must return the state"),
        (KeepsTheEpoch, "under its new epoch"),
        (MixesNames, "one switch must not set another"),
        (WritesFirst, "a change that fails must change nothing"),
        (HidesFailures, "must raise what change"),
        (ShowsAnother, "must get the present state"),
        (LosesRaces, "no other may come between"),
        (ForgetsTheEpoch, "epochs must grow: 1 after"),
        (StaysOn, "must be possible to switch off"),
    ],
)
@pytest.mark.anyio
async def test_contract_finds_what_a_store_breaks(
    kind: Callable[[], Store], said: str
) -> None:
    """Each broken promise is found, and named."""
    store = kind()
    with pytest.raises(AssertionError, match=said):
        await check_store(lambda: store)


@pytest.mark.anyio
async def test_contract_finds_stores_that_do_not_share_a_place() -> None:
    """Two stores of one place that do not see each other would be two switches."""
    with pytest.raises(AssertionError, match="another worker must read it too"):
        await check_store(Whole)


@pytest.mark.anyio
async def test_contract_is_kept_by_thirty_lines() -> None:
    """The small store of these tests passes, so that the others fail for their sins."""
    store = Whole()
    await check_store(lambda: store)
    assert not any(state.active for state in store.states.values())
