"""``on --wait`` and ``wait``: what is waited for, and how it ends."""

import contextlib
import json
import re
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance.cli.operate import put_back, wait_for
from fastapi_maintenance.cli.output import Output
from fastapi_maintenance.cli.target import FailureError, Target
from fastapi_maintenance.closing import Closing
from fastapi_maintenance.orders import Order
from fastapi_maintenance.state import OPERATOR
from fastapi_maintenance.waiting import Plan
from tests.cli.support import (
    PATIENCE,
    Member,
    call,
    eventually,
    invoke,
    lines,
    program,
    started,
    state,
)

ON_AND_WAIT = ("on", "--wait", "--timeout", "0.3")


def on_now(folder: Path) -> bool:
    """Tell whether maintenance is in force."""
    return state(folder).in_force(datetime.now(UTC))


@pytest.mark.usefixtures("member")
def test_a_wait_ends_when_nothing_is_running(folder: Path) -> None:
    """Drained is exit code 0, and the end says what was not waited for."""
    result = invoke("on", "--wait")
    assert result.exit_code == 0
    assert re.search(r"Drained after \d+\.\d s: 1 worker on 1 machine", result.stdout)
    assert "Not waited for: routes marked exempt, requests let in" in result.stdout
    assert "mounts that nothing covers" in result.stdout
    assert "Reads continue" not in result.stdout
    assert on_now(folder)


@pytest.mark.usefixtures("member")
def test_a_wait_under_read_only_says_that_reads_continue() -> None:
    """Nobody takes a read-only drain for a full one."""
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
    with contextlib.ExitStack() as slow, started(ordered, folder) as process:
        slow.enter_context(member.busy("GET /stream"))
        eventually(Closing(member.switch.worker).is_set)
        assert process.poll() is None
        slow.close()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_a_request_that_does_not_end_is_busy(folder: Path, member: Member) -> None:
    """Exit code 10, one line that names the worker, and the state stays on."""
    with member.busy():
        result = call(*ON_AND_WAIT, cwd=folder)
    assert result.returncode == 10
    assert "not drained after 0.3 s (busy): still running on" in result.stderr
    assert "maintenance stays on" in result.stderr
    assert result.stderr.count("\n") == 1
    assert on_now(folder)


def test_plain_lines_are_written_where_nothing_can_be_redrawn(
    folder: Path, member: Member
) -> None:
    """A log gets a line at once, and no escape sequence."""
    with member.busy():
        result = call(*ON_AND_WAIT, cwd=folder)
    assert result.returncode == 10
    (line,) = [text for text in result.stdout.splitlines() if " to go; " in text]
    assert "0 of 1 worker drained, 1 request left; 0.3 s to go" in line
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


async def test_a_rollback_leaves_what_others_published_meanwhile(
    member: Member,
) -> None:
    """Between the last look and the undoing others come first, and it is said."""
    another = "another state was published meanwhile, and stands"
    switch, plan = member.switch, Plan(timeout=0)
    fenced = await switch.fence(plan, Order())
    await switch.enable(Order(message="other"))
    assert put_back(fenced.before, await switch.undo(fenced)) == another
    fenced = await switch.fence(plan, Order(), holder="one#1")
    await switch.disable(force=True)
    assert put_back(fenced.before, await switch.undo(fenced)) == another
    fenced = await switch.fence(plan, Order(), holder="one#1")
    await switch.fence(plan, Order(), holder="two#2")
    assert put_back(fenced.before, await switch.undo(fenced)) == another


@pytest.mark.usefixtures("member")
async def test_a_rollback_that_fails_hides_no_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait's own code and result stand, and the line says that it stays on."""
    target = Target(None, "default", Output(as_json=True))
    plan = Plan(timeout=0, workers=2)
    fenced = await target.switch.fence(plan, Order())
    # A newer release can be read so far that it is on, and not be set.
    newer = {"version": 2, "active": True, "epoch": fenced.state.epoch}
    path = folder / ".fastapi-maintenance" / "default.json"
    path.write_text(json.dumps(newer))
    with pytest.raises(FailureError) as error:
        await wait_for(target, fenced, plan, rollback=True)
    assert error.value.code == 13
    assert "(too_few): 1 of 2 worker(s) have joined; maintenance" in str(error.value)
    assert "stays on" in str(error.value)
    assert f"could not be put back: {path} was written by a newer" in str(error.value)
    (result,) = map(json.loads, capsys.readouterr().out.splitlines()[-1:])
    assert (result["event"], result["outcome"]) == ("result", "too_few")
    assert on_now(folder)


def test_too_few_workers_are_not_drained(member: Member) -> None:
    """``--workers 2`` with one worker is exit code 13."""
    result = invoke(*ON_AND_WAIT, "--workers", "2")
    assert result.exit_code == 13
    assert "1 of 2 worker(s) have joined" in result.stderr
    member.leave()
    assert invoke(*ON_AND_WAIT).exit_code == 13
    member.switch.worker.enter()


def test_a_list_of_workers_that_was_lost_is_lost(folder: Path, member: Member) -> None:
    """A deleted run directory is exit code 11, until a person says how many it were."""
    shutil.rmtree(folder / ".fastapi-maintenance" / "run")
    result = invoke(*ON_AND_WAIT)
    assert result.exit_code == 11
    assert "(lost): " in result.stderr
    assert "maintenance stays on" in result.stderr
    eventually(lambda: anyio.run(member.switch.source.roster, "default").rows)
    assert invoke("wait", "--timeout", "0").exit_code == 11
    assert invoke("wait", "--workers", "1").exit_code == 0
    assert invoke("wait").exit_code == 0


def test_a_worker_that_cannot_be_counted_is_unknown(member: Member) -> None:
    """Exit code 15: nobody says drained of what nobody counts."""
    member.switch.worker.stand_aside("it is only a test")
    result = invoke(*ON_AND_WAIT)
    assert result.exit_code == 15
    assert "cannot be counted" in result.stderr
    assert "and some that cannot be counted" in invoke("status").stdout
    assert "no worker has joined" not in invoke("status").stderr


@pytest.mark.parametrize("rollback", [False, True])
def test_another_operator_ends_a_wait(
    folder: Path, member: Member, *, rollback: bool
) -> None:
    """Exit code 12, and what the other published stands, rollback or not."""
    words = ["on", "--wait", "--json", *(["--rollback"] if rollback else [])]
    with member.busy(), started(program(*words), folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        anyio.run(member.switch.enable, Order(message="mine", actor="another"))
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 12
    assert "another state was published by another; the other state stands" in errors
    assert state(folder).message == "mine"


def test_off_ends_a_wait(folder: Path, member: Member) -> None:
    """Who waits learns that the service was opened meanwhile."""
    with member.busy(), started(program("on", "--wait", "--json"), folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        anyio.run(member.switch.disable)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 12
    assert "switched off by somebody" in errors


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
        process.stdout.readline()
        epoch = folder / ".fastapi-maintenance" / "run" / "default.epoch"
        epoch.unlink()
        epoch.mkdir()
        _, errors = process.communicate(timeout=PATIENCE)
        epoch.rmdir()
    assert process.returncode == 14
    assert "maintenance stays on" in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("member")
def test_there_is_nothing_to_wait_for_while_it_is_off(folder: Path) -> None:
    """``wait`` while off is a mistake: exit code 2, and nothing is published."""
    result = invoke("wait")
    assert result.exit_code == 2
    assert "maintenance is off: there is nothing to fence" in result.stderr
    assert state(folder).epoch == 0


def test_a_wait_keeps_what_others_hold(folder: Path, member: Member) -> None:
    """``wait`` fences the state that stands, whoever holds it."""
    member.hold("deploy#1", OPERATOR)
    result = invoke("wait", "--json")
    assert result.exit_code == 0
    assert [line["event"] for line in lines(result)] == ["published", "result"]
    assert state(folder).holders == ("deploy#1", OPERATOR)
