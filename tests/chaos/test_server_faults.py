"""Faults of Redis and PostgreSQL, and of machines that are cut off from them."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastapi_maintenance import StoreError
from tests.chaos.harness import Operator, Service
from tests.chaos.servers import (
    Engine,
    PostgreSQL,
    Redis,
    Watch,
    another_machine,
    through,
)
from tests.stores.children import needs_root
from tests.stores.redis_proxy import Proxy
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.fixture(
    params=[
        pytest.param(Redis, marks=pytest.mark.redis, id="redis"),
        pytest.param(PostgreSQL, marks=pytest.mark.sql, id="postgresql"),
    ]
)
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    """Each engine."""
    made: type[Engine] = request.param
    return made


@pytest.fixture
def engine(kind: type[Engine]) -> Engine:
    """The server that no test breaks."""
    return kind.shared()


@pytest.fixture
def own_engine(kind: type[Engine], tmp_path: Path) -> Iterator[Engine]:
    """A server of this test's own, that may be broken."""
    with kind.serving(tmp_path / "server") as made:
        yield made


@pytest.fixture
def url(request: pytest.FixtureRequest, kind: type[Engine]) -> str:
    """A store on this test's own server, if it has one."""
    if "own_engine" in request.fixturenames:
        own: Engine = request.getfixturevalue("own_engine")
        return own.url()
    return kind.shared().url()


@pytest.mark.timeout(3600)
def test_flips_under_load_on_two_machines(
    service: Service, engine: Engine, flips: int
) -> None:
    """After *drained* nothing runs on either machine, however often it is switched."""
    with Proxy(engine.server.port) as proxy:
        service.start(2)
        service.start(2, environment=through(proxy, service))
        operator = service.settled()
        with service.load(), Watch(service.instances):
            for number in range(flips):
                if number % 9 == 5:
                    proxy.cut()
                report = operator.drain()
                assert report.outcome == "drained", report
                assert len(report.workers) == 4
                operator.off()


@pytest.mark.timeout(3600)
def test_flips_beside_a_stopped_worker(service: Service, flips: int) -> None:
    """A worker that stops and goes on is waited for each time, and never ignored."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    with service.load(), service.stuttering(sleeper):
        for _ in range(flips // 2):
            report = operator.drain()
            assert report.outcome == "drained", report
            operator.off()


def test_first_drain_on_a_new_server(service: Service) -> None:
    """The first drain waits until the list is old enough, and needs no --workers."""
    service.start(2)
    report = Operator(service).drain()
    assert report.outcome == "drained", report
    assert len(report.workers) == 2


def test_second_operator_takes_over(service: Service) -> None:
    """The later one is waited for; the earlier is told that it was superseded."""
    worker, _ = service.start(2)
    operator = service.settled()
    service.busy(worker, 1.5)
    first = operator.later()
    second = Operator(service).drain()
    assert first.result().outcome == "superseded"
    assert second.outcome == "drained", second


def test_killed_busy_worker(service: Service) -> None:
    """A killed worker of this machine is proven dead and waited for no longer."""
    victim, _ = service.start(2)
    operator = service.settled()
    service.busy(victim, 30)
    later = operator.later()
    later.looks_again("busy")
    service.kill(victim)
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds < 5


@needs_root
def test_killed_worker_of_another_machine(service: Service) -> None:
    """A worker that was killed elsewhere is lost until a person forgets it."""
    service.start()
    (far,) = service.start(inside=another_machine)
    operator = service.settled()
    os.killpg(far.process.pid, signal.SIGKILL)
    far.process.wait()
    service.instances.remove(far)
    report = operator.drain(20)
    assert report.outcome == "lost", report
    assert report.seconds < 8
    gone = min(report.workers, key=lambda worker: worker.seen)
    assert f"fastapi-maintenance forget {gone.id}" in report.reason
    # Known to be silent, it is not waited for as long again.
    report = operator.drain(20)
    assert report.outcome == "lost", report
    assert report.seconds < 4
    asyncio.run(operator.switch.forget(gone.id))
    assert operator.drain().outcome == "drained"


@pytest.mark.parametrize("seconds", [0, 1], ids=["idle", "busy"])
def test_stopped_worker(service: Service, seconds: float) -> None:
    """A stopped worker is lost, whatever it did, and acknowledges when it goes on."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    if seconds:
        service.busy(sleeper, seconds)
    sleeper.signal(signal.SIGSTOP)
    report = operator.drain(20)
    assert report.outcome == "lost", report
    assert report.seconds < 8
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    report = operator.drain()
    assert report.outcome == "drained", report
    assert service.closed()


@pytest.mark.parametrize("crash", [False, True], ids=["in order", "crash"])
def test_restart_during_a_wait(
    service: Service, own_engine: Engine, *, crash: bool
) -> None:
    """A wait outlives a restart: it knows which workers it saw, and waits for each."""
    worker, _ = service.start(2)
    operator = service.settled()
    with Watch(service.instances):
        service.busy(worker, 5)
        later = operator.later(30)
        later.looks_again("busy")
        if crash:
            own_engine.server.kill()
        else:
            own_engine.stop()
        own_engine.server.start()
        report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 3
    assert len(report.workers) == 2
    assert service.closed()
    # Another wait has not seen the workers that the server may have forgotten.
    lost = crash and not own_engine.durable
    assert operator.drain().outcome == ("lost" if lost else "drained")


def test_server_is_down_under_load(service: Service, own_engine: Engine) -> None:
    """Without its server a service keeps its state; it follows when that is back."""
    service.start(2)
    operator = service.settled()
    with service.load(), Watch(service.instances) as watch:
        own_engine.server.kill()
        time.sleep(3)
        assert watch.statuses() == {200}
        with pytest.raises(StoreError, match=r"cannot reach|does not answer"):
            operator.on()
        own_engine.server.start()
        operator.on()
        until(service.closed)


@pytest.mark.parametrize("stopped", [False, True], ids=["all awake", "one stopped"])
@pytest.mark.parametrize("what", ["reports", "members", "everything"])
def test_data_is_lost(
    service: Service, engine: Engine, what: str, *, stopped: bool
) -> None:
    """Lost reports are written again; a worker that cannot is known to be missing."""
    sleeper, other = service.start(2)
    operator = service.settled()
    service.busy(sleeper, 3)
    later = operator.later(20)
    later.looks_again("busy")
    until(lambda: other.get("/fast") == 503)
    if stopped:
        sleeper.signal(signal.SIGSTOP)
    engine.lose(service.url, what)
    report = later.result()
    assert report.outcome == ("lost" if stopped else "drained"), report
    until(lambda: operator.drain(2).outcome == "lost")
    assert other.get("/fast") == 503
    sleeper.signal(signal.SIGCONT)
    # The worker that goes on reports first, and testifies right after it.
    until(lambda: operator.drain(workers=2).drained and operator.drain().drained)


def test_half_open_connection(service: Service, engine: Engine) -> None:
    """A machine that is cut off keeps its state, and no drain ignores it."""
    with Proxy(engine.server.port) as proxy:
        service.start()
        (far,) = service.start(environment=through(proxy, service))
        operator = service.settled()
        with Watch(service.instances):
            proxy.frozen = True
            report = operator.drain(30)
            assert report.outcome == "lost", report
            assert far.get("/fast") == 200
            proxy.frozen = False
            report = operator.drain()
            assert report.outcome == "drained", report
        assert service.closed()
