"""Directories and files that vanish, break, fill up and belong to another user."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastapi_maintenance import StoreError
from tests.chaos.harness import HERE, ROOT, Operator, Service, until

pytestmark = pytest.mark.chaos

NOBODY = 65534

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: other users, mounts"
)


def remove(folder: Path) -> None:
    """Remove a directory, whatever workers put back into it."""

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
    """Workers whose reports were deleted come back, and are waited for as before."""
    busy, _ = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=2.5")
    until(lambda: service.running("slow"))
    later = operator.later()
    remove(state / "run")
    later.looks_again("busy")
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 1
    # Another coordinator has not seen who was there.
    report = operator.drain()
    assert report.outcome == "lost", report
    assert report.seconds < 1
    assert "--workers N" in report.reason
    # The woken worker reports first, and testifies right after it.
    until(lambda: operator.drain(workers=2).drained and operator.drain().drained)


@pytest.mark.parametrize("what", ["run", "."], ids=["reports", "everything"])
def test_deleted_again_and_again(
    service: Service, operator: Operator, state: Path, what: str
) -> None:
    """Deletions in the middle of looks hide no request from any coordinator."""
    busy, _ = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=4")
    until(lambda: service.running("slow"))
    operator.on()
    told: list[str] = []

    def drain() -> None:
        with contextlib.suppress(StoreError):
            told.append(Operator(service).drain(1).outcome)

    while service.running("slow"):
        threads = [threading.Thread(target=drain) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            remove(state / what)
            time.sleep(0.01)
        for thread in threads:
            thread.join()
    assert "drained" not in told[:-3]
    until(lambda: operator.drain(workers=2).outcome == "drained")
    assert busy.get("/fast") == 503


def test_deleted_run_directory_and_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker that cannot come back is never passed over."""
    sleeper, other = service.start(2)
    operator.settle(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    remove(state / "run")
    # No list is no answer, and one that was made again is not complete.
    assert operator.drain(2).outcome in {"lost", "too_few"}
    until(lambda: list(state.glob(f"run/default/{other.pid}-*.json")))
    report = operator.drain(30)
    assert report.outcome == "lost", report
    assert report.seconds < 2
    assert "--workers N" in report.reason
    assert operator.drain(2, workers=2).outcome == "too_few"
    sleeper.signal(signal.SIGCONT)
    report = operator.drain(workers=2)
    assert report.outcome == "drained", report
    assert operator.drain().outcome == "drained"


def test_deleted_run_directory_and_cold_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A list that a new worker makes after a loss is not complete for long."""
    service.start(2)
    operator.settle(2)
    (first,) = service.instances[:1]
    first.begin("/slow?seconds=6")
    until(lambda: service.running("slow"))
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
    """A state that was deleted under maintenance is written back, and holds."""
    first, second = service.start(2)
    assert operator.drain().outcome == "drained"
    assert first.get("/fast") == second.get("/fast") == 503
    with service.load(served=False):
        remove(state)
        until((state / "default.json").exists)
        assert json.loads((state / "default.json").read_text())["message"] == "chaos"
    assert first.get("/fast") == second.get("/fast") == 503
    operator.off()
    until(lambda: first.get("/fast") == second.get("/fast") == 200)


def test_deleted_state_directory_while_waiting(
    service: Service, operator: Operator, state: Path
) -> None:
    """A wait that saw all workers outlives the loss of everything."""
    busy, other = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=2.5")
    until(lambda: service.running("slow"))
    later = operator.later()
    until(lambda: other.get("/fast") == 503)
    remove(state)
    later.looks_again("busy")
    report = later.result()
    assert report.outcome == "drained", report
    assert report.seconds > 1
    assert busy.get("/fast") == other.get("/fast") == 503


def test_deleted_state_directory_and_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A new directory knows nothing, and yet no worker of the old one is forgotten."""
    sleeper, other = service.start(2)
    operator.settle(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    remove(state)
    assert operator.drain(2).outcome in {"lost", "too_few"}
    until(lambda: list(state.glob(f"run/default/{other.pid}-*.json")))
    assert operator.drain(2).outcome == "lost"
    assert other.get("/fast") == 503
    sleeper.signal(signal.SIGCONT)
    until(lambda: not service.running("slow"))
    report = operator.drain(workers=2)
    assert report.outcome == "drained", report
    assert sleeper.get("/fast") == 503


def test_restored_state_directory(
    service: Service, operator: Operator, state: Path, tmp_path: Path
) -> None:
    """A backup that is put back does not open what was closed since."""
    busy, other = service.start(2)
    operator.settle(2)
    shutil.copytree(state, tmp_path / "backup", copy_function=copy_readable)
    busy.begin("/slow?seconds=2.5")
    until(lambda: service.running("slow"))
    later = operator.later()
    until(lambda: other.get("/fast") == 503)
    with service.load(served=False):
        remove(state)
        with contextlib.suppress(shutil.Error):
            shutil.copytree(tmp_path / "backup", state, dirs_exist_ok=True)
        report = later.result()
        assert report.outcome in {"drained", "superseded"}, report
        until(lambda: '"enabled": true' in (state / "default.json").read_text())
    assert busy.get("/fast") == other.get("/fast") == 503


def test_deleted_report_of_stopped_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A report that a cleaner deleted is not taken for a worker that has left."""
    sleeper, _ = service.start(2)
    operator.settle(2)
    sleeper.begin("/slow?seconds=0.5")
    until(lambda: service.running("slow"))
    sleeper.signal(signal.SIGSTOP)
    (report_file,) = state.glob(f"run/default/{sleeper.pid}-*.json")
    report_file.unlink()
    report = operator.drain(1)
    assert report.outcome == "lost", report
    assert f"forget {sleeper.pid}-" in report.reason
    sleeper.signal(signal.SIGCONT)
    until(report_file.exists)
    assert operator.drain(workers=2).outcome == "drained"


def test_deleted_locks(service: Service, operator: Operator, state: Path) -> None:
    """A lock file that a cleaner deleted proves no death, and comes back."""
    busy, _ = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=3")
    until(lambda: service.running("slow"))
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
def test_truncated_list_of_workers(
    service: Service, operator: Operator, state: Path, size: int
) -> None:
    """A truncated list ends no worker, hides no request and opens nothing."""
    first, second = service.start(2)
    operator.settle(2)
    first.begin("/slow?seconds=2")
    until(lambda: service.running("slow"))
    with service.load():
        later = operator.later()
        os.truncate(state / "run" / "default" / "members.json", size)
        report = later.result()
        assert report.outcome == "drained", report
        # Another coordinator has not seen who was there.
        until(lambda: operator.drain().outcome == "lost")
        report = operator.drain(workers=2)
        assert report.outcome == "drained", report
    assert first.get("/fast") == second.get("/fast") == 503


@pytest.mark.parametrize("size", [0, 20])
def test_truncated_reports(
    service: Service, operator: Operator, state: Path, size: int
) -> None:
    """A truncated report says nothing until its worker repeats it."""
    first, second = service.start(2)
    operator.settle(2)
    first.begin("/slow?seconds=2")
    until(lambda: service.running("slow"))
    later = operator.later()
    for path in state.glob("run/default/*-*.json"):
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, size)
    report = later.result()
    assert report.outcome == "drained", report
    assert first.get("/fast") == second.get("/fast") == 503


def test_corrupt_state_while_waiting(
    service: Service, operator: Operator, state: Path
) -> None:
    """A state that cannot be read any more opens nothing, and is not *drained*."""
    busy, other = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=1")
    until(lambda: service.running("slow"))
    later = operator.later(3)
    until(lambda: other.get("/fast") == 503)
    (state / "default.json").write_text('{"enabled": fal')
    report = later.result()
    assert report.outcome == "unknown", report
    assert busy.get("/fast") == other.get("/fast") == 503
    assert operator.drain().outcome == "drained"


def test_edited_by_hand_while_waiting(
    service: Service, operator: Operator, state: Path
) -> None:
    """A person who opens it in the state file is obeyed, and the wait says so."""
    busy, other = service.start(2)
    operator.settle(2)
    busy.begin("/slow?seconds=1")
    until(lambda: service.running("slow"))
    later = operator.later(5)
    until(lambda: other.get("/fast") == 503)
    (state / "default.json").write_text('{"enabled": false}')
    until(lambda: other.get("/fast") == 200)
    assert later.result().outcome == "superseded"


@as_root
def test_counted_and_uncounted_worker(
    service: Service, operator: Operator, state: Path
) -> None:
    """A worker that cannot be counted is not passed over beside one that can."""
    service.start()
    read_only = f"mount --bind {state} {state} && mount -o remount,bind,ro {state}"
    (aside,) = service.start(inside=_mounted(read_only))
    aside.begin("/slow?seconds=30")
    until(lambda: service.running("slow"))
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    # It does not acknowledge, so that the wait does not wait for it.
    until(lambda: aside.get("/fast") == 503)
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
    """A worker of a user without rights obeys, and a drain does not pass over it."""
    service.start()
    (stranger,) = service.start(environment={"CHAOS_USER": str(NOBODY)})
    assert stranger.get("/fast") == 200
    report = operator.drain(1)
    assert report.outcome == "unknown", report
    assert stranger.get("/fast") == 503


@as_root
def test_foreign_owned_directory(service: Service, state: Path) -> None:
    """Another user's command is told that it cannot set anything."""
    service.start()
    told = _operate(["--timeout", "1"], service, user=NOBODY)
    assert told["error"].startswith("cannot set maintenance"), told
    assert "run as the directory's owner" in told["error"]


@as_root
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
    told = _operate(["--timeout", "8"], service, user=NOBODY)
    assert told["outcome"] == "drained", told
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
    # A worker that could not report is counted again within a second.
    until(lambda: drained(service, inside))
    assert worker.get("/fast") == 503


@as_root
def test_hidden_proc(service: Service, operator: Operator) -> None:
    """Without the process table, the locks of a directory prove who is gone."""
    worker, victim = service.start(2)
    operator.settle(2)
    worker.begin("/slow?seconds=4")
    victim.begin("/slow?seconds=30")
    until(lambda: service.running("slow", 2))
    hidden = _mounted("mount -t tmpfs none /proc")
    told = _operate(["--timeout", "0.5"], service, inside=hidden)
    assert told["outcome"] == "busy", told
    service.kill(victim)
    told = _operate(["--timeout", "10"], service, inside=hidden)
    assert told["outcome"] == "drained", told
    assert not service.running("slow")


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
    told = _operate(["--timeout", "5"], service, inside=inside)
    return told.get("outcome") == "drained"


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
