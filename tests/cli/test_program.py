"""The program itself: how it starts, what it needs, and what it leaves alone."""

import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer

from fastapi_maintenance.cli import main
from fastapi_maintenance.cli.errors import OneLineErrors
from fastapi_maintenance.cli.signals import InterruptedBySignalError, Signals
from tests.cli.support import ENVIRONMENT, PATIENCE, call, invoke


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
    """A service pays nothing for commands that it does not give."""
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
    """What nobody foresaw is shown as it is, with its traceback."""
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
    for command in ("on", "off", "wait", "status", "run", "forget", "routes"):
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


@pytest.mark.parametrize(
    "command", ["", "on", "off", "wait", "status", "run", "forget", "routes"]
)
def test_every_help_fits_into_80_columns(command: str) -> None:
    """Nobody has to widen a terminal to learn an option."""
    result = invoke(*filter(None, (command, "--help")))
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_signals_that_were_held_back_end_with_the_block() -> None:
    """What comes while a command is leaving does not strike afterwards."""
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.poll() == signal.SIGTERM
        assert signals.poll() is None
        signals.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(InterruptedBySignalError, match="interrupted by SIGINT"):
            signals.check()
        signal.raise_signal(signal.SIGHUP)
