"""A Redis that does not answer: what workers know, what operators are told."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import redis

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.fence import Verdict
from fastapi_maintenance.stores import TemporaryStoreError
from fastapi_maintenance.stores import redis as module
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import DrainOptions
from tests.guards import switch_of
from tests.servers import free_port
from tests.stores.redis_proxy import Proxy
from tests.stores.redis_server import (
    RedisServer,
    serving,
    shared_server,
)
from tests.stores.redis_workers import (
    NAME,
    another,
    fresh_url,
    joined,
    listed,
    on,
    publish,
    report,
)
from tests.waiting import eventually, until

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Return a way to the server that can fail."""
    with Proxy(shared_server().port) as made:
        yield made


@pytest.fixture
def near() -> RedisStore:
    """Return a store with a way to the server that does not fail."""
    return RedisStore.from_url(fresh_url())


@pytest.fixture
def far(proxy: Proxy, near: RedisStore) -> RedisStore:
    """Return a store of the same switch, by the way that can fail."""
    url = shared_server().url(f"prefix={near.prefix}", port=proxy.port)
    return RedisStore.from_url(url)


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Return how often something was logged."""
    return sum(text in record.getMessage() for record in caplog.records)


async def test_an_outage_is_logged_once_and_changes_arrive_after_it(
    proxy: Proxy, near: RedisStore, far: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker keeps its state through an outage, and hears again after it."""
    kept = another(far)
    with joined(kept):
        proxy.lead(free_port())
        await eventually(lambda: said(caplog, "keeps the last state it knew"), 5)
        state = publish(near, enabled=True)
        assert kept.worker.state.enabled is False
        proxy.lead(shared_server().port)
        await eventually(lambda: kept.worker.state == state, 5)
        await eventually(lambda: listed(near, kept.worker.id).seen == state.epoch, 5)
        assert said(caplog, "keeps the last state it knew") == 1
        await anyio.to_thread.run_sync(heard_again, near, kept.worker)


def heard_again(store: RedisStore, worker: object) -> None:
    """Publish until a change is heard, and not found by looking."""
    for number in range(20):
        state = publish(store, enabled=bool(number % 2))
        started = time.monotonic()
        until(lambda: getattr(worker, "state", None) == state, 5)  # noqa: B023  # called here
        if time.monotonic() - started < 0.3:
            return
    raise AssertionError("changes are not heard any more")


def test_a_subscription_that_breaks_alone_is_taken_up_again(near: RedisStore) -> None:
    """A server that ends the listening connection is heard again after a second."""
    kept = another(near)
    with joined(kept):
        state = publish(near, enabled=True)
        until(lambda: kept.worker.state == state)
        assert shared_server().client().client_kill_filter(_type="pubsub")
        heard_again(near, kept.worker)


def test_a_subscription_that_nothing_passes_is_given_up(
    proxy: Proxy, far: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PING keeps a quiet subscription; one without an answer is made again later."""
    monkeypatch.setattr(module, "QUIET", 0.1)
    far.wait([NAME], 1.0)
    ends = time.monotonic() + 0.5
    while time.monotonic() < ends:
        far.wait([NAME], 0.05)
    proxy.frozen = True

    def listen() -> None:
        while True:
            far.wait([NAME], 0.05)

    with pytest.raises(TemporaryStoreError, match="has not answered a PING"):
        listen()
    proxy.frozen = False
    with pytest.raises(TemporaryStoreError, match="cannot be listened to"):
        far.wait([NAME], 0.05)
    far.close()


async def test_a_frozen_server_slows_no_request(tmp_path: Path) -> None:
    """While Redis does not answer, requests go on, and a drain waits for it."""
    with serving(tmp_path) as server:
        store = RedisStore.from_url(server.url())
        publish(store, enabled=False)
        operator = switch_of(store)
        kept = another(store)
        with joined(kept):
            await operator.drain(DrainOptions(timeout=5), enable=EnableOptions())
            publication = await operator.publish_to_drain(DrainOptions())
            server.freeze()
            started = time.monotonic()
            for _ in range(100):
                admission = kept.worker.admit("GET /fast")
                assert admission is not None
                admission.release()
            assert time.monotonic() - started < 0.5
            threading.Timer(2.5, server.thaw).start()
            done = await operator.wait_until_drained(
                publication, DrainOptions(timeout=20)
            )
            assert done.outcome == "drained"
            assert done.seconds > 2


async def test_a_partition_ends_in_lost_and_heals(
    proxy: Proxy, near: RedisStore, far: RedisStore
) -> None:
    """A worker that is cut off is never *drained*, and is after it has come back."""
    operator = switch_of(near)
    kept = another(far)
    with joined(kept):
        publish(near, enabled=True)
        await eventually(lambda: kept.worker.state.enabled)
        proxy.frozen = True
        cut = await operator.drain(DrainOptions(timeout=20))
        assert cut.outcome == "lost"
        assert f"forget {kept.worker.id}" in cut.reason
        proxy.frozen = False
        await eventually(lambda: listed(near, kept.worker.id).age < 1)
        done = await operator.drain(DrainOptions(timeout=20))
        assert done.outcome == "drained"


def test_a_publication_whose_answer_was_lost_happens_once(
    proxy: Proxy, far: RedisStore
) -> None:
    """When only the answer is lost, the change is not made a second time."""
    calls: list[MaintenanceState | None] = []

    def change(before: MaintenanceState | None) -> MaintenanceState:
        calls.append(before)
        proxy.mute = True
        threading.Timer(1.0, lambda: setattr(proxy, "mute", False)).start()
        return on(before)

    state = far.publish(NAME, change)
    assert len(calls) == 1
    assert far.read(NAME) == state
    far.close()


def test_operators_are_told_within_seconds() -> None:
    """Each use ends with one line of error when Redis cannot be reached."""
    store = RedisStore.from_url(f"redis://127.0.0.1:{free_port()}?prefix=shop")
    started = time.monotonic()
    for attempt in (
        lambda: store.read(NAME),
        lambda: store.report(NAME, report()),
        lambda: store.roster(NAME),
        lambda: store.wait([NAME], 5.0),
        lambda: publish(store, enabled=True),
        lambda: store.remove(NAME, "1-a"),
    ):
        with pytest.raises(TemporaryStoreError, match="cannot reach redis://127"):
            attempt()
    assert time.monotonic() - started < 9


def test_a_host_name_that_cannot_be_is_a_store_error() -> None:
    """A host name that cannot be encoded is an outage like any other."""
    store = RedisStore.from_url("redis://redis..internal/0?prefix=shop")
    with pytest.raises(TemporaryStoreError, match=r"redis\.\.internal:6379/0: .*idna"):
        store.read(NAME)


def test_a_publication_outlives_a_restart(tmp_path: Path) -> None:
    """``on`` and ``off`` are tried for three seconds."""
    with serving(tmp_path) as server:
        store = RedisStore.from_url(server.url())
        publish(store, enabled=False)
        server.kill()
        starting = threading.Timer(0.5, server.start)
        starting.start()
        state = publish(store, enabled=True)
        starting.join()
        assert store.read(NAME) == state


def test_leaving_without_redis_is_logged(
    proxy: Proxy, far: RedisStore, near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that cannot say that it leaves ends all the same; its report stays."""
    kept = another(far)
    with joined(kept):
        proxy.lead(free_port())
    assert said(caplog, "left, but its report may stay: cannot reach") == 1
    assert listed(near, kept.worker.id).id == kept.worker.id


@pytest.mark.parametrize("keep", [True, False])
async def test_a_restart_does_not_end_maintenance(tmp_path: Path, keep: bool) -> None:
    """With its data or without, a server comes back to the state that workers know."""
    with serving(tmp_path) as server:
        store = RedisStore.from_url(server.url())
        publish(store, enabled=False)
        operator = switch_of(store)
        kept = another(store)
        with joined(kept):
            state = publish(store, enabled=True)
            await eventually(lambda: listed(store, kept.worker.id).seen == state.epoch)
            await anyio.to_thread.run_sync(lambda: server.restart(keep=keep))
            await eventually(lambda: reports_again(store, kept.worker.id))
            assert store.read(NAME) == state
            assert kept.worker.state == state
            if not keep:
                await eventually(lambda: not store.roster(NAME).complete)
            done = await operator.drain(DrainOptions(timeout=10))
            assert done.outcome == ("drained" if keep else "lost")


def reports_again(store: RedisStore, worker: str) -> bool:
    """Tell whether a worker's report is there, and is new."""
    workers = store.roster(NAME).workers
    return any(found.id == worker and found.age < 1 for found in workers)


async def test_a_drain_that_saw_the_workers_outlives_a_loss(tmp_path: Path) -> None:
    """Who has seen the complete roster knows whom to wait for after a loss."""
    with serving(tmp_path) as server:
        store = RedisStore.from_url(server.url())
        publish(store, enabled=False)
        operator = switch_of(store)
        kept = another(store)
        looks: list[Verdict] = []
        with joined(kept):
            admission = kept.worker.admit("GET /slow")
            assert admission is not None

            async def lose_all() -> None:
                await eventually(lambda: looks)
                await anyio.to_thread.run_sync(lambda: server.restart(keep=False))
                await eventually(lambda: reports_again(store, kept.worker.id))
                admission.release()

            async with anyio.create_task_group() as group:
                group.start_soon(lose_all)
                done = await operator.drain(
                    DrainOptions(timeout=30),
                    enable=EnableOptions(),
                    progress=lambda _, verdict: looks.append(verdict),
                )
            assert done.outcome == "drained"
            assert looks[0].outcome == "busy"


async def test_a_cold_worker_waits_for_those_who_know(tmp_path: Path) -> None:
    """A worker that starts right after a loss does not take it for *off*."""
    with serving(tmp_path) as server:
        cold = another(RedisStore.from_url(server.url()))
        knows = RedisStore.from_url(server.url())
        late = threading.Timer(0.5, publish, [knows], {"enabled": True})
        late.start()
        with joined(cold):
            late.join()
            assert cold.worker.state.enabled is True


def test_a_new_server_is_off_when_no_worker_knows_better(server: RedisServer) -> None:
    """After the time for others has passed, a cold worker stores *off*."""
    store = RedisStore.from_url(server.url())
    kept = another(store)
    with joined(kept):
        assert kept.worker.state == store.read(NAME)
        assert (kept.worker.state.epoch, kept.worker.state.enabled) == (1, False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a server that has just started."""
    with serving(tmp_path) as made:
        yield made


def test_trouble_of_one_switch_leaves_the_others_alone(
    near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's data under one name does not stop the reports of the rest."""
    caplog.set_level(logging.INFO)
    first = another(near, "first")
    second = first.keeper.follower("second")
    with joined(first, second):
        raw = shared_server().client()
        raw.rpush(near._key("first", "state"), "mine")
        until(lambda: said(caplog, "another program's data"), 3)
        state = publish(near, enabled=True, name="second")
        until(lambda: listed(near, second.worker.id, "second").seen == state.epoch)
        raw.delete(near._key("first", "state"))
        until(lambda: said(caplog, "works again"), 3)


def test_subscriptions_that_are_allowed_later_are_taken_up(
    near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Rights that come later are noticed; until then the log has one line."""
    user = f"u{near.prefix}"
    rights = [">secret", "on", "~*", "+@all", "resetchannels", f"&none{near.prefix}"]
    shared_server().run("ACL", "SETUSER", user, *rights)
    client = redis.Redis(port=shared_server().port, username=user, password="secret")
    kept = another(RedisStore(client, prefix=near.prefix))
    with joined(kept):
        until(lambda: said(caplog, "cannot be listened to"), 5)
        shared_server().run("ACL", "SETUSER", user, "allchannels")
        heard_again(near, kept.worker)
    assert said(caplog, "cannot be listened to") == 1
    shared_server().run("ACL", "DELUSER", user)


def test_a_worker_belongs_to_no_event_loop(near: RedisStore) -> None:
    """Test clients that run each request on a loop of its own see one worker."""
    operator = switch_of(near)
    asyncio.run(operator.join())
    asyncio.run(operator.enable(EnableOptions()))
    assert operator.state.enabled is True
    assert near.roster(NAME).members == {operator.worker.id}
