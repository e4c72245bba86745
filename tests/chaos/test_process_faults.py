"""Workers that die, stop, hang, fork and leave in the middle of their work."""

import os
import signal

import pytest

from tests.chaos.harness import Operator, Service, until

pytestmark = pytest.mark.chaos


def test_kill_of_busy_worker(service: Service, operator: Operator) -> None:
    """A worker that is killed is gone at once: only the others are waited for."""
    victim, _ = service.start(2)
    victim.begin("/slow?seconds=30")
    until(lambda: service.running("slow"))
    with service.load():
        later = operator.later()
        service.kill(victim)
        report = later.result()
        assert report.outcome == "drained", report
        assert report.seconds < 5
        operator.off()


def test_stop_of_idle_worker(service: Service, operator: Operator) -> None:
    """An idle worker that is stopped holds nothing up, and refuses when it wakes."""
    sleeper, other = service.start(2)
    sleeper.signal(signal.SIGSTOP)
    other.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    report = operator.drain()
    assert report.outcome == "drained", report
    sleeper.signal(signal.SIGCONT)
    assert sleeper.get("/fast") == 503


def test_stop_of_busy_worker(service: Service, operator: Operator) -> None:
    """A busy worker that is stopped is waited for, and ends its work when it wakes."""
    sleeper, _ = service.start(2)
    work = sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    report = operator.drain(1.5)
    assert report.outcome == "busy", report
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    assert operator.drain().outcome == "drained"
    work.join()


def test_blocked_event_loop(service: Service, operator: Operator) -> None:
    """A worker whose event loop is blocked is busy until it has done its work."""
    blocked, _ = service.start(2)
    blocked.begin("/blocks?seconds=2")
    until(lambda: service.running("block"))
    assert operator.drain(0.5).outcome == "busy"
    report = operator.drain()
    assert report.outcome == "drained", report
    assert blocked.get("/fast") == 503


def test_interpreter_lock_held(service: Service, operator: Operator) -> None:
    """A worker in which no thread can run, not even the keeper, is waited for."""
    held, _ = service.start(2)
    held.begin("/interpreter?seconds=5")
    until(lambda: service.running("interpreter"))
    assert operator.drain(1).outcome == "busy"
    report = operator.drain(15)
    assert report.outcome == "drained", report
    assert held.get("/fast") == 503


def test_preload_with_fork(service: Service, operator: Operator) -> None:
    """Workers that were forked from a loaded master are counted one by one."""
    command = ["gunicorn", "--preload", "-k", "uvicorn_worker.UvicornWorker"]
    command += ["--log-level", "error", "-w", "2", "--chdir", str(service.folder)]
    (master,) = service.start(command=command)
    with service.load():
        until(lambda: len({name.split()[-1] for *_, name in service.spans()}) == 2)
        report = operator.drain()
        assert report.outcome == "drained", report
        live = {row.pid for row in report.workers if row.liveness == "alive"}
        assert len(live) == 2
        assert master.process.pid not in live
        operator.off()


def test_child_that_outlives_its_parent(service: Service, operator: Operator) -> None:
    """A forked child does not keep the row of a dead parent alive."""
    parent, _ = service.start(2)
    child = int(parent.read("/child")[1])
    try:
        parent.begin("/slow?seconds=30")
        until(lambda: service.running("slow"))
        service.kill(parent)
        os.kill(child, 0)
        report = operator.drain()
        assert report.outcome == "drained", report
    finally:
        os.kill(child, signal.SIGKILL)


def test_termination_without_lifespan(service: Service, operator: Operator) -> None:
    """A worker that knows no lifespan is counted to its end, and gone after it."""
    (worker,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    (other,) = service.start()
    assert other.get("/fast") == 200
    worker.begin("/slow?seconds=1")
    until(lambda: service.running("slow"))
    worker.signal(signal.SIGTERM)
    later = operator.later()
    report = later.result()
    assert report.outcome == "drained", report
    assert worker.process.wait(10) is not None
    live = {row.pid for row in operator.drain().workers if row.liveness != "dead"}
    assert live == {other.pid}


def test_start_during_maintenance(service: Service, operator: Operator) -> None:
    """A worker that starts under maintenance refuses from its first request on."""
    service.start()
    assert operator.drain().outcome == "drained"
    (late,) = service.start()
    (lazy,) = service.start(environment={"CHAOS_LIFESPAN": "0"})
    assert late.get("/fast") == 503
    assert lazy.get("/fast") == 503
