"""``status``: where in its life the state is, and what the workers are doing."""

import json
import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import FileStore, MaintenanceState, StoreError
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.cli.display import Display, WatchDisplay
from fastapi_maintenance.cli.options import Where
from fastapi_maintenance.cli.output import Output
from fastapi_maintenance.cli.target import Target
from fastapi_maintenance.cli.view import View, roster_summary
from fastapi_maintenance.fence import Roster, WorkerReport
from tests.cli.support import (
    Member,
    broken,
    call,
    change_list,
    invoke,
    lines,
    program,
    run_dir,
    silent,
    started,
)
from tests.stores.redis_server import PASSWORD, serving
from tests.waiting import PATIENCE, until

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
ON = MaintenanceState(enabled=True, epoch=5, tag="t", since=NOW)

PHASES = {
    "off": (MaintenanceState(), "Maintenance is off.", 0),
    "scheduled": (
        MaintenanceState(enabled=True, starts_at=NOW + HOUR),
        "Maintenance is scheduled",
        0,
    ),
    "in force": (ON, "Maintenance is on.", 3),
    "overdue": (
        MaintenanceState(enabled=True, since=NOW - 2 * HOUR, until=NOW - HOUR),
        "Maintenance is on; its expected end has passed",
        3,
    ),
    "ended": (
        MaintenanceState(
            enabled=True, since=NOW - 2 * HOUR, until=NOW - HOUR, auto_off=True
        ),
        "Maintenance has ended by its clock",
        0,
    ),
}


@pytest.mark.parametrize("name", PHASES)
def test_status_knows_the_phases_of_a_state(member: Member, name: str) -> None:
    """Off, scheduled, in force, overdue and ended; ``--check`` is 3 while in force."""
    state, text, code = PHASES[name]
    member.put(state)
    result = invoke("status")
    assert result.exit_code == 0
    assert result.stdout.startswith(text)
    (line,) = lines(invoke("status", "--json"))
    assert line["event"] == "status"
    assert line["phase"] == name
    assert line["in_force"] is (code == 3)
    assert invoke("status", "--check").exit_code == code


def test_status_shows_everything_that_was_set(member: Member) -> None:
    """Each fact has its line; a field without words of its own has its name."""
    member.put(
        MaintenanceState(
            enabled=True,
            since=NOW - HOUR,
            until=NOW + 2 * HOUR,
            message="Back soon",
            actor="ann@host/1",
            holders=("deploy#1", "operator"),
            read_only=True,
            retry_after=30,
            bypass="sha256:0123",
        )
    )
    shown = invoke("status").stdout
    assert shown.startswith("Maintenance is on, reads continue (read-only).\n")
    assert "ago" in shown.split("since")[1].splitlines()[0]
    for text in (
        ", expected; stays on until `off`\n",
        "  message    Back soon\n",
        "  by         ann@host/1\n",
        "  held by    deploy#1, operator\n",
        "  read-only  yes: GET, HEAD and OPTIONS pass\n",
        "  bypass     yes: a token is set\n",
        "  workers    1 worker on 1 machine\n",
        "  retry-after 30\n",
    ):
        assert text in shown
    assert "close after" not in shown
    assert "0123" not in shown


def test_a_state_of_a_newer_release_is_told(folder: Path, member: Member) -> None:
    """What cannot be understood refuses everything, and the version is the reason."""
    member.put(MaintenanceState())
    path = folder / ".fastapi-maintenance" / "default.json"
    document = {"version": 9, "enabled": True, "epoch": 2**52, "bypass": "sha256:0"}
    path.write_text(json.dumps(document))
    shown = invoke("status").stdout
    assert "Maintenance is on." in shown
    assert "  version    9, of a newer release: everything is refused\n" in shown
    (line,) = lines(invoke("status", "--json"))
    assert isinstance(line["state"], dict)
    assert line["state"]["bypass"] is True


def report(**fields: object) -> WorkerReport:
    """Return the report of a worker that has adopted the state."""
    known = {"id": "1-a", "host": "web", "pid": 1, "seen": 5, "tag": "t"}
    return WorkerReport.model_validate(known | fields)


@pytest.mark.parametrize(
    ("roster", "text"),
    [
        (Roster(complete=False), None),
        (Roster(generation="g", age=200), "complete for 3 min 20 s"),
        (Roster(generation="g", age=1), "new: complete if no other worker reports"),
        (
            Roster(generation="g", complete=False, workers=(report(), report())),
            "not complete: the store has lost data; wait with --workers 2 if these are",
        ),
    ],
)
def test_a_roster_says_since_when_it_is_complete_or_why_not(
    roster: Roster, text: str | None
) -> None:
    """An operator sees before a wait whether the list of workers can be trusted."""
    assert (roster_summary(roster) or "None").startswith(str(text))


def test_status_lists_workers_with_their_oldest_request(member: Member) -> None:
    """Host, pid, requests in flight and the oldest one stand in one line."""
    member.put(ON)
    with member.busy("GET /slow/{item}"):
        member.put(ON)
        until(lambda: "draining" in invoke("status").stdout)
        shown = invoke("status").stdout
        (line,) = lines(invoke("status", "--json"))
    assert "  roster     complete for 3 min 2" in shown
    head, row = shown.splitlines()[-2:]
    assert head.split() == [
        *("HOST", "PID", "IN", "FLIGHT", "STATUS", "OLDEST", "REQUEST")
    ]
    assert row.split()[2:6] == ["1", "draining", "(1", "left)"]
    assert row.endswith("s  GET /slow/{item}")
    (worker,) = line["workers"] if isinstance(line["workers"], list) else []
    assert (worker["kind"], worker["status"]) == ("draining", "draining (1 left)")
    assert worker["older"] == 1
    assert worker["oldest"]["route"] == "GET /slow/{item}"


def test_a_corrupt_state_is_one_line(folder: Path, member: Member) -> None:
    """Exit code 14, the path, and the commands that repair it."""
    member.leave()
    path = folder / ".fastapi-maintenance" / "default.json"
    path.write_text("{")
    for words in (("status",), ("status", "--check"), ("status", "--watch")):
        result = invoke(*words)
        assert result.exit_code == 14
        assert result.stderr.count("\n") == 1
    assert str(path) in invoke("status").stderr
    assert invoke("off").exit_code == 0
    assert invoke("status").exit_code == 0


@pytest.mark.usefixtures("member")
def test_workers_that_cannot_be_read_are_not_taken_for_none(folder: Path) -> None:
    """The state is shown, the workers are not known, and the exit code is 14."""
    invoke("on")
    with broken(run_dir(folder).parent):
        result = call("status", cwd=folder)
        assert result.returncode == 14
        assert "  workers    not known\n" in result.stdout
        assert "warning: the workers are not known: " in result.stderr
        assert "no worker has joined" not in result.stderr
        result = call("status", "--check", "--json", cwd=folder)
        assert result.returncode == 3
        assert json.loads(result.stdout)["workers"] is None


@pytest.mark.usefixtures("member")
def test_a_service_that_could_not_join_is_told_apart(folder: Path) -> None:
    """A worker that runs without having joined is not taken for one that is stopped."""
    result = invoke("status", "--name", "other")
    assert "no worker has joined 'other'" in result.stderr
    store = FileStore(folder / ".fastapi-maintenance")
    store._mark_uncounted("other", "1-a")
    result = invoke("status", "--name", "other")
    assert "at least one is running that cannot be counted" in result.stdout
    assert "a service uses 'other' in" in result.stderr
    assert "its log says why" in result.stderr
    assert "no worker has joined" not in result.stderr
    store._unmark_uncounted("other", "1-a")


START = (
    "start the service; if it is running, add FastAPI(lifespan=guard.lifespan), without"
    " which it joins at its first request, or name its store and switch with --store"
    " and --name"
)
STOPPED = START.replace("service;", "service, or add --workers 0 if it is stopped;")
WARNING = rf"warning: no worker has joined 'default' in \S+: {re.escape(START)}\n"
ALONE = {
    ("on",): WARNING,
    ("status",): WARNING,
    ("on", "--wait"): (
        rf"error: not drained after 0\.\d s \(too few\): no worker has joined;"
        rf" {re.escape(STOPPED)}; maintenance stays on; `fastapi-maintenance wait`"
        rf" waits again, `off` opens it\n"
    ),
    ("run", "true"): (
        rf"error: no worker has joined; {re.escape(STOPPED)}; nothing has changed\n"
    ),
}


@pytest.mark.parametrize(("words", "text"), ALONE.items(), ids=map(" ".join, ALONE))
def test_without_workers_both_reasons_are_named(
    member: Member, words: tuple[str, ...], text: str
) -> None:
    """A service that is stopped and one without ``lifespan=`` each have a remedy."""
    member.leave()
    assert re.fullmatch(text, invoke(*words).stderr)


def test_without_a_store_both_reasons_are_named(folder: Path) -> None:
    """A service that has not joined has made no store yet, though it may be running."""
    assert invoke("on").stderr == (
        f"error: no store at {folder / '.fastapi-maintenance'}: {START}; or make the"
        " store with `on --init`\n"
    )


def test_status_of_a_variable_is_this_shell_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment store has no workers to speak of, and none to warn of."""
    monkeypatch.setenv("SHOP_CLOSED", "on")
    result = invoke("status", "--store", "env:SHOP_CLOSED", "--check")
    assert result.exit_code == 3
    assert "environment variable SHOP_CLOSED, of this shell\n" in result.stdout
    assert "workers" not in result.stdout
    assert "roster" not in result.stdout
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
        anyio.run(member.switch.enable, EnableOptions(message="x"))
        changed = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert [first["phase"], again["phase"], changed["phase"]] == [
        *("off", "off", "in force")
    ]
    assert (process.returncode, errors) == (0, "")


@pytest.mark.usefixtures("member")
def test_status_is_watched_in_lines_where_nothing_can_be_redrawn(folder: Path) -> None:
    """A log gets a line with the phase and the workers."""
    with started(program("status", "--watch"), folder) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert "Maintenance is off. 1 worker on 1 machine; 0 in flight" in line
    assert process.returncode == 0


@pytest.mark.redis
def test_a_watch_outlives_a_restart_of_the_store(folder: Path) -> None:
    """It says since when the store has not answered, and goes on when it does."""
    with serving(folder / "redis") as server:
        words = program("status", "--watch", "--store", server.url())
        with started(words, folder) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            server.kill()
            outage = process.stderr.readline()
            server.start()
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
    assert re.match(
        r"warning: the store has not answered since \d\d(:\d\d){2}: ", outage
    )
    assert PASSWORD not in outage
    assert "Maintenance is off. " in line
    assert process.returncode == 0


@pytest.mark.usefixtures("folder")
def test_a_long_outage_is_told_every_five_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A log is not filled by a store that is down; its answer is shown at once."""
    display = Display(Target(Where()), Output(as_json=True))
    with WatchDisplay(display) as shown:
        for _ in range(2):
            shown.update(MaintenanceState(), Roster())
            shown.no_answer(StoreError("down"))
            shown.no_answer(StoreError("down"))
    written = capsys.readouterr()
    assert written.err.count("warning: the store has not answered since ") == 2
    assert written.out.count('{"event": "status"') == 2


@pytest.mark.usefixtures("member")
def test_status_lists_workers_that_do_not_answer(folder: Path) -> None:
    """A silent worker is there to be seen before anything waits for it."""
    worker = silent(folder)
    result = invoke("status")
    assert "2 workers on 2 machines, no answer from 1 of them" in result.stdout
    assert "no answer for 1 min" in result.stdout
    assert (
        "web-2/77 does not answer. If it is gone for good:"
        f" fastapi-maintenance forget {worker}\n" in result.stdout
    )


@pytest.mark.usefixtures("member")
def test_a_list_that_is_not_complete_says_what_to_do(folder: Path) -> None:
    """``status`` names the number that completes it."""
    change_list(folder, complete=False)
    shown = invoke("status").stdout
    assert "  roster     not complete: the store has lost data; wait" in shown
    (line,) = lines(invoke("status", "--json"))
    assert line["complete"] is False


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


def test_a_view_without_a_roster_has_no_workers() -> None:
    """What cannot be read is not shown as an empty list."""
    view = View(place="x", name="y", state=ON, roster=None, now=NOW)
    assert view.workers == []
    assert dict(view.facts())["workers"] == "not known"
