"""Faults of Redis alone: it forgets, hangs, refuses, fills up and fails over."""

import contextlib
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
from tests.chaos.harness import Operator, Service
from tests.chaos.servers import Watch, keys, through
from tests.servers import free_port
from tests.stores.redis_proxy import Proxy
from tests.stores.redis_server import PASSWORD, RedisServer, serving, shared_server
from tests.stores.redis_workers import another, fresh_url
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(180)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own, that may be broken."""
    with serving(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A store on this test's own server, if it has one."""
    if "server" in request.fixturenames:
        own: RedisServer = request.getfixturevalue("server")
        return own.url()
    return fresh_url()


@pytest.mark.parametrize("keep", [True, False], ids=["data kept", "data lost"])
def test_redis_restarts_before_the_wait(
    service: Service, server: RedisServer, *, keep: bool
) -> None:
    """After the list of workers was lost, a drain needs ``workers``."""
    worker, _ = service.start(2)
    operator = service.settled()
    operator.on()
    until(service.closed)
    with Watch(service.instances) as watch:
        server.restart(keep=keep)
        if not keep:
            report = operator.drain(4)
            assert report.outcome in {"lost", "too_few"}, report
            until(lambda: operator.drain(4).outcome == "lost")
            report = operator.drain(workers=2)
            assert report.outcome == "drained", report
        assert operator.drain().outcome == "drained"
    assert watch.statuses() == {503}
    operator.off()
    until(lambda: worker.get("/fast") == 200)
    assert operator.drain().outcome == "drained"


def test_redis_restarts_empty_beside_a_stopped_worker(
    service: Service, server: RedisServer
) -> None:
    """A worker whose report was lost while it was stopped is never ignored."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    service.busy(sleeper, 1)
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


def test_all_keys_are_evicted_under_maintenance(service: Service) -> None:
    """What Redis drops does not open anything: workers write it back."""
    service.start(2)
    operator = service.settled()
    assert operator.drain().outcome == "drained"
    everything = keys(service.url, "state", "members", "reports")
    with Watch(service.instances) as watch:
        for _ in range(5):
            shared_server().run("DEL", *everything)
            until(lambda: shared_server().run("EXISTS", *everything) == 3)
        service.start()
        assert service.closed()
    assert watch.statuses() == {503}


def test_redis_freezes(service: Service, server: RedisServer) -> None:
    """Six seconds without an answer delay no request and end no wait."""
    worker, _ = service.start(2)
    operator = service.settled()
    service.busy(worker, 2)
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


def test_one_machine_loses_its_connections_again_and_again(service: Service) -> None:
    """Broken connections are made again, and no drain is wrong."""
    with Proxy(shared_server().port) as proxy:
        service.start()
        service.start(environment=through(proxy, service))
        operator = service.settled()
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
    operator = service.settled()
    with Watch(service.instances):
        server.run("ACL", "SETUSER", "app", *denied)
        server.run("CLIENT", "KILL", "USER", "app")
        report = operator.drain(20)
        assert report.outcome == outcome, report
        server.run("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights, "+info")
        report = Operator(service).drain(workers=2)
        assert report.outcome == "drained", report
    assert service.closed()


def test_the_password_is_changed(service: Service, server: RedisServer) -> None:
    """Workers whose password has become wrong keep the last state."""
    rights = acl_line("shop").split()
    server.run("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights)
    app = {"FASTAPI_MAINTENANCE_STORE": server.url(user="app")}
    service.start(2, environment=app)
    operator = service.settled()
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
    assert watch.statuses() == {503}


def test_redis_is_full(service: Service, server: RedisServer) -> None:
    """A full Redis rejects writes, opens nothing, and recovers by itself."""
    service.start(2)
    operator = service.settled()
    with Watch(service.instances) as watch:
        server.run("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreError, match="out of memory"):
            operator.on()
        assert watch.statuses() == {200}
        server.run("CONFIG", "SET", "maxmemory", 0)
        report = operator.drain()
        assert report.outcome == "drained", report
    assert service.closed()


def test_the_primary_becomes_a_replica(service: Service, server: RedisServer) -> None:
    """A read-only Redis rejects writes, and workers keep the last state."""
    service.start(2)
    operator = service.settled()
    assert operator.drain().outcome == "drained"
    with Watch(service.instances) as watch:
        server.run("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(StoreError, match="read-only replica"):
            operator.off()
        time.sleep(2)
        server.run("REPLICAOF", "NO", "ONE")
        assert operator.drain().outcome == "drained"
    assert watch.statuses() == {503}


def test_failover_to_a_replica(
    service: Service, server: RedisServer, tmp_path: Path
) -> None:
    """A failover keeps the state and the list of workers."""
    of = ("--replicaof", "127.0.0.1", str(server.port))
    with serving(tmp_path / "replica", *of) as replica, Proxy(server.port) as proxy:
        until(lambda: _is_linked(replica))
        by_name = through(proxy, service)
        service.url = by_name["FASTAPI_MAINTENANCE_STORE"]
        worker, _ = service.start(2)
        operator = service.settled()
        service.busy(worker, 4)
        with Watch(service.instances):
            later = operator.later(20)
            later.looks_again("busy")
            server.kill()
            replica.run("REPLICAOF", "NO", "ONE")
            proxy.lead(replica.port)
            report = later.result()
            assert report.outcome == "drained", report
            assert operator.drain().outcome == "drained"
        assert service.closed()


def _is_linked(replica: RedisServer) -> bool:
    with replica.client() as client:
        return bool(client.info("replication")["master_link_status"] == "up")


def test_started_without_redis(service: Service, server: RedisServer) -> None:
    """Without a lifespan a worker refuses until it knows, then serves by itself."""
    server.kill()
    (worker,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    assert {worker.get("/fast") for _ in range(3)} == {503}
    server.start()
    until(lambda: worker.get("/fast") == 200, 20)


def test_a_lifespan_fails_without_redis(service: Service, server: RedisServer) -> None:
    """With a lifespan the start fails after ten seconds, so that a rollout stops."""
    server.kill()
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="cannot reach redis://127"):
        service.start()
    assert 9 < time.monotonic() - begun < 25


def test_two_applications_on_one_server(service: Service, tmp_path: Path) -> None:
    """Applications with prefixes of their own do not switch or wait for each other."""
    (worker,) = service.start()
    operator = service.settled()
    with Service(tmp_path / "other", fresh_url()) as other:
        (stranger,) = other.start()
        other.busy(stranger, 3)
        report = operator.drain()
        assert report.outcome == "drained", report
        assert (len(report.workers), report.seconds < 2) == (1, True)
        assert (worker.get("/fast"), stranger.get("/fast")) == (503, 200)


def test_forty_workers_join_at_once(service: Service) -> None:
    """Forty workers that join at the same time are all counted."""
    store = RedisStore.from_url(service.url)
    workers = [another(store) for _ in range(40)]

    def join(worker: Follower) -> None:
        # A lifespan retries too.
        until(lambda: entered(worker))

    def entered(worker: Follower) -> bool:
        with contextlib.suppress(TemporaryStoreError):
            worker.add_user()
            worker.join()
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
