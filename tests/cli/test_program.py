"""The program itself: how it starts, what it needs, and what it leaves alone."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import typer
from pydantic import ValidationError

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.cli import main
from fastapi_maintenance.cli.errors import OneLineErrors
from fastapi_maintenance.cli.exits import ExitCode
from fastapi_maintenance.cli.options import _option
from fastapi_maintenance.cli.signals import (
    InterruptedBySignalError,
    Signals,
    _reaches_both,
)
from fastapi_maintenance.fence import Outcome
from fastapi_maintenance.state import first_problem
from tests.cli.support import ENVIRONMENT, ROOT, Member, call, invoke, lines
from tests.waiting import PATIENCE

COMMANDS = "on", "off", "wait", "status", "run", "forget", "routes", "schema"


def python(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a text in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_package_never_loads_the_command_line(folder: Path) -> None:
    """A service does not load what only commands need."""
    result = python(
        "import sys, fastapi_maintenance\n"
        "wrong = {'typer', 'rich', 'redis', 'fastapi_maintenance.cli'}\n"
        "print(sorted(wrong & set(sys.modules)))",
        folder,
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_names_the_line_that_installs_it(
    folder: Path, missing: str
) -> None:
    """Without Typer or Rich there is an ImportError, in one line."""
    result = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from fastapi_maintenance.cli import main; main()",
        folder,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"ImportError: the command line needs {missing}; install it with"
        " `pip install 'fastapi-maintenance-guard[cli]'`\n"
    )


def test_main_ends_the_process_with_the_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry point takes its own words, too, and never returns."""
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 14
    assert str(folder) in capsys.readouterr().err


def test_a_fault_of_ours_is_not_hidden() -> None:
    """What was not foreseen is shown as it is, with its traceback."""
    app = typer.Typer(cls=OneLineErrors)

    @app.command()
    def fail() -> None:
        raise LookupError("a fault")

    @app.command()
    def other() -> None: ...

    with pytest.raises(LookupError, match="a fault"):
        typer.main.get_command(app).main(args=["fail"])
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main(args=["other"])
    assert ended.value.code == 0


def test_the_module_is_a_program(folder: Path) -> None:
    """``python -m fastapi_maintenance`` shows the commands, under the right name."""
    result = call(cwd=folder)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: fastapi-maintenance [OPTIONS] COMMAND")
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize(
    ("found", "shown"),
    [(["1.2.3"], "1.2.3"), (PackageNotFoundError("gone"), "(not installed)")],
)
def test_the_version_is_that_of_the_distribution(
    monkeypatch: pytest.MonkeyPatch, found: Any, shown: str
) -> None:
    """``--version`` is the one that pip knows, where it knows one."""
    look_up = Mock(side_effect=found)
    monkeypatch.setattr("fastapi_maintenance.cli.app.version", look_up)
    assert invoke("--version").stdout == f"fastapi-maintenance {shown}\n"
    look_up.assert_called_once_with("fastapi-maintenance-guard")


@pytest.mark.parametrize("words", [("nothing",), ("status", "--nothing")])
def test_mistakes_point_to_the_help(words: tuple[str, ...]) -> None:
    """An unknown command or option is one line, exit code 2."""
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "--help`" in result.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_fits_into_80_columns(command: str) -> None:
    """A terminal of the common width shows every option whole."""
    result = invoke(*filter(None, (command, "--help")))
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_commands_start_without_fastapi(folder: Path) -> None:
    """Switching and helps load neither FastAPI nor a client of a database."""
    result = python(
        "import sys\n"
        "from fastapi_maintenance.cli import main\n"
        "for words in (['on', '--init'], ['run', '--help'], ['routes', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as ended: assert ended.code == 0, ended\n"
        "wrong = {'fastapi', 'starlette', 'redis', 'sqlalchemy'}\n"
        "print(sorted(wrong & set(sys.modules)))",
        folder,
    )
    assert result.stdout.endswith("\n[]\n"), result.stderr


LACKING = """
import os, signal, sys

lost = {
    signal: "SIGHUP SIGCHLD SIGTSTP pthread_sigmask sigtimedwait sigwait sigwaitinfo",
    os: "geteuid getuid getpgid getpgrp tcgetpgrp setsid posix_spawn fork uname",
}
for module, names in lost.items():
    for name in names.split():
        delattr(module, name)
sys.modules["pwd"] = None
from fastapi_maintenance.cli import main
from fastapi_maintenance import locks

locks.fcntl = None
from tests.cli.support import Member
from pathlib import Path

member = Member(Path("."))
for words, code in (
    (["--help"], 0),
    (["on"], 0),
    (["status"], 0),
    (["wait"], 0),
    (["off"], 0),
    (["run", sys.executable, "-c", "raise SystemExit(3)"], 3),
    (["off"], 0),
    (["run", sys.executable, "-c", "pass"], 0),
):
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == code, (words, ended.code)
print("all of them")
"""


def test_commands_need_nothing_that_other_systems_lack(folder: Path) -> None:
    """Without HUP, process groups, signal masks, users and fork, commands work."""
    result = python(LACKING, folder)
    assert result.stdout.endswith("\nall of them\n"), result.stderr
    assert "Drained after" in result.stdout
    assert "The command succeeded; maintenance is off." in result.stderr
    assert "Traceback" not in result.stderr


def test_signals_are_noted_and_strike_later() -> None:
    """What comes in the block is kept for it, and what was set before comes back."""
    before = [signal.getsignal(number) for number in (2, 15, signal.SIGCHLD)]
    with Signals() as signals:
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(InterruptedBySignalError, match="interrupted by SIGTERM"):
            signals.check()
    assert [signal.getsignal(number) for number in (2, 15, signal.SIGCHLD)] == before


def test_a_handler_that_python_does_not_know_becomes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler that a library has installed in C cannot be put back."""
    signals = Signals()
    with signals:
        signals._before[signal.SIGTERM] = None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_on_windows_a_console_reaches_the_command_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C goes to all processes of a console; TERM ends the command there."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert _reaches_both(signal.SIGINT, 1)
    assert not _reaches_both(signal.SIGTERM, 1)


def test_a_command_that_has_gone_is_not_asked_for_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a terminal, or a process, a signal is passed on."""
    assert not _reaches_both(signal.SIGTERM, 1)
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError))
    assert not _reaches_both(signal.SIGINT, 1)
    read, _ = pipe = os.pipe()
    monkeypatch.setattr(os, "open", Mock(return_value=read))
    assert not _reaches_both(signal.SIGINT, 1)
    os.close(pipe[1])


SQL = {
    "no store": ((), "only an SQL store has tables; name it, such as --store postgre"),
    "a directory": (("--store", "file:x"), "not a database URL; use postgresql+psyc"),
    "Redis": (("--store", "redis://x"), "unknown database 'redis'; use postgresql+"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("words", "text"), SQL.values(), ids=list(SQL))
def test_other_stores_have_no_tables(words: tuple[str, ...], text: str) -> None:
    """``schema`` of another kind of store is a mistake: exit code 2."""
    result = invoke("schema", *words)
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_schema_is_shown_without_a_connection() -> None:
    """``schema`` writes SQL, or one line of JSON that has it."""
    url = "postgresql+psycopg://user:secret@nowhere/shop"
    result = invoke("schema", "--store", url)
    assert result.exit_code == 0
    assert "CREATE TABLE" in result.stdout
    assert "secret" not in result.stdout
    (line,) = lines(invoke("schema", "--store", url, "--json"))
    assert "CREATE TABLE" in str(line["sql"])


SHOP = """
from fastapi import FastAPI

app = FastAPI()
"""


def keys_of(value: object) -> set[str]:
    """Return the keys of a JSON value and of all that is in it but a stored state."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    return {*value, *keys_of([part for key, part in value.items() if key != "state"])}


def test_every_key_of_the_json_is_documented(folder: Path, member: Member) -> None:
    """A script can rely on what the page says: each event, and each of its keys."""
    (folder / "documented_shop.py").write_text(SHOP)
    written = ""
    with member.busy():
        for words in (
            ("on", "--read-only", "--bypass"),
            ("on",),
            ("on", "--wait", "--timeout", "0.7"),
            ("status",),
            ("forget", "--lost-for", "1h"),
            ("routes", "documented_shop:app"),
            ("schema", "--store", "postgresql+psycopg://nowhere/shop"),
        ):
            written += invoke(words[0], "--json", *words[1:]).stdout
    written += invoke("run", "--json", "true").stderr
    events = [json.loads(line) for line in written.splitlines()]
    page = (ROOT / "docs" / "cli.md").read_text().partition("## For scripts")[2]
    documented = set(re.findall(r"`([a-z_]+)`", page))
    assert {event["event"] for event in events} <= documented
    assert keys_of(events) - {"event"} <= documented
    assert len({event["event"] for event in events}) == 9


def test_every_outcome_has_a_code() -> None:
    """Each outcome of a drain ends a command with its own code."""
    codes = {outcome: ExitCode.of(outcome) for outcome in get_args(Outcome)}
    assert len(set(codes.values())) == len(codes)
    assert ExitCode.of_signal(15) == 143


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"message": "\n"}, "--message must not be blank"),
        ({"retry_after": -1}, "--retry-after must be 0 to"),
        ({"read_only": 3}, "--read-only should be a valid boolean, not 3"),
    ],
)
def test_what_a_model_refuses_is_told_of_the_option(
    values: dict[str, Any], text: str
) -> None:
    """The words of Pydantic are turned into those of the command line."""
    with pytest.raises(ValidationError) as error:
        EnableOptions(**values)
    assert first_problem(error.value, _option).startswith(text)


def test_a_state_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, member: Member
) -> None:
    """What only the whole state refuses is told in one line, too."""

    def refuse(*_: object, **__: object) -> None:
        MaintenanceState(enabled=True, auto_off=True)

    monkeypatch.setattr(member.switch.__class__, "enable", refuse)
    result = invoke("on")
    assert result.exit_code == 2
    assert result.stderr == ("error: auto_off needs an end: give until as well\n")
