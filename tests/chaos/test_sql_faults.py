"""Databases that restart, freeze, forget and refuse; machines that are cut off."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("sqlalchemy")

from fastapi_maintenance import StoreError
from tests.chaos.harness import Operator, Service, until
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
from tests.stores.sql_server import SQLServer, fresh_url, serving, shared_server

pytestmark = [pytest.mark.chaos, pytest.mark.sql, pytest.mark.timeout(180)]


@pytest.fixture
def server() -> Iterator[SQLServer]:
    """A PostgreSQL of this test's own, that may be broken."""
    with serving() as made:
        yield made


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A service without workers yet, on this test's own server or one that stays."""
    own = "server" in request.fixturenames
    url = fresh_url(request.getfixturevalue("server") if own else None)
    with Service(tmp_path / "service", url) as made:
        yield made
        assert made.violations() == []


def tables(service: Service) -> tuple[str, str]:
    """Return the names of the table of switches and of that of reports."""
    prefix = service.url.rpartition("prefix=")[2]
    return f"{prefix}_switches", f"{prefix}_reports"


@pytest.mark.timeout(3600)
def test_flips_under_load_on_two_machines(service: Service, flips: int) -> None:
    """However often it is switched, nothing runs after *drained* on either machine."""
    with Proxy(shared_server().port) as proxy:
        service.start(2)
        service.start(2, environment=through(proxy, service))
        operator = settled(service)
        with service.load(), Watch(service.instances):
            for number in range(flips // 2):
                if number % 9 == 5:
                    proxy.cut()
                report = operator.drain()
                assert report.outcome == "drained", report
                assert len(report.workers) == 4
                operator.off()


@pytest.mark.timeout(3600)
def test_flips_beside_a_stopped_worker(service: Service, flips: int) -> None:
    """One that stops and goes on is waited for each time, and never passed over."""
    sleeper, _ = service.start(2)
    operator = settled(service)
    with service.load(), service.stuttering(sleeper):
        for _ in range(flips // 4):
            report = operator.drain()
            assert report.outcome == "drained", report
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


@as_root
def test_killed_worker_of_another_machine(service: Service) -> None:
    """A worker that was killed elsewhere is lost until a person forgets it."""
    service.start()
    (far,) = service.start(inside=another_machine)
    operator = settled(service)
    os.killpg(far.process.pid, signal.SIGKILL)
    far.process.wait()
    service.instances.remove(far)
    report = operator.drain(20)
    assert report.outcome == "lost", report
    gone = min(report.workers, key=lambda worker: worker.seen)
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
    report = operator.drain(20)
    assert report.outcome == "lost", report
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    report = operator.drain()
    assert report.outcome == "drained", report
    assert closed(service)


@pytest.mark.parametrize("crash", [False, True], ids=["in order", "crash"])
def test_database_restarts_during_the_wait(
    service: Service, server: SQLServer, *, crash: bool
) -> None:
    """A restart loses nothing: the wait goes on, and the next one needs no word."""
    worker, _ = service.start(2)
    operator = settled(service)
    with Watch(service.instances):
        busy(service, worker, 5)
        later = operator.later(30)
        later.looks_again("busy")
        if crash:
            server.kill()
        else:
            server.stop()
        server.start()
        report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 3
    assert len(report.workers) == 2
    assert closed(service)
    assert operator.drain().outcome == "drained"


def test_database_is_down_under_load(service: Service, server: SQLServer) -> None:
    """Without its database a service goes on as it was, and follows again later."""
    service.start(2)
    operator = settled(service)
    with service.load(), Watch(service.instances) as watch:
        server.kill()
        time.sleep(2)
        assert 503 not in {status for status, _ in watch.told}
        with pytest.raises(StoreError):
            operator.on()
        server.start()
        operator.on()
        until(lambda: closed(service))


@pytest.mark.parametrize("stopped", [False, True], ids=["all awake", "one stopped"])
@pytest.mark.parametrize("what", ["reports", "everything"])
def test_data_is_lost(service: Service, what: str, *, stopped: bool) -> None:
    """What the database loses comes back; a worker that cannot is not passed over."""
    sleeper, other = service.start(2)
    operator = settled(service)
    busy(service, sleeper, 3)
    later = operator.later(20)
    later.looks_again("busy")
    until(lambda: other.get("/fast") == 503)
    if stopped:
        sleeper.signal(signal.SIGSTOP)
    switches, reports = tables(service)
    lost = f"{reports}" if what == "reports" else f"{switches}, {reports}"
    shared_server().run(f"TRUNCATE {lost}")
    report = later.result()
    assert report.outcome == ("lost" if stopped else "drained"), report
    until(lambda: operator.drain(2).outcome == "lost")
    assert other.get("/fast") == 503
    sleeper.signal(signal.SIGCONT)
    # The woken worker reports first, and testifies right after it.
    until(lambda: operator.drain(workers=2).drained and operator.drain().drained)


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


def test_second_operator_takes_over(service: Service) -> None:
    """The later one is waited for; the earlier is told that it was superseded."""
    worker, _ = service.start(2)
    operator = settled(service)
    busy(service, worker, 1.5)
    first = operator.later()
    second = Operator(service).drain()
    assert first.result().outcome == "superseded"
    assert second.outcome == "drained", second
