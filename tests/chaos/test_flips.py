"""Many switches under load, with workers that die meanwhile."""

import random
import signal

import pytest

from tests.chaos.harness import Operator, Service

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
