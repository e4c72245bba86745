"""What every store keeps: one suite, and one line for each store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from fastapi_maintenance import (
    DrainError,
    FileStore,
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    Store,
    StoreError,
    open_store,
)
from fastapi_maintenance.stores import Change, FencedStore, describe, is_fenced
from fastapi_maintenance.testing import check_store

Make = Callable[[], Store]


class TableStore:
    """A store of a user's own: a table in a database, here a dictionary."""

    tables: ClassVar[dict[str, dict[str, str]]] = {}

    def __init__(self, database: str) -> None:
        self.rows = self.tables.setdefault(database, {})
        self.transaction = anyio.Lock()

    async def read(self, name: str) -> MaintenanceState:
        """Return the state of a switch."""
        row = self.rows.get(name)
        return MaintenanceState() if row is None else MaintenanceState.from_json(row)

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state of a switch."""
        async with self.transaction:
            before = await self.read(name)
            state = change(before).but(epoch=before.epoch + 1)
            self.rows[name] = state.to_json()
            return state


def memory(_: Path) -> Make:
    store = MemoryStore()
    return lambda: store


def file(folder: Path) -> Make:
    return lambda: FileStore(folder / "state")


def file_by_url(folder: Path) -> Make:
    return lambda: open_store(f"file:{folder}/state?run_dir={folder}/run")


def own(folder: Path) -> Make:
    return lambda: TableStore(str(folder))


def redis_by_url(_: Path) -> Make:
    from tests.stores.redis_workers import vouched_url

    url = vouched_url()
    return lambda: open_store(url)


# A store joins the suite here, with the marks that its tests need: a function of an
# empty directory that returns how to open one and the same place again and again.
PLACES = [
    pytest.param(memory, id="memory"),
    pytest.param(file, id="file"),
    pytest.param(file_by_url, id="file by URL"),
    pytest.param(own, id="own"),
    pytest.param(redis_by_url, id="redis", marks=pytest.mark.redis),
]


@pytest.fixture(params=PLACES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return how to open one place, as each worker and the command do."""
    made: Make = request.param(tmp_path)
    return made


async def seen_by(guard: MaintenanceGuard) -> MaintenanceState:
    """Return what a worker goes by at its next request."""
    worker = guard._switch.worker
    if guard._switch.polled is not None:
        # Overdue, as it is a second later without a lifespan.
        guard._switch.polled.worker("default").checked = float("-inf")
    await guard._switch.join()
    return worker.look() if worker._newest is not None else worker.state


async def test_store_keeps_the_published_contract(make: Make) -> None:
    """A store passes the suite that users put their own stores through."""
    await check_store(make)


async def test_what_one_worker_sets_the_other_goes_by(make: Make) -> None:
    """Switching on and off reaches a guard of another store of the same place."""
    one, other = MaintenanceGuard(make()), MaintenanceGuard(make())
    assert not (await seen_by(other)).active
    published = await one.enable(message="moving", actor="ada")
    state = await seen_by(other)
    assert (state.active, state.message, state.actor) == (True, "moving", "ada")
    assert state.epoch == published.epoch
    with pytest.raises(MaintenanceError, match="moving"):
        async with other.admit():
            raise AssertionError
    opened = await other.disable(actor="bob")
    assert opened.epoch > published.epoch
    assert not (await seen_by(one)).active


async def test_work_is_admitted_and_counted(make: Make) -> None:
    """What runs under a guard is counted until it ends, in nested order too."""
    guard = MaintenanceGuard(make())
    counts = guard._switch.worker.counts
    async with guard.admit():
        with guard.admit():
            assert counts()[0] == 2
        assert counts()[0] == 1
    assert counts() == (0, 0, None)


async def test_drain_says_what_a_store_can_know(make: Make) -> None:
    """A store with a fence is drained or busy; one without can never tell."""
    guard, other = MaintenanceGuard(make()), MaintenanceGuard(make())
    begun, ended = anyio.Event(), anyio.Event()

    async def work() -> None:
        async with guard.admit():
            begun.set()
            await ended.wait()

    async with anyio.create_task_group() as group:
        # A task of its own: what drains inside its own work does not wait for that.
        group.start_soon(work)
        await begun.wait()
        await outcome_is(other, "busy")
        ended.set()
    await outcome_is(other, "drained")


async def outcome_is(guard: MaintenanceGuard, wanted: str) -> None:
    """Fence a switch, and compare what it says."""
    await guard.enable()
    # Some stores ask their workers, who take a moment to answer.
    report = await guard.drain(timeout=0 if wanted == "busy" else 10)
    if not is_fenced(guard._switch.store):
        wanted = "unknown"
    assert report.outcome == wanted
    assert report.drained is (wanted == "drained")


async def test_blocks_of_two_workers_hold_it_together(make: Make) -> None:
    """Overlapping maintenance() blocks open it when the last one leaves."""
    one, other = MaintenanceGuard(make()), MaintenanceGuard(make())
    if not is_fenced(one._switch.store):
        # It cannot vouch for a drain, so that no block begins.
        with pytest.raises(DrainError, match="unknown"):
            async with one.maintenance():
                raise AssertionError
        assert (await one._switch.source.read("default")).holders == ("operator",)
        return
    for guard in (one, other):
        await guard._switch.join()
    async with one.maintenance(drain_timeout=5):
        async with other.maintenance(drain_timeout=5):
            assert len((await seen_by(one)).holders) == 2
        assert len((await seen_by(one)).holders) == 1
        with pytest.raises(StoreError, match="held by"):
            await other.disable()
        assert (await seen_by(other)).active
    assert not (await seen_by(other)).active


async def test_switches_of_one_place_are_apart(make: Make) -> None:
    """A switch of another name is another switch, with workers of its own."""
    shop, pay = MaintenanceGuard(make()), MaintenanceGuard(make(), name="pay")
    await pay.enable()
    assert not (await seen_by(shop)).active
    assert shop._switch.worker is not pay._switch.worker
    assert (await pay._switch.source.read("pay")).active


async def test_place_is_described_without_waiting(make: Make) -> None:
    """People are told where a state lives."""
    assert describe(make()).strip()


async def test_fenced_stores_list_their_workers(make: Make) -> None:
    """A worker is in the roster while it has joined, and can be forgotten or kept."""
    store = make()
    guard = MaintenanceGuard(store)
    source: FencedStore = guard._switch.source
    assert (await source.roster("default")).rows == ()
    await guard._switch.join()
    rows = (await source.roster("default")).rows
    assert [row.id for row in rows] == (
        [guard._switch.worker.id] if is_fenced(store) else []
    )
    await source.vouch("default", (await source.roster("default")).generation)
    if not is_fenced(store):
        with pytest.raises(StoreError, match="does not know its workers"):
            await source.forget("default", ["1-a"])
        return
    await source.forget("default", [])
    assert len((await source.roster("default")).rows) == 1


@pytest.mark.parametrize("name", ["", "Shop", "a/b", "a" * 65, 5, None, b"shop"])
def test_name_that_some_store_could_not_have_is_refused(name: Any) -> None:
    """A switch is named alike in files, in Redis and on the command line."""
    with pytest.raises(ValueError, match="must be 1 to 64 of a-z"):
        MaintenanceGuard(MemoryStore(), name=name)
