"""The directory store: what it keeps, what it refuses, and what outlives a loss."""

import contextlib
import errno
import gc
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from filelock import lock_descriptor

from fastapi_maintenance import (
    FileStore,
    MaintenanceState,
    StoreError,
    files,
    locks,
    open_store,
)
from fastapi_maintenance.changes import EnableOptions, with_new_epoch
from fastapi_maintenance.fence import DrainReport, Roster, WorkerReport
from fastapi_maintenance.processes import ProcessIdentity
from fastapi_maintenance.stores import CannotJoinError
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.guards import switch_of
from tests.stores.children import NOBODY, in_child, living_child, needs_root
from tests.waiting import until

ON = MaintenanceState(enabled=True, message="closed")
OFF = MaintenanceState()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A store that has not been used yet."""
    return FileStore(tmp_path / "state")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def publish(store: FileStore, state: MaintenanceState) -> MaintenanceState:
    """Publish a state under a new epoch."""
    return store.publish("default", with_new_epoch(lambda _: state))


def write(store: FileStore, text: str) -> None:
    """Write the state file by hand."""
    store.state_path("default").write_text(text)


def report(worker: str = "1-a", generation: str | None = None) -> WorkerReport:
    """Return a report of which only a lock can prove anything."""
    return WorkerReport(id=worker, host="here", pid=0, generation=generation)


@contextmanager
def joined(store: FileStore, name: str = "default") -> Iterator[Switch]:
    """Be a worker for the time of a block."""
    switch = switch_of(store, name)
    switch._follower.add_user()
    switch._follower.join()
    try:
        yield switch
    finally:
        switch._follower.leave()


def joined_for_good(store: FileStore) -> Switch:
    """Join in a child, which will be killed."""
    switch = switch_of(store)
    switch._follower.add_user()
    switch._follower.join()
    return switch


def drain(
    store: FileStore, timeout: float = 10, workers: int | None = None
) -> DrainReport:
    """Switch on and drain, as a command does."""
    switch = switch_of(store)
    options = DrainOptions(timeout=timeout, workers=workers)

    async def run() -> DrainReport:
        return await switch.drain(options, enable=EnableOptions())

    return anyio.run(run)


def is_on(switch: Switch) -> bool:
    """Admit work, and tell whether it would be refused."""
    admission = switch.worker.admit("work")
    assert admission is not None
    admission.release()
    return admission.state.enabled


def delete(path: Path) -> None:
    """Delete a directory while workers write into it."""
    inode = path.stat().st_ino
    while path.exists() and path.stat().st_ino == inode:
        shutil.rmtree(path, ignore_errors=True)


def mode_of(path: Path) -> int:
    """Return the rights of a file."""
    return stat.S_IMODE(path.stat().st_mode)


# The state.


def test_store_touches_nothing_before_its_first_use(tmp_path: Path) -> None:
    """Making one, reading it and looking for workers leaves no trace."""
    store = FileStore(tmp_path / "state")
    assert not store.exists
    assert store.read("default") is None
    assert store.roster("default") == Roster(complete=False)
    assert store.confirm("default", "", complete=False) == ""
    store.remove("default", "1-a")
    assert repr(store) == f"FileStore('{tmp_path}/state')"
    assert list(tmp_path.iterdir()) == []


def test_store_stays_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the working directory does not move the switch."""
    monkeypatch.chdir(tmp_path)
    store = FileStore()
    monkeypatch.chdir("/")
    assert store.path == tmp_path / ".fastapi-maintenance"
    assert store.run_dir == tmp_path / ".fastapi-maintenance/run"
    assert store.location == str(tmp_path / ".fastapi-maintenance")
    elsewhere = FileStore("/srv/shop", run_dir="/run/shop")
    assert elsewhere.location == "/srv/shop (reports in /run/shop)"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_store_needs_a_path(path: str) -> None:
    """What can be no path is an error at once."""
    with pytest.raises(ValueError, match="must name a directory"):
        FileStore(path)
    if path:
        with pytest.raises(ValueError, match="must name a directory"):
            FileStore("a", run_dir=path)


@pytest.mark.parametrize(
    ("url", "path", "run_dir"),
    [
        ("file:state", "{here}/state", "{here}/state/run"),
        ("file:/srv/a%20b", "/srv/a b", "/srv/a b/run"),
        ("file:///srv/shop?run_dir=/run/shop", "/srv/shop", "/run/shop"),
        ("file:///srv/shop?run_dir=", "/srv/shop", "/srv/shop/run"),
        ("file:/srv/a+b?run_dir=/run/a+b%20c", "/srv/a+b", "/run/a+b c"),
        ("file:c:/shop", "{here}/c:/shop", "{here}/c:/shop/run"),
    ],
)
def test_url_names_a_directory(
    url: str, path: str, run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL has a path as a shell has it, or an absolute one after three slashes."""
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    assert isinstance(store, FileStore)
    assert str(store.path) == path.format(here=tmp_path)
    assert str(store.run_dir) == run_dir.format(here=tmp_path)


@pytest.mark.parametrize(
    "url",
    ["file:", "file://", "file://host/srv", "file:a?b=c", "file:a?run_dir=a&run_dir=b"],
)
def test_url_that_names_no_directory(url: str) -> None:
    """A mistake in a URL is an error with both forms."""
    with pytest.raises(ValueError, match=r"use file:PATH or file:///ABSOLUTE"):
        open_store(url)


def test_publish_makes_what_a_state_needs(tmp_path: Path) -> None:
    """Missing parents are made, with exact rights, and nothing among the reports."""
    store = FileStore(tmp_path / "parent/state")
    before = os.umask(0o077)
    try:
        first = publish(store, ON)
    finally:
        os.umask(before)
    assert store.read("default") == first
    assert mode_of(store.path) == 0o755
    assert mode_of(store.state_path("default")) == 0o644
    assert (store.path / ".gitignore").read_text() == "*\n"
    assert sorted(path.name for path in store.path.iterdir()) == [
        *(".gitignore", "default.json", "default.lock")
    ]
    assert publish(store, OFF).epoch > first.epoch


def test_directory_of_other_programs_is_shared(tmp_path: Path) -> None:
    """What was there stays, and git goes on seeing it."""
    (tmp_path / "settings.json").write_text("precious")
    store = FileStore(tmp_path)
    with joined(store) as switch:
        (store.run_dir / "default/notes").write_text("precious")
        (store.run_dir / "default/a note.json").write_text("{}")
        publish(store, ON)
        until(lambda: is_on(switch))
        assert len(store.roster("default").workers) == 1
    assert not (tmp_path / ".gitignore").exists()
    assert (tmp_path / "settings.json").read_text() == "precious"
    assert (store.run_dir / "default/notes").read_text() == "precious"


def test_change_that_fails_passes_through(store: FileStore) -> None:
    """Errors of a change are its own, also those of the operating system."""

    def change(_: MaintenanceState | None) -> MaintenanceState:
        raise PermissionError("the operator's")

    with pytest.raises(PermissionError, match="the operator's"):
        store.publish("default", change)
    assert store.read("default") is None
    assert publish(store, ON).enabled


def test_publish_repairs_a_damaged_file(store: FileStore) -> None:
    """What cannot be understood counts as closed, and is replaced."""
    publish(store, ON)
    write(store, "{")
    with pytest.raises(StoreError, match=r"default.json.*repair it, or replace it"):
        store.read("default")
    seen: list[MaintenanceState | None] = []

    def change(before: MaintenanceState | None) -> MaintenanceState:
        seen.append(before)
        return OFF

    store.publish("default", with_new_epoch(change))
    assert seen[0] is not None
    assert seen[0].enabled
    assert store.read("default") is not None


@needs_root
def test_publish_changes_nothing_that_it_cannot_read(public: Path) -> None:
    """A state that this user may not read may be a hold of another one's."""
    store = FileStore(public / "state")
    before = publish(store, ON)
    store.state_path("default").chmod(0o600)
    (store.path / "default.lock").unlink()
    os.chown(store.path, NOBODY, NOBODY)

    def denied() -> bool:
        with pytest.raises(StoreError, match=r"permission denied .*default\.json"):
            publish(FileStore(store.path), OFF)
        return True

    assert in_child(denied, user=NOBODY)
    assert store.read("default") == before


def test_publish_removes_what_killed_writers_have_left(store: FileStore) -> None:
    """Temporary files go when they are an hour old, and nothing else does."""
    with joined(store):
        publish(store, ON)
    names = [".default.json.0123456789ab", ".default.json.of-yours", "default.json"]
    for folder in (store.path, store.run_dir / "default"):
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (0, 0))
        (folder / ".default.json.cdef01234567").touch()
    publish(store, OFF)
    with joined(store):
        pass
    for folder in (store.path, store.run_dir / "default"):
        left = {path.name for path in folder.iterdir()}
        assert names[0] not in left
        assert {*names[1:], ".default.json.cdef01234567"} <= left


def test_publish_keeps_what_a_newer_release_wrote(store: FileStore) -> None:
    """An older release does not replace what it does not understand."""
    publish(store, ON)
    write(store, '{"version": 9, "enabled": true}')
    with pytest.raises(StoreError, match="newer release"):
        publish(store, OFF)
    kept = store.read("default")
    assert kept is not None
    assert kept.version == 9


@pytest.mark.parametrize("place", ["state", "."])
def test_publish_where_it_cannot_is_one_line(tmp_path: Path, place: str) -> None:
    """A file in the place of the directory, or of its parent, is named and kept."""
    (tmp_path / "state").write_text("precious")
    store = FileStore(tmp_path / "state" / place)
    if place == ".":
        store = FileStore(tmp_path / "state/below")
    assert store.read("default") is None
    with pytest.raises(
        StoreError, match=r"cannot set maintenance in .*director.*choose another place"
    ):
        publish(store, ON)
    assert (tmp_path / "state").read_text() == "precious"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_publish_on_a_full_disk(store: FileStore) -> None:
    """The old state stands, nothing is left behind, and the reason is said."""
    publish(store, ON)

    def full() -> bool:
        with (
            full_disk(),
            pytest.raises(StoreError, match=r"file too large.*; repair that, or"),
        ):
            publish(store, OFF)
        return True

    assert in_child(full)
    kept = store.read("default")
    assert kept is not None
    assert kept.enabled
    assert len(list(store.path.iterdir())) == 3


def openings(inode: int) -> int:
    """Return how many locks of this process have a file open, held or waited for."""
    found = 0
    for one in tuple(locks._all_held):
        with contextlib.suppress(OSError):
            descriptor = one.descriptor
            found += descriptor is not None and os.fstat(descriptor).st_ino == inode
    return found


def test_writers_wait_for_each_other(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits too long is told so; one whose lock was deleted waits again."""
    publish(store, ON)
    lock = store.path / "default.lock"
    held = locks.HeldLock.lock(lock, 0)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "LOCK_TIMEOUT", 0.02)
        with pytest.raises(StoreError, match="another process holds the lock"):
            publish(store, OFF)
    done = threading.Thread(target=publish, args=(store, OFF))
    done.start()
    until(lambda: openings(lock.stat().st_ino) == 2)
    lock.unlink()
    held.release()
    done.join()
    kept = store.read("default")
    assert kept is not None
    assert not kept.enabled


def fifo(path: Path) -> None:
    """Make a pipe, which hangs a careless reader."""
    os.mkfifo(path)


def zeros(path: Path) -> None:
    """Make a link to a file without an end."""
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    """Make a link to nothing, which a careless writer makes into a file."""
    path.symlink_to(path.parent.parent / "made-by-mistake")


def huge(path: Path) -> None:
    """Make a file that is no state by its size alone."""
    path.write_text(" " * 65_536 + '{"enabled": true}')


def everyones(path: Path) -> None:
    """Make a state that everyone could have written."""
    path.write_text('{"enabled": false}')
    path.chmod(0o666)


def truncated(path: Path) -> None:
    """Make a state that was cut off."""
    path.write_text('{"enabled": tr')


HOSTILE = [fifo, zeros, dangling, Path.mkdir, huge, everyones, truncated, Path.touch]


@pytest.mark.parametrize("make", HOSTILE)
def test_state_that_is_not_trusted(
    store: FileStore, make: Callable[[Path], object]
) -> None:
    """It is an error, a cold worker refuses, and a running one keeps what it knew."""
    with joined(store) as switch:
        publish(store, ON)
        until(lambda: is_on(switch))
        path = store.state_path("default")
        path.unlink()
        make(path)
        with pytest.raises(StoreError, match=r"cannot read .*default\.json"):
            store.read("default")

        def cold() -> bool:
            with pytest.raises(StoreError, match="cannot read"):
                joined_for_good(FileStore(store.path))
            return True

        assert in_child(cold)
        assert is_on(switch)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not (store.path.parent / "made-by-mistake").exists()


# Hand edits.


def test_edit_by_hand_is_published(store: FileStore) -> None:
    """A text without an epoch is seen by itself, and gets one."""
    with joined(store) as switch:
        publish(store, OFF)
        for text in ('{"enabled": true, "message": "by hand"}', '{"enabled": false}'):
            before = switch.worker.state.epoch
            write(store, text)
            until(lambda text=text: is_on(switch) is json.loads(text)["enabled"])  # type: ignore[misc]  # a loop's own
            until(
                lambda: json.loads(store.state_path("default").read_text()).get("tag")
            )
            until(lambda before=before: switch.worker.state.epoch > before)  # type: ignore[misc]  # a loop's own
        assert drain(store).drained


def test_edit_that_keeps_its_epoch_is_published(store: FileStore) -> None:
    """One word changed in place is seen too, and gets another epoch."""
    with joined(store) as switch:
        first = publish(store, ON)
        until(lambda: is_on(switch))
        path = store.state_path("default")
        write(store, path.read_text().replace('"enabled": true', '"enabled": false'))
        until(lambda: not is_on(switch))
        assert switch.worker.state.epoch > first.epoch


def test_edit_with_a_larger_epoch_is_adopted(store: FileStore) -> None:
    """A configuration tool may count for itself."""
    with joined(store) as switch:
        publish(store, OFF)
        write(store, json.dumps({"enabled": True, "epoch": 1 << 52}))
        until(lambda: is_on(switch))
        assert switch.worker.state.epoch == 1 << 52


def test_removed_state_is_written_back(store: FileStore) -> None:
    """Removing the file opens nothing under a worker that knows it enabled."""
    with joined(store) as switch:
        state = publish(store, ON)
        until(lambda: is_on(switch))
        store.state_path("default").unlink()
        until(store.state_path("default").exists)
        assert store.read("default") == state
        assert is_on(switch)


def test_state_from_a_backup_is_replaced(store: FileStore) -> None:
    """An older publication that is put back is not a new one."""
    with joined(store) as switch:
        publish(store, OFF)
        old = store.state_path("default").read_text()
        until(lambda: switch.worker.state.epoch)
        state = publish(store, ON)
        until(lambda: is_on(switch))
        write(store, old)
        until(lambda: store.read("default") == state)
        assert is_on(switch)


def test_mounted_configuration_is_read_through_its_links(store: FileStore) -> None:
    """A ConfigMap stays the link that it is, is obeyed, and makes drains impossible."""
    for turn, text in enumerate(('{"enabled": false}', '{"enabled": true}')):
        (store.path / f"..{turn}").mkdir(parents=True)
        (store.path / f"..{turn}/default.json").write_text(text)
    (store.path / "..data").symlink_to("..0")
    path = store.state_path("default")
    path.symlink_to("..data/default.json")
    with joined(store) as switch:
        assert not is_on(switch)
        (store.path / "..next").symlink_to("..1")
        (store.path / "..next").replace(store.path / "..data")
        until(lambda: is_on(switch))
        with pytest.raises(StoreError, match="is a link, such as a ConfigMap's"):
            publish(store, OFF)
        until(lambda: [w.uncounted for w in store.roster("default").workers] == [1])
        (store.path / "..next").symlink_to("..0")
        (store.path / "..next").replace(store.path / "..data")
        until(lambda: not is_on(switch))
    assert path.is_symlink()


# Workers.


def test_worker_joins_and_leaves(store: FileStore) -> None:
    """A report is private, and a worker that has left leaves nothing but the roster."""
    with joined(store) as switch:
        folder = store.run_dir / "default"
        assert mode_of(store.run_dir) == mode_of(folder) == 0o700
        assert mode_of(folder / f"{switch.worker.id}.json") == 0o600
        roster = store.roster("default")
        assert roster.members == {switch.worker.id}
        assert roster.complete
        assert drain(store).drained
    roster = store.roster("default")
    assert (roster.members, roster.workers, roster.complete) == (frozenset(), (), True)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "members.json"]


def test_two_stores_of_one_place_share_a_worker(tmp_path: Path) -> None:
    """A process is one worker of a switch, however its directory is spelt."""
    one = Switch(FileStore(tmp_path / "a/../state"), "default")
    other = Switch(FileStore(tmp_path / "state"), "default")
    assert one.worker is other.worker
    assert Switch(FileStore(tmp_path / "state"), "pay").worker is not one.worker
    one._follower.add_user()
    one._follower.join()
    assert len(other.store.roster("default").workers) == 1  # type: ignore[attr-defined]  # a directory
    one._follower.leave()


def test_busy_worker_of_another_process_is_waited_for(store: FileStore) -> None:
    """A drain is busy while older work runs elsewhere, and drained after it."""

    def work() -> object:
        switch = joined_for_good(FileStore(store.path))
        admission = switch.worker.admit("POST /orders")
        assert admission is not None
        threading.Timer(0.4, admission.release).start()
        return switch

    with living_child(work):
        report = drain(store, timeout=0.1)
        assert report.outcome == "busy"
        assert "POST /orders" in report.reason
        assert drain(store).drained


def test_killed_worker_is_proven_dead(store: FileStore) -> None:
    """Its lock is enough, and it is taken off the list."""
    with living_child(lambda: store.report("default", report())) as end:
        (worker,) = store.roster("default").workers
        assert worker.liveness == "alive"
        end()
        (worker,) = store.roster("default").workers
        assert worker.liveness == "dead"
    anyio.run(switch_of(store).roster)
    assert store.roster("default").members == frozenset()
    assert not list((store.run_dir / "default").glob("1-a.*"))


def test_lock_of_another_kernel_proves_nothing(store: FileStore) -> None:
    """A guest's lock on a shared folder may be invisible here."""
    far = ProcessIdentity(boot="another", machine="another")
    store.report("default", report().model_copy(update={"process": str(far)}))
    store._held["default", "1-a"].release()
    (worker,) = store.roster("default").workers
    assert worker.liveness == "alive"


def test_worker_that_has_said_nothing_for_long_is_silent(store: FileStore) -> None:
    """Silence is shown, and proves nothing."""
    store.report("default", report())
    os.utime(store.run_dir / "default/1-a.json", (0, 0))
    (worker,) = store.roster("default").workers
    assert worker.liveness == "silent"
    assert worker.age > 3


def test_cleaned_locks_do_not_make_a_worker_dead(store: FileStore) -> None:
    """A lock that was removed under a living worker is made again, and proves again."""
    with living_child(lambda: joined_for_good(FileStore(store.path))) as end:
        (lock,) = (store.run_dir / "default").glob("*-*.lock")
        lock.unlink()
        assert store.roster("default").workers[0].liveness == "alive"
        lock.touch(0o600)
        assert store.roster("default").workers[0].liveness == "alive"
        lock.unlink()
        until(lock.exists)
        inode = lock.stat().st_ino
        until(lambda: store.roster("default").workers[0].lock == inode)
        assert store.roster("default").workers[0].liveness == "alive"
        end()
        assert store.roster("default").workers[0].liveness == "dead"


def test_lock_is_replaced_before_the_old_one_is_released(store: FileStore) -> None:
    """At no moment does a report name a lock that is free."""
    store.report("default", report())
    earlier = store._held["default", "1-a"]
    (store.run_dir / "default/1-a.lock").unlink()
    assert store.report("default", report()).replaced
    assert earlier.descriptor is None
    assert store._held["default", "1-a"].inode != earlier.inode


def test_probe_makes_nothing(tmp_path: Path) -> None:
    """Whether a lock is free is found out without making a file."""
    assert not locks.is_free(tmp_path / "gone/1-a.lock", 1)
    assert not locks.is_free(tmp_path / "1-a.lock", 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "1-a.lock").touch()
    inode = (tmp_path / "1-a.lock").stat().st_ino
    assert locks.is_free(tmp_path / "1-a.lock", inode)
    assert not locks.is_free(tmp_path / "1-a.lock", inode + 1)


@pytest.mark.parametrize("make", [*HOSTILE, lambda path: path.write_text("{}")])
def test_report_that_cannot_be_read_is_a_worker(
    store: FileStore, make: Callable[[Path], object]
) -> None:
    """It is shown as one that has said nothing, so that no drain overlooks it."""
    with joined(store):
        folder = store.run_dir / "default"
        path = folder / "7-b.json"
        make(path)
        workers = {worker.id: worker for worker in store.roster("default").workers}
        assert (workers["7-b"].host, workers["7-b"].seen) == ("unknown", 0)
        assert drain(store, timeout=0).outcome in {"busy", "lost"}
        path.rmdir() if path.is_dir() else path.unlink()


def test_roster_that_changes_is_read_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look sees the reports of the list that it returns, or looks again."""
    store.report("default", report())
    names = os.listdir

    def listed(path: str) -> list[str]:
        found = names(path)
        monkeypatch.undo()
        store.report("default", report("2-b"))
        store.remove("default", "1-a")
        return found

    monkeypatch.setattr(os, "listdir", listed)
    roster = store.roster("default")
    assert roster.members == {"2-b"}
    assert [worker.id for worker in roster.workers] == ["2-b"]


def test_id_is_no_path(store: FileStore) -> None:
    """A person can forget workers, and nothing else."""
    publish(store, ON)
    with pytest.raises(StoreError, match="not the id of a worker"):
        store.remove("default", "../../default")
    assert store.read("default") is not None


# Losses.


@pytest.mark.parametrize("lost", ["run", "run/default", "."])
def test_deleted_directory_comes_back(store: FileStore, lost: str) -> None:
    """The state is written back, workers join again, and the roster is incomplete."""
    with joined(store) as switch:
        state = publish(store, ON)
        until(lambda: switch.worker.state == state)
        delete(store.path / lost)
        until(lambda: len(store.roster("default").workers) == 1)
        until(lambda: not store.roster("default").complete)
        until(lambda: store.read("default") == state)
        assert is_on(switch)
        assert drain(store).outcome == "lost"
        assert drain(store, workers=1).drained
        assert drain(store).drained


def test_deleted_report_comes_back(store: FileStore) -> None:
    """A worker that finds less than it has written says so."""
    with joined(store) as switch:
        (store.run_dir / f"default/{switch.worker.id}.json").unlink()
        until(lambda: store.roster("default").workers)
        until(lambda: not store.roster("default").complete)


def test_members_that_cannot_be_read_are_made_again(store: FileStore) -> None:
    """A damaged list is a lost list."""
    with joined(store) as switch:
        (store.run_dir / "default/members.json").write_text("{")
        until(lambda: store.roster("default").members == {switch.worker.id})
        until(lambda: not store.roster("default").complete)


def test_members_that_are_too_many_are_made_again(store: FileStore) -> None:
    """A list is read up to a mebibyte; a larger one is a lost list."""
    first = store.report("default", report())
    members = store.run_dir / "default/members.json"
    members.write_text(members.read_text() + " " * 1_000_000)
    assert store.roster("default").members == {"1-a"}
    members.write_text(members.read_text() + " " * 100_000)
    assert store.roster("default") == Roster(complete=False)
    assert store.confirm("default", first.generation, complete=True) == ""
    again = store.report("default", report(generation=first.generation))
    assert again.generation != first.generation
    assert not again.complete


def test_a_time_that_is_no_number_blocks_no_drain(store: FileStore) -> None:
    """A list that would equal no second look at it is a damaged one."""
    with joined(store) as switch:
        members = store.run_dir / "default/members.json"
        text = members.read_text()
        members.write_text(re.sub(r'"made":[^,]*', '"made":NaN', text))
        until(lambda: store.roster("default").members == {switch.worker.id})
        assert publish(store, ON).enabled
        until(lambda: is_on(switch))


def test_directory_of_a_new_release(store: FileStore) -> None:
    """Workers move to a directory that was put in place of theirs."""
    with joined(store) as switch:
        state = publish(store, ON)
        until(lambda: switch.worker.state == state)
        store.path.rename(store.path.with_name("before"))
        store.path.mkdir(exist_ok=True)
        until(lambda: store.read("default") == state)
        until(lambda: len(store.roster("default").workers) == 1)
        assert drain(store, workers=1).drained
        assert is_on(switch)


# Workers that cannot be counted.


def test_worker_that_could_not_join_keeps_trying(
    store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves and obeys, makes drains unknown, and is counted when it can be."""
    store.path.mkdir()
    store.run_dir.write_text("another program's")
    with joined(store) as switch:
        assert not switch.worker.counted
        assert caplog.text.count("is not counted") == 1
        assert "choose another directory with FASTAPI_MAINTENANCE_STORE" in caplog.text
        admission = switch.worker.admit("before it was counted")
        assert admission is not None
        assert drain(store, timeout=0).outcome == "unknown"
        until(lambda: is_on(switch))
        store.run_dir.unlink()
        until(lambda: switch.worker.counted)
        until(lambda: not store.roster("default").uncounted)
        assert drain(store, timeout=0.1).outcome == "busy"
        admission.release()
        assert drain(store).drained


def test_worker_is_counted_no_more_and_again(store: FileStore) -> None:
    """A place that fails later makes drains unknown until it works again."""
    with joined(store) as switch:
        folder = store.run_dir / "default"
        folder.rename(store.run_dir / "away")
        folder.write_text("another program's")
        until(lambda: not switch.worker.counted)
        assert store.roster("default").uncounted
        folder.unlink()
        until(lambda: switch.worker.counted)
        # What was there before is lost: a person's word completes the list.
        assert drain(store, workers=1).drained


def test_worker_that_cannot_be_marked_serves(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where directories cannot be locked, no drain sees it, and it obeys."""
    monkeypatch.setattr(locks, "fcntl", None)
    store.path.mkdir()
    store.run_dir.write_text("another program's")
    with joined(store) as switch:
        assert not switch.worker.counted
        assert store._mark is None
        publish(store, ON)
        until(lambda: is_on(switch))


def test_mark_of_one_switch_outlives_another(store: FileStore) -> None:
    """A worker that is counted says nothing for another switch, which is not."""
    store.run_dir.mkdir(parents=True)
    (store.run_dir / "pay").write_text("another program's")
    with joined(store), joined(store, "pay") as pay:
        assert not pay.worker.counted
        store.report("default", report())
        assert store.roster("default").uncounted
        assert store.roster("pay").uncounted
    store.remove("default", "1-a")
    assert not store.roster("default").uncounted


def test_mark_follows_a_new_directory(store: FileStore) -> None:
    """An uncounted worker is seen in the directory that is there now."""
    store.path.mkdir()
    store.run_dir.write_text("another program's")
    following = store.path.with_name("following")
    following.mkdir()
    (following / "run").write_text("another program's")
    with joined(store) as switch:
        store.path.rename(store.path.with_name("before"))
        following.rename(store.path)
        until(lambda: store.roster("default").uncounted)
        assert not switch.worker.counted


def test_mark_waits_for_a_look(store: FileStore) -> None:
    """A drain that looks at this moment does not hide a worker from the next one."""
    store.path.mkdir()
    descriptor = os.open(store.path, os.O_RDONLY)
    looking = locks.HeldLock(descriptor)
    assert lock_descriptor(descriptor, blocking=False)
    threading.Timer(0.02, looking.release).start()
    held = locks.HeldLock.share(store.path)
    assert held is not None
    assert locks.is_shared(store.path)
    held.release()
    assert not locks.is_shared(store.path)


def test_directory_that_another_program_locks(store: FileStore) -> None:
    """It is not waited for, for long, and drains are unknown."""
    store.path.mkdir()
    store.run_dir.write_text("another program's")
    descriptor = os.open(store.path, os.O_RDONLY)
    other = locks.HeldLock(descriptor)
    assert lock_descriptor(descriptor, blocking=False)
    with pytest.raises(CannotJoinError):
        store.report("default", report())
    assert store._mark is None
    assert store.roster("default").uncounted
    other.release()


@needs_root
def test_directory_that_may_not_be_opened_may_be_shared(public: Path) -> None:
    """Only a directory that is not there has no uncounted workers."""
    (public / "state").mkdir(0o700)
    assert not locks.is_shared(public / "gone")
    assert not locks.is_shared(public / "state")
    assert in_child(lambda: locks.is_shared(public / "state"), user=NOBODY)


def test_full_disk_takes_no_service_down(store: FileStore) -> None:
    """A worker that cannot write its report serves, uncounted."""

    def full() -> bool:
        with full_disk(), joined(FileStore(store.path)) as switch:
            return not switch.worker.counted and not is_on(switch)

    assert in_child(full)


@pytest.mark.parametrize("place", ["state", "state/below"])
def test_file_in_the_place_takes_no_service_down(tmp_path: Path, place: str) -> None:
    """Where there can be no directory, the switch is off."""
    (tmp_path / "state").write_text("precious")
    with joined(FileStore(tmp_path / place)) as switch:
        assert not switch.worker.counted
        assert not is_on(switch)
    assert (tmp_path / "state").read_text() == "precious"


@needs_root
def test_unreadable_directory_is_off_at_a_cold_start(public: Path) -> None:
    """A user who may not look at the directory must not be taken out of service."""
    store = FileStore(public / "state")
    publish(store, ON)
    store.path.chmod(0o700)

    def serves() -> bool:
        with joined(FileStore(store.path)) as switch:
            return not switch.worker.counted and not is_on(switch)

    assert in_child(serves, user=NOBODY)


@needs_root
def test_worker_of_another_user_obeys_and_is_seen(public: Path) -> None:
    """Without rights to report it reads the state, and drains are unknown."""
    store = FileStore(public / "state")
    publish(store, ON)

    def join() -> Switch | None:
        switch = joined_for_good(FileStore(store.path))
        return switch if is_on(switch) and not switch.worker.counted else None

    with living_child(join, user=NOBODY):
        assert store.roster("default").uncounted
        assert drain(store, timeout=0).outcome == "unknown"
    assert not store.roster("default").uncounted


@needs_root
def test_other_users_see_an_error_and_never_no_workers(public: Path) -> None:
    """A user without rights is told whose they are."""
    store = FileStore(public / "state")
    with joined(store):
        publish(store, ON)

        def denied() -> bool:
            mine = FileStore(store.path)
            for work in (
                lambda: mine.roster("default"),
                lambda: publish(mine, OFF),
                lambda: mine.remove("default", "1-a"),
                lambda: mine.confirm("default", "a", complete=True),
            ):
                with pytest.raises(StoreError, match="run as the directory's owner"):
                    work()
            state = mine.read("default")
            return state is not None and state.enabled

        assert in_child(denied, user=NOBODY)


@needs_root
def test_read_only_directory(tmp_path: Path) -> None:
    """A worker on a read-only file system obeys, uncounted, and says why."""
    code = """
import logging, sys
from fastapi_maintenance import FileStore, StoreError
from fastapi_maintenance.switch import Switch
logging.basicConfig()
switch = Switch(FileStore(sys.argv[1]), "default")
switch.join_blocking()
print(switch.worker.counted, switch.worker.admit("").state.enabled)
try:
    switch.store.publish("default", lambda before: before)
except StoreError as error:
    print("read-only" in str(error))
"""
    store = FileStore(tmp_path / "state")
    publish(store, ON)
    here = store.path
    mount = f"mount --bind {here} {here} && mount -o remount,bind,ro {here}"
    done = inside(mount, code, store.path)
    assert done.stdout == "False True\nTrue\n", done.stderr
    assert "is not counted: workers cannot report" in done.stderr


def inside(
    mount: str, code: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run code in a mount namespace of its own."""
    line = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    return subprocess.run(
        [*line, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


# Forks.


def test_forked_child_is_another_worker(store: FileStore) -> None:
    """It has another id and another lock, and its parent keeps its own."""
    with joined(store) as switch:
        own = switch.worker.id

        def child() -> bool:
            with joined(FileStore(store.path)) as mine:
                members = store.roster("default").members
                return mine.worker.id != own and members == {own, mine.worker.id}

        assert in_child(child)
        assert store.roster("default").workers[0].liveness == "alive"
        assert drain(store).drained


def test_fork_does_not_keep_its_parent_alive(store: FileStore) -> None:
    """A killed worker is proven dead though a child that it forked lives on."""
    wait, go = os.pipe()

    def work() -> object:
        store.report("default", report())
        if os.fork() == 0:
            os.close(go)
            os.read(wait, 1)
            os._exit(0)
        return True

    with living_child(work) as end:
        end()
        until(lambda: store.roster("default").workers[0].liveness == "dead")
        os.close(go)
    os.close(wait)


def test_copy_of_a_lock_is_closed_and_not_unlocked(tmp_path: Path) -> None:
    """A child that drops what it has inherited leaves its parent's lock alone."""
    path = tmp_path / "1-a.lock"
    held = locks.HeldLock.lock(path, 0)
    assert held.descriptor is not None
    kept = os.dup(held.descriptor)
    held._process = -1
    held.release()
    assert not locks.is_free(path, held.inode)
    os.close(kept)
    assert locks.is_free(path, held.inode)


def test_fork_while_uncounted(store: FileStore) -> None:
    """A child does not hold its parent's mark."""
    store.path.mkdir()
    store.run_dir.write_text("another program's")
    wait, go = os.pipe()

    def work() -> object:
        with pytest.raises(CannotJoinError):
            store.report("default", report())
        if os.fork() == 0:
            os.close(go)
            os.read(wait, 1)
            os._exit(0)
        return True

    with living_child(work) as end:
        assert locks.is_shared(store.path)
        end()
        until(lambda: not locks.is_shared(store.path))
        os.close(go)
    os.close(wait)


def test_fork_in_the_middle_of_a_publication(store: FileStore) -> None:
    """Neither process keeps the other from publishing."""
    done: list[bool] = []

    def change(before: MaintenanceState | None) -> MaintenanceState:
        child = os.fork()
        if child == 0:
            # As a child of another thread's fork would find it.
            held = list(locks._all_held)
            os._exit(any(one.descriptor is not None for one in held))
        done.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0)
        return ON

    store.publish("default", with_new_epoch(change))
    assert done == [True]
    assert in_child(lambda: publish(store, OFF))


def test_dropped_store_holds_nothing(tmp_path: Path) -> None:
    """A store that is not used any more closes its files."""
    store = FileStore(tmp_path / "state")
    store.report("default", report())
    path = tmp_path / "state" / "run" / "default" / "1-a.lock"
    with pytest.raises(TimeoutError):
        locks.HeldLock.lock(path, 0)
    del store
    gc.collect()
    locks.HeldLock.lock(path, 0).release()


# Root in a directory of another user.

PLACES = [
    *(".gitignore", "default.json", "default.lock", "run", "run/default"),
    *("run/default/members.json", "run/default/lock"),
    *("run/default/1-a.json", "run/default/1-a.lock"),
]


def link(path: Path) -> None:
    """Make a link to a file that matters."""
    path.symlink_to(next(p for p in path.parents if (p / "victim").exists()) / "victim")


@needs_root
@pytest.mark.parametrize("make", [link, dangling, fifo, zeros])
@pytest.mark.parametrize("place", PLACES)
def test_root_follows_nothing_in_a_directory_of_another_user(
    public: Path, place: str, make: Callable[[Path], None]
) -> None:
    """No worker of root follows, changes or waits for what the owner has put there."""
    (public / "victim").write_text("precious")
    (public / "victim").chmod(0o600)
    before = (public / "victim").stat()
    home = public / "home"
    (home / "state" / place).parent.mkdir(parents=True)
    make(home / "state" / place)
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    store = FileStore(home / "state")

    def root() -> bool:
        with suppress(CannotJoinError):
            store.report("default", report())
        for work in (
            lambda: publish(store, ON),
            lambda: store.read("default"),
            lambda: store.roster("default"),
            lambda: store.confirm("default", "a", complete=True),
            lambda: store.remove("default", "1-a"),
        ):
            with suppress(StoreError):
                work()
        return True

    assert in_child(root)
    after = (public / "victim").stat()
    assert (public / "victim").read_text() == "precious"
    assert (after.st_mode, after.st_uid, after.st_ctime_ns) == (
        *(before.st_mode, before.st_uid, before.st_ctime_ns),
    )
    assert {path.name for path in public.iterdir()} == {"victim", "home"}
    assert not list(home.rglob("made-by-mistake"))
    assert files.other_owner(store.path, store.run_dir) == "nobody"


@needs_root
@pytest.mark.parametrize("place", ["state", "state/run", "state/run/default"])
def test_root_joins_through_no_link_to_a_directory(public: Path, place: str) -> None:
    """A link of another user in a directory's place is refused, and nothing is made."""
    (public / "victim").mkdir()
    home = public / "home"
    (home / place).parent.mkdir(parents=True)
    (home / place).symlink_to(public / "victim")
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    store = FileStore(home / "state")
    with pytest.raises(CannotJoinError, match="a link of another user"):
        store.report("default", report())
    store.remove("default", "1-a")
    assert store.confirm("default", "a", complete=True) == ""
    assert list((public / "victim").iterdir()) == []


@needs_root
def test_root_gives_nothing_away(public: Path) -> None:
    """What a worker of root makes in another user's directory stays root's."""
    os.chown(public, NOBODY, NOBODY)
    with joined(FileStore(public / "state")) as switch:
        publish(FileStore(public / "state"), ON)
        until(lambda: is_on(switch))
        owners = {path.stat().st_uid for path in public.rglob("*")}
    assert owners == {0}


@needs_root
def test_owner_is_known_before_anything_is_made(public: Path) -> None:
    """A directory that is to be made belongs to the owner of what is above it."""
    assert files.other_owner(Path("/usr/nothing/here")) is None
    (public / "home").mkdir()
    os.chown(public / "home", 54321, 54321)
    assert files.other_owner(public / "home/not/yet") == "#54321"
    assert in_child(lambda: files.other_owner(public) is None, user=NOBODY)


# Files and file systems.


def test_modes_do_not_follow_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that takes the place of a directory just made keeps its target's mode."""
    (tmp_path / "victim").mkdir(0o700)
    make = os.mkdir

    def replaced(path: str, mode: int = 0o777) -> None:
        make(path, mode)
        Path(path).rmdir()
        Path(path).symlink_to(tmp_path / "victim")

    monkeypatch.setattr(os, "mkdir", replaced)
    with pytest.raises(OSError, match="made"):
        files.make_directory(tmp_path / "made", 0o755)
    assert mode_of(tmp_path / "victim") == 0o700


def test_directory_that_another_worker_makes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that appears in the meantime is used."""
    make = os.mkdir

    def second(path: str, mode: int = 0o777) -> None:
        make(path, mode)
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", second)
    assert not files.make_directory(tmp_path / "made", 0o755)
    assert (tmp_path / "made").is_dir()


def test_file_that_is_in_use_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses what another process has open; elsewhere it is an error."""
    tries: list[int] = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError
        return "done"

    with pytest.raises(PermissionError):
        files.retry_on_windows(work)
    monkeypatch.setattr(os, "name", "nt")
    assert files.retry_on_windows(work) == "done"


def test_file_that_stays_in_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows is not asked for ever."""

    def work() -> None:
        raise PermissionError

    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(PermissionError):
        files.retry_on_windows(work)


def test_file_that_comes_in_parts_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read may return less than there is."""
    path = tmp_path / "file"
    path.write_bytes(b"twelve bytes")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, _: read(descriptor, 5))
    assert files.read_small(path, 12) == b"twelve bytes"


def test_lock_that_cannot_be_examined_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left open when the system fails between two calls."""
    opened: list[int] = []
    closed: list[int] = []
    close = os.close

    def fail(descriptor: int) -> os.stat_result:
        opened.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def record(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", record)
        patch.setattr(os, "fstat", fail)
        with pytest.raises(OSError, match="Input/output"):
            locks.HeldLock.lock(tmp_path / "1-a.lock", 0)
        gc.collect()
    assert opened[0] in closed


def test_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no modes, and no directory that can be opened."""
    path = tmp_path / "made/file"
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        assert files.make_directory(path.parent, 0o700)
        files.replace(path, b"new", 0o600, durable=True)
    assert path.read_bytes() == b"new"


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/a rw
21 20 0:5 / /srv/a\\040b rw,shared:1 master:2 - tmpfs none rw
22 20 0:6 / /net rw - nfs4 host:/ rw
23 20 0:7 / /over rw - nfs4 host:/ rw
24 20 0:8 / /over rw - xfs /dev/b rw
damaged line
25 - short
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home", ""),
        ("/srv/a b/state", ""),
        ("/net", "nfs4"),
        ("/net/state", "nfs4"),
        ("/network", ""),
        ("/over/state", ""),
    ],
)
def test_foreign_file_system(tmp_path: Path, path: str, kind: str) -> None:
    """Locks are believed on the file systems of one kernel, and nowhere else."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert locks.unsafe_file_system(Path(path), mounts) == kind
    assert locks.unsafe_file_system(Path(path), tmp_path / "none") == ""


@needs_root
def test_foreign_file_system_counts_no_worker(tmp_path: Path) -> None:
    """A worker on such a file system serves, and says what to do."""
    code = """
import logging, sys
from fastapi_maintenance import FileStore
from fastapi_maintenance.switch import Switch
logging.basicConfig()
switch = Switch(FileStore(sys.argv[1]), "default")
switch.join_blocking()
print(switch.worker.counted, switch.store.roster("default").uncounted)
"""
    done = inside(f"mount -t ramfs none {tmp_path}", code, tmp_path / "state")
    assert done.stdout == "True False\n", done.stderr
    done = inside(f"mount -t sysfs none {tmp_path}", code, tmp_path / "state")
    assert done.stdout.startswith("False"), done.stderr
    assert "is not counted" in done.stderr


def test_locks_on_a_network_prove_nothing(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the file system and the remedy."""
    monkeypatch.setattr(locks, "unsafe_file_system", lambda _: "nfs4")
    with pytest.raises(CannotJoinError, match=r"locks on nfs4 prove nothing; choose"):
        store.report("default", report())


def test_lock_that_this_system_does_not_have(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be locked, workers serve uncounted and drains are unknown."""

    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    with pytest.raises(CannotJoinError, match="function not implemented"):
        store.report("default", report())
    assert store.roster("default").uncounted
    (store.path / "1-a.lock").touch()
    inode = (store.path / "1-a.lock").stat().st_ino
    assert not locks.is_free(store.path / "1-a.lock", inode)
