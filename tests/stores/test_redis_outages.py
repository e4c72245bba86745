"""A Redis that does not answer: what workers know, what operators are told."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import anyio.to_thread
import pytest
import redis

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.orders import Order
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import Switch
from fastapi_maintenance.waiting import Plan
from tests.stores.redis_proxy import Proxy
from tests.stores.redis_server import free_port, shared_server
from tests.stores.redis_workers import (
    NAME,
    another,
    eventually,
    fresh_url,
    joined,
    off,
    on,
    row_of,
)

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


async def test_a_connection_that_breaks_is_made_anew(
    proxy: Proxy, near: RedisStore, far: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage and its end are logged once each, and changes arrive again."""
    worker = another(far)
    async with joined(worker):
        proxy.lead(free_port())
        await eventually(lambda: said(caplog, "keeping the last state"), 5)
        await near.publish(NAME, on)
        await eventually(lambda: worker.link.hub._backoff._pause >= 0.8, 5)
        assert worker.look().active is False
        proxy.lead(shared_server().port)
        await eventually(lambda: worker.look().active, 5)
        await eventually(lambda: said(caplog, "answers again"), 5)
        assert said(caplog, "keeping the last state") == 1
        await near.publish(NAME, off)
        await eventually(lambda: not worker.look().active, 0.9, "heard again")


async def test_listening_that_breaks_alone_is_told_and_taken_up_again(
    near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that ends the listening connection is noticed, and heard again."""
    worker = another(near)
    async with joined(worker):
        await eventually(lambda: worker.link.hub._ear._pubsub is not None)
        shared_server().client().client_kill_filter(_type="pubsub")
        await eventually(lambda: said(caplog, "keeping the last state"), 5)
        await eventually(lambda: said(caplog, "answers again"), 5)
        await near.publish(NAME, on)
        await eventually(lambda: worker.look().active, 5)


async def test_a_way_that_is_silent_slows_nobody_down(
    proxy: Proxy, near: RedisStore, far: RedisStore
) -> None:
    """While nothing answers, requests go on; its row is lost, and returns."""
    switch = Switch(near, NAME)
    worker = another(far)
    async with joined(worker):
        await switch.drain(Plan(timeout=5, vouched=True), order=Order())
        await switch.disable()
        await eventually(lambda: not worker.look().active)
        proxy.frozen = True
        report = await switch.drain(Plan(timeout=6.5), order=Order())
        assert report.outcome == "lost"
        begun = time.monotonic()
        for _ in range(100):
            worker.admit("GET /fast").release()
        assert time.monotonic() - begun < 0.5
        proxy.frozen = False
        report = await switch.drain(Plan(timeout=10))
        assert report.outcome == "drained"


async def test_news_that_nobody_heard_come_by_heartbeat(near: RedisStore) -> None:
    """A listening connection that has gone deaf costs a second, once."""
    worker = another(near)
    async with joined(worker):
        await eventually(lambda: worker.link.hub._ear._pubsub is not None)
        first = worker.link.hub._ear._pubsub
        raw = shared_server().client()
        state = on(await near.read(NAME)).but(epoch=7)
        keys = near._keys(NAME)
        raw.hset(keys.state, mapping={"epoch": 7, "tag": "x", "doc": state.to_json()})
        await eventually(lambda: worker.look() == state, 2.5)
        await eventually(lambda: worker.link.hub._ear._pubsub not in {None, first})


async def test_a_publication_whose_answer_was_lost_happens_once(
    proxy: Proxy, far: RedisStore
) -> None:
    """When only the answer is lost, the change is not made a second time."""
    calls: list[int] = []

    def change(before: MaintenanceState) -> MaintenanceState:
        calls.append(1)
        proxy.mute = True
        threading.Timer(1.0, lambda: setattr(proxy, "mute", False)).start()
        return on(before)

    state = await far.publish(NAME, change)
    assert len(calls) == 1
    assert await far.read(NAME) == state


async def test_without_redis_nobody_joins_and_nobody_waits_twice() -> None:
    """Callers that wait for one attempt to join share its answer."""
    store = RedisStore.from_url(f"redis://127.0.0.1:{free_port()}?prefix=shop")
    worker = store.worker(NAME)
    errors: list[StoreError] = []

    def join() -> None:
        with pytest.raises(StoreError, match="cannot reach") as caught:
            worker.join(0.5)
        errors.append(caught.value)

    begun = time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(anyio.to_thread.run_sync, join)
    assert len(errors) == 5
    assert time.monotonic() - begun < 1.5
    assert worker.joined is False


async def test_operators_are_told_within_seconds() -> None:
    """Commands end with one line when Redis cannot be reached."""
    store = RedisStore.from_url(f"redis://127.0.0.1:{free_port()}?prefix=shop")
    begun = time.monotonic()
    async with anyio.create_task_group() as group:
        for call in (store.read(NAME), store.publish(NAME, on), store.forget(NAME, [])):
            group.start_soon(_fails, call)
    assert time.monotonic() - begun < 5
    with anyio.move_on_after(0.2) as scope:
        await store.roster(NAME)
    assert scope.cancelled_caught  # A drain outlives an outage, and can be given up.


async def _fails(call: object) -> None:
    with pytest.raises(StoreError, match="cannot reach redis://127") as caught:
        await call  # type: ignore[misc]  # a coroutine
    assert "\n" not in str(caught.value)


async def test_leaving_without_redis_is_logged(
    proxy: Proxy, far: RedisStore, near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that cannot say goodbye ends all the same; its row stays."""
    worker = another(far)
    async with joined(worker):
        await eventually(lambda: worker.link.hub._ear._channels)
        proxy.lead(free_port())
    assert said(caplog, "left without a word: cannot reach") == 1
    assert (await row_of(near, worker)).id == worker.id


async def test_an_acknowledgement_that_fails_does_not_fail_the_start(
    proxy: Proxy, far: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Once joined, an outage is not the caller's concern any more."""
    worker = another(far)

    def listener(_: object) -> None:
        proxy.lead(free_port())

    await far.publish(NAME, on)
    worker.listen(listener)
    async with joined(worker):
        assert worker.joined is True
        assert said(caplog, "joined, but: cannot reach") == 1
        proxy.lead(shared_server().port)
        state = await far.publish(NAME, off)
        await eventually(lambda: worker.look() == state, 5)


async def test_joining_is_refused_while_the_loss_may_be_mended(
    near: RedisStore,
) -> None:
    """A start that cannot wait long enough is refused, with the reason."""
    raw = shared_server().client()
    keys = near._keys(NAME)
    raw.hset(keys.workers, mapping={".v": "1", ".generation": "x", ".run": "another"})
    with pytest.raises(StoreError, match="waiting for other workers to bring back"):
        await anyio.to_thread.run_sync(another(near).join, 0.3)
    assert (await near.roster(NAME)).rows == ()
    begun = time.monotonic()
    async with joined(another(near)):
        assert 3 < time.monotonic() - begun < 6


async def test_trouble_of_one_switch_leaves_the_others_alone(
    near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's data under one name does not stop the reports of the rest."""
    first, second = near.worker("first"), near.worker("second")
    assert first.link.hub is second.link.hub
    async with joined(first, second):
        raw = shared_server().client()
        state = near._keys("first").state
        raw.set(state, "mine")
        await eventually(lambda: said(caplog, "another program's data"), 3)
        await near.publish("second", on)
        assert second.look().active is True
        await eventually(lambda: second.link.due > time.monotonic())
        assert (await row_of(near, second, "second")).liveness == "alive"
        raw.delete(state)
        await eventually(lambda: said(caplog, "answers again"), 3)


async def test_denied_listening_is_tried_again_and_said_once(
    near: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Rights that come later are noticed; the log has one line meanwhile."""
    user = f"u{near.prefix}"
    rights = [">secret", "on", "~*", "+@all", "resetchannels"]
    shared_server().run("ACL", "SETUSER", user, *rights)
    client = redis.Redis(port=shared_server().port, username=user, password="secret")
    store = RedisStore(client, prefix=near.prefix)
    worker = another(store)
    async with joined(worker):
        ear = worker.link.hub._ear
        for _ in range(2):
            await eventually(lambda: ear._denied_until > 0)
            ear._denied_until = 0.0
        await eventually(lambda: ear._denied_until > 0)
        assert said(caplog, "cannot listen for changes") == 1
        shared_server().run("ACL", "SETUSER", user, "allchannels")
        ear._denied_until = 0.0
        await eventually(lambda: ear._pubsub is not None)
    shared_server().run("ACL", "DELUSER", user)


async def test_the_thread_survives_what_nobody_expected(
    near: RedisStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one round is logged and does not end the reports."""
    worker = another(near)
    async with joined(worker):
        monkeypatch.setattr(worker.link, "report", None)
        await eventually(lambda: said(caplog, "failed; it goes on"), 5)
        monkeypatch.undo()
        await near.publish(NAME, on)
        await eventually(lambda: worker.look().active, 3)


async def test_several_users_of_a_worker_leave_with_the_last(near: RedisStore) -> None:
    """Two applications of one process are one row, until both have ended."""
    worker = near.worker(NAME)
    async with joined(worker):
        async with joined(worker):
            pass
        assert (await row_of(near, worker)).liveness == "alive"
    assert (await near.roster(NAME)).rows == ()


def test_a_thread_belongs_to_no_event_loop(near: RedisStore) -> None:
    """Test clients that run each request on a loop of its own see one worker."""
    switch = Switch(near, NAME)
    asyncio.run(switch.join())
    asyncio.run(switch.enable(Order()))
    assert switch.state.active is True
    thread = switch.worker.link.hub._thread  # type: ignore[attr-defined]  # a RedisLink
    assert thread is not None
    assert thread.is_alive()
    assert thread.daemon is True


async def test_without_a_thread_nobody_joins(
    near: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that nobody would report for admits nothing, until there is a thread."""
    worker = another(near)

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError(f"can't start {thread.name}")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        with pytest.raises(StoreError, match="cannot start the thread for redis://"):
            worker.join(0.5)
    assert worker.joined is False
    assert (await near.roster(NAME)).rows == ()
    async with joined(worker):
        assert (await row_of(near, worker)).liveness == "alive"


async def test_a_thread_that_has_died_is_replaced(near: RedisStore) -> None:
    """Whoever joins next is reported for, whatever became of the thread before."""
    first = another(near)
    hub = first.link.hub
    hub._thread = threading.Thread()  # Never alive.
    async with joined(first):
        await near.publish(NAME, on)
        await eventually(lambda: first.look().active, 3)


async def test_log_handlers_that_fail_end_no_thread(
    near: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports go on, and changes arrive, while logging raises."""
    worker = another(near)
    rounds: list[object] = []

    def fails(record: object = None) -> bool:
        rounds.append(record)
        raise OSError(str(record))

    async with joined(worker):
        logger = logging.getLogger("fastapi_maintenance")
        with monkeypatch.context() as patched:
            patched.setattr(logger, "filters", [fails])
            patched.setattr(worker.link, "report", fails)
            await eventually(lambda: rounds.count(None) >= 2)
        await near.publish(NAME, on)
        await eventually(lambda: worker.look().active, 3)


async def test_whatever_fails_on_the_way_is_a_store_error() -> None:
    """A way to Redis that cannot even be begun is told as one that does not answer."""
    store = RedisStore.from_url("redis://redis..internal/0?prefix=shop")
    told = r"cannot reach redis://redis\.\.internal:6379/0: .*idna"
    with pytest.raises(StoreError, match=told):
        await store.read(NAME)
    worker = another(store)
    with pytest.raises(StoreError, match=told):
        worker.join(0.2)
    with pytest.raises(StoreError, match=told):
        worker.link.hub._ear.listen({"any"})


async def test_one_of_two_lifespans_may_end_while_another_begins(
    near: RedisStore,
) -> None:
    """Whoever joins while the last one leaves is reported for."""
    worker = another(near)
    for _ in range(20):
        worker.enter()
        async with anyio.create_task_group() as group:
            for deed in ("leave", "enter"):
                group.start_soon(anyio.to_thread.run_sync, getattr(worker, deed))
        assert not worker.joined or worker in worker.link.hub._workers
        worker.leave()
        worker.leave()
