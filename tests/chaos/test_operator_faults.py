"""Operators that cross each other, whose clocks are wrong, and who are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance.changes import CannotDrainError, EnableOptions
from fastapi_maintenance.fence import LOST_AFTER
from fastapi_maintenance.switch import DrainOptions
from tests.chaos.harness import Operator, Service, operate, told
from tests.servers import ROOT
from tests.waiting import until

pytestmark = pytest.mark.chaos


def test_second_operator_takes_over(service: Service, operator: Operator) -> None:
    """The later one is waited for; the earlier is told that it was superseded."""
    (worker,) = service.start()
    service.busy(worker, 1.5)
    first = operator.later()
    second = Operator(service).drain()
    assert first.result().outcome == "superseded"
    assert second.outcome == "drained", second


def test_second_operator_opens(service: Service, operator: Operator) -> None:
    """An operator who waits while another opens again is not told *drained*."""
    (worker,) = service.start()
    service.busy(worker, 1)
    later = operator.later()
    Operator(service).off()
    report = later.result()
    assert report.outcome == "superseded", report
    assert worker.get("/fast") == 200


@pytest.mark.parametrize("skew", [-60, 60])
def test_wrong_clocks_around_a_window(
    service: Service, operator: Operator, skew: int
) -> None:
    """A drain relies on no clock: workers whose clock is a minute wrong refuse too."""
    (wrong,) = service.start(environment={"CHAOS_SKEW": str(skew)})
    (right,) = service.start()
    planned = EnableOptions(
        at=datetime.now(UTC) + timedelta(seconds=30), message="planned"
    )
    anyio.run(operator.switch.enable, planned)
    assert right.get("/fast") == 200
    assert wrong.get("/fast") == (503 if skew > 30 else 200)
    with pytest.raises(CannotDrainError):
        anyio.run(operator.switch.drain, DrainOptions())
    with service.load():
        report = operator.drain()
        assert report.outcome == "drained", report
        assert service.closed()


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(signal.SIGKILL, None), (signal.SIGSTOP, "superseded")],
    ids=["KILL", "STOP"],
)
def test_signals_in_the_middle_of_a_wait(
    service: Service, number: int, outcome: str | None
) -> None:
    """A command that dies or stops while it waits blocks nothing and opens nothing."""
    (worker,) = service.start()
    operator = service.settled()
    service.busy(worker, 1.5)
    waiting = operate(service, 30)
    try:
        until(service.closed)
        waiting.send_signal(number)
        report = operator.drain()
        assert report.outcome == "drained", report
    finally:
        waiting.send_signal(signal.SIGCONT)
        answer = told(waiting)
    assert service.closed()
    assert answer.get("outcome") == outcome


def test_stopped_coordinator(service: Service) -> None:
    """A command that was stopped for long does not take that for silence of workers."""
    (worker,) = service.start()
    service.settled()
    service.busy(worker, 9)
    waiting = operate(service, 30)
    until(service.closed)
    waiting.send_signal(signal.SIGSTOP)
    time.sleep(LOST_AFTER + 1)
    waiting.send_signal(signal.SIGCONT)
    assert told(waiting)["outcome"] == "drained"


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_signals_in_the_middle_of_a_run(
    service: Service, operator: Operator, tmp_path: Path, name: str
) -> None:
    """However a run ends, it does not open while its command may be running."""
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
