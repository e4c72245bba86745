"""What the tests of the command line share: commands, and workers to command."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
from typer.testing import CliRunner, Result

from fastapi_maintenance import FileStore, MaintenanceState
from fastapi_maintenance.cli.app import app
from fastapi_maintenance.switch import Switch

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"FASTAPI_MAINTENANCE_STORE", "NO_COLOR", "TERM", "COLUMNS"}
} | {"PYTHONPATH": str(ROOT)}


def program(*words: str) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "fastapi_maintenance", *words]


def call(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own until it ends."""
    return subprocess.run(
        program(*words),
        cwd=cwd,
        env=ENVIRONMENT | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def started(
    words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a program with pipes; it is gone when the block ends."""
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=ENVIRONMENT | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def invoke(*words: str) -> Result:
    """Run the program in this process."""
    return CliRunner().invoke(app, list(words))


def lines(result: Result) -> list[dict[str, object]]:
    """Return the JSON lines that a command wrote."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def eventually(ask: Callable[[], T], message: str = "not in time") -> T:
    """Ask again and again until the answer is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < deadline, message
        select.select([], [], [], 0.01)
    return answer


def state(folder: Path, name: str = "default") -> MaintenanceState:
    """Return what is published in a folder's store."""
    return FileStore(folder / ".fastapi-maintenance").peek(name)


class Member:
    """A worker of a store in this process, with work in flight."""

    def __init__(self, folder: Path, name: str = "default") -> None:
        self.switch = Switch(FileStore(folder / ".fastapi-maintenance"), name)
        self.switch.worker.enter()

    @contextlib.contextmanager
    def busy(self, label: str = "GET /slow") -> Iterator[None]:
        """Have one request in flight for the time of the block."""
        admission = self.switch.worker.admit(label)
        try:
            yield
        finally:
            admission.release()

    def hold(self, *holders: str) -> None:
        """Have maintenance on, held by others."""
        held = MaintenanceState(active=True, begun=True, holders=holders)
        publish = self.switch.source.publish
        anyio.run(publish, self.switch.name, lambda _: held)

    def leave(self) -> None:
        """Leave the store."""
        self.switch.worker.leave()
