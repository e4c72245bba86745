"""``run``: a command under maintenance, and what is left when it ends."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import FileStore, MaintenanceState
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.state import OPERATOR
from tests.cli.support import (
    OBSTACLES,
    Member,
    broken,
    call,
    change_list,
    invoke,
    on_now,
    program,
    run_dir,
    started,
    state,
)
from tests.waiting import PATIENCE, until

STUBBORN = """
import pathlib, signal, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: heard.append(signal.Signals(number).name))
pathlib.Path("ready").touch()
while len(heard) < 3:
    time.sleep(0.02)
time.sleep(0.3)
pathlib.Path("heard").write_text(" ".join(heard))
"""


WORKER = """
import time
from pathlib import Path
from fastapi_maintenance import FileStore
from fastapi_maintenance.switch import Switch

switch = Switch(FileStore(".fastapi-maintenance"), "default")
switch.join_blocking()
time.sleep(60)
"""


def script(folder: Path, text: str) -> list[str]:
    """Return a command that runs a Python text."""
    path = folder / "script.py"
    path.write_text(text)
    return [sys.executable, str(path)]


@pytest.mark.usefixtures("member")
def test_a_command_that_succeeds_runs_under_maintenance_and_opens(
    folder: Path,
) -> None:
    """It finds the service closed; afterwards it is open; its output is its own."""
    store = folder / ".fastapi-maintenance" / "default.json"
    result = call("run", "--message", "x", "--", "cat", str(store), cwd=folder)
    assert result.returncode == 0
    within = json.loads(result.stdout)
    assert within["enabled"] is True
    assert within["starts_at"] is None
    assert within["message"] == "x"
    assert not state(folder).enabled
    assert "The command succeeded; maintenance is off." in result.stderr


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [("exit 4", 4, "exit code 4"), ("kill -9 $$", 137, "SIGKILL")],
)
def test_a_command_that_fails_leaves_it_on(
    folder: Path, command: str, code: int, said: str
) -> None:
    """Its code is passed on, and a person opens without force."""
    result = invoke("run", "sh", "-c", command)
    assert result.exit_code == code
    assert f"warning: the command ended with {said}; maintenance stays" in result.stderr
    assert on_now(folder)
    assert state(folder).holders == (OPERATOR,)
    assert invoke("off").exit_code == 0


@pytest.mark.usefixtures("member")
def test_a_real_time_signal_has_a_number() -> None:
    """A signal without a name ends like every other one."""
    command = f"import os; os.kill(os.getpid(), {signal.SIGRTMIN + 1})"
    result = invoke("run", sys.executable, "-c", command)
    assert result.exit_code == 128 + signal.SIGRTMIN + 1
    assert f"signal {signal.SIGRTMIN + 1}" in result.stderr


@pytest.mark.usefixtures("member")
def test_run_as_json_keeps_standard_output_for_the_command(folder: Path) -> None:
    """Published, result and end are lines of JSON on standard error."""
    result = call("run", "--json", "--bypass", "--", "echo", "own", cwd=folder)
    assert result.stdout == "own\n"
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["event"] for event in events] == ["published", "result", "end"]
    assert len(events[0]["bypass_token"]) == 43
    assert events[-1]["command_exit"] == 0
    assert events[-1]["enabled"] is False


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("command", ["no-such-command", "./plain.txt"])
def test_a_command_that_does_not_exist_is_found_out_first(
    folder: Path, command: str
) -> None:
    """Exit code 127, and nothing was published."""
    (folder / "plain.txt").touch()
    result = invoke("run", "--", command)
    assert result.exit_code == 127
    assert repr(command) in result.stderr
    assert result.stderr.count("\n") == 1
    assert state(folder).epoch == 0


@pytest.mark.usefixtures("member")
def test_a_command_that_cannot_start_puts_everything_back(folder: Path) -> None:
    """A file that is no program is exit code 125, and the service is open again."""
    path = folder / "broken"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    result = invoke("run", str(path))
    assert result.exit_code == 125
    assert f"cannot start {path}: " in result.stderr
    assert "the state is what it was before: off" in result.stderr
    assert not state(folder).enabled


def test_not_drained_starts_nothing_and_goes_back(folder: Path, member: Member) -> None:
    """Exit code 125, and a state that stood before stands again."""
    words = ("run", "--timeout", "0.2", "--", "touch", "ran")
    with member.busy():
        result = call(*words, cwd=folder)
        assert result.returncode == 125
        assert "(busy): still running on" in result.stderr
        assert "the command was not started; the state is what it was" in result.stderr
        assert not state(folder).enabled
        invoke("on", "--message", "first", "--read-only")
        result = call(*words, cwd=folder)
        assert result.returncode == 125
        assert "what it was before: on" in result.stderr
        assert state(folder).message == "first"
        assert state(folder).read_only
    assert not (folder / "ran").exists()


def test_not_drained_stays_on_when_told_to(folder: Path, member: Member) -> None:
    """``--stay`` keeps it on, for a person to open without force."""
    with member.busy():
        words = ("run", "--stay", "--timeout", "0.2", "touch", "ran")
        result = call(*words, cwd=folder)
    assert result.returncode == 125
    assert "the command was not started; maintenance stays on" in result.stderr
    assert on_now(folder)
    assert invoke("off").exit_code == 0
    assert not (folder / "ran").exists()


def test_not_drained_and_opened_by_another_is_not_said_to_stay_on(
    folder: Path, member: Member
) -> None:
    """``--stay`` keeps what is on; what another operator has opened is open."""
    words = program("run", "--stay", "--json", "touch", "ran")
    with member.busy(), started(words, folder) as process:
        assert process.stderr is not None
        process.stderr.readline()
        assert invoke("off", "--force").exit_code == 0
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 125
    assert "the command was not started; the other state stands" in errors
    assert "stays on" not in errors
    assert not state(folder).enabled


def test_a_window_that_has_ended_is_not_on_afterwards(
    folder: Path, member: Member
) -> None:
    """What ``auto_off`` has opened is off, though nobody has published that."""
    ended = MaintenanceState(
        enabled=True, auto_off=True, until=datetime.now(UTC) - timedelta(hours=1)
    )
    member.put(ended)
    member.leave()
    result = invoke("run", "--workers", "0", "--", "true")
    assert result.exit_code == 0
    assert result.stderr.endswith("The command succeeded; maintenance is off.\n")
    result = invoke("run", "--workers", "0", "--json", "--", "true")
    end = json.loads(result.stderr.splitlines()[-1])
    assert (end["event"], end["enabled"]) == ("end", False)
    assert state(folder).until == ended.until
    assert not on_now(folder)


@pytest.mark.usefixtures("member")
def test_on_before_stays_on_afterwards(folder: Path) -> None:
    """A person's own ``on`` outlives a command that succeeded under it, as it was."""
    invoke("on", "--message", "mine", "--read-only")
    result = invoke("run", "true")
    assert result.exit_code == 0
    assert result.stderr.endswith(
        "The command succeeded; maintenance stays on: it was on before,"
        " `fastapi-maintenance off` opens it.\n"
    )
    assert on_now(folder)
    assert state(folder).message == "mine"
    assert state(folder).read_only
    assert invoke("off").exit_code == 0


@pytest.mark.usefixtures("member")
def test_overlapping_runs_each_hold_it(folder: Path) -> None:
    """It opens when the last of two commands has ended, whichever that is."""
    with started(
        program("run", "sh", "-c", "while ! test -e go; do sleep 0.02; done"), folder
    ) as process:
        until(lambda: state(folder).enabled and len(state(folder).holders) == 1)
        result = call("run", "true", cwd=folder)
        assert result.returncode == 0
        (holder,) = state(folder).holders
        assert f"maintenance stays on: held by {holder}.\n" in result.stderr
        assert on_now(folder)
        assert invoke("off").exit_code == 2
        (folder / "go").touch()
        assert process.wait(PATIENCE) == 0
    assert not state(folder).enabled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_command_starts_leaves_it_on(
    folder: Path, member: Member, number: signal.Signals
) -> None:
    """To interrupt the wait opens nothing, and starts nothing."""
    words = program("run", "--json", "touch", "ran")
    with member.busy(), started(words, folder) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert f"interrupted by {number.name}; maintenance stays on" in errors
    assert on_now(folder)
    assert state(folder).holders == (OPERATOR,)
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("member")
def test_signals_are_handed_on_and_never_open(folder: Path) -> None:
    """The command hears all three; its success after them does not open."""
    with started(program("run", *script(folder, STUBBORN)), folder) as process:
        until((folder / "ready").exists)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    heard = (folder / "heard").read_text().split()
    assert sorted(heard) == ["SIGHUP", "SIGINT", "SIGTERM"]
    assert "the command ended with exit code 0 after " in errors
    assert on_now(folder)
    assert invoke("off").exit_code == 0


@pytest.mark.usefixtures("member")
def test_a_command_that_a_signal_ends_leaves_it_on(folder: Path) -> None:
    """TERM reaches the command, and the code is 128 and its number."""
    words = program("run", "sh", "-c", "touch ready; exec sleep 30")
    with started(words, folder) as process:
        until((folder / "ready").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "ended with SIGTERM after SIGTERM; maintenance stays on" in errors
    assert on_now(folder)


@pytest.mark.usefixtures("member")
def test_a_command_of_another_user_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that may not be passed on, as to ``sudo``, ends neither of both."""

    def denied(self: subprocess.Popen[bytes], number: int) -> None:
        (folder / "denied").touch()
        raise PermissionError(number, "Operation not permitted")

    monkeypatch.setattr(subprocess.Popen, "send_signal", denied)
    text = "kill -TERM $PPID; while ! test -e denied; do sleep 0.02; done; exit 4"
    result = invoke("run", "sh", "-c", text)
    assert result.exit_code == 4
    assert "ended with exit code 4 after SIGTERM; maintenance stays" in result.stderr
    assert state(folder).holders == (OPERATOR,)
    assert invoke("off").exit_code == 0


@pytest.mark.usefixtures("member")
def test_what_is_ignored_from_the_start_stays_ignored(folder: Path) -> None:
    """Under ``nohup`` a hang-up reaches neither the program nor its command."""
    text = "touch ready; while ! test -e go; do sleep 0.02; done"
    words = ["nohup", *program("run", "sh", "-c", text)]
    with started(words, folder) as process:
        until((folder / "ready").exists)
        process.send_signal(signal.SIGHUP)
        (folder / "go").touch()
        assert process.wait(PATIENCE) == 0
    assert not state(folder).enabled


@pytest.mark.usefixtures("member")
def test_killed_in_the_middle_it_is_held_until_forced(folder: Path) -> None:
    """KILL leaves the hold, so that `off` does not open under the orphaned command."""
    words = program("run", "sh", "-c", "touch ready; exec sleep 1")
    with started(words, folder) as process:
        until((folder / "ready").exists)
        process.kill()
        process.wait(PATIENCE)
    assert on_now(folder)
    assert invoke("off").exit_code == 2
    assert invoke("off", "--force").exit_code == 0


def test_a_hold_that_was_taken_away_is_told(folder: Path, member: Member) -> None:
    """Forced off while the command ran: its end says so, and publishes nothing."""
    text = "touch ready; while ! test -e go; do sleep 0.02; done"
    with started(program("run", "sh", "-c", text), folder) as process:
        until((folder / "ready").exists)
        assert invoke("off", "--force").exit_code == 0
        other = EnableOptions(message="other", actor="another")
        anyio.run(member.switch.enable, other)
        epoch = state(folder).epoch
        (folder / "go").touch()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "had lost its hold: another published another state" in errors
    assert state(folder).epoch == epoch


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("true", 125, "has succeeded, do not run it again; only opening failed"),
        ("exit 3", 3, "the command ended with exit code 3"),
    ],
)
def test_a_store_that_breaks_under_the_command_stays_on(
    folder: Path, ending: str, code: int, said: str
) -> None:
    """A success that cannot open is 125, and is told apart from one never started."""
    path = folder / ".fastapi-maintenance" / "default.json"
    text = f"rm {path}; mkdir {path}; {ending}"
    result = invoke("run", "--init", "--workers", "0", "sh", "-c", text)
    assert result.exit_code == code
    assert f"{said}; maintenance stays on and held" in result.stderr
    assert "off --force" in result.stderr
    path.rmdir()


def test_a_store_that_breaks_before_the_command_is_told(
    folder: Path, member: Member
) -> None:
    """Nothing is started, and the line says that the hold is still there."""
    words = program("run", "--json", "touch", "ran")
    path = folder / ".fastapi-maintenance" / "default.json"
    with member.busy(), started(words, folder) as process:
        assert process.stderr is not None
        # Published, and the first look: it has seen all workers.
        process.stderr.readline()
        process.stderr.readline()
        with broken(path), broken(run_dir(folder).parent):
            _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 125
    assert "maintenance stays on and held" in errors
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--at", "2030-01-01T00:00Z", "true"), 2, "No such option: --at"),
        (("--auto-off", "--for", "5m", "true"), 2, "No such option: --auto-off"),
        (("--rollback", "true"), 2, "No such option: --rollback"),
        (("--until", "2020-01-01T00:00Z", "true"), 2, "has passed"),
        (("--timeout", "-1", "true"), 2, "not a duration"),
        ((), 2, "COMMAND"),
        (("true",), 125, "no store at"),
    ],
)
def test_what_cannot_be_run_under_is_refused(
    folder: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    """A mistake on the line is 2, a failure of the program itself 125."""
    result = invoke("run", *words)
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stdout == ""
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("member")
def test_a_window_that_opens_by_the_clock_is_no_place_to_run(folder: Path) -> None:
    """Under ``--auto-off`` a migration could see traffic: 125, nothing changed."""
    invoke("on", "--for", "5m", "--auto-off")
    before = state(folder)
    result = invoke("run", "touch", "ran")
    assert result.exit_code == 125
    assert "auto_off" in result.stderr
    assert state(folder) == before
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("member")
def test_init_is_for_run_too(tmp_path: Path) -> None:
    """A first deployment may migrate before a service has ever started."""
    place = f"file:{tmp_path / 'new'}"
    words = ("--init", "--store", place, "--workers", "0", "true")
    result = call("run", *words, cwd=tmp_path)
    assert result.returncode == 0
    assert "Drained after 0.0 s: no worker has joined;" in result.stderr
    # The operator has said so.
    assert "warning" not in result.stderr
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_cannot_end_well_is_refused_before_anything_changes(
    folder: Path, member: Member, obstacle: str
) -> None:
    """Exit code 125 at once, with the command to use; nothing was published."""
    _, text = OBSTACLES[obstacle](folder, member)
    result = invoke("run", "touch", "ran")
    assert result.exit_code == 125
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"{text}; nothing has changed\n")
    assert result.stdout == ""
    assert state(folder).epoch == 0
    assert not (folder / "ran").exists()


def test_a_service_that_is_stopped_needs_no_wait(folder: Path, member: Member) -> None:
    """``--workers 0`` runs the command when no worker has joined."""
    member.leave()
    assert invoke("run", "--workers", "0", "touch", "ran").exit_code == 0
    assert (folder / "ran").exists()
    assert not state(folder).enabled


def test_more_workers_are_waited_for(folder: Path, member: Member) -> None:
    """``--workers 2`` waits for a second one, which may join at any time."""
    words = program("run", "--workers", "2", "--timeout", "20", "touch", "ran")
    with started(words, folder) as process:
        until(lambda: state(folder).enabled)
        assert process.poll() is None
        assert not (folder / "ran").exists()
        with started([sys.executable, "-c", WORKER], folder):
            process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert (folder / "ran").exists()


def test_a_young_list_of_workers_is_waited_for(folder: Path, member: Member) -> None:
    """A roster is given three seconds, and is no reason to refuse."""
    change_list(folder, made=time.time())
    assert invoke("run", "touch", "ran").exit_code == 0
    assert (folder / "ran").exists()


def test_an_interrupted_look_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal before the publication ends it, and says that nothing has changed."""
    (folder / ".fastapi-maintenance").mkdir()

    sent: list[int] = []

    def read(self: FileStore, name: str) -> None:
        # Keepers that other tests have left behind read stores of their own.
        if self.path == folder / ".fastapi-maintenance" and not sent:
            sent.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(FileStore, "read", read)
    result = invoke("run", "--workers", "0", "touch", "ran")
    assert result.exit_code == 143
    assert result.stderr == "error: interrupted by SIGTERM; nothing has changed\n"
    assert not (folder / "ran").exists()


def test_a_variable_cannot_be_run_under(folder: Path) -> None:
    """An environment store is set when a service starts: 125, nothing runs."""
    result = invoke("run", "--store", "env:SHOP_CLOSED", "touch", "ran")
    assert result.exit_code == 125
    assert "environment variable SHOP_CLOSED" in result.stderr
    assert not (folder / "ran").exists()
