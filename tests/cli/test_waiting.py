"""``on --wait`` and ``wait``: what is waited for, and how it ends."""

import contextlib
import json
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.cli.commands import put_back, wait_for
from fastapi_maintenance.cli.display import Display
from fastapi_maintenance.cli.exits import FailureError
from fastapi_maintenance.cli.options import Where
from fastapi_maintenance.cli.output import Output
from fastapi_maintenance.cli.target import Target
from fastapi_maintenance.state import OPERATOR
from fastapi_maintenance.switch import DrainOptions
from tests.cli.support import (
    OBSTACLES,
    Member,
    broken,
    call,
    change_list,
    invoke,
    lines,
    on_now,
    program,
    run_dir,
    started,
    state,
)
from tests.waiting import PATIENCE, until

ON_AND_WAIT = ("on", "--wait", "--timeout", "0.7")


@pytest.mark.usefixtures("member")
def test_a_wait_ends_when_nothing_is_running(folder: Path) -> None:
    """Drained is exit code 0, and the end says what was not waited for."""
    result = invoke("on", "--wait")
    assert result.exit_code == 0
    assert re.search(
        r"Drained after \d+\.\d s: acknowledged by 1 of 1 worker on 1 machine; ",
        result.stdout,
    )
    assert "Not waited for: routes marked exempt, requests let in" in result.stdout
    assert "mounts that nothing covers" in result.stdout
    assert "Reads continue" not in result.stdout
    assert on_now(folder)


@pytest.mark.usefixtures("member")
def test_a_wait_under_read_only_says_that_reads_continue() -> None:
    """A read-only drain is not taken for a full one."""
    result = invoke("on", "--wait", "--read-only")
    assert result.exit_code == 0
    assert "Reads continue (read-only): they were not waited for" in result.stdout


def test_a_wait_lasts_until_the_last_request_has_ended(
    folder: Path, member: Member
) -> None:
    """Lines of JSON follow it: published, waiting, result; then it is drained."""
    words = program("on", "--wait", "--json", "--timeout", "20")
    with contextlib.ExitStack() as slow, started(words, folder) as process:
        slow.enter_context(member.busy("GET /slow"))
        assert process.stdout is not None
        published = json.loads(process.stdout.readline())
        waiting = json.loads(process.stdout.readline())
        assert process.poll() is None
        slow.close()
        out, errors = process.communicate(timeout=PATIENCE)
    assert published["event"] == "published"
    assert waiting["event"] == "waiting"
    assert waiting["outcome"] == "busy"
    assert waiting["workers"][0]["in_flight"] == 1
    assert 0 < waiting["seconds_left"] <= 20
    result = json.loads(out.splitlines()[-1])
    assert result["event"] == "result"
    assert result["outcome"] == "drained"
    assert result["drained"] is True
    assert [worker["acknowledged"] for worker in result["workers"]] == [True]
    assert [worker["status"] for worker in result["workers"]] == ["drained"]
    assert result["not_waited_for"].startswith("Not waited for")
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    "words", [("on", "--wait"), ("wait",), ("run",)], ids=["on", "wait", "run"]
)
def test_long_work_is_told_to_end(
    folder: Path, member: Member, words: tuple[str, ...]
) -> None:
    """``--close-after`` reaches what runs, and the wait ends when that does."""
    assert words != ("wait",) or invoke("on").exit_code == 0
    command = ("--", "true") if words == ("run",) else ()
    ordered = program(*words, "--close-after", "0s", "--timeout", "20", *command)
    admission = member.switch.worker.admit("GET /stream")
    assert admission is not None
    told: list[int] = []
    admission.on_close(lambda: told.append(1))
    with started(ordered, folder) as process:
        until(lambda: told)
        assert process.poll() is None
        admission.release()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_a_request_that_does_not_end_is_busy(folder: Path, member: Member) -> None:
    """Exit code 10, one line that names the oldest request; the state stays on."""
    with member.busy("POST /orders"):
        result = call(*ON_AND_WAIT, cwd=folder)
    assert result.returncode == 10
    running = (
        rf"still running on {member.switch.worker.make_report().name}: POST /orders, "
    )
    assert re.search(rf"not drained after 0.7 s \(busy\): {running}\d", result.stderr)
    assert re.search(rf" 0.[12] s to go; {running}\d", result.stdout)
    assert "maintenance stays on" in result.stderr
    assert result.stderr.count("\n") == 1
    assert on_now(folder)


def test_plain_lines_are_written_where_nothing_can_be_redrawn(
    folder: Path, member: Member
) -> None:
    """A log gets a line after half a second, and no escape sequence."""
    with member.busy():
        result = call(*ON_AND_WAIT, cwd=folder)
    assert result.returncode == 10
    (line,) = [text for text in result.stdout.splitlines() if " to go; " in text]
    assert "0 of 1 worker drained, 1 request left; 0." in line
    assert "\x1b" not in result.stdout


def test_a_rollback_puts_back_what_was_before(folder: Path, member: Member) -> None:
    """Off stays off, and an older message comes back, when a wait has failed."""
    with member.busy():
        result = call(*ON_AND_WAIT, "--rollback", cwd=folder)
        assert result.returncode == 10
        assert "the state is what it was before: off" in result.stderr
        assert not on_now(folder)
        invoke("on", "--message", "first")
        words = (*ON_AND_WAIT, "--rollback", "--message", "second")
        result = call(*words, cwd=folder)
        assert "the state is what it was before: on" in result.stderr
        assert state(folder).message == "first"


@pytest.mark.parametrize(("hours", "phase"), [(-2, "ended"), (2, "scheduled")])
def test_a_rollback_to_a_window_is_not_called_on(
    folder: Path, member: Member, hours: int, phase: str
) -> None:
    """A window that has ended, or is planned, is named as what it is, and is off."""
    at = datetime.now(UTC) + timedelta(hours=hours)
    until = at + timedelta(hours=1)
    member.put(MaintenanceState(enabled=True, starts_at=at, until=until, auto_off=True))
    with member.busy():
        result = invoke(*ON_AND_WAIT, "--rollback")
    assert result.exit_code == 10
    assert result.stderr.endswith(f"the state is what it was before: {phase}\n")
    assert state(folder).starts_at == at
    assert not on_now(folder)


async def test_a_rollback_leaves_what_others_have_published(
    member: Member,
) -> None:
    """Between the last look and the undoing others come first, and it is said."""
    another = "another state has been published since, and stands"
    switch, drain, enable = member.switch, DrainOptions(timeout=0), EnableOptions()
    mine = await switch.publish_to_drain(drain, enable)
    await switch.enable(EnableOptions(message="other"))
    assert put_back(mine, await switch.undo(mine), switch.clock()) == another
    mine = await switch.publish_to_drain(drain, enable, holder="one#1")
    await switch.disable(force=True)
    assert put_back(mine, await switch.undo(mine), switch.clock()) == another
    mine = await switch.publish_to_drain(drain, enable, holder="one#1")
    await switch.publish_to_drain(drain, enable, holder="two#2")
    assert put_back(mine, await switch.undo(mine), switch.clock()) == another


@pytest.mark.usefixtures("member")
async def test_a_rollback_that_fails_hides_no_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait's own code and result stand, and the line says that it stays on."""
    target = Target(Where())
    drain = DrainOptions(timeout=0, workers=2)
    publication = await target.switch.publish_to_drain(drain, EnableOptions())
    # A newer release can be read so far that it is on, and not be set.
    path = folder / ".fastapi-maintenance" / "default.json"
    newer = {"version": 2, "enabled": True, "tag": publication.state.tag}
    path.write_text(json.dumps(newer | {"epoch": publication.state.epoch}))
    until(lambda: state(folder).version == 2)
    display = Display(target, Output(as_json=True))
    with pytest.raises(FailureError) as error:
        await wait_for(display, publication, drain, rollback=True)
    assert "could not be put back: the stored state was written by" in str(error.value)
    assert "maintenance stays on" in str(error.value)
    (result,) = map(json.loads, capsys.readouterr().out.splitlines()[-1:])
    assert (result["event"], result["drained"]) == ("result", False)
    assert on_now(folder)


def test_too_few_workers_are_not_drained(member: Member) -> None:
    """``--workers 2`` waits for another one to join: exit code 13 at the end."""
    result = invoke(*ON_AND_WAIT, "--workers", "2")
    assert result.exit_code == 13
    assert "not drained after 0.7 s (too few): 1 of 2 workers have" in result.stderr
    member.leave()
    result = invoke("on", "--wait", "--workers", "0")
    assert result.exit_code == 0
    assert "Drained after 0.0 s: no worker has joined; nothing" in result.stdout


@pytest.mark.parametrize("command", ["on", "wait"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_wait_that_cannot_end_well_ends_at_once(
    folder: Path, member: Member, obstacle: str, command: str
) -> None:
    """The reason and the command to use are there in a moment, not after 60 s."""
    code, text = OBSTACLES[obstacle](folder, member)
    if command == "wait":
        invoke("on")
    began = time.monotonic()
    result = invoke(*(("on", "--wait") if command == "on" else ("wait",)))
    assert time.monotonic() - began < 5
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.splitlines()[-1].endswith(
        "maintenance stays on; `fastapi-maintenance wait` waits again, `off` opens it"
    )
    assert on_now(folder)


@pytest.mark.usefixtures("member")
def test_a_list_that_was_lost_is_completed_by_a_number(folder: Path) -> None:
    """``--workers N``, with the exact number, makes the next wait work without it."""
    change_list(folder, complete=False)
    assert invoke("on", "--wait").exit_code == 11
    assert invoke("wait", "--workers", "1").exit_code == 0
    assert invoke("wait").exit_code == 0


@pytest.mark.parametrize("rollback", [False, True])
def test_another_operator_ends_a_wait(
    folder: Path, member: Member, *, rollback: bool
) -> None:
    """Exit code 12, and what the other published stands, rollback or not."""
    words = ["on", "--wait", "--json", *(["--rollback"] if rollback else [])]
    with member.busy(), started(program(*words), folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mine = EnableOptions(message="mine", actor="another")
        anyio.run(member.switch.enable, mine)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 12
    assert "another state was published by another; the other state stands" in errors
    assert state(folder).message == "mine"


def test_off_ends_a_wait(folder: Path, member: Member) -> None:
    """A wait ends when another operator opens the service."""
    with member.busy(), started(program("on", "--wait", "--json"), folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        anyio.run(member.switch.disable)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 12
    assert "switched off by another operator" in errors


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
@pytest.mark.parametrize("command", ["on", "wait"])
def test_a_signal_leaves_the_state_on_and_says_so(
    folder: Path, member: Member, command: str, number: signal.Signals, code: int
) -> None:
    """Ctrl-C during a wait ends it with 130, and opens nothing."""
    invoke("on")
    words = ["on", "--wait", "--rollback"] if command == "on" else ["wait"]
    with member.busy(), started(program(*words, "--json"), folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert f"interrupted by {number.name}; maintenance stays on" in errors
    assert errors.count("\n") == 1
    assert on_now(folder)


def test_a_store_that_breaks_during_a_wait_is_unreachable(
    folder: Path, member: Member
) -> None:
    """Exit code 14, and the line says that the state was published and stays on."""
    with member.busy(), started(program("on", "--wait", "--json"), folder) as process:
        assert process.stdout is not None
        # Published, and the first look: it has seen all workers.
        process.stdout.readline()
        process.stdout.readline()
        with broken(run_dir(folder).parent):
            _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 14
    assert "maintenance stays on" in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("member")
def test_there_is_nothing_to_wait_for_while_it_is_off(folder: Path) -> None:
    """``wait`` while off is a mistake: exit code 2, and nothing is published."""
    result = invoke("wait")
    assert result.exit_code == 2
    assert (
        "maintenance is off; switch it on first: fastapi-maintenance on --wait"
        in result.stderr
    )
    assert state(folder).epoch == 0


def test_a_wait_keeps_what_others_hold(folder: Path, member: Member) -> None:
    """``wait`` drains the state that stands, and keeps its holders."""
    member.hold("deploy#1", OPERATOR)
    result = invoke("wait", "--json")
    assert result.exit_code == 0
    assert [line["event"] for line in lines(result)] == ["published", "result"]
    assert state(folder).holders == ("deploy#1", OPERATOR)
