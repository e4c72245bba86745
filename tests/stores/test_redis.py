"""The state and the reports in a real Redis, while all is well."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.fence import Roster
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.guards import switch_of
from tests.stores.children import ended, in_child
from tests.stores.redis_server import PASSWORD, shared_server
from tests.stores.redis_workers import (
    NAME,
    another,
    fresh_url,
    joined,
    listed,
    off,
    on,
    own_process,
    publish,
    report,
    twin,
)
from tests.waiting import eventually, until

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

FAR = "another-boot||pid:[1]|7"
"""The identity of a process on another machine."""


@pytest.fixture
def store() -> RedisStore:
    """Return a store with a prefix of its own."""
    return RedisStore.from_url(fresh_url())


@pytest.fixture
def raw() -> redis.Redis:
    """Return an administrator's client."""
    return shared_server().client()


def test_a_wait_ends_with_a_publication(store: RedisStore) -> None:
    """Who waits for several switches hears of a change of each of them."""
    names = [NAME, "payments"]
    for _ in names:
        store.wait(names, 5.0)  # The server confirms each subscription.
    for name in names:
        waiting = threading.Thread(target=store.wait, args=(names, 60.0))
        waiting.start()
        publish(twin(store), enabled=True, name=name)
        waiting.join(5.0)
        assert not waiting.is_alive()
    store.close()


def test_a_wait_ends_when_its_time_has_passed(store: RedisStore) -> None:
    """Without a change, a wait lasts as long as it was told to."""
    store.wait([NAME], 5.0)
    started = time.monotonic()
    store.wait([NAME], 0.1)
    assert 0.09 < time.monotonic() - started < 2.0
    store.close()


def test_a_store_that_was_closed_can_be_used_again(store: RedisStore) -> None:
    """Closing ends the connections, and the next use makes new ones."""
    store.wait([NAME], 5.0)
    store.close()
    store.close()
    publish(store, enabled=True)
    store.wait([NAME], 5.0)
    store.close()


def test_ages_are_by_the_clock_of_redis(store: RedisStore) -> None:
    """A roster and a report that were just made are young."""
    receipt = store.report(NAME, report())
    assert not receipt.young
    roster = store.roster(NAME)
    assert 0 <= roster.age < 2
    assert 0 <= roster.workers[0].age < 2


def test_removing_what_is_not_there_makes_nothing(store: RedisStore) -> None:
    """A worker that was never listed can be removed; others stay."""
    store.remove(NAME, "1-a")
    assert store.roster(NAME) == Roster(complete=False)
    store.report(NAME, report("2-b"))
    store.remove(NAME, "1-a")
    assert store.roster(NAME).members == {"2-b"}


def test_reports_without_a_list_are_no_roster(
    store: RedisStore, raw: redis.Redis
) -> None:
    """What a loss has left over is not taken for all workers."""
    store.report(NAME, report())
    raw.delete(store._key(NAME, "members"))
    assert store.roster(NAME) == Roster(complete=False)


@pytest.mark.parametrize(
    ("process", "pid", "liveness"),
    [
        (FAR, ended, "silent"),
        ("", ended, "silent"),
        (own_process(), ended, "dead"),
        (own_process(), os.getpid, "silent"),
    ],
    ids=["far away", "unknown", "ended here", "alive here"],
)
def test_silence_is_never_death(
    store: RedisStore,
    raw: redis.Redis,
    process: str,
    pid: Callable[[], int],
    liveness: str,
) -> None:
    """Only the process table proves that a worker is gone, however old its report."""
    store.report(NAME, report(process=process, pid=pid()))
    reports = store._key(NAME, "reports")
    entry = json.loads(raw.hget(reports, "1-a") or "")
    raw.hset(reports, "1-a", json.dumps({**entry, "at": entry["at"] - 60}))
    found = listed(store, "1-a")
    assert found.liveness == liveness
    assert 60 <= found.age < 65


@pytest.mark.parametrize(
    "value", ["", "nonsense", "{}", '{"at": 1, "report": {"id": "1-b"}}']
)
def test_a_report_that_cannot_be_read_is_a_silent_worker(
    store: RedisStore, raw: redis.Redis, value: str
) -> None:
    """What is not understood is never taken for nothing."""
    store.report(NAME, report())
    raw.hset(store._key(NAME, "reports"), "1-a", value)
    found = listed(store, "1-a")
    assert (found.liveness, found.host, found.seen) == ("silent", "unknown", 0)


def test_prefixes_and_databases_are_apart(store: RedisStore) -> None:
    """Another prefix or database is another switch."""
    publish(store, enabled=True)
    store.report(NAME, report())
    other = redis.Redis(port=shared_server().port, password=PASSWORD, db=1)
    for place in (
        RedisStore.from_url(fresh_url()),
        RedisStore(other, prefix=store.prefix),
    ):
        assert place.read(NAME) is None
        assert place.roster(NAME).members == set()


def test_stores_of_one_place_share_the_worker(store: RedisStore) -> None:
    """A process is one worker, however many store objects mean the same place."""
    other = twin(store)
    assert Switch(other, NAME).worker is Switch(store, NAME).worker
    assert Switch(other, "payments").keeper is Switch(store, NAME).keeper


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Leave what there is to no collection: a worker's would stop this thread too."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def test_publications_are_acknowledged_within_moments(store: RedisStore) -> None:
    """A worker hears of a publication, and its report follows."""
    worker = another(store)
    delays = []
    with joined(worker), no_garbage():
        for number in range(15):
            started = time.monotonic()
            state = publish(store, enabled=not number % 2)
            until(lambda: listed(store, worker.worker.id).seen == state.epoch)  # noqa: B023  # called here
            delays.append(time.monotonic() - started)
    # Without a message it would take half a second; alone it takes 10 ms.
    assert statistics.median(delays) < 0.1


async def test_a_worker_in_a_lifespan_is_on_the_list(store: RedisStore) -> None:
    """An operator's publication returns when all workers have acknowledged it."""
    operator = switch_of(store)
    async with operator.attached():
        publication = await operator.enable(EnableOptions())
        assert listed(store, operator.worker.id).seen == publication.state.epoch
        assert operator.state == publication.state
    assert store.roster(NAME).members == set()


async def test_the_first_drain_on_a_new_redis_needs_no_number(
    store: RedisStore,
) -> None:
    """A roster that its workers have made is complete, without a person's word."""
    operator = switch_of(store)
    with joined(another(store), another(store)):
        report_ = await operator.drain(DrainOptions(timeout=5), enable=EnableOptions())
    assert (report_.outcome, len(report_.workers)) == ("drained", 2)


async def test_a_drain_waits_for_requests_elsewhere(store: RedisStore) -> None:
    """A request on another worker delays the drain until it ends, and no longer."""
    operator = switch_of(store)
    kept = another(store)
    with joined(kept):
        admission = kept.worker.admit("GET /slow")
        assert admission is not None
        busy = await operator.drain(DrainOptions(timeout=0.5), enable=EnableOptions())
        assert (busy.outcome, busy.workers[0].old) == ("busy", 1)
        assert "GET /slow" in busy.reason
        threading.Timer(0.2, admission.release).start()
        done = await operator.drain(DrainOptions(timeout=10))
        assert done.outcome == "drained"


async def test_a_loss_of_all_data_does_not_end_maintenance(
    store: RedisStore, raw: redis.Redis
) -> None:
    """Workers write the state back and testify; a number of workers completes it."""
    operator = switch_of(store)
    kept = another(store)
    with joined(kept):
        state = publish(store, enabled=True)
        await eventually(lambda: kept.worker.state == state)
        before = store.roster(NAME)
        raw.delete(
            *(store._key(NAME, kind) for kind in ("state", "members", "reports"))
        )
        await eventually(lambda: store.read(NAME) == state, what="written back")
        await eventually(lambda: store.roster(NAME).members, what="reported")
        await eventually(lambda: not store.roster(NAME).complete, what="testified")
        assert store.roster(NAME).generation != before.generation
        assert kept.worker.state == state
        lost = await operator.drain(DrainOptions(timeout=5))
        assert lost.outcome == "lost"
        assert "--workers N" in lost.reason
        for workers in (1, None):
            found = await operator.drain(DrainOptions(timeout=5, workers=workers))
            assert found.outcome == "drained"


@pytest.mark.parametrize("kind", ["state", "members", "reports"])
async def test_each_key_may_be_evicted(
    store: RedisStore, raw: redis.Redis, kind: str
) -> None:
    """What is evicted comes back within moments, and is testified."""
    kept = another(store)
    with joined(kept):
        state = publish(store, enabled=True)
        await eventually(lambda: listed(store, kept.worker.id).seen == state.epoch)
        raw.delete(store._key(NAME, kind))
        await eventually(lambda: raw.exists(store._key(NAME, kind)))
        await eventually(lambda: not store.roster(NAME).complete)
        await eventually(lambda: listed(store, kept.worker.id).seen == state.epoch)
        assert store.read(NAME) == state


async def test_a_backup_that_was_restored_does_not_open_a_service(
    store: RedisStore, raw: redis.Redis
) -> None:
    """An older state in Redis is replaced by the one that workers know."""
    kept = another(store)
    with joined(kept):
        opened = publish(store, enabled=False)
        await eventually(lambda: kept.worker.state == opened)
        backup = raw.get(store._key(NAME, "state"))
        state = publish(store, enabled=True)
        await eventually(lambda: kept.worker.state == state)
        raw.set(store._key(NAME, "state"), backup or "")
        await eventually(lambda: store.read(NAME) == state)
        assert kept.worker.state == state


async def test_a_state_that_was_edited_by_hand_is_published(
    store: RedisStore, raw: redis.Redis
) -> None:
    """What a person has set with redis-cli is adopted, and gets an epoch."""
    kept = another(store)
    with joined(kept):
        publish(store, enabled=False)
        raw.set(store._key(NAME, "state"), '{"enabled": true, "message": "by hand"}')
        await eventually(lambda: kept.worker.state.message == "by hand")
        found = store.read(NAME)
        assert found == kept.worker.state
        assert found.epoch > 0


async def test_a_dead_worker_is_taken_off_the_list(store: RedisStore) -> None:
    """A worker that was killed does not make the next drain *lost*."""
    operator = switch_of(store)
    dead = report("9-x", process=own_process(), pid=ended(), current=1)
    kept = another(store)
    with joined(kept):
        store.report(NAME, dead)
        done = await operator.drain(DrainOptions(timeout=5), enable=EnableOptions())
        assert done.outcome == "drained"
        store.report(NAME, dead)
        await eventually(lambda: "9-x" not in store.roster(NAME).members)


def test_a_forked_child_is_a_worker_of_its_own(store: RedisStore) -> None:
    """A child joins under its own id and connections; the parent hears on."""
    kept = another(store)
    beside = twin(store)
    with joined(kept):
        state = publish(beside, enabled=True)
        until(lambda: kept.worker.state == state)
        parent = kept.worker.id

        def work() -> bool:
            was_joined = kept.worker.joined
            kept.add_user()
            kept.join()
            joined_now = beside.roster(NAME).members == {parent, kept.worker.id}
            seen = kept.worker.state == state
            publish(beside, enabled=False)
            until(lambda: not kept.worker.state.enabled)
            kept.leave()
            return not was_joined and joined_now and seen

        assert in_child(work)
        until(lambda: not kept.worker.state.enabled)
        state = publish(beside, enabled=True)
        until(lambda: listed(store, parent).seen == state.epoch)
        assert store.roster(NAME).members == {parent}


def test_a_child_that_is_forked_while_connections_are_used_is_not_disturbed(
    store: RedisStore,
) -> None:
    """Answers never go to the wrong process, though threads of the parent ask on."""
    publish(store, enabled=True)
    stop = threading.Event()

    def child() -> bool:
        store.forked()
        return all(store.read(NAME) for _ in range(50))

    def ask() -> None:
        while not stop.is_set():
            assert store.read("none") is None

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for _ in range(3):
                assert in_child(child)
        finally:
            stop.set()
    for asked in asking:
        asked.result()


@pytest.mark.parametrize("kind", ["list", "other json", "text"])
def test_a_state_that_is_another_programs_is_no_state(
    store: RedisStore, raw: redis.Redis, kind: str
) -> None:
    """Reading refuses what is not a state; a type of another program is kept."""
    key = store._key(NAME, "state")
    if kind == "list":
        raw.rpush(key, "mine")
        with pytest.raises(StoreError, match="another program's data"):
            store.publish(NAME, on)
    else:
        raw.set(key, '{"mine": 1}' if kind == "other json" else "\xff mine")
    with pytest.raises(StoreError) as caught:
        store.read(NAME)
    assert "another program" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        another(store).join()
    if kind != "list":
        earlier: list[MaintenanceState | None] = []

        def change(before: MaintenanceState | None) -> MaintenanceState:
            earlier.append(before)
            return off(before)

        assert store.publish(NAME, change) == store.read(NAME)
        assert earlier == [MaintenanceState(enabled=True)]


def test_a_list_of_workers_of_another_type_is_an_error(
    store: RedisStore, raw: redis.Redis
) -> None:
    """Foreign members are an error that names the prefix, for every use of them."""
    key = store._key(NAME, "members")
    raw.rpush(key, "mine")
    for attempt in (
        lambda: store.report(NAME, report()),
        lambda: store.roster(NAME),
        lambda: store.confirm(NAME, "x", complete=True),
        lambda: store.remove(NAME, "1-a"),
    ):
        with pytest.raises(StoreError, match="another program") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert raw.type(key) == b"list"


def test_a_list_of_workers_that_cannot_be_read_is_a_lost_one(
    store: RedisStore, raw: redis.Redis
) -> None:
    """The next report makes a new list, which is not known to be complete."""
    first = store.report(NAME, report())
    raw.set(store._key(NAME, "members"), '{"mine": 1}')
    assert store.roster(NAME) == Roster(complete=False)
    assert store.confirm(NAME, first.generation, complete=True) == ""
    store.remove(NAME, "2-b")
    second = store.report(NAME, report(generation=first.generation))
    assert second.generation != first.generation
    assert not second.complete
    assert store.roster(NAME).members == {"1-a"}


def test_reports_that_are_another_programs_are_an_error(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A key of another type is never overwritten, and no worker joins."""
    key = store._key(NAME, "reports")
    raw.set(key, "mine")
    for attempt in (
        lambda: store.report(NAME, report()),
        lambda: store.roster(NAME),
        lambda: store.remove(NAME, "1-a"),
    ):
        with pytest.raises(StoreError, match="another program's data"):
            attempt()
    assert raw.get(key) == b"mine"


async def test_a_newer_releases_state_blocks_and_is_not_overwritten(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A state of a newer version is on for workers, and only upgraded ones set it."""
    document = {"version": 2, "enabled": True, "epoch": 5, "tag": "t", "until": "soon"}
    raw.set(store._key(NAME, "state"), json.dumps(document))
    operator = switch_of(store)
    kept = another(store)
    with joined(kept):
        assert operator.in_force(kept.worker.state)
        with pytest.raises(StoreError, match=r"newer release \(version 2\); upgrade"):
            await operator.disable()
    assert json.loads(raw.get(store._key(NAME, "state")) or "") == document
