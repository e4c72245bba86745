"""Servers that restart, freeze, forget and refuse; machines that are cut off."""

import asyncio
import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastapi_maintenance import StoreError
from fastapi_maintenance.keeper import Follower
from fastapi_maintenance.stores import TemporaryStoreError
from fastapi_maintenance.stores.redis import RedisStore, acl_line
from tests.chaos.harness import Operator, Service, free_port, until
from tests.chaos.servers import (
    Watch,
    another_machine,
    as_root,
    busy,
    closed,
    settled,
    through,
)
from tests.stores.redis_proxy import Proxy
from tests.stores.redis_server import PASSWORD, RedisServer, serving, shared_server
from tests.stores.redis_workers import NAME, another

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(180)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own, that may be broken."""
    with serving(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A service without workers yet, on this test's own server or one that stays."""
    if "server" in request.fixturenames:
        url = request.getfixturevalue("server").url()
    else:
        url = shared_server().url(f"prefix=t{secrets.token_hex(6)}")
    with Service(tmp_path / "service", url) as made:
        yield made
        assert made.violations() == []


@pytest.mark.timeout(3600)
def test_flips_under_load_on_two_machines(service: Service, flips: int) -> None:
    """However often it is switched, nothing runs after *drained* on either machine."""
    with Proxy(shared_server().port) as proxy:
        service.start(2)
        service.start(2, environment=through(proxy, service))
        operator = settled(service)
        with service.load(), Watch(service.instances):
            for number in range(flips):
                if number % 9 == 5:
                    proxy.cut()
                report = operator.drain()
                assert report.outcome == "drained", report
                assert len(report.workers) == 4
                operator.off()


def test_killed_busy_worker(service: Service) -> None:
    """A killed worker of this machine is proven dead and waited for no longer."""
    victim, _ = service.start(2)
    operator = settled(service)
    busy(service, victim, 30)
    later = operator.later()
    later.looks_again("busy")
    service.kill(victim)
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds < 5


def test_first_drain_on_a_new_server(service: Service) -> None:
    """The first drain waits for the list to be three seconds old, and needs no word."""
    service.start(2)
    report = Operator(service).drain()
    assert report.outcome == "drained", report
    assert len(report.workers) == 2


@as_root
def test_killed_worker_of_another_machine(service: Service) -> None:
    """A worker that was killed elsewhere is lost until a person forgets it."""
    service.start()
    (far,) = service.start(inside=another_machine)
    operator = settled(service)
    os.killpg(far.process.pid, signal.SIGKILL)
    far.process.wait()
    service.instances.remove(far)
    report = operator.drain(6)
    assert report.outcome == "lost", report
    gone = min(report.workers, key=lambda worker: worker.seen)
    assert f"fastapi-maintenance forget {gone.id}" in report.reason
    # Known to be silent, it is not waited for as long again.
    assert operator.drain(30).seconds < 4
    asyncio.run(operator.switch.forget(gone.id))
    assert operator.drain().outcome == "drained"


@pytest.mark.parametrize("seconds", [0, 1], ids=["idle", "busy"])
def test_stopped_worker(service: Service, seconds: float) -> None:
    """A stopped worker is lost, whatever it did, and acknowledges when it wakes."""
    sleeper, _ = service.start(2)
    operator = settled(service)
    if seconds:
        busy(service, sleeper, seconds)
    sleeper.signal(signal.SIGSTOP)
    report = operator.drain(6)
    assert report.outcome == "lost", report
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    report = operator.drain()
    assert report.outcome == "drained", report
    assert closed(service)


@pytest.mark.parametrize("keep", [True, False], ids=["data kept", "data lost"])
def test_redis_restarts_before_the_wait(
    service: Service, server: RedisServer, *, keep: bool
) -> None:
    """A server that has lost its list cannot say who is missing; a person can."""
    worker, _ = service.start(2)
    operator = settled(service)
    operator.on()
    until(lambda: closed(service))
    with Watch(service.instances) as watch:
        server.restart(keep=keep)
        if not keep:
            report = operator.drain(4)
            assert report.outcome in {"lost", "too_few"}, report
            until(lambda: operator.drain(4).outcome == "lost")
            report = operator.drain(workers=2)
            assert report.outcome == "drained", report
        assert operator.drain().outcome == "drained"
    assert {status for status, _ in watch.told} == {503}
    operator.off()
    until(lambda: worker.get("/fast") == 200)
    assert operator.drain().outcome == "drained"


@pytest.mark.parametrize("keep", [True, False], ids=["data kept", "data lost"])
def test_redis_restarts_during_the_wait(
    service: Service, server: RedisServer, *, keep: bool
) -> None:
    """A wait outlives a restart: it knows whom it saw, and waits for each of them."""
    worker, _ = service.start(2)
    operator = settled(service)
    with Watch(service.instances):
        busy(service, worker, 5)
        later = operator.later(20)
        later.looks_again("busy")
        server.restart(keep=keep)
        report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 3
    assert len(report.workers) == 2
    assert closed(service)


def test_redis_restarts_empty_beside_a_stopped_worker(
    service: Service, server: RedisServer
) -> None:
    """A worker whose report was lost while it was stopped is never passed over."""
    sleeper, _ = service.start(2)
    operator = settled(service)
    busy(service, sleeper, 1)
    later = operator.later(20)
    sleeper.signal(signal.SIGSTOP)
    server.restart(keep=False)
    report = later.result()
    assert report.outcome == "lost", report
    report = operator.drain(6)
    assert report.outcome == "lost", report
    assert report.seconds < 1
    report = operator.drain(2, workers=2)
    assert report.outcome == "too_few", report
    sleeper.signal(signal.SIGCONT)
    report = operator.drain(workers=2)
    assert report.outcome == "drained", report


@pytest.mark.parametrize("stopped", [False, True], ids=["all awake", "one stopped"])
@pytest.mark.parametrize("what", ["reports", "members"])
def test_keys_are_evicted(service: Service, what: str, *, stopped: bool) -> None:
    """What Redis drops comes back; a worker that cannot is known to be missing."""
    sleeper, _ = service.start(2)
    operator = settled(service)
    busy(service, sleeper, 2)
    later = operator.later(15)
    later.looks_again("busy")
    if stopped:
        sleeper.signal(signal.SIGSTOP)
    prefix = service.url.rpartition("prefix=")[2]
    shared_server().run("DEL", f"{{{prefix}}}:{NAME}:{what}")
    report = later.result()
    assert report.outcome == ("lost" if stopped else "drained"), report
    assert operator.drain(2).outcome == "lost"
    sleeper.signal(signal.SIGCONT)
    # The woken worker reports first, and testifies right after it.
    until(lambda: operator.drain(workers=2).drained and operator.drain().drained)


def test_all_keys_are_evicted_under_maintenance(service: Service) -> None:
    """What Redis drops does not open anything: workers write it back."""
    service.start(2)
    operator = settled(service)
    assert operator.drain().outcome == "drained"
    prefix = service.url.rpartition("prefix=")[2]
    keys = [f"{{{prefix}}}:{NAME}:{part}" for part in ("state", "members", "reports")]
    with Watch(service.instances) as watch:
        for _ in range(5):
            shared_server().run("DEL", *keys)
            until(lambda: shared_server().run("EXISTS", *keys) == 3)
        service.start()
        assert closed(service)
    assert {status for status, _ in watch.told} == {503}


def test_redis_freezes(service: Service, server: RedisServer) -> None:
    """Six seconds without an answer slow no request down, and end no wait."""
    worker, _ = service.start(2)
    operator = settled(service)
    busy(service, worker, 2)
    with Watch(service.instances):
        later = operator.later(30)
        later.looks_again("busy")
        server.freeze()
        time.sleep(6)
        server.thaw()
        report = later.result()
    assert report.outcome == "drained", report
    operator.off()
    report = operator.drain()
    assert report.outcome == "drained", report
    assert report.seconds < 2


def test_redis_is_killed_under_load(service: Service, server: RedisServer) -> None:
    """Without Redis a service goes on as it was, and follows again when it is back."""
    service.start(2)
    operator = settled(service)
    with service.load(), Watch(service.instances) as watch:
        server.kill()
        time.sleep(3)
        assert 503 not in {status for status, _ in watch.told}
        with pytest.raises(StoreError, match="cannot reach"):
            operator.on()
        server.start()
        operator.on()
        until(lambda: closed(service))


def test_half_open_connection(service: Service) -> None:
    """A machine that is cut off serves on as it was, and no drain passes over it."""
    with Proxy(shared_server().port) as proxy:
        service.start()
        (far,) = service.start(environment=through(proxy, service))
        operator = settled(service)
        with Watch(service.instances):
            proxy.frozen = True
            report = operator.drain(30)
            assert report.outcome == "lost", report
            assert far.get("/fast") == 200
            proxy.frozen = False
            report = operator.drain()
            assert report.outcome == "drained", report
        assert closed(service)


def test_one_machine_loses_its_connections_again_and_again(service: Service) -> None:
    """Broken connections are made again, and no drain is wrong."""
    with Proxy(shared_server().port) as proxy:
        service.start()
        service.start(environment=through(proxy, service))
        operator = settled(service)
        with service.load(), Watch(service.instances):
            for _ in range(5):
                proxy.cut()
                report = operator.drain()
                assert report.outcome == "drained", report
                operator.off()


@pytest.mark.parametrize(
    ("denied", "outcome"),
    [
        (("-info",), "drained"),
        (("resetchannels",), "drained"),
        (("-set",), "drained"),
        (("-hset",), "lost"),
        (("reset",), "lost"),
    ],
    ids=["INFO", "pub/sub", "SET", "HSET", "everything"],
)
def test_rights_are_taken_away(
    service: Service, server: RedisServer, denied: tuple[str, ...], outcome: str
) -> None:
    """A worker that loses rights keeps its state; a drain says what it cannot know."""
    rights = acl_line("shop").split()
    server.run("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights)
    app = {"FASTAPI_MAINTENANCE_STORE": server.url(user="app")}
    service.start(2, environment=app)
    operator = settled(service)
    with Watch(service.instances):
        server.run("ACL", "SETUSER", "app", *denied)
        server.run("CLIENT", "KILL", "USER", "app")
        report = operator.drain(20)
        assert report.outcome == outcome, report
        server.run("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights, "+info")
        report = Operator(service).drain(workers=2)
        assert report.outcome == "drained", report
    assert closed(service)


def test_the_password_is_changed(service: Service, server: RedisServer) -> None:
    """Workers whose password is wrong from now on keep the last state."""
    rights = acl_line("shop").split()
    server.run("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights)
    app = {"FASTAPI_MAINTENANCE_STORE": server.url(user="app")}
    service.start(2, environment=app)
    operator = settled(service)
    assert operator.drain().outcome == "drained"
    with Watch(service.instances) as watch:
        server.run("ACL", "SETUSER", "app", "resetpass", ">another")
        server.run("CLIENT", "KILL", "USER", "app")
        report = operator.drain(20)
        assert report.outcome == "lost", report
        with pytest.raises(StoreError, match="refuses this user or password"):
            Operator(service, server.url(user="app")).off()
        server.run("ACL", "SETUSER", "app", f">{PASSWORD}")
        assert operator.drain().outcome == "drained"
    assert {status for status, _ in watch.told} == {503}


def test_redis_is_full(service: Service, server: RedisServer) -> None:
    """A full Redis can be set no more, changes nothing, and recovers by itself."""
    service.start(2)
    operator = settled(service)
    with Watch(service.instances) as watch:
        server.run("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreError, match="out of memory"):
            operator.on()
        assert {status for status, _ in watch.told} == {200}
        server.run("CONFIG", "SET", "maxmemory", 0)
        report = operator.drain()
        assert report.outcome == "drained", report
    assert closed(service)


def test_the_primary_becomes_a_replica(service: Service, server: RedisServer) -> None:
    """A read-only Redis can be set no more, and workers keep the last state."""
    service.start(2)
    operator = settled(service)
    assert operator.drain().outcome == "drained"
    with Watch(service.instances) as watch:
        server.run("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(StoreError, match="read-only replica"):
            operator.off()
        time.sleep(2)
        server.run("REPLICAOF", "NO", "ONE")
        assert operator.drain().outcome == "drained"
    assert {status for status, _ in watch.told} == {503}


def test_failover_to_a_replica(
    service: Service, server: RedisServer, tmp_path: Path
) -> None:
    """After a failover the state and the list of workers stand."""
    of = ("--replicaof", "127.0.0.1", str(server.port))
    with serving(tmp_path / "replica", *of) as replica, Proxy(server.port) as proxy:
        until(lambda: b"master_link_status:up" in _replication(replica))
        by_name = through(proxy, service)
        service.url = by_name["FASTAPI_MAINTENANCE_STORE"]
        worker, _ = service.start(2)
        operator = settled(service)
        busy(service, worker, 4)
        with Watch(service.instances):
            later = operator.later(20)
            later.looks_again("busy")
            server.kill()
            replica.run("REPLICAOF", "NO", "ONE")
            proxy.lead(replica.port)
            report = later.result()
            assert report.outcome == "drained", report
            assert operator.drain().outcome == "drained"
        assert closed(service)


def _replication(server: RedisServer) -> bytes:
    with server.client() as client:
        found = client.info("replication")
        return "".join(f"{key}:{value}\n" for key, value in found.items()).encode()


def test_started_without_redis(service: Service, server: RedisServer) -> None:
    """Without a lifespan a worker refuses until it knows, then serves by itself."""
    server.kill()
    (worker,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    assert {worker.get("/fast") for _ in range(3)} == {503}
    server.start()
    until(lambda: worker.get("/fast") == 200, 20)


def test_a_lifespan_fails_without_redis(service: Service, server: RedisServer) -> None:
    """With a lifespan the start fails after ten seconds, so that a roll-out stops."""
    server.kill()
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="cannot reach redis://127"):
        service.start()
    assert 9 < time.monotonic() - begun < 25


def test_two_applications_on_one_server(service: Service, tmp_path: Path) -> None:
    """Applications with prefixes of their own do not switch or wait for each other."""
    (worker,) = service.start()
    operator = settled(service)
    url = shared_server().url(f"prefix=t{secrets.token_hex(6)}")
    with Service(tmp_path / "other", url) as other:
        (stranger,) = other.start()
        busy(other, stranger, 3)
        report = operator.drain()
        assert report.outcome == "drained", report
        assert (len(report.workers), report.seconds < 2) == (1, True)
        assert (worker.get("/fast"), stranger.get("/fast")) == (503, 200)


def test_forty_workers_join_at_once(service: Service) -> None:
    """A fleet that joins as one is complete, and drained as fast as a small one."""
    store = RedisStore.from_url(service.url)
    workers = [another(store) for _ in range(40)]

    def join(worker: Follower) -> None:
        # As long as a lifespan tries.
        until(lambda: entered(worker))

    def entered(worker: Follower) -> bool:
        with contextlib.suppress(TemporaryStoreError):
            worker.enter()
            return True
        return False

    threads = [threading.Thread(target=join, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = Operator(service).drain(30, workers=40)
    assert report.outcome == "drained", report
    assert len(report.workers) == 40
    for worker in workers:
        worker.leave()


@pytest.mark.timeout(3600)
def test_flips_beside_a_stopped_worker(service: Service, flips: int) -> None:
    """One that stops and goes on is waited for each time, and never passed over."""
    sleeper, _ = service.start(2)
    operator = settled(service)
    with service.load(), service.stuttering(sleeper):
        for _ in range(flips // 2):
            report = operator.drain()
            assert report.outcome == "drained", report
            operator.off()
