"""What the tests of the command line share: commands, and workers to command."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
from typer.testing import CliRunner, Result

from fastapi_maintenance import FileStore, MaintenanceState
from fastapi_maintenance.cli.app import app
from fastapi_maintenance.cli.target import IF_RUNNING
from fastapi_maintenance.fence import Membership, WorkerReport
from fastapi_maintenance.switch import Switch
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
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
        # A key of a developer's terminal means the tests, not what they start.
        start_new_session=True,
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


def state(folder: Path, name: str = "default") -> MaintenanceState:
    """Return what is published in a folder's store."""
    found = FileStore(folder / ".fastapi-maintenance").read(name)
    return found or MaintenanceState()


def on_now(folder: Path) -> bool:
    """Tell whether maintenance is in force."""
    return state(folder).in_force(datetime.now(UTC))


def run_dir(folder: Path, name: str = "default") -> Path:
    """Return where the workers of a folder's store keep their reports."""
    return folder / ".fastapi-maintenance" / "run" / name


def change_list(folder: Path, name: str = "default", **changes: object) -> None:
    """Change the stored list of workers, at once as a store does."""
    path = run_dir(folder, name) / "members.json"
    stored = Membership.model_validate_json(path.read_bytes())
    temporary = path.with_suffix(".new")
    temporary.write_text(stored.model_copy(update=changes).model_dump_json())
    temporary.replace(path)


def members(folder: Path, name: str = "default") -> frozenset[str]:
    """Return the ids on the stored list of workers."""
    path = run_dir(folder, name) / "members.json"
    return Membership.model_validate_json(path.read_bytes()).members


def silent(folder: Path, *, pid: int = 77, seconds: float = 60) -> str:
    """Have a worker of another machine on the list that does not answer any more."""
    worker = WorkerReport(
        id=f"{pid}-{os.urandom(3).hex()}",
        host="web-2",
        pid=pid,
        process="boot|machine|namespace|1",
    )
    path = run_dir(folder) / f"{worker.id}.json"
    path.write_text(worker.model_dump_json())
    then = time.time() - seconds
    os.utime(path, (then, then))
    change_list(folder, members=members(folder) | {worker.id})
    return worker.id


@contextlib.contextmanager
def broken(path: Path) -> Iterator[None]:
    """Have a link to itself in the place of a file or a directory for a block."""
    aside = path.with_name(f"aside-{path.name}")
    path.rename(aside)
    while not path.is_symlink():
        # A worker may have made it again already.
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(FileExistsError):
            path.symlink_to(path)
    try:
        yield
    finally:
        path.unlink()
        aside.replace(path)


class Member:
    """A worker of a store in this process, with work in flight."""

    def __init__(self, folder: Path, name: str = "default") -> None:
        self.folder = folder
        self.store = FileStore(folder / ".fastapi-maintenance")
        self.switch = Switch(self.store, name)
        self.enter()

    def enter(self) -> None:
        """Join, with a list of workers that has stood for long enough."""
        self.switch._follower.add_user()
        self.switch._follower.join()
        change_list(self.folder, self.switch.name, made=time.time() - 200)

    @contextlib.contextmanager
    def busy(self, label: str = "GET /slow") -> Iterator[None]:
        """Have one request in flight for the time of the block."""
        admission = self.switch.worker.admit(label)
        assert admission is not None
        try:
            yield
        finally:
            admission.release()

    def put(self, state: MaintenanceState) -> None:
        """Publish a state as it is."""
        anyio.run(self.switch.publish, lambda _: state)

    def hold(self, *holders: str) -> None:
        """Have maintenance on, held by others."""
        self.put(MaintenanceState(enabled=True, holders=holders))

    def leave(self) -> None:
        """Leave the store."""
        self.switch._follower.leave()


def _no_worker(folder: Path, member: Member) -> tuple[int, str]:
    member.leave()
    return 13, (
        "no worker has joined; start the service, or add --workers 0 if it is stopped;"
        f" {IF_RUNNING}"
    )


def _silent_worker(folder: Path, member: Member) -> tuple[int, str]:
    worker = silent(folder)
    return 11, f"if it is: fastapi-maintenance forget {worker}"


def _incomplete(folder: Path, member: Member) -> tuple[int, str]:
    change_list(folder, complete=False)
    return 11, "--workers 1 if all of them have joined"


def _uncounted(folder: Path, member: Member) -> tuple[int, str]:
    member.switch.worker.mark_uncounted("it is only a test")
    until(lambda: member.store.roster("default").workers[0].uncounted)
    return 15, "some workers cannot be counted; see their logs for the reason"


Obstacle = Callable[[Path, Member], tuple[int, str]]

OBSTACLES: dict[str, Obstacle] = {
    "no worker": _no_worker,
    "a silent worker": _silent_worker,
    "a list that was lost": _incomplete,
    "a worker that cannot be counted": _uncounted,
}
"""What no wait can end well with: how it is made, its exit code, and the remedy."""
