"""``on`` and ``off``: what is published, what is said, and what is refused."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fastapi_maintenance import FileStore, MaintenanceState, StoreError
from fastapi_maintenance.changes import validated_token_digest
from fastapi_maintenance.state import OPERATOR
from fastapi_maintenance.stores import TemporaryStoreError
from tests.cli.support import Member, invoke, lines, silent, state
from tests.stores.children import NOBODY, needs_root

NO_STORE = "on", "off", "wait", "status", "forget"


@pytest.mark.parametrize("command", NO_STORE)
def test_a_store_that_is_not_there_is_never_made(folder: Path, command: str) -> None:
    """Every command names the path and ends with 14, and leaves nothing behind."""
    words = [command, "--lost-for", "10m"] if command == "forget" else [command]
    result = invoke(*words)
    assert result.exit_code == 14
    assert f"error: no store at {folder / '.fastapi-maintenance'}" in result.stderr
    assert "--init" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_on_makes_a_store_when_it_is_told_to(folder: Path) -> None:
    """``--init`` is for the first deployment, and warns that no worker has joined."""
    result = invoke("on", "--init")
    assert result.exit_code == 0
    assert state(folder).in_force(datetime.now(UTC))
    assert "warning: no worker has joined 'default' in" in result.stderr


@pytest.mark.usefixtures("member")
def test_on_says_what_it_set_and_for_whom(folder: Path) -> None:
    """The place, the end, the message and who has acknowledged are there to be read."""
    result = invoke(
        *("on", "--message", "Back soon", "--for", "20m", "--retry-after", "30")
    )
    assert result.exit_code == 0
    assert result.stderr == ""
    published = state(folder)
    assert published.message == "Back soon"
    assert published.retry_after == 30
    assert published.since is not None
    assert published.until == published.since + timedelta(minutes=20)
    assert f"@{os.uname().nodename}/{os.getpid()}" in (published.actor or "")
    assert result.stdout.startswith("Maintenance is on.\n")
    for text in (
        f"  store      {folder / '.fastapi-maintenance'}\n",
        "  workers    1 worker on 1 machine\n",
        "  message    Back soon\n",
        "in 20 min, expected; stays on until `off`\n",
        "Acknowledged by 1 of 1 worker on 1 machine.\n",
    ):
        assert text in result.stdout


@pytest.mark.usefixtures("member")
def test_on_as_json_is_one_line(folder: Path) -> None:
    """A script reads place, phase, state and workers, and no hash of a token."""
    (line,) = lines(invoke("on", "--json", "--bypass"))
    assert line["event"] == "published"
    assert line["store"] == str(folder / ".fastapi-maintenance")
    assert line["phase"] == "in force"
    assert line["in_force"] is True
    assert line["machines"] == 1
    assert (line["acknowledged"], line["joined"]) == (1, 1)
    (row,) = line["workers"] if isinstance(line["workers"], list) else []
    assert row["pid"] == os.getpid()
    assert isinstance(line["state"], dict)
    assert line["state"]["bypass"] is True
    assert state(folder).bypass == validated_token_digest(str(line["bypass_token"]))


@pytest.mark.usefixtures("member")
def test_a_bypass_token_is_shown_once(folder: Path) -> None:
    """``on --bypass`` prints the token that opens; ``status`` says only that one is."""
    result = invoke("on", "--bypass")
    (line,) = [text for text in result.stdout.splitlines() if "  token " in text]
    token = line.split()[-1]
    assert len(token) == 43
    assert state(folder).bypass == validated_token_digest(token)
    shown = invoke("status").stdout
    assert "bypass     yes" in shown
    assert token not in shown
    assert validated_token_digest(token)[7:] not in shown


@pytest.mark.usefixtures("member")
def test_on_sets_read_only_and_another_switch(folder: Path) -> None:
    """``--name`` switches one of several, and leaves the others alone."""
    result = invoke("on", "--read-only", "--name", "payments")
    assert "reads continue (read-only)" in result.stdout
    assert "no worker has joined 'payments'" in result.stderr
    assert state(folder, "payments").read_only
    assert not state(folder).enabled


@pytest.mark.usefixtures("member")
def test_a_planned_window_is_scheduled(folder: Path) -> None:
    """``--at`` and ``--auto-off`` publish a window that opens by itself."""
    at = datetime.now(UTC) + timedelta(hours=2)
    result = invoke(
        *("on", "--at", at.isoformat(), "--for", "1h", "--auto-off", "--message", "x")
    )
    assert result.stdout.startswith("Maintenance is scheduled, and off until then.\n")
    assert "opens by itself" in result.stdout
    assert "  begins     " in result.stdout
    found = state(folder)
    assert found.starts_at == at
    assert found.since is None
    assert found.until == at + timedelta(hours=1)
    assert found.auto_off


@pytest.mark.usefixtures("member")
def test_an_end_by_the_clock_follows_the_beginning(
    folder: Path,
) -> None:
    """``--at T --until HH:MM`` is the first such time after the beginning."""
    at = datetime(2030, 1, 1, 22, 0).astimezone()
    invoke("on", "--at", "2030-01-01T22:00", "--until", "02:00")
    assert state(folder).until == at + timedelta(hours=4)


@pytest.mark.usefixtures("member")
def test_off_opens_again(folder: Path) -> None:
    """``off`` publishes off, and says so."""
    invoke("on")
    result = invoke("off")
    assert result.exit_code == 0
    assert result.stdout.startswith("Maintenance is off.\n")
    assert "  off since " in result.stdout
    assert "Acknowledged by 1 of 1 worker on 1 machine.\n" in result.stdout
    assert not state(folder).enabled


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("command", ["on", "off"])
def test_a_worker_that_has_not_acknowledged_is_named(
    folder: Path, command: str
) -> None:
    """The command does not fail, and says which worker may still decide otherwise."""
    silent(folder)
    result = invoke(command)
    assert result.exit_code == 0
    assert "Acknowledged by 1 of 2 workers on 2 machines.\n" in result.stdout
    assert result.stderr == (
        "warning: not acknowledged by web-2/77 (no answer for 1 min 1 s); look again"
        " with `fastapi-maintenance status`\n"
    )
    (line,) = lines(invoke(command, "--json"))
    assert (line["acknowledged"], line["joined"]) == (1, 2)


@pytest.mark.usefixtures("member")
def test_on_says_what_is_replaced() -> None:
    """Reads that are refused from now on, and a window that is gone, are not silent."""
    invoke("on", "--read-only")
    notes = "Reads are refused now: it was read-only before."
    assert f"{notes}\n" in invoke("on").stdout
    assert notes not in invoke("on").stdout
    window = ("on", "--at", "2030-01-01T22:00Z")
    invoke(*window)
    gone = "The window planned for 2030-01-01 22:00 UTC is gone."
    assert gone not in invoke(*window).stdout
    assert f"{gone}\n" in invoke("on", "--wait").stdout
    invoke("off")
    invoke(*window)
    (line,) = lines(invoke("on", "--json"))
    assert line["notes"] == [gone]


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_on_does_not_replace_what_has_ended(
    member: Member, as_json: tuple[str, ...]
) -> None:
    """A planned window that is over, and its reads, are no news."""
    at = datetime.now(UTC) - timedelta(hours=2)
    until = at + timedelta(hours=1)
    window = MaintenanceState(enabled=True, starts_at=at, until=until, auto_off=True)
    member.put(window.replace(read_only=True))
    result = invoke("on", *as_json)
    assert result.exit_code == 0
    for note in ("is gone", "Reads are refused now", "notes"):
        assert note not in result.stdout


def test_off_is_refused_while_others_hold_it(folder: Path, member: Member) -> None:
    """What a running migration holds opens only by force, and the line says how."""
    member.hold("deploy#1", OPERATOR)
    result = invoke("off")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: maintenance is held by deploy#1")
    assert "off --force" in result.stderr
    assert state(folder).enabled
    assert invoke("off", "--force").exit_code == 0
    assert not state(folder).enabled


def test_on_does_not_loosen_what_others_hold(folder: Path, member: Member) -> None:
    """Reads are not let in while another program works under full maintenance."""
    member.hold("deploy#1")
    result = invoke("on", "--read-only")
    assert result.exit_code == 2
    assert "deploy#1" in result.stderr
    assert not state(folder).read_only


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["on", "off"])
def test_a_store_that_cannot_be_set_is_a_mistake_of_the_caller(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """An environment variable is set when a service starts, never by a command."""
    monkeypatch.setenv("SHOP_CLOSED", "on")
    result = invoke(command, "--store", "env:SHOP_CLOSED")
    assert result.exit_code == 2
    assert "environment variable SHOP_CLOSED" in result.stderr


@pytest.mark.usefixtures("folder")
def test_the_store_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that configures the guard configures the command."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", f"file:{tmp_path / 'elsewhere'}")
    assert invoke("on", "--init").exit_code == 0
    assert (tmp_path / "elsewhere" / "default.json").exists()


WRONG = {
    "two ends": (("--for", "5m", "--until", "18:00"), "--for and --until"),
    "no end": (("--auto-off",), "--auto-off needs an end"),
    "an end before the start": (
        ("--at", "2030-01-02T00:00Z", "--until", "2030-01-01T00:00Z"),
        "must be later than the start",
    ),
    "an end that has passed": (
        ("--until", "2020-01-01T00:00Z"),
        "--until 2020-01-01T00:00Z has passed",
    ),
    "no duration": (("--for", "soon"), "not a duration: 'soon'"),
    "no time at all": (("--for", "0s"), "--for must be longer than 0 seconds"),
    "no seconds": (("--retry-after", "-1"), "not a duration: '-1'"),
    "too many seconds": (("--retry-after", "9" * 12), "--retry-after must be 0 to"),
    "a start that has passed": (
        ("--at", "2020-01-01T00:00Z"),
        "the start (2020-01-01T00:00:00+00:00) has passed; leave it out to begin now",
    ),
    "a text of two lines": (("--message", "a\nb"), "--message must be one line"),
    "an empty text": (("--message", ""), "--message must not be blank"),
    "a bad name": (("--name", "../x"), "must be 1 to 64 of a-z"),
    "an unknown store": (("--store", "ftp://u:secret@x"), "unknown store URL"),
    "a store in memory": (("--store", "memory:"), "inside the service's own process"),
    "an unknown option": (("--forr", "5m"), "--help"),
    "a stray word": (("please",), "please"),
    "a timeout without a wait": (("--timeout", "5"), "go with --wait"),
    "workers without a wait": (("--workers", "2"), "go with --wait"),
    "a rollback without a wait": (("--rollback",), "go with --wait"),
    "a closing without a wait": (("--close-after", "5"), "go with --wait"),
    "a closing at no time": (("--wait", "--close-after", "soon"), "'soon'"),
    "a negative timeout": (("--wait", "--timeout", "-5"), "not a duration: '-5'"),
    "an infinite timeout": (("--wait", "--timeout", "inf"), "not a duration: 'inf'"),
    "negative workers": (("--wait", "--workers", "-1"), "a whole number, not '-1'"),
    "workers that are no number": (("--wait", "--workers", "x"), "not 'x'"),
    "a wait for a plan": (("--wait", "--at", "2030-01-01T00:00Z"), "leave out --wait"),
    "a wait for a clock": (("--wait", "--for", "5m", "--auto-off"), "--auto-off leave"),
}


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize(("words", "text"), WRONG.values(), ids=list(WRONG))
def test_wrong_options_change_nothing(
    folder: Path, words: tuple[str, ...], text: str
) -> None:
    """One line names the value and the remedy; the exit code is 2; nothing is set."""
    result = invoke("on", *words)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "secret" not in result.stderr
    assert state(folder).epoch == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "code"),
    [(("on",), 14), (("on", "--forr", "5m"), 2), (("nothing",), 2)],
)
def test_an_error_as_json_is_on_both_streams(words: tuple[str, ...], code: int) -> None:
    """A script that reads JSON gets the exit code and the text; a person one line."""
    result = invoke(*words, "--json")
    (line,) = lines(result)
    assert line["event"] == "error"
    assert line["exit"] == code
    assert f"error: {line['error']}\n" == result.stderr


def test_a_place_that_is_a_file_is_an_unreachable_store(folder: Path) -> None:
    """Another program's file in the store's place is named, and stays as it is."""
    place = folder / ".fastapi-maintenance"
    place.write_text("mine")
    result = invoke("on", "--init")
    assert result.exit_code == 14
    assert str(place) in result.stderr
    assert result.stderr.count("\n") == 1
    assert place.read_text() == "mine"


@pytest.mark.usefixtures("folder")
def test_redis_that_is_not_there_is_unreachable() -> None:
    """The exit code is 14, and no password is shown."""
    started = time.monotonic()
    url = "redis://:secret@127.0.0.1:1/0?prefix=shop"
    result = invoke("status", "--store", url)
    assert result.exit_code == 14
    assert "secret" not in result.output
    assert result.stderr.count("\n") == 1
    assert time.monotonic() - started < 4


def test_a_store_in_a_directory_that_is_missing_is_made(folder: Path) -> None:
    """``on --init`` makes what is above it, too."""
    place = folder / "not" / "there"
    assert invoke("on", "--init", "--store", f"file:{place}").exit_code == 0
    assert (place / "default.json").exists()


class SlowStore(FileStore):
    """A store whose reads take too long, or fail for now."""

    error: StoreError | None = None

    def read(self, name: str) -> MaintenanceState | None:
        """Fail, or answer too late."""
        if self.error is not None:
            raise self.error
        time.sleep(0.3)
        return None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "store has not answered for 0.05 s; check that it is running"),
        (TemporaryStoreError("connection refused"), "error: connection refused"),
    ],
)
def test_a_store_that_does_not_answer_is_given_up(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: StoreError | None,
    text: str,
) -> None:
    """Exit code 14 after three seconds, before anything is published."""
    store = SlowStore(folder / "store")
    store.error = error
    (folder / "store").mkdir()
    monkeypatch.setattr("fastapi_maintenance.cli.target.open_store", lambda _: store)
    monkeypatch.setattr("fastapi_maintenance.cli.target.PATIENCE", 0.05)
    result = invoke("on")
    assert result.exit_code == 14
    assert text in result.stderr
    assert list((folder / "store").iterdir()) == []


@needs_root
@pytest.mark.parametrize(
    "which", ["directory", "parent", "reports", "linked", "new", "above"]
)
def test_root_stays_out_of_the_directories_of_others(folder: Path, which: str) -> None:
    """Exit code 14 and the same command for the owner; nothing is opened or made."""
    parent = folder / "srv"
    place = parent / "store"
    (place / "run").mkdir(parents=True)
    foreign = {"parent": parent, "reports": place / "run"}.get(which, place)
    shown = place
    if which == "above":
        # Nothing of the place is another user's, but the way to it.
        foreign = folder / "link"
        foreign.symlink_to(folder)
        shown = foreign / "srv" / "store"
    os.chown(foreign, NOBODY, -1, follow_symlinks=False)
    if which == "linked":
        shown = folder / "link"
        shown.symlink_to(place)
    elif which == "new":
        shown = place / "a" / "b"
    before = sorted(folder.rglob("*"))
    url = f"file:{shown}"
    result = invoke("on", "--init", "--store", url, "--message", "Back soon")
    assert result.exit_code == 14
    assert "belongs to nobody, and root stays out of it; use: " in result.stderr
    assert result.stderr.endswith(
        f"sudo -u nobody fastapi-maintenance on --init --store {url} --message"
        " 'Back soon'\n"
    )
    assert sorted(folder.rglob("*")) == before


@needs_root
def test_the_line_for_another_user_names_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment does not pass through sudo, so that it becomes an option."""
    (folder / "store").mkdir()
    os.chown(folder / "store", NOBODY, -1)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", "file:store")
    result = invoke("status", "--json")
    assert result.exit_code == 14
    assert result.stderr.endswith(
        "use: sudo -u nobody fastapi-maintenance status --store file:store --json\n"
    )
    result = invoke("run", "--", "true", "--store", "x")
    assert result.exit_code == 125
    assert "fastapi-maintenance run --store file:store -- true" in result.stderr
    result = invoke("run", "true", "--store", "x", "--json")
    assert result.stderr.endswith(
        "fastapi-maintenance run --store file:store true --store x --json\n"
    )
    assert "{" not in result.output
