"""Stores of a user's own: refreshed in the background, and never trusted to answer."""

import asyncio
import logging

import anyio
import pytest

from fastapi_maintenance import MaintenanceGuard, MaintenanceState, StoreError
from fastapi_maintenance.stores import Change, _polled
from fastapi_maintenance.stores._polled import PolledStore


class OwnStore:
    """A store that does what a test wants."""

    location = "table maintenance"

    def __init__(self) -> None:
        self.state = MaintenanceState()
        self.error: Exception | None = None
        self.gate: anyio.Event | None = None
        self.reads = 0

    async def read(self, name: str) -> MaintenanceState:
        """Return the state, later or never."""
        self.reads += 1
        state = self.state
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return state.but()

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        self.state = change(self.state).but(epoch=self.state.epoch + 1)
        return self.state


def overdue(guard: MaintenanceGuard) -> None:
    """Let time pass until the next reading is due."""
    assert guard._switch.polled is not None
    guard._switch.polled.worker("default").checked = float("-inf")


async def admitted(guard: MaintenanceGuard) -> bool:
    """Tell whether work is let in."""
    await guard._switch.join()
    return not guard._switch.in_force(guard._switch.worker.state)


async def test_it_is_read_when_it_is_overdue_and_not_before() -> None:
    """A store is read once a second at most, whatever the load."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    for _ in range(5):
        assert await admitted(guard)
    assert store.reads == 1
    store.state = MaintenanceState(epoch=1, active=True)
    assert await admitted(guard)
    overdue(guard)
    assert not await admitted(guard)
    assert store.reads == 2


async def test_work_in_threads_does_not_go_by_a_state_that_nobody_reads() -> None:
    """What cannot wait for a reading is refused when the last one is too old."""
    guard = MaintenanceGuard(OwnStore())
    async with guard.admit():
        pass
    with guard.admit():
        pass
    overdue(guard)
    with pytest.raises(StoreError, match="use `async with"), guard.admit():
        raise AssertionError


async def test_a_late_answer_does_not_undo_what_came_after_it() -> None:
    """A publication that is overtaken by a reading of a later one changes nothing."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    assert guard._switch.polled is not None
    await guard._switch.join()

    async def publish(name: str, change: Change) -> MaintenanceState:
        late = change(store.state).but(epoch=1)
        store.state = MaintenanceState(epoch=2, active=True)
        await guard._switch.source.read(name)
        return late

    store.publish = publish  # type: ignore[method-assign]  # this one is overtaken
    await guard.disable()
    assert guard.is_active


async def test_it_is_read_in_the_background() -> None:
    """With the lifespan, a change is seen without any request."""
    store = OwnStore()
    told = anyio.Event()
    guard = MaintenanceGuard(store, on_change=lambda _: told.set())
    async with guard.lifespan():
        store.state = MaintenanceState(epoch=1, active=True)
        with anyio.fail_after(10):
            await told.wait()
        assert guard.is_active


async def test_one_reading_serves_all_who_come_meanwhile() -> None:
    """While a store is asked, other requests take the last state that it gave."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    assert await admitted(guard)
    overdue(guard)
    store.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(admitted, guard)
        await anyio.wait_all_tasks_blocked()
        for _ in range(10):
            assert await admitted(guard)
        store.gate.set()
    assert store.reads == 2


async def test_store_that_hangs_keeps_the_last_state(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that does not answer is a store that fails: the last state holds."""
    monkeypatch.setattr(_polled, "PATIENCE", 0.01)
    store = OwnStore()
    store.state = MaintenanceState(epoch=1, active=True)
    guard = MaintenanceGuard(store)
    assert not await admitted(guard)
    store.gate = anyio.Event()
    for _ in range(2):
        overdue(guard)
        # A task of its own: what is thrown into this one, coverage loses.
        assert not await asyncio.ensure_future(admitted(guard))
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "table maintenance cannot be read" in record.getMessage()


async def test_store_that_recovers_is_obeyed_and_may_fail_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failure is logged once; between them the store's word counts."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    assert await admitted(guard)
    for _ in range(2):
        store.error = OSError("away")
        overdue(guard)
        assert await admitted(guard)
        store.error = None
        overdue(guard)
        assert await admitted(guard)
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 2


@pytest.mark.parametrize("error", [OSError("away"), StoreError("away"), KeyError("x")])
async def test_store_that_was_never_read_admits_nothing(error: Exception) -> None:
    """A worker that could join and has not knows no state, and says why."""
    store = OwnStore()
    store.error = error
    guard = MaintenanceGuard(store)
    with pytest.raises(StoreError, match="table maintenance cannot be read: "):
        async with guard.admit():
            raise AssertionError
    with pytest.raises(StoreError, match=r"has not been read yet.*guard\.lifespan"):
        _ = guard.state
    with pytest.raises(StoreError, match="not been read yet"), guard.admit():
        raise AssertionError


async def test_answer_that_is_no_state_is_an_error() -> None:
    """A store that returns something else has failed."""

    class Wrong(OwnStore):
        async def read(self, name: str) -> MaintenanceState:
            return {"active": False}  # type: ignore[return-value]  # the mistake

    with pytest.raises(
        StoreError, match=r"\.read\(\) returned .*'active'.*not a state"
    ):
        await MaintenanceGuard(Wrong())._switch.join()


async def test_older_answer_does_not_undo_what_was_published_here() -> None:
    """A reading that began before a publication and ends after it is not used."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    assert await admitted(guard)
    overdue(guard)
    store.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(admitted, guard)
        await anyio.wait_all_tasks_blocked()
        await guard.enable()
        assert guard.is_active
        store.gate.set()
    assert guard.is_active


async def test_same_state_read_again_is_no_news() -> None:
    """A handler that takes longer than a reading is not asked again and again."""
    store = OwnStore()
    store.state = MaintenanceState(epoch=1, active=True)
    guard = MaintenanceGuard(store)
    await guard._switch.join()
    admission = guard._switch.worker.admit("work")
    overdue(guard)
    await guard._switch.join()
    assert not guard._switch.worker.recheck(admission)
    assert guard._switch.worker.counts()[:2] == (1, 0)
    admission.__exit__(None, None, None)


async def test_what_was_read_can_be_said_before_joining() -> None:
    """A store that somebody has awaited can tell a guard its state at once."""
    store = OwnStore()
    guard = MaintenanceGuard(store)
    await guard._switch.source.read("default")
    assert not guard._switch.worker.joined
    assert not guard.is_active


async def test_guards_of_one_such_store_are_workers_of_their_own() -> None:
    """Nothing is promised of them but that each goes by the store."""
    source = PolledStore(OwnStore())
    assert source.worker("default") is source.worker("default")
    assert source.worker("default") is not source.worker("other")
    assert source.location == "table maintenance"
    with pytest.raises(StoreError, match="not been read yet"):
        source.worker("default").join()


async def test_fenceless_store_is_never_drained() -> None:
    """A drain of a store without a fence is unknown at once, and not waited for."""
    guard = MaintenanceGuard(OwnStore())
    async with guard.lifespan():
        await guard.enable()
        with anyio.fail_after(5):
            report = await guard.drain(timeout=60)
    assert (report.outcome, report.drained, report.workers) == ("unknown", False, ())
    assert not guard._switch.worker._users
    guard._switch.worker.stand_aside("to no avail")
    guard._switch.worker.leave()
    assert not guard._switch.worker.joined
