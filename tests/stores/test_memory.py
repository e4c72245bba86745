"""The state in one process's memory."""

import gc
import os
import threading
import weakref

import anyio
import pytest

from fastapi_maintenance import MaintenanceGuard, MaintenanceState, MemoryStore
from fastapi_maintenance.changes import with_new_epoch
from fastapi_maintenance.stores import StoreError
from tests.stores.children import in_child


async def test_it_may_be_on_from_the_start() -> None:
    """A store that is made enabled closes, under every name."""
    store = MemoryStore(enabled=True)
    for name in ("default", "payments"):
        assert store.read(name).enabled
        assert MaintenanceGuard(store, name=name).is_active
    assert not MaintenanceGuard(MemoryStore()).is_active


async def test_one_worker_for_each_store_and_name() -> None:
    """Guards of one store share a worker by name; two stores share nothing."""
    store = MemoryStore()
    one, same = MaintenanceGuard(store), MaintenanceGuard(store)
    assert one._switch.worker is same._switch.worker
    for other in (MaintenanceGuard(store, name="other"), MaintenanceGuard("memory:")):
        assert other._switch.worker is not one._switch.worker


async def test_epoch_must_grow() -> None:
    """Nothing is published under the epoch that the store begins with."""
    with pytest.raises(StoreError, match="epoch 0 is not larger"):
        MemoryStore().publish("default", lambda _: MaintenanceState(enabled=True))


async def test_failed_change_leaves_the_store_usable() -> None:
    """A change that raises sets nothing and holds no lock."""
    store = MemoryStore()

    def change(_: MaintenanceState | None) -> MaintenanceState:
        raise KeyError("no")

    with pytest.raises(KeyError):
        store.publish("default", change)
    on = with_new_epoch(lambda _: MaintenanceState(enabled=True))
    assert store.publish("default", on).enabled


async def test_report_is_this_process() -> None:
    """The roster has one worker, with what is in flight and its oldest work."""
    guard = MaintenanceGuard("memory:")
    with guard.admit():
        roster = await guard._switch.roster()
        assert roster is not None
        (worker,) = roster.workers
        assert (worker.pid, worker.current, worker.old) == (os.getpid(), 1, 0)
        assert worker.oldest is not None
        assert worker.oldest.route == "work"
        await guard.enable()
        roster = await guard._switch.roster()
        assert roster is not None
        assert [(w.current, w.old) for w in roster.workers] == [(0, 1)]


async def test_store_that_is_not_used_is_gone() -> None:
    """A store, its worker and its guard do not keep each other alive."""
    guard = MaintenanceGuard("memory:")
    with guard.admit():
        pass
    gone = weakref.ref(guard._switch.store)
    del guard
    gc.collect()
    assert gone() is None


async def test_worker_that_cannot_be_followed_is_seen() -> None:
    """A worker that cannot be counted makes every drain unknown."""
    guard = MaintenanceGuard(MemoryStore(enabled=True))
    await guard._switch.join()
    guard._switch.worker.mark_uncounted("no exit stack")
    assert (await guard.drain(timeout=0)).outcome == "unknown"


def test_forked_child_is_another_worker() -> None:
    """A child has another id and nothing in flight, and drains without its parent."""
    guard = MaintenanceGuard(MemoryStore())
    worker = guard._switch.worker
    with guard.admit():
        before = worker.id

        def child() -> bool:
            assert not worker.joined
            with guard.admit():
                assert len(worker.current) == 1
            anyio.run(guard.enable)
            assert anyio.run(lambda: guard.drain(timeout=0)).drained
            return worker.id != before

        assert in_child(child)
        assert (worker.id, len(worker.current)) == (before, 1)


def test_forked_child_can_publish_whatever_the_parent_was_doing() -> None:
    """A lock that a thread of the parent held when it forked does not stop a child."""
    store = MemoryStore()
    guard = MaintenanceGuard(store)
    on = with_new_epoch(lambda _: MaintenanceState(enabled=True))
    with store._lock:
        assert in_child(lambda: store.publish("default", on).enabled)
    assert not guard.is_active


def test_first_use_by_many_threads_makes_one_worker() -> None:
    """All threads that meet at the first use admit under the same worker."""
    guard = MaintenanceGuard("memory:")
    together = threading.Barrier(4)
    ids: list[str] = []

    def use() -> None:
        together.wait()
        with guard.admit() as admission:
            ids.append(str(admission))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert not guard._switch.worker.current
