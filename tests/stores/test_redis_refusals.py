"""A Redis that denies, is full, is a replica, or speaks another dialect."""

import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme
from redis.exceptions import MasterDownError, MovedError

from fastapi_maintenance import StoreError
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.stores import TemporaryStoreError, open_store
from fastapi_maintenance.stores.redis import RedisStore, acl_line, translate
from fastapi_maintenance.switch import DrainOptions
from tests.guards import switch_of
from tests.stores.redis_proxy import TlsProxy
from tests.stores.redis_server import PASSWORD, serving, shared_server
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
from tests.waiting import eventually

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

Login = Callable[..., RedisStore]


@pytest.fixture
def login() -> Iterator[Login]:
    """Return a function that opens a store as a user with the given rights."""
    server = shared_server()
    users = []

    def make(*rights: str, database: int = 0) -> RedisStore:
        user, prefix = f"u{secrets.token_hex(4)}", f"t{secrets.token_hex(6)}"
        users.append(user)
        words = [word.replace("PREFIX", prefix) for word in rights]
        server.run("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", *words)
        url = server.url(f"prefix={prefix}", user=user, database=database)
        return RedisStore.from_url(url)

    yield make
    for user in users:
        server.run("ACL", "DELUSER", user)


LEAST = tuple(acl_line("PREFIX").split())


async def test_the_least_rights_are_enough(
    login: Login, caplog: pytest.LogCaptureFixture
) -> None:
    """The ACL line allows everything in any database; nothing is complained of."""
    for store in [login(*LEAST, database=number) for number in (0, 1)]:
        operator = switch_of(store)
        kept = another(store)
        with joined(kept):
            done = await operator.drain(DrainOptions(timeout=5), enable=EnableOptions())
            assert done.outcome == "drained"
            await operator.forget("unknown")
            generation = store.roster(NAME).generation
            store.confirm(NAME, generation, complete=True)
            await operator.disable()
            await eventually(lambda: not kept.worker.state.enabled, 0.9)  # noqa: B023  # awaited here
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_without_info_a_server_counts_as_young(login: Login) -> None:
    """Where nothing says when a server started, a cold worker waits for others."""
    store = login(*LEAST, "-info")
    first = store.report(NAME, report())
    assert first.young is True
    assert store.report(NAME, report(generation=first.generation)).young is False


@pytest.mark.parametrize("rights", [("resetchannels",), ("-subscribe",)])
async def test_without_subscriptions_changes_are_found_by_looking(
    login: Login, caplog: pytest.LogCaptureFixture, rights: tuple[str, ...]
) -> None:
    """Where nothing can be heard, a change is adopted within a little over a second."""
    listener = login(*LEAST, *rights)
    url = shared_server().url(f"prefix={listener.prefix}")
    store = RedisStore.from_url(url)
    kept = another(listener)
    with joined(kept):
        for enabled in (True, False):
            state = publish(store, enabled=enabled)
            await eventually(lambda: kept.worker.state == state, 2.5)  # noqa: B023  # awaited here
    told = [r for r in caplog.records if "cannot be listened to" in r.getMessage()]
    assert len(told) == 1
    assert "ACL SETUSER" in told[0].getMessage()


@pytest.mark.parametrize(
    "missing", ["-get", "-hset", "-hexists", "-time", "-multi", "-exec", "-watch"]
)
def test_a_missing_right_is_named_with_the_line_that_gives_it(
    login: Login, missing: str
) -> None:
    """A denied command is an error at the start that has the ACL line."""
    store = login(*LEAST, missing)
    with pytest.raises(StoreError, match="denies this user") as caught:
        another(store).join()
    assert not isinstance(caught.value, TemporaryStoreError)
    assert f"ACL SETUSER <user> {acl_line(store.prefix)}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["-publish", "-set"])
def test_a_right_that_only_operators_need_is_named_too(
    login: Login, missing: str
) -> None:
    """A denied publication is told at once, and changes nothing."""
    store = login(*LEAST, missing)
    with pytest.raises(StoreError, match="denies this user"):
        publish(store, enabled=True)
    assert store.read(NAME) is None


def test_keys_of_another_prefix_are_denied(login: Login) -> None:
    """A user of one application cannot switch another; the error says what to allow."""
    store = login(*acl_line("someone-else").split())
    for attempt in (
        lambda: store.read(NAME),
        lambda: publish(store, enabled=True),
        lambda: store.roster(NAME),
        lambda: store.report(NAME, report()),
        lambda: store.remove(NAME, "1-a"),
    ):
        with pytest.raises(StoreError, match="ACL SETUSER"):
            attempt()


@pytest.mark.parametrize("secret", ["wr0ng", ""])
def test_a_wrong_password_is_said_and_not_shown(secret: str) -> None:
    """A wrong or missing password is an error at once, which shows none."""
    client = redis.Redis(port=shared_server().port, password=secret or None)
    store = RedisStore(client, prefix="shop")
    started = time.monotonic()
    for attempt in (
        another(store).join,
        lambda: publish(store, enabled=True),
        lambda: store.wait([NAME], 5.0),
    ):
        with pytest.raises(StoreError, match="password") as caught:
            attempt()
        assert not secret or secret not in str(caught.value)
    assert time.monotonic() - started < 2.0


async def test_tls(tmp_path: Path) -> None:
    """``rediss://`` checks the server's certificate, and works like the rest."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = shared_server()
    with TlsProxy(context, server.port) as proxy:
        url = fresh_url().replace("redis://", "rediss://", 1)
        url = url.replace(f":{server.port}/", f":{proxy.port}/")
        store = RedisStore.from_url(f"{url}&ssl_ca_certs={tmp_path / 'ca.pem'}")
        assert store.location.startswith(f"rediss://127.0.0.1:{proxy.port}/0?")
        kept = another(store)
        with joined(kept):
            state = publish(store, enabled=True)
            await eventually(lambda: kept.worker.state == state, 0.9, "heard over TLS")
        unknown = RedisStore.from_url(url)
        with pytest.raises(StoreError, match="certificate verify failed"):
            unknown.read(NAME)
        store.close()


def test_unix_sockets() -> None:
    """``unix://`` reaches a server on the same machine."""
    server = shared_server()
    user = "redis%40home"  # encoded, as everything in a URL
    server.run("ACL", "SETUSER", "redis@home", "on", f">{PASSWORD}", "allkeys", "+@all")
    url = f"unix://{user}:pass-w0rd%2F%23@{server.socket}?db=2&prefix=shop"
    state = open_store(url).publish(NAME, on)
    assert open_store(url).read(NAME) == state
    server.run("ACL", "DELUSER", "redis@home")


def test_a_replica_is_named(tmp_path: Path) -> None:
    """A worker that was sent to a replica says so instead of serving uncounted."""
    primary = shared_server()
    replica_of = ("--replicaof", "127.0.0.1", str(primary.port))
    with serving(tmp_path, *replica_of) as replica:
        store = RedisStore.from_url(replica.url(f"prefix=t{secrets.token_hex(6)}"))
        with pytest.raises(TemporaryStoreError, match="replica; name the primary"):
            another(store).join()
        with pytest.raises(TemporaryStoreError, match="read-only replica"):
            publish(store, enabled=True)
        assert store.read(NAME) is None


async def test_a_full_redis_takes_nothing_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory is an error for operators; workers keep what they know."""
    with serving(tmp_path) as server:
        store = RedisStore.from_url(server.url())
        publish(store, enabled=False)
        kept = another(store)
        with joined(kept):
            state = publish(store, enabled=True)
            await eventually(lambda: kept.worker.state == state)
            server.run("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(TemporaryStoreError, match="takes no writes"):
                publish(store, enabled=False)
            with pytest.raises(TemporaryStoreError, match="out of memory"):
                another(store).join()
            await eventually(lambda: "cannot report" in caplog.text, 3)
            assert kept.worker.state == state == store.read(NAME)
            threading.Timer(
                0.5, lambda: server.run("CONFIG", "SET", "maxmemory", 0)
            ).start()
            state = publish(store, enabled=False)
            await eventually(lambda: kept.worker.state == state)


async def test_a_worker_on_a_demoted_server_still_learns_the_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failover, one that cannot report still hears what was published."""
    with serving(tmp_path) as server:
        primary = shared_server()
        prefix = f"t{secrets.token_hex(6)}"
        ours = RedisStore.from_url(server.url(f"prefix={prefix}"))
        theirs = RedisStore.from_url(primary.url(f"prefix={prefix}"))
        publish(ours, enabled=False)
        kept = another(ours)
        with joined(kept):
            server.run("REPLICAOF", "127.0.0.1", primary.port)
            await eventually(lambda: "cannot report" in caplog.text, 15)
            state = publish(theirs, enabled=True)
            await eventually(lambda: kept.worker.state == state, 15)
            assert theirs.roster(NAME).members == set()
            server.run("REPLICAOF", "NO", "ONE")
            await eventually(lambda: ours.roster(NAME).members, 15)
            assert listed(ours, kept.worker.id).seen == state.epoch


@pytest.mark.parametrize(
    ("error", "what", "temporary"),
    [
        (MovedError("3999 127.0.0.1:6381"), "of a cluster", False),
        (redis.BusyLoadingError("Redis is loading"), "loading its data", True),
        (redis.ResponseError("MISCONF Redis cannot"), "cannot save to its disk", True),
        (redis.ResponseError("NOREPLICAS Not enough"), "min-replicas-to-write", True),
        (MasterDownError("Link with"), "lost its primary", True),
        (redis.ResponseError("BUSY Redis is busy"), "busy with a script", True),
        (redis.WatchError("Watched variable changed."), "by others", True),
        (redis.ResponseError("DB index is out of range"), "refuses: DB index", False),
        (redis.ResponseError(""), "refuses: ResponseError", False),
        (redis.TimeoutError(""), "cannot reach redis://h: TimeoutError", True),
        (redis.ConnectionError("two\nlines"), "two lines", True),
    ],
)
def test_every_refusal_is_one_line_with_a_remedy(
    error: Exception,
    what: str,
    temporary: bool,  # a case's expectation
) -> None:
    """Whatever Redis says becomes one line, tried again only if that may help."""
    found = translate(error, "redis://h", "shop")
    assert what in str(found)
    assert "\n" not in str(found)
    assert isinstance(found, TemporaryStoreError) is temporary


async def test_the_log_has_no_password(caplog: pytest.LogCaptureFixture) -> None:
    """No log line and no text of a store has its password."""
    caplog.set_level(logging.INFO)
    store = RedisStore.from_url(fresh_url())
    with joined(another(store)):
        publish(store, enabled=True)
        await eventually(lambda: "maintenance is on" in caplog.text)
    text = f"{caplog.text} {store!r} {store.location}"
    assert PASSWORD not in text
    assert "pass-w0rd" not in text
