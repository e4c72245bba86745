"""Directories and files that vanish, break, fill up and belong to somebody else."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import HERE, ROOT, Operator, Service, until

pytestmark = pytest.mark.chaos

NOBODY = 65534

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: other users, mounts"
)


def remove(folder: Path) -> None:
    """Remove a directory, whatever a worker puts back into it meanwhile."""

    def removed() -> bool:
        done = False
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
            done = True
        return done

    until(removed)


def test_deleted_run_directory(
    service: Service, operator: Operator, state: Path
) -> None:
    """Workers whose rows were deleted come back, and are waited for as before."""
    busy, _ = service.start(2)
    busy.begin("/slow?seconds=2.5")
    until(lambda: service.running("slow"))
    later = operator.later()
    remove(state / "run")
    later.looks_again("busy")
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 1


def test_deleted_run_directory_and_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker that cannot come back is lost: nobody says drained without it."""
    sleeper, _ = service.start(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    remove(state / "run")
    report = operator.drain(2)
    assert report.outcome == "lost", report
    sleeper.signal(signal.SIGCONT)
    until(lambda: not service.running("slow"))
    assert operator.drain(2).outcome == "lost"  # Nobody knows who else there was.
    report = operator.drain(workers=2, vouched=True)
    assert report.outcome == "drained", report


def test_deleted_state_directory(
    service: Service, operator: Operator, state: Path
) -> None:
    """A state that was deleted under maintenance is written back, and holds."""
    first, second = service.start(2)
    assert operator.drain().outcome == "drained"
    assert first.get("/fast") == second.get("/fast") == 503
    with service.load(served=False):
        remove(state)
        until((state / "default.json").exists)
        assert json.loads((state / "default.json").read_text())["message"] == "chaos"
    assert first.get("/fast") == second.get("/fast") == 503


def test_deleted_state_directory_that_nobody_had_read(
    service: Service, operator: Operator, state: Path
) -> None:
    """Workers that know only that something was published refuse until it is set."""
    first, second = service.start(2)
    operator.drain()
    remove(state)
    with service.load(served=False):
        until(lambda: len(list(state.glob("run/*.slot"))) == 2)
        assert first.get("/fast") == second.get("/fast") == 503
    operator.off()
    assert first.get("/fast") == second.get("/fast") == 200


def test_deleted_state_directory_and_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A new directory knows nothing, and yet no worker of the old one is forgotten."""
    sleeper, other = service.start(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    remove(state)
    report = operator.drain(2)
    assert report.outcome == "lost", report
    assert other.get("/fast") == 503
    sleeper.signal(signal.SIGCONT)
    until(lambda: not service.running("slow"))
    report = operator.drain(workers=2, vouched=True)
    assert report.outcome == "drained", report
    assert sleeper.get("/fast") == 503


def test_deleted_row_of_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A row that a cleaner deleted is not taken for a worker that has left."""
    sleeper, _ = service.start(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    (row,) = state.glob(f"run/default.{sleeper.pid}-*.slot")
    row.unlink()
    report = operator.drain(1)
    assert report.outcome == "lost", report
    assert str(sleeper.pid) in report.reason
    sleeper.signal(signal.SIGCONT)
    assert operator.drain().outcome == "drained"


@pytest.mark.parametrize("size", [0, 20])
def test_truncated_epoch_file(
    service: Service, operator: Operator, state: Path, size: int
) -> None:
    """A truncated epoch file ends no worker, hides no request and opens nothing."""
    first, second = service.start(2)
    first.begin("/slow?seconds=2")
    until(lambda: service.running("slow"))
    with service.load():
        os.truncate(state / "run" / "default.epoch", size)
        later = operator.later(4)
        report = later.result()
        assert report.outcome == "lost", report
        report = operator.drain(workers=2, vouched=True)
        assert report.outcome == "drained", report
    assert first.get("/fast") == second.get("/fast") == 503


def test_corrupt_state_while_waiting(
    service: Service, operator: Operator, state: Path
) -> None:
    """A state that nobody can read any more opens nothing, and is not *drained*."""
    busy, other = service.start(2)
    busy.begin("/slow?seconds=1")
    until(lambda: service.running("slow"))
    later = operator.later(3)
    (state / "default.json").write_text('{"active": tru')
    report = later.result()
    assert report.outcome == "unknown", report
    assert busy.get("/fast") == other.get("/fast") == 503
    assert operator.drain().outcome == "drained"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a read-only mount of its own")
def test_counted_and_uncounted_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """Nobody vouches for a worker that cannot be counted, even beside one that can."""
    service.start()
    read_only = f"mount --bind {state} {state} && mount -o remount,bind,ro {state}"
    (aside,) = service.start(inside=_mounted(read_only))
    aside.begin("/slow?seconds=30")
    until(lambda: service.running("slow"))
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    assert aside.get("/fast") == 503
    service.kill(aside)
    assert operator.drain().outcome == "drained"


@as_root
def test_read_only_directory(service: Service, operator: Operator, state: Path) -> None:
    """On a read-only file system a worker serves, obeys, and is known as uncounted."""
    operator.on()
    operator.off()
    read_only = f"mount --bind {state} {state} && mount -o remount,bind,ro {state}"
    (worker,) = service.start(inside=_mounted(read_only))
    assert worker.get("/fast") == 200
    assert operator.drain(1).outcome == "unknown"
    assert worker.get("/fast") == 503
    operator.off()
    assert worker.get("/fast") == 200


@as_root
def test_workers_of_different_users(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker of a user without rights obeys, and nobody vouches for it."""
    service.start()
    (stranger,) = service.start(environment={"CHAOS_USER": str(NOBODY)})
    assert stranger.get("/fast") == 200
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    assert stranger.get("/fast") == 503


@as_root
def test_foreign_owned_directory(service: Service, state: Path) -> None:
    """Another user's command is told that it cannot see the workers."""
    service.start()
    told = _operate(["--timeout", "1"], service, user=NOBODY)
    assert told["error"].startswith("cannot read the workers"), told
    assert "run as the directory's owner" in told["error"]


@as_root
def test_root_made_directory(service: Service, operator: Operator, state: Path) -> None:
    """What root's command makes belongs to the service, which is counted."""
    os.chown(state.parent, NOBODY, NOBODY)
    operator.on()
    operator.off()
    (worker,) = service.start(environment={"CHAOS_USER": str(NOBODY)})
    owners = {path.stat().st_uid for path in (state, *state.rglob("*"))}
    assert owners == {NOBODY}
    report = operator.drain()
    assert report.outcome == "drained", report
    assert worker.get("/fast") == 503


@as_root
def test_full_directory(service: Service, state: Path) -> None:
    """On a full disk the present state stands; with room again it can be set."""
    state.mkdir()
    small = f"mount -t tmpfs -o size=64k none {state}"
    (worker,) = service.start(inside=_mounted(small))
    inside = ["nsenter", "-m", "-t", str(worker.pid)]
    fill = [*inside, "dd", "if=/dev/zero", f"of={state}/full", "bs=1k"]
    assert subprocess.run(fill, capture_output=True, check=False).returncode != 0
    told = _operate(["--timeout", "1"], service, inside=inside)
    assert "no space left on device" in told["error"], told
    assert worker.get("/fast") == 200
    subprocess.run([*inside, "rm", f"{state}/full"], check=True)
    told = _operate(["--timeout", "5"], service, inside=inside)
    assert told["outcome"] == "drained", told
    assert worker.get("/fast") == 503


@as_root
def test_hidden_proc(service: Service, operator: Operator) -> None:
    """Who cannot see the process table proves nothing, and never says drained."""
    (worker,) = service.start()
    worker.begin("/slow?seconds=4")
    until(lambda: service.running("slow"))
    hidden = _mounted("mount -t tmpfs none /proc")
    told = _operate(["--timeout", "0.5"], service, inside=hidden)
    assert told["outcome"] == "lost", told
    until(lambda: not service.running("slow"))
    told = _operate(["--timeout", "0.5"], service, inside=hidden)
    assert told["outcome"] in {"lost", "unknown"}, told
    assert operator.drain().outcome == "drained"


def test_new_release_directory(service: Service, tmp_path: Path) -> None:
    """Workers move to the directory of a new release, and take the state with them."""
    releases = [tmp_path / "1", tmp_path / "2"]
    for release in releases:
        release.mkdir()
    current = tmp_path / "current"
    current.symlink_to(releases[0])
    service.url = f"file:{current}/state"
    deployer = Operator(service)
    (worker, other) = service.start(2)
    assert deployer.drain().outcome == "drained"
    other.signal(signal.SIGSTOP)
    _swap(current, releases[1])
    assert deployer.drain(1.5, workers=1).outcome == "lost"
    until((releases[1] / "state" / "default.json").exists)
    assert worker.get("/fast") == 503
    other.signal(signal.SIGCONT)
    assert other.get("/fast") == 503
    until(lambda: len(list((releases[1] / "state/run").glob("*.slot"))) == 2)
    report = deployer.drain(workers=2, vouched=True)
    assert report.outcome == "drained", report


def _swap(link: Path, target: Path) -> None:
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


def _mounted(command: str) -> list[str]:
    """Return what runs a command in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-c", f'{command} && exec "$@"', "sh"]


def _operate(
    options: list[str],
    service: Service,
    *,
    inside: list[str] | None = None,
    user: int | None = None,
) -> dict[str, str]:
    """Drain from a process of its own, and return what it was told."""
    line = [*(inside or []), sys.executable, str(HERE / "operate.py"), service.url]
    done = subprocess.run(
        [*line, *options],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **({} if user is None else {"CHAOS_USER": str(user)}),
        },
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, str] = json.loads(done.stdout)
    return told
