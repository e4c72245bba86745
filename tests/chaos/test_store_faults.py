"""Directories and files that are deleted, damaged, full or another user's."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastapi_maintenance import StoreError
from tests.chaos.harness import Operator, Service, in_background, operate, told
from tests.servers import ROOT
from tests.stores.children import NOBODY, needs_root
from tests.waiting import until

pytestmark = pytest.mark.chaos


def remove(folder: Path) -> None:
    """Remove a directory, even while workers write to it."""

    def removed() -> bool:
        done = False
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
            done = True
        return done

    until(removed)


LOSSES = pytest.mark.parametrize("what", ["run", "."], ids=["reports", "everything"])


@LOSSES
def test_deleted_while_waiting(service: Service, state: Path, what: str) -> None:
    """A wait that saw all workers survives the loss of the directory."""
    busy, other = service.start(2)
    operator = service.settled()
    service.busy(busy, 2.5)
    later = operator.later()
    until(lambda: other.get("/fast") == 503)
    remove(state / what)
    later.looks_again("busy")
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 1
    assert service.closed()
    # Another coordinator has not seen which workers there were.
    report = operator.drain()
    assert report.outcome == "lost", report
    assert report.seconds < 1
    assert "--workers N" in report.reason
    # Each worker reports first, and testifies right after it.
    until(lambda: operator.drain(workers=2).drained and operator.drain().drained)


@LOSSES
def test_deleted_again_and_again(service: Service, state: Path, what: str) -> None:
    """Deletions in the middle of looks hide no request from any coordinator."""
    busy, _ = service.start(2)
    operator = service.settled()
    work = service.busy(busy, 5)
    operator.on()

    outcomes: list[str] = []
    while not work.done():
        drains = [in_background(lambda: Operator(service).drain(1)) for _ in range(3)]
        while not all(drain.done() for drain in drains):
            shutil.rmtree(state / what, ignore_errors=True)
            time.sleep(0.01)
        assert all(isinstance(d.exception(), StoreError | None) for d in drains)
        if not work.done():
            outcomes += [d.result().outcome for d in drains if not d.exception()]
    assert work.result()[0] == 200
    # While the request ran, some drains had an outcome, and none was *drained*.
    assert outcomes
    assert "drained" not in outcomes
    until(lambda: operator.drain(workers=2).outcome == "drained")
    assert busy.get("/fast") == 503


@LOSSES
def test_deleted_beside_a_stopped_worker(
    service: Service, state: Path, what: str
) -> None:
    """A worker that cannot come back is never ignored."""
    sleeper, other = service.start(2)
    operator = service.settled()
    service.busy(sleeper, 0.5)
    sleeper.signal(signal.SIGSTOP)
    remove(state / what)
    # No list is no answer, and one that was made again is not complete.
    assert operator.drain(2).outcome in {"lost", "too_few"}
    until(lambda: list(state.glob(f"run/default/{other.pid}-*.json")))
    report = operator.drain(30)
    assert report.outcome == "lost", report
    assert report.seconds < 2
    assert "--workers N" in report.reason
    assert operator.drain(2, workers=2).outcome == "too_few"
    assert other.get("/fast") == 503
    sleeper.signal(signal.SIGCONT)
    report = operator.drain(workers=2)
    assert report.outcome == "drained", report
    assert service.closed()
    assert operator.drain().outcome == "drained"


def test_deleted_run_directory_and_cold_worker(service: Service, state: Path) -> None:
    """A list that a new worker makes after a loss is not complete for long."""
    first, _ = service.start(2)
    operator = service.settled()
    service.busy(first, 6)
    first.signal(signal.SIGSTOP)
    # It starts without a list, before the other one has noticed.
    remove(state / "run")
    service.start()
    report = operator.drain(4)
    assert report.outcome == "lost", report
    first.signal(signal.SIGCONT)
    report = operator.drain(workers=3)
    assert report.outcome == "drained", report


def test_deleted_state_directory(
    service: Service, operator: Operator, state: Path
) -> None:
    """A state that was deleted under maintenance is written back and stays on."""
    service.start(2)
    assert operator.drain().outcome == "drained"
    assert service.closed()
    with service.load(served=False):
        remove(state)
        until((state / "default.json").exists)
        assert json.loads((state / "default.json").read_text())["message"] == "chaos"
    assert service.closed()
    operator.off()
    until(service.open)


def test_restored_state_directory(
    service: Service, state: Path, tmp_path: Path
) -> None:
    """Restoring a backup does not end maintenance that was switched on later."""
    busy, other = service.start(2)
    operator = service.settled()
    shutil.copytree(state, tmp_path / "backup", copy_function=copy_readable)
    service.busy(busy, 2.5)
    later = operator.later()
    until(lambda: other.get("/fast") == 503)
    with service.load(served=False):
        remove(state)
        with contextlib.suppress(shutil.Error):
            shutil.copytree(tmp_path / "backup", state, dirs_exist_ok=True)
        report = later.result()
        assert report.outcome in {"drained", "superseded"}, report
        until(lambda: '"enabled": true' in (state / "default.json").read_text())
    assert service.closed()


def test_deleted_report_of_stopped_worker(service: Service, state: Path) -> None:
    """A worker whose report was deleted does not count as one that has left."""
    sleeper, _ = service.start(2)
    operator = service.settled()
    service.busy(sleeper, 0.5)
    sleeper.signal(signal.SIGSTOP)
    (report_file,) = state.glob(f"run/default/{sleeper.pid}-*.json")
    report_file.unlink()
    report = operator.drain(1)
    assert report.outcome == "lost", report
    assert f"forget {sleeper.pid}-" in report.reason
    sleeper.signal(signal.SIGCONT)
    until(report_file.exists)
    assert operator.drain(workers=2).outcome == "drained"


def test_deleted_locks(service: Service, state: Path) -> None:
    """A deleted lock file proves no death, and is made again."""
    busy, _ = service.start(2)
    operator = service.settled()
    service.busy(busy, 3)
    later = operator.later()
    for _ in range(5):
        for lock in state.glob("run/default/*.lock"):
            lock.unlink(missing_ok=True)
        later.looks_again()
    report = later.result()
    assert report.outcome == "drained", report
    assert len(report.workers) == 2
    until(lambda: len(list(state.glob("run/default/*.lock"))) == 2)
    service.kill(busy)
    assert operator.drain().outcome == "drained"


@pytest.mark.parametrize("size", [0, 20])
def test_truncated_list_of_workers(service: Service, state: Path, size: int) -> None:
    """A truncated list of workers hides no request and opens nothing."""
    first, _ = service.start(2)
    operator = service.settled()
    service.busy(first, 2)
    with service.load():
        later = operator.later()
        os.truncate(state / "run" / "default" / "members.json", size)
        report = later.result()
        assert report.outcome == "drained", report
        # Another coordinator has not seen who was there.
        until(lambda: operator.drain().outcome == "lost")
        report = operator.drain(workers=2)
        assert report.outcome == "drained", report
    assert service.closed()


@pytest.mark.parametrize("size", [0, 20])
def test_truncated_reports(service: Service, state: Path, size: int) -> None:
    """A truncated report is waited for until its worker writes it again."""
    first, _ = service.start(2)
    operator = service.settled()
    service.busy(first, 2)
    later = operator.later()
    for path in state.glob("run/default/*-*.json"):
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, size)
    report = later.result()
    assert report.outcome == "drained", report
    assert service.closed()


def test_corrupt_state_while_waiting(service: Service, state: Path) -> None:
    """A state that cannot be read any more opens nothing, and is not *drained*."""
    busy, other = service.start(2)
    operator = service.settled()
    service.busy(busy, 1)
    later = operator.later(3)
    until(lambda: other.get("/fast") == 503)
    (state / "default.json").write_text('{"enabled": fal')
    report = later.result()
    assert report.outcome == "unknown", report
    assert service.closed()
    assert operator.drain().outcome == "drained"


def test_edited_by_hand_while_waiting(service: Service, state: Path) -> None:
    """Editing the state file opens the service, and supersedes the wait."""
    busy, other = service.start(2)
    operator = service.settled()
    service.busy(busy, 1)
    later = operator.later(5)
    until(lambda: other.get("/fast") == 503)
    (state / "default.json").write_text('{"enabled": false}')
    until(lambda: other.get("/fast") == 200)
    assert later.result().outcome == "superseded"


@needs_root
def test_counted_and_uncounted_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker that cannot be counted is not ignored beside one that can."""
    service.start()
    read_only = f"mount --bind {state} {state} && mount -o remount,bind,ro {state}"
    (aside,) = service.start(inside=_mounted(read_only))
    service.busy(aside, 30)
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    until(service.closed)
    service.kill(aside)
    assert operator.drain().outcome == "drained"


@needs_root
def test_read_only_directory(service: Service, operator: Operator, state: Path) -> None:
    """On a read-only file system a worker obeys, and counts as uncounted."""
    operator.on()
    operator.off()
    read_only = f"mount --bind {state} {state} && mount -o remount,bind,ro {state}"
    (worker,) = service.start(inside=_mounted(read_only))
    assert worker.get("/fast") == 200
    assert operator.drain(1).outcome == "unknown"
    # Nothing waits for a worker that is not counted.
    until(service.closed)
    operator.off()
    until(service.open)


@needs_root
def test_workers_of_different_users(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker of a user without rights obeys, and a drain does not ignore it."""
    service.start()
    (stranger,) = service.start(environment={"CHAOS_USER": str(NOBODY)})
    assert stranger.get("/fast") == 200
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    until(service.closed)


@needs_root
def test_foreign_owned_directory(service: Service, state: Path) -> None:
    """Another user's command is told that it cannot change the state."""
    service.start()
    answer = told(operate(service, 1, user=NOBODY))
    assert answer["error"].startswith("cannot set maintenance"), answer
    assert "run as the directory's owner" in answer["error"]


@needs_root
def test_directory_of_another_user(service: Service, state: Path) -> None:
    """A command run by root stays out of the directory of a service's own user."""
    os.chown(state.parent, NOBODY, NOBODY)
    (worker,) = service.start(environment={"CHAOS_USER": str(NOBODY)})
    made = sorted(state.rglob("*"))
    line = [sys.executable, "-m", "fastapi_maintenance", "on", "--store", service.url]
    done = subprocess.run(
        line,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 14, done
    assert "sudo -u" in done.stderr
    assert {path.stat().st_uid for path in (state, *made)} == {NOBODY}
    answer = told(operate(service, 8, user=NOBODY))
    assert answer["outcome"] == "drained", answer
    assert worker.get("/fast") == 503


@needs_root
def test_full_directory(service: Service, state: Path) -> None:
    """On a full disk the present state stands; with room again it can be set."""
    state.mkdir()
    small = f"mount -t tmpfs -o size=64k none {state}"
    (worker,) = service.start(inside=_mounted(small))
    inside = ["nsenter", "-m", "-t", str(worker.pid)]
    fill = [*inside, "dd", "if=/dev/zero", f"of={state}/full", "bs=1k"]
    assert subprocess.run(fill, capture_output=True, check=False).returncode != 0
    answer = told(operate(service, 1, inside=inside))
    assert "no space left on device" in answer["error"], answer
    assert worker.get("/fast") == 200
    subprocess.run([*inside, "rm", f"{state}/full"], check=True)
    # A worker that could not report is counted again within a second.
    until(lambda: drained(service, inside))
    assert worker.get("/fast") == 503


@needs_root
def test_hidden_proc(service: Service) -> None:
    """Without the process table, the locks of a directory prove who is gone."""
    worker, victim = service.start(2)
    service.settled()
    service.busy(worker, 4)
    service.busy(victim, 30)
    hidden = _mounted("mount -t tmpfs none /proc")
    answer = told(operate(service, 0.5, inside=hidden))
    assert answer["outcome"] == "busy", answer
    service.kill(victim)
    answer = told(operate(service, 10, inside=hidden))
    assert answer["outcome"] == "drained", answer
    assert not service.running("slow")


def test_new_release_directory(service: Service, tmp_path: Path) -> None:
    """Workers move to the directory of a new release, and copy the state to it."""
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
    assert deployer.drain(1.5).outcome in {"lost", "too_few"}
    until((releases[1] / "state" / "default.json").exists)
    assert worker.get("/fast") == 503
    other.signal(signal.SIGCONT)
    assert other.get("/fast") == 503
    until(lambda: deployer.drain(1.5).outcome == "lost")
    report = deployer.drain(workers=2)
    assert report.outcome == "drained", report


def drained(service: Service, inside: list[str]) -> bool:
    """Tell whether a drain from a process of its own ends well."""
    answer = told(operate(service, 5, inside=inside))
    return answer.get("outcome") == "drained"


def copy_readable(source: str, target: str) -> None:
    """Copy a file, unless it has gone since it was listed."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _swap(link: Path, target: Path) -> None:
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


def _mounted(command: str) -> list[str]:
    """Return what runs a command in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-c", f'{command} && exec "$@"', "sh"]
