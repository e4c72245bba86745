"""Workers that are killed, stopped, blocked and forked while they work."""

import os
import signal
import time

import pytest

from fastapi_maintenance.worker import STALE
from tests.chaos.harness import Operator, Service
from tests.waiting import until

pytestmark = pytest.mark.chaos


def test_kill_of_busy_worker(service: Service) -> None:
    """A worker that is killed is gone at once: only the others are waited for."""
    victim, _ = service.start(2)
    operator = service.settled()
    service.busy(victim, 30)
    with service.load():
        later = operator.later()
        service.kill(victim)
        report = later.result()
        assert report.outcome == "drained", report
        assert report.seconds < 5
        operator.off()


@pytest.mark.parametrize("seconds", [0, 1], ids=["idle", "busy"])
def test_stopped_worker(service: Service, seconds: float) -> None:
    """A stopped worker is lost after five seconds, and refuses once it goes on."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    if seconds:
        service.busy(sleeper, seconds)
    sleeper.signal(signal.SIGSTOP)
    report = operator.drain(30)
    assert report.outcome == "lost", report
    assert f"/{sleeper.pid} has not answered for" in report.reason
    assert 4 < report.seconds < 8
    # Known to be silent, it is not waited for as long again.
    report = operator.drain(30)
    assert report.outcome == "lost", report
    assert report.seconds < 4
    sleeper.signal(signal.SIGCONT)
    assert sleeper.get("/fast") == 503
    assert operator.drain().outcome == "drained"


def test_stopped_worker_that_goes_on_in_time(service: Service) -> None:
    """A worker that is stopped for less is waited for, with its work."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    work = service.busy(sleeper, 0.5)
    sleeper.signal(signal.SIGSTOP)
    report = operator.drain(1.5)
    assert report.outcome == "busy", report
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    assert operator.drain().outcome == "drained"
    assert work.result()[0] == 200


def test_worker_that_slept_through_a_switch(
    service: Service, operator: Operator
) -> None:
    """A worker that was stopped decides its first requests by the present state."""
    sleeper, _ = service.start(2)
    for _ in range(3):
        sleeper.signal(signal.SIGSTOP)
        operator.on()
        # Long enough that it must read the store before it admits a request.
        time.sleep(STALE + 0.2)
        waiting = [sleeper.begin("/fast") for _ in range(8)]
        sleeper.signal(signal.SIGCONT)
        assert {answer.result()[0] for answer in waiting} == {503}
        operator.off()
        until(lambda: sleeper.get("/fast") == 200)


def test_blocked_event_loop(service: Service, operator: Operator) -> None:
    """A worker whose event loop is blocked is busy until it has done its work."""
    blocked, _ = service.start(2)
    service.busy(blocked, 2, "blocks")
    assert operator.drain(0.5).outcome == "busy"
    report = operator.drain()
    assert report.outcome == "drained", report
    assert blocked.get("/fast") == 503


@pytest.mark.parametrize(("seconds", "outcome"), [(4, "drained"), (8, "lost")])
def test_interpreter_lock_held(service: Service, seconds: int, outcome: str) -> None:
    """A worker in which not even the keeper can run is waited for, then lost."""
    held, _ = service.start(2)
    operator = service.settled()
    service.busy(held, seconds, "interpreter")
    assert operator.drain(1).outcome == "busy"
    report = operator.drain(15)
    assert report.outcome == outcome, report
    until(lambda: not service.running("interpreter"))
    assert held.get("/fast") == 503
    assert operator.drain().outcome == "drained"


def test_preload_with_fork(service: Service, operator: Operator) -> None:
    """Workers that were forked from a loaded master are counted one by one."""
    command = ["gunicorn", "--preload", "-k", "uvicorn_worker.UvicornWorker"]
    command += ["--log-level", "error", "-w", "2", "--chdir", str(service.folder)]
    (master,) = service.start(command=command)
    with service.load():
        until(lambda: len({name.split()[-1] for *_, name in service.spans()}) == 2)
        report = operator.drain()
        assert report.outcome == "drained", report
        live = {worker.pid for worker in report.workers}
        assert len(live) == 2
        assert master.process.pid not in live
        operator.off()


def test_child_that_outlives_its_parent(service: Service, operator: Operator) -> None:
    """A forked child does not keep a dead parent on the list."""
    parent, _ = service.start(2)
    child = int(parent.read("/child")[1])
    try:
        service.busy(parent, 30)
        service.kill(parent)
        os.kill(child, 0)
        report = operator.drain()
        assert report.outcome == "drained", report
    finally:
        os.kill(child, signal.SIGKILL)


def test_child_of_a_living_worker(service: Service) -> None:
    """A forked child, alive or gone, does not make its parent look dead."""
    parent, _ = service.start(2)
    operator = service.settled()
    service.busy(parent, 3)
    children = [int(parent.read("/child")[1]) for _ in range(3)]
    try:
        os.kill(children[0], signal.SIGKILL)
        report = operator.drain()
        assert report.outcome == "drained", report
        assert report.seconds > 1
        assert len(report.workers) == 2
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_termination_without_lifespan(service: Service, operator: Operator) -> None:
    """A worker without a lifespan is counted until it ends, and gone after that."""
    (worker,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    (other,) = service.start()
    assert other.get("/fast") == 200
    service.busy(worker, 1)
    worker.signal(signal.SIGTERM)
    report = operator.drain()
    assert report.outcome == "drained", report
    assert worker.process.wait(10) is not None
    assert {worker.pid for worker in operator.drain().workers} == {other.pid}


def test_start_during_maintenance(service: Service, operator: Operator) -> None:
    """A worker that starts under maintenance refuses from its first request."""
    service.start()
    assert operator.drain().outcome == "drained"
    (late,) = service.start()
    (lazy,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    assert late.get("/fast") == lazy.get("/fast") == 503
