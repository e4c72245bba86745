"""Operators that cross each other, whose clocks are off, and whose terminals die."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance.orders import Order
from fastapi_maintenance.waiting import FenceRefusedError, Plan
from tests.chaos.harness import ROOT, Operator, Service, until

pytestmark = pytest.mark.chaos


def test_second_operator_takes_over(service: Service, operator: Operator) -> None:
    """The later one is waited for; the earlier is told that it was superseded."""
    (worker,) = service.start()
    worker.begin("/slow?seconds=1.5")
    until(lambda: service.running("slow"))
    first = operator.later()
    second = Operator(service).drain()
    assert first.result().outcome == "superseded"
    assert second.outcome == "drained", second


def test_second_operator_opens(service: Service, operator: Operator) -> None:
    """Whoever waits while another one opens again is not told that it is drained."""
    (worker,) = service.start()
    worker.begin("/slow?seconds=1")
    until(lambda: service.running("slow"))
    later = operator.later()
    Operator(service).off()
    report = later.result()
    assert report.outcome == "superseded", report
    assert worker.get("/fast") == 200


@pytest.mark.parametrize("skew", [-60, 60])
def test_clocks_off_around_a_window(
    service: Service, operator: Operator, skew: int
) -> None:
    """A fence rests on no clock: workers a minute off refuse all the same."""
    (wrong,) = service.start(environment={"CHAOS_SKEW": str(skew)})
    (right,) = service.start()
    planned = Order(at=datetime.now(UTC) + timedelta(seconds=30), message="planned")
    anyio.run(operator.switch.enable, planned)
    assert right.get("/fast") == 200
    assert wrong.get("/fast") == (503 if skew > 30 else 200)
    with pytest.raises(FenceRefusedError):
        anyio.run(operator.switch.drain, Plan())
    with service.load():
        report = operator.drain()
        assert report.outcome == "drained", report
        assert wrong.get("/fast") == right.get("/fast") == 503


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_signals_in_the_middle_of_a_run(
    service: Service, operator: Operator, tmp_path: Path, name: str
) -> None:
    """However a run ends, it opens nothing while its command may be at work."""
    (worker,) = service.start()
    script = tmp_path / "migrate.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "pathlib.Path('begun').write_text('1')\n"
        "time.sleep(60)\n"
    )
    line = [sys.executable, "-m", "fastapi_maintenance", "run", "--store", service.url]
    run = subprocess.Popen(
        [*line, "--", sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until((tmp_path / "begun").exists)
        assert worker.get("/fast") == 503
        run.send_signal(signal.Signals[f"SIG{name}"])
        code = run.wait(15)
        assert code != 0
        assert worker.get("/fast") == 503
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    operator.off()
    assert worker.get("/fast") == 200
