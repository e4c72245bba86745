"""A Redis that denies, is full, is a replica, or speaks another dialect."""

import logging
import secrets
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme

from fastapi_maintenance import StoreError
from fastapi_maintenance.orders import Order
from fastapi_maintenance.stores import open_store
from fastapi_maintenance.stores._redis_errors import TemporaryError, acl_line, explain
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import Switch
from fastapi_maintenance.waiting import Plan
from tests.stores.redis_proxy import TlsDoor
from tests.stores.redis_server import PASSWORD, serving, shared_server
from tests.stores.redis_workers import (
    NAME,
    another,
    eventually,
    fresh_url,
    joined,
    off,
    on,
)

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

Login = Callable[..., RedisStore]


@pytest.fixture
def login() -> Iterator[Login]:
    """Return a function that opens a store as a user with the given rights."""
    server = shared_server()
    users = []

    def make(*rights: str) -> RedisStore:
        user, prefix = f"u{secrets.token_hex(4)}", f"t{secrets.token_hex(6)}"
        users.append(user)
        words = [word.replace("PREFIX", prefix) for word in rights]
        server.run("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", *words)
        return RedisStore.from_url(server.url(f"prefix={prefix}", user=user))

    yield make
    for user in users:
        server.run("ACL", "DELUSER", user)


LEAST = tuple(acl_line("PREFIX").split())


async def test_the_least_rights_are_enough(
    login: Login, caplog: pytest.LogCaptureFixture
) -> None:
    """The documented ACL line allows everything, and nothing is complained of."""
    store = login(*LEAST)
    switch = Switch(store, NAME)
    worker = another(store)
    async with joined(worker):
        report = await switch.drain(Plan(timeout=3, vouched=True), order=Order())
        assert report.outcome == "drained"
        await store.forget(NAME, [worker.id])
        await switch.disable()
        await eventually(lambda: not worker.look().active, 0.9)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


async def test_without_info_each_drain_needs_a_persons_word(
    login: Login, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart that nobody can notice leaves no list of workers complete."""
    store = login(*LEAST, "-info")
    switch = Switch(store, NAME)
    async with joined(another(store)):
        assert "denies INFO" in caplog.text
        for _ in range(2):
            assert (await store.roster(NAME)).whole is False
            plan = Plan(timeout=3, vouched=True)
            assert (await switch.drain(plan, order=Order())).outcome == "drained"
        lost = await switch.drain(Plan(timeout=0.3))
        assert lost.outcome == "lost"
        assert "--workers N" in lost.reason


@pytest.mark.parametrize(
    "rights",
    [("resetchannels",), ("-subscribe",), ("-publish",), ("-subscribe", "-publish")],
)
async def test_without_pub_sub_changes_come_by_heartbeat(
    login: Login, rights: tuple[str, ...]
) -> None:
    """Where nothing can be heard, a change is adopted within a little over a second."""
    store = login(*LEAST, *rights)
    worker = another(store)
    async with joined(worker):
        for change in (on, off):
            state = await store.publish(NAME, change)
            await eventually(lambda: worker.look().epoch == state.epoch, 2.5)  # noqa: B023  # awaited here


@pytest.mark.parametrize("missing", ["-evalsha", "-eval", "-hset", "-hmget", "-time"])
async def test_a_missing_right_is_named_with_the_line_that_gives_it(
    login: Login, missing: str
) -> None:
    """Scripts or their commands denied: an error at start that has the ACL line."""
    shared_server().run("SCRIPT", "FLUSH")
    store = login(*LEAST, missing)
    with pytest.raises(StoreError, match="denies this user") as caught:
        another(store).join(5.0)
    assert f"ACL SETUSER <user> {acl_line(store.prefix)}" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_keys_of_another_prefix_are_denied(login: Login) -> None:
    """A user of one application cannot switch another; the error says what to allow."""
    store = login(*acl_line("someone-else").split())
    for attempt in (store.read(NAME), store.publish(NAME, on), store.roster(NAME)):
        with pytest.raises(StoreError, match="ACL SETUSER"):
            await attempt


@pytest.mark.parametrize("secret", ["wr0ng", ""])
async def test_a_wrong_password_is_said_and_not_shown(secret: str) -> None:
    """A wrong or missing password is an error at once, which shows none."""
    client = redis.Redis(port=shared_server().port, password=secret or None)
    store = RedisStore(client, prefix="shop")
    with pytest.raises(StoreError, match="password") as caught:
        another(store).join(5.0)
    assert not secret or secret not in str(caught.value)
    with pytest.raises(StoreError, match="password"):
        await store.publish(NAME, on)


async def test_tls(tmp_path: Path) -> None:
    """``rediss://`` checks the server's certificate, and works like the rest."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = shared_server()
    with TlsDoor(context, server.port) as door:
        url = fresh_url().replace("redis://", "rediss://", 1)
        url = url.replace(f":{server.port}/", f":{door.port}/")
        store = RedisStore.from_url(f"{url}&ssl_ca_certs={tmp_path / 'ca.pem'}")
        assert store.location.startswith(f"rediss://127.0.0.1:{door.port}/0?")
        worker = another(store)
        async with joined(worker):
            await store.publish(NAME, on)
            await eventually(lambda: worker.look().active, 0.9, "heard over TLS")
        unknown = RedisStore.from_url(url)
        with pytest.raises(StoreError, match="certificate verify failed"):
            await unknown.read(NAME)


async def test_unix_sockets() -> None:
    """``unix://`` reaches a server on the same machine."""
    server = shared_server()
    user = "redis%40home"  # encoded, as everything in a URL
    server.run("ACL", "SETUSER", "redis@home", "on", f">{PASSWORD}", "allkeys", "+@all")
    url = f"unix://{user}:pass-w0rd%2F%23@{server.socket}?db=2&prefix=shop"
    store = open_store(url)
    state = await store.publish(NAME, on)
    assert await open_store(url).read(NAME) == state
    server.run("ACL", "DELUSER", "redis@home")


async def test_a_replica_is_named(tmp_path: Path) -> None:
    """A worker that was sent to a replica says so instead of serving uncounted."""
    primary = shared_server()
    replica_of = ("--replicaof", "127.0.0.1", str(primary.port))
    with serving(tmp_path, *replica_of) as replica:
        store = RedisStore.from_url(replica.url(f"prefix=t{secrets.token_hex(6)}"))
        with pytest.raises(StoreError, match="read-only replica; name the primary"):
            another(store).join(0.5)
        with pytest.raises(StoreError, match="read-only replica"):
            await store.publish(NAME, on)
        assert (await store.read(NAME)).active is False


async def test_a_full_redis_takes_nothing_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory is an error for operators; workers keep what they know."""
    with serving(tmp_path) as server:
        await eventually(lambda: server.uptime() >= 5)
        store = RedisStore.from_url(server.url())
        worker = another(store)
        async with joined(worker):
            state = await store.publish(NAME, on)
            await eventually(lambda: worker.look().active)
            server.run("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreError, match="out of memory and takes no writes"):
                await store.publish(NAME, off)
            with pytest.raises(StoreError, match="out of memory"):
                another(store).join(0.2)
            await eventually(lambda: "cannot report" in caplog.text, 3)
            assert worker.look() == state
            assert await store.read(NAME) == state
            server.run("CONFIG", "SET", "maxmemory", 0)
            await store.publish(NAME, off)
            await eventually(lambda: not worker.look().active, 2)


async def test_a_worker_on_a_demoted_server_still_learns_the_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failover, one that cannot report still hears what was published."""
    with serving(tmp_path) as server:
        await eventually(lambda: server.uptime() >= 5)
        primary = shared_server()
        prefix = f"t{secrets.token_hex(6)}"
        ours = RedisStore.from_url(server.url(f"prefix={prefix}"))
        theirs = RedisStore.from_url(primary.url(f"prefix={prefix}"))
        worker = another(ours)
        async with joined(worker):
            server.run("REPLICAOF", "127.0.0.1", primary.port)
            await eventually(lambda: "cannot report" in caplog.text, 15)
            state = await theirs.publish(NAME, on)
            await eventually(lambda: worker.look().epoch == state.epoch, 15)
            assert (await theirs.roster(NAME)).rows == ()
            server.run("REPLICAOF", "NO", "ONE")


def test_a_cluster_node_without_these_keys_is_named() -> None:
    """A node that sends us to another one is an error that says what to do."""
    error = redis.ResponseError("MOVED 3999 127.0.0.1:6381")
    assert "is one node of a cluster" in str(explain(error, "redis://h", "shop"))


@pytest.mark.parametrize(
    ("error", "what", "temporary"),
    [
        (redis.BusyLoadingError("Redis is loading"), "loading its data", True),
        (redis.ResponseError("LOADING Redis is loading"), "loading its data", True),
        (redis.ResponseError("MISCONF Redis cannot"), "cannot save to its disk", True),
        (redis.ResponseError("BUSY Redis is busy"), "busy with a script", True),
        (redis.ResponseError("unknown command `EVAL`"), "has no scripts", False),
        (redis.ResponseError("unauthenticated bulk"), "user or password", False),
        (redis.ResponseError("DB index is out of range"), "refuses: DB index", False),
        (redis.ResponseError(""), "refuses: ResponseError", False),
        (redis.TimeoutError(""), "cannot reach redis://h: TimeoutError", True),
        (OSError(5, "two\nlines"), "two lines", True),
    ],
)
def test_every_refusal_is_one_line_with_a_remedy(
    error: Exception,
    what: str,
    temporary: bool,  # a case's expectation
) -> None:
    """Whatever Redis says becomes one line, tried again only if that may help."""
    found = explain(error, "redis://h", "shop")
    assert what in str(found)
    assert "\n" not in str(found)
    assert isinstance(found, TemporaryError) is temporary


async def test_another_users_of_the_server_see_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No log line and no text of a store has its password."""
    caplog.set_level(logging.INFO)
    store = RedisStore.from_url(fresh_url())
    async with joined(another(store)):
        await store.publish(NAME, on)
        await eventually(lambda: "maintenance is on" in caplog.text)
    text = f"{caplog.text} {store!r} {store.location}"
    assert PASSWORD not in text
    assert "pass-w0rd" not in text


def test_the_server_of_these_tests_wants_a_password() -> None:
    """What these tests show, they show for a server with a password."""
    client = redis.Redis(port=shared_server().port)
    with client, pytest.raises(redis.AuthenticationError):
        client.ping()
