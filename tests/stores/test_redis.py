"""The state and the rows in a real Redis, while all is well."""

import contextlib
import gc
import json
import os
import subprocess
import threading
import time
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest
import redis

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.fence import Fence, holds_up
from fastapi_maintenance.orders import HeldError, Order
from fastapi_maintenance.stores import open_store
from fastapi_maintenance.stores._process import ProcessIdentity
from fastapi_maintenance.stores._redis_rows import encode, field_of, kernel_of
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import Switch
from fastapi_maintenance.waiting import Plan
from tests.stores.redis_server import PASSWORD, shared_server
from tests.stores.redis_workers import (
    NAME,
    ON,
    another,
    eventually,
    find,
    fresh_url,
    joined,
    off,
    on,
    row_of,
)

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@pytest.fixture
def store() -> RedisStore:
    """Return a store with a prefix of its own."""
    return RedisStore.from_url(fresh_url())


@pytest.fixture
def raw() -> redis.Redis:
    """Return an administrator's client."""
    return shared_server().client()


async def test_nothing_stored_is_off(store: RedisStore) -> None:
    """A Redis that nobody has used says off, without an epoch."""
    assert await store.read(NAME) == MaintenanceState()


async def test_what_was_published_is_read_by_all(store: RedisStore) -> None:
    """A publication is what every other process reads, unknown keys included."""
    published = await store.publish(NAME, lambda _: ON.but(extra={"ticket": 7}))
    other = RedisStore(store._connector.client, prefix=store.prefix)
    assert await other.read(NAME) == published
    assert published.epoch > 0
    assert published.extra == {"ticket": 7}


async def test_epochs_grow_whatever_the_clock_says(
    store: RedisStore, raw: redis.Redis
) -> None:
    """An epoch exceeds all that were ever reported, though the state is gone."""
    first = await store.publish(NAME, on)
    keys = store._keys(NAME)
    ahead = first.epoch + 10**9
    raw.hset(keys.workers, ".epoch", ahead)
    raw.delete(keys.state)
    assert (await store.publish(NAME, off)).epoch == ahead + 1


async def test_racing_publishers_lose_nothing(store: RedisStore) -> None:
    """Changes of many publishers at once are applied one after the other, all."""

    async def add(holder: str) -> None:
        await store.publish(
            NAME, lambda before: ON.but(holders=(*before.holders, holder))
        )

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(add, f"job{number}")
    state = await store.read(NAME)
    assert sorted(state.holders) == sorted(f"job{number}" for number in range(20))


async def test_a_change_that_refuses_changes_nothing(store: RedisStore) -> None:
    """An error of the change itself is passed on, and the state stands."""
    before = await store.publish(NAME, on)

    def refuse(_: MaintenanceState) -> MaintenanceState:
        raise HeldError("held")

    with pytest.raises(HeldError):
        await store.publish(NAME, refuse)
    assert await store.read(NAME) == before


async def test_switches_and_prefixes_are_apart(store: RedisStore) -> None:
    """Another name, prefix or database is another switch."""
    await store.publish(NAME, on)
    other_database = redis.Redis(port=shared_server().port, password=PASSWORD, db=1)
    assert (await store.read("payments")).active is False
    assert (await open_store(fresh_url()).read(NAME)).active is False
    elsewhere = RedisStore(other_database, prefix=store.prefix)
    assert (await elsewhere.read(NAME)).active is False


async def test_stores_of_one_place_share_the_worker(store: RedisStore) -> None:
    """A process is one row, however many store objects mean the same place."""
    other = RedisStore(store._connector.client, prefix=store.prefix)
    assert other.worker(NAME) is store.worker(NAME)
    assert other.worker("payments") is not store.worker(NAME)


async def test_requests_read_memory_that_is_adopted_within_moments(
    store: RedisStore,
) -> None:
    """A worker elsewhere adopts a publication without being asked, and soon."""
    worker = another(store)
    async with joined(worker):
        await store.publish(NAME, on)
        await eventually(lambda: worker.look().active, 0.9, "adopted by message")
        await store.publish(NAME, off)
        await eventually(lambda: not worker.look().active, 0.9, "adopted by message")


async def test_the_publishing_process_adopts_at_once(store: RedisStore) -> None:
    """Whoever publishes has adopted the state when the call returns."""
    async with joined(store.worker(NAME)):
        state = await store.publish(NAME, on)
        assert store.worker(NAME).look() == state


async def test_peek_says_what_was_read_and_nothing_else(store: RedisStore) -> None:
    """Before anything was read there is no answer; then there is the last one."""
    with pytest.raises(StoreError, match="has not been read yet; use FastAPI"):
        store.peek(NAME)
    state = await store.publish(NAME, on)
    assert store.peek(NAME) == state
    other = another(store)
    async with joined(other):
        assert other.state == state


async def test_a_row_shows_what_is_in_flight(store: RedisStore) -> None:
    """A row has the adopted epoch, both counts and the route of the oldest request."""
    worker = another(store)
    async with joined(worker):
        admission = worker.admit("GET /slow")
        state = await store.publish(NAME, on)
        await eventually(lambda: worker.look().epoch == state.epoch)
        await eventually(lambda: worker.link.reported_old == 1)
        row = await row_of(store, worker)
        assert (row.seen, row.current, row.old) == (state.epoch, 0, 1)
        assert row.oldest_route == "GET /slow"
        assert row.oldest_age is not None
        assert row.pid == os.getpid()
        assert row.counts_first is False
        assert row.liveness == "alive"
        admission.release()
        await eventually(lambda: worker.link.reported_old == 0, 0.5, "reported soon")
        assert (await row_of(store, worker)).in_flight == 0


async def test_a_drain_waits_for_requests_elsewhere(store: RedisStore) -> None:
    """A request on another worker holds the drain up until it ends, and no longer."""
    switch = Switch(store, NAME)
    worker = another(store)
    async with joined(worker):
        await switch.drain(Plan(timeout=1, vouched=True), order=Order())
        await switch.disable()
        await eventually(lambda: not worker.look().active)
        admission = worker.admit("GET /slow")
        busy = await switch.drain(Plan(timeout=0.3), order=Order())
        assert (busy.outcome, busy.workers[0].old) == ("busy", 1)
        threading.Timer(0.2, admission.release).start()
        report = await switch.drain(Plan(timeout=5))
        assert report.outcome == "drained"
        assert 0.15 < report.seconds < 1.0


async def test_a_worker_that_cannot_count_makes_the_answer_unknown(
    store: RedisStore,
) -> None:
    """A drain does not vouch for a worker that says it cannot count."""
    worker = another(store)
    async with joined(worker):
        await store.vouch(NAME, (await store.roster(NAME)).generation)
        assert (await store.roster(NAME)).uncounted is False
        worker.stand_aside("a test")
        worker.link.report()
        assert (await store.roster(NAME)).uncounted is True


async def test_joining_acknowledges_nothing_before_it_is_adopted(
    store: RedisStore,
) -> None:
    """A row that is made but not joined holds a drain up, whatever was published."""
    state = await store.publish(NAME, on)
    worker = another(store)
    await anyio.to_thread.run_sync(worker.link.join, 5.0)
    assert holds_up(await row_of(store, worker), state.epoch)
    await anyio.to_thread.run_sync(worker.link.leave)
    assert (await store.roster(NAME)).rows == ()


async def test_leaving_removes_the_row(store: RedisStore) -> None:
    """A clean leave leaves nothing behind, and the thread ends."""
    worker = another(store)
    async with joined(worker):
        hub = worker.link.hub
        assert hub._thread is not None
    assert (await store.roster(NAME)).rows == ()
    await eventually(lambda: hub._thread is None, 2, "the thread ends")


async def test_a_worker_that_is_dropped_leaves_too(store: RedisStore) -> None:
    """A guard that nobody holds any more takes its idle row away."""
    worker = another(store)
    worker.join()
    assert len((await store.roster(NAME)).rows) == 1
    del worker
    gc.collect()
    await eventually(lambda: not _fields(store), what="the row is gone")


async def test_a_dropped_worker_with_work_in_flight_keeps_its_row(
    store: RedisStore,
) -> None:
    """What still runs stays visible, though nobody holds the guard any more."""
    worker = another(store)
    worker.join()
    in_flight = worker.current
    worker.admit("GET /slow").number = 0
    del worker
    gc.collect()
    assert len(in_flight) == 1
    assert len(_fields(store)) == 1


def _fields(store: RedisStore) -> list[str]:
    rows = store._scripts.look(store._keys(NAME)).rows
    return [field for field, _ in rows]


async def test_a_worker_that_left_may_return(store: RedisStore) -> None:
    """Lifespans of test clients come and go; each one is a row again."""
    worker = another(store)
    for _ in range(2):
        async with joined(worker):
            assert (await row_of(store, worker)).liveness == "alive"


async def test_silence_is_lost_and_never_dead(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A row from another machine that is silent for long is lost, for ever."""
    identity = replace(ProcessIdentity.own(), boot="another", host="far", pid=1)
    row = encode(identity, uncounted=False, seen=7, current=2, old=1, oldest=None)
    raw.hset(store._keys(NAME).workers, ".v", "1")
    raw.hset(store._keys(NAME).workers, field_of("1-far", identity), f"0 {row}")
    for _ in range(2):
        (found,) = (await store.roster(NAME)).rows
        assert (found.liveness, found.host, found.old) == ("lost", "far", 1)
        assert found.report_age > 1e6


@pytest.mark.parametrize(
    ("change", "liveness"),
    [
        ({}, "dead"),
        ({"started": ""}, "dead"),
        ({"boot": "other"}, "lost"),
        ({"namespace": "pid:[1]"}, "lost"),
        ({"boot": ""}, "lost"),
        ({"namespace": ""}, "lost"),
    ],
)
async def test_death_is_proven_in_one_kernel_and_namespace_only(
    store: RedisStore, raw: redis.Redis, change: dict[str, str], liveness: str
) -> None:
    """An installation id that was copied with an image proves nothing."""
    identity = replace(ProcessIdentity.own(), pid=_dead_pid(), **change)
    row = encode(identity, uncounted=False, seen=0, current=1, old=0, oldest=None)
    raw.hset(store._keys(NAME).workers, ".v", "1")
    raw.hset(store._keys(NAME).workers, field_of("9-x", identity), f"0 {row}")
    (found,) = (await store.roster(NAME)).rows
    assert found.liveness == liveness
    assert len(_fields(store)) == (0 if liveness == "dead" else 1)


def _dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


async def test_any_worker_of_the_machine_removes_the_dead(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A row of a killed neighbour goes with a heartbeat, without a coordinator."""
    worker = another(store)
    async with joined(worker):
        identity = replace(ProcessIdentity.own(), pid=_dead_pid())
        row = encode(identity, uncounted=False, seen=0, current=1, old=0, oldest=None)
        field = field_of("9-x", identity)
        raw.hset(store._keys(NAME).workers, field, f"9999999999999 {row}")
        await eventually(lambda: field not in _fields(store), 5, "reaped")
        assert len(_fields(store)) == 1


async def test_a_heartbeat_brings_no_rows_of_others(store: RedisStore) -> None:
    """What a worker is told does not grow with the number of machines."""
    workers = [another(store) for _ in range(3)]
    async with joined(*workers):
        link = workers[0].link
        raw = shared_server().client()
        own = kernel_of(ProcessIdentity.own())
        lease = f"{link.keys.lease}:{own}"
        raw.set(lease, "1")
        identity = replace(ProcessIdentity.own(), boot="another")
        row = encode(identity, uncounted=False, seen=0, current=0, old=0, oldest=None)
        for number in range(50):
            raw.hset(link.keys.workers, field_of(f"{number}-x", identity), f"0 {row}")
        assert link._sync(0, (0, 0), None).rows == ()
        raw.delete(lease)
        reply = link._sync(0, (0, 0), None)
        assert len(reply.rows) in {0, 3}
        assert all(field.startswith(f"{own}/") for field, _ in reply.rows)


@pytest.mark.parametrize(
    "value", ["", "nonsense", "1 {}", "1 []", '1 {"seen": "x"}', "x {}"]
)
async def test_a_row_that_cannot_be_understood_is_lost(
    store: RedisStore, raw: redis.Redis, value: str
) -> None:
    """What nobody understands is never taken for nobody."""
    raw.hset(store._keys(NAME).workers, ".v", "1")
    raw.hset(store._keys(NAME).workers, "kernel/7-x", value)
    (row,) = (await store.roster(NAME)).rows
    assert (row.id, row.liveness) == ("7-x", "lost")


async def test_forget_removes_rows_for_good_unless_they_live(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A person can drop machines that are gone; a worker that lives comes back."""
    worker = another(store)
    raw.hset(store._keys(NAME).workers, ".v", "1")
    raw.hset(store._keys(NAME).workers, "far/1-x", "0 {}")
    async with joined(worker):
        await store.forget(NAME, ["1-x", worker.id, "unknown"])
        await eventually(lambda: _fields(store), 3, "it reports again")
        assert find(await store.roster(NAME), worker.id).liveness == "alive"
        assert len(_fields(store)) == 1
    await store.forget(NAME, ["1-x"])


async def test_a_new_roster_is_complete_on_a_persons_word_only(
    store: RedisStore,
) -> None:
    """No waiting completes a list of workers that Redis may have lost."""
    worker = another(store)
    async with joined(worker):
        first = await store.roster(NAME)
        assert first.whole is False
        state = await store.publish(NAME, on)
        await eventually(lambda: worker.look().active)
        worker.link.report()
        fence = Fence(epoch=state.epoch, workers=1, vouched=False, before=first)
        assert fence.judge(await store.roster(NAME))[0] == "lost"
        await store.vouch(NAME, first.generation)
        second = await store.roster(NAME)
        assert (second.whole, second.generation) == (True, first.generation)
        fence = Fence(epoch=state.epoch, workers=1, vouched=False, before=second)
        assert fence.judge(await store.roster(NAME))[0] == "drained"


async def test_vouching_for_another_generation_does_nothing(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A word about rows that were lost meanwhile does not hold for their successors."""
    worker = another(store)
    async with joined(worker):
        judged = await store.roster(NAME)
        raw.hset(store._keys(NAME).workers, ".generation", "another")
        await store.roster(NAME)  # Somebody else looks before the word is stored.
        await store.vouch(NAME, judged.generation)
        assert (await store.roster(NAME)).whole is False


@pytest.mark.parametrize("loss", ["generation", "run", "all"])
async def test_a_roster_that_may_be_lost_is_another_generation(
    store: RedisStore, raw: redis.Redis, loss: str
) -> None:
    """Without its generation, or on another server process, rows may be missing."""
    worker = another(store)
    async with joined(worker):
        await store.vouch(NAME, (await store.roster(NAME)).generation)
        before = await store.roster(NAME)
        assert before.whole is True
        rows = store._keys(NAME).workers
        if loss == "generation":
            raw.hdel(rows, ".generation")
        elif loss == "run":
            raw.hset(rows, ".run", "another")
        else:
            raw.delete(rows)
        after = await store.roster(NAME)
        assert (after.whole, after.generation == before.generation) == (False, False)
        worker.link.report()
        again = await store.roster(NAME)
        assert (again.whole, len(again.rows)) == (False, 1)
        assert again.generation not in {before.generation, after.generation}


async def test_rows_that_were_lost_may_still_be_proven_dead(store: RedisStore) -> None:
    """A coordinator that saw a row knows whose it was, and that it has died."""
    child = await anyio.to_thread.run_sync(subprocess.Popen, ["sleep", "60"])
    identity = replace(ProcessIdentity.own(), pid=child.pid, started="")
    row = encode(identity, uncounted=False, seen=0, current=1, old=0, oldest=None)
    raw = shared_server().client()
    keys = store._keys(NAME)
    raw.hset(keys.workers, ".v", "1")
    raw.hset(keys.workers, field_of("9-x", identity), f"0 {row}")
    try:
        assert find(await store.roster(NAME), "9-x").liveness == "lost"
        raw.delete(keys.workers)
        assert (await store.roster(NAME)).rows == ()
    finally:
        child.kill()
        await anyio.to_thread.run_sync(child.wait)
    assert find(await store.roster(NAME), "9-x").liveness == "dead"
    assert (await store.roster(NAME)).rows == ()


async def test_what_redis_loses_is_written_back(
    store: RedisStore, raw: redis.Redis
) -> None:
    """Maintenance does not end because Redis lost its data, and rows come back."""
    worker = another(store)
    async with joined(worker):
        state = await store.publish(NAME, lambda _: ON.but(extra={"ticket": 7}))
        await eventually(lambda: worker.look().epoch == state.epoch)
        keys = store._keys(NAME)
        raw.delete(keys.state, keys.workers)
        await eventually(lambda: raw.exists(keys.state), 3, "written back")
        assert await store.read(NAME) == state
        assert worker.look() == state
        assert (await row_of(store, worker)).seen == state.epoch


async def test_an_older_state_in_redis_is_replaced_by_what_workers_know(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A restored backup does not open a service that was closed since."""
    worker = another(store)
    async with joined(worker):
        await store.publish(NAME, off)
        keys = store._keys(NAME)
        fields = ("epoch", "tag", "doc")
        backup = raw.hmget(keys.state, *fields)
        state = await store.publish(NAME, on)
        await eventually(lambda: worker.look().active)
        for field, value in zip(fields, backup, strict=True):
            raw.hset(keys.state, field, value or "")
        worker.link.report()
        assert await store.read(NAME) == state
        assert worker.look().active is True


async def test_one_epoch_never_means_two_states(
    store: RedisStore, raw: redis.Redis
) -> None:
    """Two publications that got one number (a failover) are told apart and raised."""
    worker = another(store)
    async with joined(worker):
        state = await store.publish(NAME, off)
        await eventually(lambda: worker.look().epoch == state.epoch)
        keys = store._keys(NAME)
        doc = ON.but(epoch=state.epoch).to_json()
        raw.hset(keys.state, mapping={"tag": "other", "doc": doc})
        await eventually(lambda: worker.look().active, 3, "the stored one is adopted")
        assert worker.look().epoch > state.epoch
        assert (await store.read(NAME)).epoch == worker.look().epoch


async def test_a_cold_start_waits_for_those_who_know(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A worker that starts right after a loss does not take it for *off*."""
    old, new = another(store), another(store)
    async with joined(old):
        state = await store.publish(NAME, on)
        await eventually(lambda: old.look().active)
        keys = store._keys(NAME)
        raw.delete(keys.state, keys.workers)
        async with joined(new):
            assert new.state == state


async def test_a_publication_waits_for_those_who_know(
    store: RedisStore, raw: redis.Redis
) -> None:
    """An ``on`` right after a loss keeps the holds that workers bring back."""
    worker = another(store)
    async with joined(worker):
        await store.publish(NAME, lambda _: ON.but(holders=("job",)))
        await eventually(lambda: worker.look().active)
        keys = store._keys(NAME)
        raw.delete(keys.state, keys.workers)
        assert (await store.publish(NAME, on)).holders == ("job",)


async def test_a_state_that_cannot_be_read_is_closed_until_published_anew(
    store: RedisStore, raw: redis.Redis
) -> None:
    """What a worker cannot read is on; publishing mends it."""
    worker, cold = another(store), another(store)
    async with joined(worker):
        state = await store.publish(NAME, off)
        await eventually(lambda: worker.look().epoch == state.epoch)
        raw.hset(
            store._keys(NAME).state,
            mapping={"doc": "{", "tag": "x", "epoch": state.epoch + 1},
        )
        worker.link.report()
        assert worker.look().active is True
        async with joined(cold):
            assert cold.look().active is True
            await store.publish(NAME, off)
            await eventually(lambda: not worker.look().active)
            await eventually(lambda: not cold.look().active)


async def test_a_newer_releases_state_blocks_and_is_not_overwritten(
    store: RedisStore, raw: redis.Redis
) -> None:
    """A state of a newer version is on for workers, and only upgraded ones set it."""
    await store.publish(NAME, on)
    document = {"version": 2, "active": True, "epoch": 5, "until": "whenever"}
    raw.hset(store._keys(NAME).state, "doc", json.dumps(document))
    assert (await store.read(NAME)).active is True
    with pytest.raises(StoreError, match=r"newer release \(version 2\); upgrade"):
        await store.publish(NAME, off)


async def test_a_newer_protocol_is_refused(store: RedisStore, raw: redis.Redis) -> None:
    """A prefix that a newer release has taken over is one clear error."""
    raw.hset(store._keys(NAME).workers, ".v", "2")
    with pytest.raises(StoreError, match="used by a newer release under this prefix"):
        await store.read(NAME)


@pytest.mark.parametrize("key", ["state", "workers"])
@pytest.mark.parametrize("kind", ["string", "hash"])
async def test_another_programs_data_is_left_alone(
    store: RedisStore, raw: redis.Redis, key: str, kind: str
) -> None:
    """What others keep under the prefix is never overwritten, and named."""
    place = getattr(store._keys(NAME), key)
    if kind == "string":
        raw.set(place, "mine")
    else:
        raw.hset(place, "mine", "1")
    for attempt in (store.read(NAME), store.publish(NAME, on), store.roster(NAME)):
        with pytest.raises(StoreError, match="another program's data") as caught:
            await attempt
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="another program's data"):
        another(store).join(5.0)
    assert raw.type(place) == kind.encode()


async def test_a_forked_child_is_a_worker_of_its_own(store: RedisStore) -> None:
    """A child has no row until it joins, then its own; the parent's stays whole."""
    worker = another(store)
    async with joined(worker):
        state = await store.publish(NAME, on)
        await eventually(lambda: worker.look().active)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                before = (worker.id, worker.joined, worker.link.hub._thread)
                worker.join(5.0)
                admission = worker.admit("GET /child")
                worker.link.report()
                rows = store._scripts.look(store._keys(NAME)).rows
                admission.release()
                worker.leave()
                found = [*map(str, before), len(rows), worker.state.epoch]
                os.write(write, json.dumps(found).encode())
            os._exit(0)
        await anyio.to_thread.run_sync(os.waitpid, child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            number, is_joined, thread, rows, epoch = json.loads(pipe.read())
        assert number.startswith(f"{child}-")
        assert (is_joined, thread, rows, epoch) == ("False", "None", 2, state.epoch)
        await store.publish(NAME, off)
        await eventually(lambda: not worker.look().active, 0.9, "the parent hears on")
        assert len((await store.roster(NAME)).rows) == 1


async def test_a_switch_in_a_lifespan_is_a_row(store: RedisStore) -> None:
    """Joining acknowledges at once: no drain after a start waits for a heartbeat."""
    switch = Switch(store, NAME)
    await switch.enable(Order())
    started = time.monotonic()
    async with switch.attached():
        report = await switch.drain(Plan(timeout=5, vouched=True))
    assert report.outcome == "drained"
    assert time.monotonic() - started < 1.0
    assert (await store.roster(NAME)).rows == ()


async def test_an_epoch_from_before_a_loss_acknowledges_nothing(
    store: RedisStore,
) -> None:
    """Who has seen a larger epoch, elsewhere, has not seen the present one."""
    worker = another(store)
    async with joined(worker):
        state = await store.publish(NAME, on)
        await eventually(lambda: worker.look().active)
        worker.link.report()
        assert (await row_of(store, worker)).seen == state.epoch
        ahead = worker.state.but(epoch=state.epoch + 10**6)
        worker.state = ahead
        worker.link._sync(ahead.epoch, (1, 0), None)
        assert (await row_of(store, worker)).seen == 0


async def test_who_knows_more_than_redis_has_no_row_before_that_is_told(
    store: RedisStore,
) -> None:
    """A report that brings no document, and should, is no acknowledgement."""
    await store.publish(NAME, on)
    scripts, keys = store._scripts, store._keys(NAME)
    words = (str(2**50), "tag", b"", "nonce", keys.channel)
    reply = scripts.sync(keys, "kernel", "kernel/1-ab", "{}", *words)
    assert reply.asks
    assert (await store.roster(NAME)).rows == ()


async def test_who_has_not_joined_reports_nothing(store: RedisStore) -> None:
    """No row comes into being by a report."""
    assert another(store).link.report() is False
    assert (await store.roster(NAME)).rows == ()
