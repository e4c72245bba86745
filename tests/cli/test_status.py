"""``status``: where in its life the state is, and who is there."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.cli.phases import headline
from fastapi_maintenance.orders import Order
from fastapi_maintenance.state import phase
from tests.cli.support import PATIENCE, Member, call, invoke, lines, program, started

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)

PHASES = {
    "off": (MaintenanceState(), "Maintenance is off.", 0),
    "scheduled": (
        MaintenanceState(active=True, since=NOW + HOUR),
        "Maintenance is scheduled",
        0,
    ),
    "in force": (
        MaintenanceState(active=True, begun=True, since=NOW),
        "Maintenance is on.",
        3,
    ),
    "ending": (
        MaintenanceState(active=True, since=NOW - 2 * HOUR, until=NOW - HOUR),
        "Maintenance is on; its announced end has passed",
        3,
    ),
    "ended": (
        MaintenanceState(
            active=True, since=NOW - 2 * HOUR, until=NOW - HOUR, auto_off=True
        ),
        "Maintenance has ended by its clock",
        0,
    ),
}


def put(member: Member, state: MaintenanceState) -> None:
    """Publish a state as it is."""
    anyio.run(member.switch.source.publish, "default", lambda _: state)


@pytest.mark.parametrize("name", PHASES)
def test_status_knows_the_phases_of_a_state(member: Member, name: str) -> None:
    """Off, scheduled, in force, ending and ended; ``--check`` is 3 while in force."""
    state, text, code = PHASES[name]
    put(member, state)
    result = invoke("status")
    assert result.exit_code == 0
    assert result.stdout.startswith(text)
    (line,) = lines(invoke("status", "--json"))
    assert line["event"] == "status"
    assert line["phase"] == name
    assert line["in_force"] is (code == 3)
    assert invoke("status", "--check").exit_code == code


def test_a_phase_does_not_change_by_itself_while_it_waits_for_a_person() -> None:
    """A published state is in force on no clock, and ending only after its end."""
    state = MaintenanceState(
        active=True, begun=True, since=NOW + HOUR, until=NOW + 2 * HOUR
    )
    assert phase(state, NOW) == "in force"
    assert phase(state, NOW + 2 * HOUR) == "ending"
    read_only = state.but(read_only=True)
    assert headline(read_only, NOW) == "Maintenance is on, reads continue (read-only)."


def test_status_shows_everything_that_was_set(member: Member) -> None:
    """Since, until, message, actor, holders, read-only and bypass have their lines."""
    put(
        member,
        MaintenanceState(
            active=True,
            begun=True,
            since=NOW - HOUR,
            until=NOW + 2 * HOUR,
            message="Back soon",
            actor="ann@host/1",
            holders=("deploy#1", "operator"),
            read_only=True,
            bypass="sha256:0123",
        ),
    )
    shown = invoke("status").stdout
    assert "ago" in shown.split("since")[1].splitlines()[0]
    for text in (
        "  message    Back soon\n",
        "  by         ann@host/1\n",
        "  held by    deploy#1, operator\n",
        "  read-only  yes: GET, HEAD and OPTIONS pass\n",
        "  bypass     yes: a token is set\n",
        "  workers    1 worker on 1 machine\n",
    ):
        assert text in shown
    assert "0123" not in shown


def test_a_state_of_a_newer_release_is_told(folder: Path, member: Member) -> None:
    """What cannot be understood refuses everything, and the version is the reason."""
    put(member, MaintenanceState())
    path = folder / ".fastapi-maintenance" / "default.json"
    path.write_text(json.dumps({"version": 9, "active": True, "epoch": 5}))
    shown = invoke("status").stdout
    assert "Maintenance is on." in shown
    assert "  version    9, of a newer release: everything is refused\n" in shown


def test_status_lists_workers_with_their_oldest_request(member: Member) -> None:
    """Host, pid, requests in flight and the oldest one stand in one line."""
    with member.busy("GET /slow/{item}"):
        shown = invoke("status").stdout
    head, row = shown.splitlines()[-2:]
    assert head.split() == ["HOST", "PID", "IN", "FLIGHT", "STATE", "OLDEST", "REQUEST"]
    assert row.split()[2:5] == ["1", "up", "to"]


def test_a_corrupt_state_is_one_line(folder: Path, member: Member) -> None:
    """Exit code 14, the path, and the commands that write it anew."""
    put(member, MaintenanceState())
    path = folder / ".fastapi-maintenance" / "default.json"
    path.write_text("{")
    for words in (("status",), ("status", "--check"), ("status", "--watch")):
        result = invoke(*words)
        assert result.exit_code == 14
        assert result.stderr.count("\n") == 1
    assert str(path) in invoke("status").stderr
    assert invoke("off").exit_code == 0
    assert invoke("status").exit_code == 0


def test_workers_that_cannot_be_read_are_not_taken_for_none(
    folder: Path, member: Member
) -> None:
    """The state is shown, the workers are not known, and the exit code is 14."""
    put(member, PHASES["in force"][0])
    epoch = folder / ".fastapi-maintenance" / "run" / "default.epoch"
    saved = epoch.read_bytes()
    epoch.unlink()
    epoch.mkdir()
    result = call("status", cwd=folder)
    assert result.returncode == 14
    assert "  workers    not known\n" in result.stdout
    assert "warning: the workers are not known: " in result.stderr
    assert "no worker has joined" not in result.stderr
    result = call("status", "--check", "--json", cwd=folder)
    assert result.returncode == 3
    assert json.loads(result.stdout)["workers"] is None
    epoch.rmdir()
    epoch.write_bytes(saved)


def test_status_of_a_variable_is_this_shell_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment store has no workers to speak of, and none to warn of."""
    monkeypatch.setenv("SHOP_CLOSED", "on")
    result = invoke("status", "--store", "env:SHOP_CLOSED", "--check")
    assert result.exit_code == 3
    assert "environment variable SHOP_CLOSED" in result.stdout
    assert "workers" not in result.stdout
    assert result.stderr == ""
    assert list(folder.iterdir()) == []


def test_status_is_watched_until_a_signal(folder: Path, member: Member) -> None:
    """JSON comes every five seconds and with each change; Ctrl-C ends it with 0."""
    words = program("status", "--watch", "--json")
    with started(words, folder) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        began = time.monotonic()
        again = json.loads(process.stdout.readline())
        assert time.monotonic() - began > 3
        anyio.run(member.switch.enable, Order(message="x"))
        changed = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert first == again
    assert (again["phase"], changed["phase"]) == ("off", "in force")
    assert (process.returncode, errors) == (0, "")


@pytest.mark.usefixtures("member")
def test_status_is_watched_in_lines_where_nothing_can_be_redrawn(folder: Path) -> None:
    """A log gets a line with the phase and the workers."""
    with started(program("status", "--watch"), folder) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert "Maintenance is off. Workers: 1 worker on 1 machine; 0 in flight" in line
    assert process.returncode == 0


@pytest.mark.usefixtures("folder")
def test_status_answers_once_or_for_ever() -> None:
    """``--watch`` and ``--check`` together have no answer."""
    assert invoke("status", "--watch", "--check").exit_code == 2


@pytest.mark.usefixtures("member")
def test_lines_in_a_pipe_are_whole(folder: Path) -> None:
    """A long message stays on its line, whatever the width of the terminal."""
    message = "word " * 300 + "end"
    invoke("on", "--message", message)
    result = call("status", cwd=folder, COLUMNS="40")
    assert f"  message    {message}\n" in result.stdout
