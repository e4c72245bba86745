"""What other systems lack is not needed: each test takes it away."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).parent.parent

# What others use is loaded before it is taken away: only our own modules are tried.
OTHERS = """
import asyncio, getpass, importlib, logging, os, pathlib, signal, socket, subprocess
import sys, tempfile, threading
import anyio, anyio._backends._asyncio, anyio.to_thread
import fastapi, fastapi.testclient, filelock, pydantic, rich.console, typer
from filelock import lock_descriptor
from rich import box, live, progress, table, text

def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def hide_proc():
    read_text, readlink = pathlib.Path.read_text, os.readlink

    def hidden(path):
        if str(path).startswith(("/proc", "/etc/machine-id")):
            raise FileNotFoundError(path)

    pathlib.Path.read_text = lambda p, *a, **k: hidden(p) or read_text(p, *a, **k)
    os.readlink = lambda p, **k: hidden(p) or readlink(p, **k)
"""

WINDOWS = """
without(signal, "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD",
        "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGKILL", "SIGPIPE",
        "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "pthread_sigmask", "pthread_kill",
        "sigtimedwait", "sigwait", "sigwaitinfo", "sigpending", "siginterrupt",
        "alarm", "pause", "setitimer", "getitimer")
without(os, "fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid",
        "getegid", "getpgid", "getpgrp", "setpgid", "setsid", "getsid", "killpg",
        "posix_spawn", "posix_spawnp", "tcgetpgrp", "tcsetpgrp", "waitid", "wait3",
        "wait4", "chown", "fchown", "lchown", "getgroups", "mkfifo", "uname",
        "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "O_SYNC", "O_NOCTTY",
        "sched_getaffinity", "pread", "pwrite", "ctermid")
for module in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"):
    sys.modules[module] = None
subprocess._USE_POSIX_SPAWN = False  # The library itself would miss it.
hide_proc()
"""

MACOS = """
without(signal, "sigtimedwait", "sigwaitinfo")
without(os, "sched_getaffinity", "pipe2", "memfd_create", "pidfd_open")
hide_proc()
"""

WORKER = """
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_maintenance import MaintenanceGuard

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)

@app.get("/")
async def home() -> str:
    return "open"

with TestClient(app) as client:
    for line in sys.stdin:
        print(client.get("/").status_code, flush=True)
"""

COMMAND = """
from fastapi_maintenance.cli import main
main()
"""


class Machine:
    """A system that lacks something, with a directory for one store."""

    def __init__(self, folder: Path, lacks: str) -> None:
        self.folder = folder
        self.prelude = OTHERS + lacks
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FASTAPI_MAINTENANCE_STORE": f"file:{folder}/state",
        }

    def run(self, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [sys.executable, "-c", self.prelude + code, *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(self, *words: str) -> str:
        """Run a command that has to succeed, and return what it says."""
        done = self.run(COMMAND, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[str]]:
        """Serve, and answer the status of one request for each line."""
        process = subprocess.Popen(
            [sys.executable, "-c", self.prelude + WORKER],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert ask(process) == 200
            yield process
            process.kill()


def ask(process: subprocess.Popen[str]) -> int:
    """Let a worker answer one request, and return the status."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.fixture(params=[WINDOWS, MACOS], ids=["windows", "macos"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """Return a system that lacks what another one lacks."""
    return Machine(tmp_path, request.param)


def test_package_is_imported_and_touches_nothing(machine: Machine) -> None:
    """A guard of the default store is made without anything of this system."""
    done = machine.run(
        """
import fastapi_maintenance
for name in fastapi_maintenance.__all__:
    getattr(fastapi_maintenance, name)
del os.environ["FASTAPI_MAINTENANCE_STORE"]
print(fastapi_maintenance.MaintenanceGuard())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<MaintenanceGuard 'default' of ")
    assert list(machine.folder.iterdir()) == []


def test_worker_in_a_directory_is_counted_and_drains(machine: Machine) -> None:
    """One process joins, is refused work, drains, and opens again."""
    done = machine.run(
        """
from fastapi_maintenance import MaintenanceError, MaintenanceGuard

async def use():
    guard = MaintenanceGuard()
    guard._switch.settling = 0
    async with guard.lifespan():
        with guard.admit():
            await guard.enable()
            print((await guard.drain(timeout=10)).outcome)
        print((await guard.drain(timeout=10)).outcome)
        try:
            guard.admit().__enter__()
        except MaintenanceError as error:
            print(error.status_code)
        await guard.disable()
        with guard.admit():
            roster = await guard._switch.roster()
            print(len(roster.not_dead), guard._switch.worker.counted)

anyio.run(use)
"""
    )
    assert done.returncode == 0, done.stderr
    # A drain leaves out the work that it is called in.
    assert done.stdout.split() == ["drained", "drained", "503", "1", "True"]


def test_commands_work(machine: Machine) -> None:
    """A worker is switched off, known to be drained, and switched on again."""
    assert "on" in machine.command("--help")
    with machine.worker() as worker:
        assert "1 of 1" in machine.command("on", "--message", "moving")
        assert ask(worker) == 503
        machine.command("wait")
        state = json.loads(machine.command("status", "--json"))
        assert state["state"]["enabled"] is True
        machine.command("off")
        assert ask(worker) == 200


def test_work_is_run_under_maintenance(machine: Machine) -> None:
    """`run` holds maintenance for the time of a program, and opens after it."""
    program = [sys.executable, "-c", "print('migrated')"]
    with machine.worker() as worker:
        assert "migrated" in machine.command("run", "--", *program)
        assert ask(worker) == 200


def test_killed_worker_is_proven_dead_by_its_lock(machine: Machine) -> None:
    """Where no process table can be read, the lock of a directory is enough."""
    look = """
from fastapi_maintenance import FileStore
print(*(w.liveness for w in FileStore("state").roster("default").workers))
"""
    with machine.worker() as worker:
        assert machine.run(look).stdout.split() == ["alive"]
        worker.kill()
        worker.wait()
        until(lambda: machine.run(look).stdout.split() == ["dead"], 10)
