"""Many switches under load, with workers that die and stop in between."""

import random
import signal

import pytest

from tests.chaos.harness import Operator, Service, in_background

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(3600)
def test_flips_under_load(service: Service, operator: Operator, flips: int) -> None:
    """However often it is switched, nothing counted runs after *drained*."""
    service.start(2)
    choose = random.Random(flips)
    with service.load(8):
        for number in range(flips):
            if number % 7 == 3:
                service.kill(choose.choice(service.instances))
                service.start()
            if number % 5 == 2:
                # Stopped and continued while it is waited for.
                victim = service.instances[-1]
                victim.signal(signal.SIGSTOP)
                later = operator.later(20)
                later.looks_again()
                victim.signal(signal.SIGCONT)
                report = later.result()
            else:
                report = operator.drain(20)
            assert report.outcome == "drained", report
            operator.off()
            assert service.instances[-1].get("/fast") == 200
    assert len(service.windows) == flips


@pytest.mark.timeout(3600)
def test_flips_beside_a_stopped_worker(
    service: Service, operator: Operator, flips: int
) -> None:
    """A worker that stops and goes on is waited for each time, never ignored."""
    sleeper, _ = service.start(2)
    with service.load(8), service.stuttering(sleeper):
        for _ in range(flips // 2):
            report = operator.drain(20)
            assert report.outcome == "drained", report
            operator.off()
    assert len(service.windows) == flips // 2


@pytest.mark.timeout(3600)
def test_flips_of_two_operators(service: Service, flips: int) -> None:
    """Of two operators that drain at once, the later one is right about its own."""
    service.start(2)
    operator = service.settled()
    other = Operator(service)
    with service.load(8):
        for _ in range(flips // 2):
            second = in_background(lambda: other.drain(20))
            outcomes = {operator.drain(20).outcome, second.result().outcome}
            assert "drained" in outcomes
            assert outcomes <= {"drained", "superseded"}
            operator.off()
