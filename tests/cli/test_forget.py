"""``forget``: rows of machines that are gone for good."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastapi_maintenance.stores._process import ProcessIdentity
from tests.cli.support import ENVIRONMENT, ROOT, Member, invoke, lines

WORKER = """
import os, sys
from tests.cli.support import Member
from pathlib import Path
member = Member(Path("."))
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def lost(folder: Path, *, hours: float = 0) -> Iterator[str]:
    """Have a row of another machine, whose process nobody here can see."""
    slots = folder / ".fastapi-maintenance" / "run"
    before = set(slots.glob("*.slot"))
    with subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (slot,) = set(slots.glob("*.slot")) - before
        process.send_signal(signal.SIGKILL)
        process.wait()
    own = ProcessIdentity.own()
    content = slot.read_bytes()
    for mark in filter(None, (own.boot, own.machine)):
        content = content.replace(mark.encode(), mark[::-1].encode())
    slot.write_bytes(content)
    then = time.time() - hours * 3600
    os.utime(slot, (then, then))
    try:
        yield slot.name.split(".")[1]
    finally:
        slot.unlink(missing_ok=True)


@pytest.mark.usefixtures("member")
def test_status_lists_the_lost_while_off(folder: Path) -> None:
    """A lost worker is there to be seen before anybody waits for it."""
    with lost(folder) as worker:
        result = invoke("status")
        assert "2 workers on 1 machine, 1 of them lost" in result.stdout
        assert "LOST" in result.stdout
        assert f"fastapi-maintenance forget {worker}\n" in result.stdout
        assert invoke("on", "--wait", "--timeout", "0").exit_code == 11


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("spelling", ["id", "host and pid", "pid"])
def test_a_lost_worker_is_forgotten(folder: Path, spelling: str) -> None:
    """By its id or its process; afterwards the service can be drained."""
    with lost(folder) as worker:
        pid = worker.split("-", maxsplit=1)[0]
        name = {"id": worker, "pid": pid}.get(spelling, f"{os.uname().nodename}/{pid}")
        result = invoke("forget", name)
        assert result.exit_code == 0
        assert result.stdout == f"Forgot {os.uname().nodename}/{pid} ({worker}).\n"
        assert invoke("on", "--wait", "--timeout", "0").exit_code == 0


@pytest.mark.usefixtures("member")
def test_those_that_are_lost_for_long_are_forgotten(folder: Path) -> None:
    """``--lost-for`` leaves alone what was there a moment ago."""
    with lost(folder) as young, lost(folder, hours=2) as old:
        (line,) = lines(invoke("forget", "--lost-for", "1h", "--json"))
        assert line == {"event": "forgotten", "workers": [old]}
        shown = invoke("status").stdout
        assert young in shown
        assert old not in shown
        result = invoke("forget", "--lost-for", "1h")
        assert result.exit_code == 0
        assert "nothing was forgotten" in result.stdout


def test_a_living_worker_is_not_forgotten(folder: Path, member: Member) -> None:
    """Its requests would no longer be waited for: exit code 2."""
    result = invoke("forget", member.switch.worker.id)
    assert result.exit_code == 2
    assert "is not lost" in result.stderr
    assert len(list((folder / ".fastapi-maintenance" / "run").glob("*.slot"))) == 1


@pytest.mark.usefixtures("member")
def test_an_unknown_worker_names_the_lost(folder: Path) -> None:
    """A misspelt name is exit code 2, with those that can be forgotten."""
    assert "lost ones: none" in invoke("forget", "nobody").stderr
    with lost(folder) as worker:
        result = invoke("forget", "nobody")
        assert result.exit_code == 2
        pid = worker.split("-", maxsplit=1)[0]
        assert f"lost ones: {os.uname().nodename}/{pid}" in result.stderr


@pytest.mark.usefixtures("member")
def test_a_name_that_means_several_is_refused(folder: Path) -> None:
    """Pids repeat between machines: the ids are offered instead."""
    with lost(folder) as worker:
        run = folder / ".fastapi-maintenance" / "run"
        twin = f"{worker.split('-', maxsplit=1)[0]}-0000000f"
        copy = run / f"default.{twin}.slot"
        copy.write_bytes((run / f"default.{worker}.slot").read_bytes())
        result = invoke("forget", worker.split("-", maxsplit=1)[0])
        assert result.exit_code == 2
        assert worker in result.stderr
        assert twin in result.stderr
        copy.unlink()


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("words", [(), ("x", "--lost-for", "1m"), ("--lost-for", "1")])
def test_forget_needs_one_way_to_say_whom(words: tuple[str, ...]) -> None:
    """Nothing, both, or no duration is a mistake."""
    result = invoke("forget", *words)
    assert result.exit_code == 2
    assert "10m" in result.stderr or "20m" in result.stderr
