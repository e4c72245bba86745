"""The roster of a directory: whoever is missing from it is not forgotten."""

import os
import stat
from pathlib import Path

import pytest

from fastapi_maintenance.state import MaintenanceState
from fastapi_maintenance.stores import StoreError
from fastapi_maintenance.stores._descriptors import drop, keep
from fastapi_maintenance.stores._disk import try_lock, write_atomic
from fastapi_maintenance.stores._epoch import EpochFile
from fastapi_maintenance.stores._presence import UNCOUNTED, announce, announced
from fastapi_maintenance.stores._process import ProcessIdentity
from fastapi_maintenance.stores._rundir import RunDirectory
from fastapi_maintenance.stores._slots import Slot, slot_path
from tests.stores.children import NOBODY, in_child, living_child, needs_root
from tests.stores.test_disk import inside

WORKER = f"{os.getpid()}-ab"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that is there."""
    made = RunDirectory(tmp_path / "state", tmp_path / "state/run")
    assert made.prepare() == ""
    return made


def enlisted(run: RunDirectory, worker: str = WORKER) -> Slot:
    """Add the row of a worker."""
    with run.writing():
        epoch = run.open_epoch("default")
        epoch.close()
        return Slot(
            slot_path(run.run_dir, "default", worker),
            ProcessIdentity.own(),
            generation=epoch.generation,
            current=0,
            old=0,
        )


def test_prepare_makes_what_is_missing(run: RunDirectory) -> None:
    """The state can be read by all, the rows only by the service, git by nobody."""
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o755
    assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700
    assert (run.path / ".gitignore").read_text() == "*\n"
    (run.path / ".gitignore").unlink()
    assert run.prepare() == ""
    assert not (run.path / ".gitignore").exists()


@pytest.mark.parametrize("place", ["state", "state/run"])
def test_prepare_refuses_another_file_in_its_place(tmp_path: Path, place: str) -> None:
    """What is there already is not touched."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("precious")
    with pytest.raises(NotADirectoryError):
        RunDirectory(tmp_path / "state", tmp_path / "state/run").prepare()
    assert (tmp_path / place).read_text() == "precious"


@needs_root
def test_prepare_refuses_locks_that_prove_nothing(tmp_path: Path) -> None:
    """On a file system whose locks are not the kernel's own, nobody is counted."""
    code = """
import sys, pathlib
from fastapi_maintenance.stores._rundir import RunDirectory
run = RunDirectory(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]) / "run")
print(run.prepare())
print(run.roster("default").uncounted)
"""
    # Who cannot see the mounts knows nothing of them.
    done = inside("mount -t tmpfs none /proc", code, tmp_path / "state")
    assert done.stdout == ("locks on a unknown file system prove nothing\nTrue\n"), (
        done.stderr
    )


def test_first_roster_is_whole(run: RunDirectory) -> None:
    """Where there was none, none was lost."""
    row = enlisted(run)
    roster = run.roster("default")
    assert roster.whole
    assert [found.id for found in roster.rows] == [WORKER]
    assert not roster.uncounted
    row.remove()


def test_roster_without_a_directory(tmp_path: Path) -> None:
    """A directory that is not there has no workers, and lost none."""
    roster = RunDirectory(tmp_path / "state", tmp_path / "state/run").roster("default")
    assert (roster.rows, roster.generation, roster.whole) == ((), "", True)
    assert not (tmp_path / "state").exists()


def test_deleted_roster_is_not_whole(run: RunDirectory) -> None:
    """The trace beside the state says that this boot had one."""
    row = enlisted(run)
    for path in (*run.run_dir.iterdir(), run.run_dir):
        path.rmdir() if path.is_dir() else path.unlink()
    assert not run.roster("default").whole
    run.prepare()
    assert not run.roster("default").whole
    row.remove()


def test_roster_of_another_boot_leaves_no_doubt(run: RunDirectory) -> None:
    """A restart has ended all who were in it."""
    write_atomic(run.path / "default.roster", b"another boot", 0o644)
    assert run.roster("default").whole


def test_trace_that_cannot_be_read_leaves_doubt(run: RunDirectory) -> None:
    """There was something, and nobody knows what."""
    (run.path / "default.roster").mkdir()
    assert not run.roster("default").whole


@needs_root
def test_service_need_not_own_the_state(tmp_path: Path) -> None:
    """Where root alone sets the state, the trace is left by whoever can."""
    tmp_path.chmod(0o755)
    run = RunDirectory(tmp_path / "state", tmp_path / "run")
    run.prepare()
    os.chown(run.run_dir, NOBODY, NOBODY)
    with run.writing():
        run.leave_trace("default")
        before = (run.path / "default.roster").stat().st_ino
        run.leave_trace("default")
    assert (run.path / "default.roster").stat().st_ino == before


def test_epoch_begins_above_what_is_known(run: RunDirectory) -> None:
    """Neither the state nor a row has seen a larger one."""
    row = enlisted(run)
    row.seen(50)
    epoch = run.run_dir / "default.epoch"
    os.truncate(epoch, 0)
    assert run.roster("default").epoch == 50
    epoch.unlink()
    write_atomic(
        run.state_path("default"), MaintenanceState(epoch=60).to_json().encode(), 0o644
    )
    assert run.roster("default").epoch == 60
    epoch.unlink()
    run.state_path("default").write_text("{")
    assert run.roster("default").epoch == 50
    row.remove()


def test_vanished_row_is_shown_dead_once(run: RunDirectory) -> None:
    """A process that has ended needs no row to be known as dead."""
    with living_child(lambda: enlisted(run, "7-ab")) as end:
        assert [row.liveness for row in run.roster("default").rows] == ["alive"]
        (run.run_dir / "default.7-ab.slot").unlink()
        assert run.roster("default").rows == ()
        assert run.roster("other").rows == ()
        end()
        assert [row.liveness for row in run.roster("default").rows] == ["dead"]
        assert run.roster("default").rows == ()


def test_announced_worker_without_a_row_is_lost(run: RunDirectory) -> None:
    """A row that somebody deleted is not one that left."""
    row = enlisted(run)
    name = announce(run.path, "default", WORKER, run.digest)
    assert name is not None
    assert [found.liveness for found in run.roster("default").rows] == ["alive"]
    row.path.unlink()
    (ghost,) = run.roster("default").rows
    assert (ghost.id, ghost.pid, ghost.liveness) == (WORKER, os.getpid(), "lost")
    assert run.roster("other").rows == ()
    drop(name)
    assert run.roster("default").rows == ()
    row.remove()


def test_announced_worker_without_a_directory_is_lost(tmp_path: Path) -> None:
    """A new release's directory does not know the workers of the old one."""
    run = RunDirectory(tmp_path / "state", tmp_path / "state/run")
    name = announce(run.path, "default", WORKER, run.digest)
    assert name is not None
    roster = run.roster("default")
    assert [row.liveness for row in roster.rows] == ["lost"]
    assert not roster.whole
    drop(name)


@pytest.mark.parametrize("counted_in", [UNCOUNTED, "0123456789"])
def test_announced_worker_elsewhere_is_uncounted(
    run: RunDirectory, counted_in: str
) -> None:
    """Who has no row, or one in another run directory, is beyond this roster."""
    name = announce(run.path, "default", WORKER, counted_in)
    assert name is not None
    roster = run.roster("default")
    assert (roster.rows, roster.uncounted) == ((), True)
    drop(name)
    assert not run.roster("default").uncounted


def test_announcement_lasts_as_long_as_its_process(run: RunDirectory) -> None:
    """Neither a killed worker nor a forked child holds one."""
    with living_child(lambda: announce(run.path, "default", "7-ab", run.digest)):
        assert [found.pid for found in announced(run.path, "default")] == [7]
    assert list(announced(run.path, "default")) == []
    name = announce(run.path, "default", WORKER, run.digest)
    assert name is not None
    with living_child(lambda: True):
        drop(name)
        assert list(announced(run.path, "default")) == []


def test_announcement_needs_a_list(run: RunDirectory, tmp_path: Path) -> None:
    """Where there is no list of names, rows are all there is."""
    assert list(announced(run.path, "default", tmp_path / "none")) == []
    name = announce(run.path, "default", WORKER, run.digest)
    assert name is not None
    assert announce(run.path, "default", WORKER, run.digest) is None  # It is taken.
    drop(name)


@pytest.mark.parametrize("folder", ["state", "state/run"])
def test_uncounted_worker_is_seen_by_its_lock(run: RunDirectory, folder: str) -> None:
    """Whoever holds the directory shared makes every answer *unknown*."""
    if folder == "state":
        run.run_dir.rmdir()
    descriptor = keep(lambda: os.open(run.path, os.O_RDONLY))
    assert not run.roster("default").uncounted
    assert try_lock(descriptor, shared=True)
    assert run.roster("default").uncounted
    drop(descriptor)
    assert not run.roster("default").uncounted


@needs_root
def test_roster_of_another_user_is_an_error(run: RunDirectory, tmp_path: Path) -> None:
    """Never fewer rows, and never none, for somebody who may not look."""
    directory = os.open(run.run_dir.parent, os.O_RDONLY)

    def denied() -> bool:
        os.fchdir(directory)
        here = RunDirectory(Path(), Path("run"))
        with pytest.raises(PermissionError):
            here.roster("default")
        return True

    assert in_child(denied, user=NOBODY)
    os.close(directory)
    assert tmp_path.exists()


def test_complete_speaks_of_the_roster_that_was_judged(run: RunDirectory) -> None:
    """A roster that was made anew meanwhile is not the one that a person meant."""
    (run.path / "default.roster").touch()
    judged = run.roster("default")
    assert not judged.whole
    EpochFile.create(run.run_dir / "default.epoch", 1, whole=False)
    present = run.roster("default")  # Somebody else looks before the word is stored.
    run.complete("default", judged.generation)
    assert not run.roster("default").whole
    run.complete("default", present.generation)
    assert run.roster("default").whole


def test_forget_removes_one_row(run: RunDirectory) -> None:
    """An id is no path."""
    first, second = enlisted(run, "1-ab"), enlisted(run, "2-ab")
    run.forget("default", "1-ab")
    assert [row.id for row in run.roster("default").rows] == ["2-ab"]
    with pytest.raises(StoreError, match="no worker has this id"):
        run.forget("default", "../default.2-ab")
    first.remove()
    second.remove()


def test_forget_refuses_whoever_is_there(run: RunDirectory) -> None:
    """A process that runs would be in the next roster: nothing is forgotten."""
    row = enlisted(run)
    name = announce(run.path, "default", WORKER, run.digest)
    assert name is not None
    for _ in range(2):
        with pytest.raises(StoreError, match=f"process {os.getpid()} still runs; stop"):
            run.forget("default", WORKER)
        assert [found.id for found in run.roster("default").rows] == [WORKER]
        row.path.unlink(missing_ok=True)
    drop(name)
    run.forget("default", WORKER)
    assert run.roster("default").rows == ()
    row.remove()
