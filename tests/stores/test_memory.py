"""The state in one process's memory."""

import functools
import gc
import os
import threading
import weakref

import anyio
import pytest

from fastapi_maintenance import MaintenanceGuard, MaintenanceState, MemoryStore
from fastapi_maintenance.state import next_epoch
from fastapi_maintenance.stores._admission import own_counts


async def test_it_may_be_on_from_the_start() -> None:
    """A store that is made active closes, under every name."""
    store = MemoryStore(active=True)
    for name in ("default", "payments"):
        assert (await store.read(name)).active
        assert MaintenanceGuard(store, name=name).is_active
    assert not MaintenanceGuard(MemoryStore()).is_active


async def test_one_worker_for_each_name() -> None:
    """All guards of a store and name are one worker, of whichever thread they are."""
    store = MemoryStore()
    found = [store.worker("default")]
    threads = [
        threading.Thread(target=lambda: found.append(store.worker("default")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert store.worker("other") is not found[0]


async def test_epochs_grow_in_races() -> None:
    """Publications of many threads have an order, and lose nothing."""
    store = MemoryStore()
    store.worker("default").join()

    def add(holder: str, state: MaintenanceState) -> MaintenanceState:
        return state.but(holders=(*state.holders, holder))

    def publish(number: int) -> None:
        for turn in range(20):
            holder = f"{number}-{turn}"
            publishing = store.publish("default", functools.partial(add, holder))
            with pytest.raises(StopIteration):
                publishing.send(None)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((await store.read("default")).holders)) == 80
    assert store.worker("default").state == store.peek("default")


async def test_failed_change_leaves_the_store_usable() -> None:
    """A change that raises sets nothing and holds no lock."""
    store = MemoryStore()

    def change(_: MaintenanceState) -> MaintenanceState:
        raise KeyError("no")

    with pytest.raises(KeyError):
        await store.publish("default", change)
    assert (
        await store.publish("default", lambda _: MaintenanceState(active=True))
    ).active


async def test_row_is_this_process() -> None:
    """The roster has one row, with what is in flight and its oldest work."""
    guard = MaintenanceGuard("memory:")
    with guard.admit():
        roster = await guard._switch.source.roster("default")
        (row,) = roster.rows
        assert (row.pid, row.current, row.old) == (os.getpid(), 1, 0)
        assert row.oldest_route == "work"
        assert row.oldest_age is not None
        assert 0 <= row.oldest_age < 60
        await guard.enable()
        (row,) = (await guard._switch.source.roster("default")).rows
        assert (row.current, row.old) == (0, 1)


async def test_store_that_nobody_uses_is_gone() -> None:
    """A store, its worker and its guard do not keep each other alive."""
    guard = MaintenanceGuard("memory:")
    with guard.admit():
        pass
    gone = weakref.ref(guard._switch.store)
    del guard
    gc.collect()
    assert gone() is None


async def test_worker_that_stood_aside_is_seen() -> None:
    """A worker that cannot be counted makes every drain unknown."""
    guard = MaintenanceGuard(MemoryStore(active=True))
    await guard._switch.join()
    guard._switch.worker.stand_aside("no exit stack")
    guard._switch.worker.stand_aside("no exit stack")
    assert (await guard.drain(timeout=0)).outcome == "unknown"


def test_forked_child_is_another_worker() -> None:
    """A child of a fork has another id, nothing in flight, and joins by itself."""
    guard = MaintenanceGuard(MemoryStore(active=False))
    worker = guard._switch.worker
    read, write = os.pipe()
    with guard.admit():
        child = os.fork()
        if child == 0:
            clean = (worker.counts(), worker.joined, own_counts(worker))
            with guard.admit():
                inside = worker.counts()[0]
            os.write(write, repr((clean, inside, worker.id)).encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answers:
        told = answers.read()
    assert told.startswith("(((0, 0, None), False, 0), 1, '")
    assert worker.id not in told
    assert worker.counts()[0] == 0


def test_forked_child_can_publish_whatever_the_parent_was_doing() -> None:
    """A lock that a thread of the parent had when it forked does not stop a child."""
    store = MemoryStore()
    with store._lock:
        child = os.fork()
        if child == 0:
            anyio.run(store.publish, "default", lambda state: state.but(active=True))
            os._exit(0 if store.peek("default").active else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_next_epoch_is_larger_than_all_that_are_known() -> None:
    """An epoch is larger than every known one, also when the clock went back."""
    assert next_epoch(5) > 5
    assert next_epoch(1 << 52, 7) == (1 << 52) + 1
