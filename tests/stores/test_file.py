"""The file store and its workers: what they know, and what they do when it is lost."""

import asyncio
import errno
import fcntl
import gc
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastapi_maintenance.state import EPOCH_LIMIT, MaintenanceState
from fastapi_maintenance.stores import (
    StoreError,
    _descriptors,
    open_store,
)
from fastapi_maintenance.stores._admission import Admission, own_counts
from fastapi_maintenance.stores._epoch import EpochFile
from fastapi_maintenance.stores._keeper import FileWorker
from fastapi_maintenance.stores._polled import PolledLink, PolledWorker
from fastapi_maintenance.stores._registry import worker_at
from fastapi_maintenance.stores._slots import slot_path
from fastapi_maintenance.stores._view import Held
from fastapi_maintenance.stores.file import FileStore
from tests.stores.children import NOBODY, in_child, living_child, needs_root
from tests.stores.test_disk import inside

ON = MaintenanceState(active=True, message="closed")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A store that nobody has used yet."""
    return FileStore(tmp_path / "state")


@pytest.fixture
def worker(store: FileStore) -> Iterator[FileWorker]:
    """A worker that has joined; its keeper looks only when a test says so."""
    made = store.worker("default")
    made._keeper = threading.Event()
    made.join()
    yield made
    made.current.clear()
    made.old.clear()
    made.leave()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def publish(store: FileStore, state: MaintenanceState) -> MaintenanceState:
    """Publish a state."""
    return asyncio.run(store.publish("default", lambda _: state))


def write(store: FileStore, text: str) -> None:
    """Write the state file by hand."""
    store.run.state_path("default").write_text(text)


def ended(admission: Admission) -> None:
    """End admitted work."""
    admission.__exit__(None, None, None)


def is_on(worker: FileWorker) -> bool:
    """Admit work, and tell whether it would be refused."""
    admission = worker.admit("work")
    ended(admission)
    return admission.state.active


def alive(store: FileStore) -> list[tuple[int, int]]:
    """Return the counts of all rows."""
    rows = asyncio.run(store.roster("default")).rows
    return [(row.current, row.old) for row in rows if row.liveness == "alive"]


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, condition
        time.sleep(0.01)


# The store itself.


def test_store_touches_nothing_before_its_first_use(tmp_path: Path) -> None:
    """Making one, and asking it, leaves no trace."""
    store = FileStore(tmp_path / "state")
    assert not store.exists
    assert store.peek("default") == MaintenanceState()
    assert store.location == str(tmp_path / "state")
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


def test_store_needs_a_path() -> None:
    """An empty path is a mistake, not the working directory."""
    with pytest.raises(ValueError, match="must name a directory"):
        FileStore("")


def test_two_stores_of_one_place_share_a_worker(tmp_path: Path) -> None:
    """A process is one row, however its store is spelt."""
    first, second = FileStore(tmp_path), open_store(f"file:{tmp_path}")
    assert isinstance(second, FileStore)
    assert first.worker("a") is second.worker("a")
    assert first.worker("a") is not second.worker("b")
    place = f"file:{tmp_path}?{tmp_path}/run"
    worker = first.worker("a")
    assert worker_at(FileWorker, place, "a", lambda: worker) is worker
    with pytest.raises(TypeError, match="is a place of FileWorker"):
        worker_at(PolledWorker, place, "a", lambda: PolledWorker(PolledLink(), ""))


def test_publish_is_read_back(store: FileStore) -> None:
    """What is published is what the next one reads, under a larger epoch."""
    first, second = publish(store, ON), publish(store, ON)
    assert second.epoch > first.epoch > 0
    assert asyncio.run(store.read("default")) == second
    assert store.exists


def test_publish_mends_a_damaged_file(store: FileStore) -> None:
    """What nobody understands is taken for closed, and replaced."""
    publish(store, ON)
    write(store, "{")
    with pytest.raises(StoreError, match="mend it"):
        store.peek("default")
    seen: list[MaintenanceState] = []

    def change(before: MaintenanceState) -> MaintenanceState:
        seen.append(before)
        return MaintenanceState()

    asyncio.run(store.publish("default", change))
    assert seen[0].active
    assert not store.peek("default").active


def test_publish_keeps_what_a_newer_release_wrote(store: FileStore) -> None:
    """An older release does not replace what it does not understand."""
    publish(store, ON)
    write(store, '{"version": 9, "active": true}')
    with pytest.raises(StoreError, match="newer release"):
        publish(store, MaintenanceState())
    assert store.peek("default").version == 9


def test_publish_refuses_the_last_epoch(store: FileStore) -> None:
    """An epoch that was written by hand cannot exhaust the numbers unnoticed."""
    publish(store, ON)
    write(store, json.dumps({"active": True, "epoch": EPOCH_LIMIT - 1}))
    with pytest.raises(StoreError, match="written by hand"):
        publish(store, ON)
    assert store.peek("default").active


def test_publish_where_it_cannot_is_one_line(tmp_path: Path) -> None:
    """The error names the place and the remedy."""
    (tmp_path / "state").write_text("precious")
    with pytest.raises(
        StoreError, match=r"cannot set maintenance in .*not a directory"
    ):
        publish(FileStore(tmp_path / "state"), ON)
    assert (tmp_path / "state").read_text() == "precious"


def failing_epoch(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[], object] = bool
) -> None:
    """Make the disk refuse what is written into the epoch file."""

    def refuse(*_: object) -> int:
        then()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", refuse)


@pytest.mark.parametrize("text", [None, '{"active":  true}', "{"])
def test_publish_without_its_epoch_leaves_the_old_state(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """A state that no worker is told of is not left behind for later readers."""
    path = store.run.state_path("default")
    if text is not None:
        store.path.mkdir()
        write(store, text)
    failing_epoch(monkeypatch)
    with pytest.raises(StoreError, match=r"state: input/output error; run as"):
        publish(store, ON)
    assert (path.read_text() if path.exists() else None) == text
    monkeypatch.undo()
    assert publish(store, ON).active


def test_publish_without_its_epoch_closes_what_nobody_trusts(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a file that could not be read stands what it was taken for."""
    store.path.mkdir()
    write(store, "{}")
    store.run.state_path("default").chmod(0o666)
    failing_epoch(monkeypatch)
    with pytest.raises(StoreError, match="input/output error"):
        publish(store, MaintenanceState())
    assert store.peek("default").active


def test_publish_that_cannot_be_taken_back_says_so(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator is not told that the old state stands where it does not."""
    failing_epoch(monkeypatch, lambda: shutil.rmtree(store.path))
    with pytest.raises(StoreError, match=r"has the new state.*\(no such file.*again"):
        publish(store, ON)


@needs_root
def test_publish_without_locks_that_prove_anything(tmp_path: Path) -> None:
    """Where workers cannot be counted, the state can be set all the same."""
    code = """
import asyncio, sys
from fastapi_maintenance.state import MaintenanceState
from fastapi_maintenance.stores._polled import PolledLink, PolledWorker
from fastapi_maintenance.stores._registry import worker_at
from fastapi_maintenance.stores._slots import slot_path
from fastapi_maintenance.stores._view import Held
from fastapi_maintenance.stores.file import FileStore
store = FileStore(sys.argv[1])
worker = store.worker("default")
worker.join()
on = MaintenanceState(active=True)
asyncio.run(store.publish("default", lambda before: on))
roster = asyncio.run(store.roster("default"))
print(roster.rows, roster.uncounted, worker.admit("").state.active)
"""
    done = inside("mount -t tmpfs none /proc", code, tmp_path / "state")
    assert done.stdout == "() True True\n", done.stderr


def test_forget_and_vouch(store: FileStore, worker: FileWorker) -> None:
    """A person may drop a row, and may say that the rest is complete."""
    gone = slot_path(store.run_dir, "default", "1-ab")
    gone.touch()
    assert len(asyncio.run(store.roster("default")).rows) == 2
    asyncio.run(store.forget("default", ["1-ab"]))
    assert len(asyncio.run(store.roster("default")).rows) == 1
    for who, why in (("x", "no worker has this id"), (worker.id, "still runs")):
        with pytest.raises(StoreError, match=why) as refused:
            asyncio.run(store.forget("default", [who]))
        assert "owner" not in str(refused.value)
    (store.run_dir / "default.epoch").unlink()
    roster = asyncio.run(store.roster("default"))
    assert not roster.whole
    asyncio.run(store.vouch("default", roster.generation))
    assert asyncio.run(store.roster("default")).whole


async def test_vouch_waits_for_a_writer_beside_the_loop(store: FileStore) -> None:
    """A service that waits for another process goes on serving."""
    await store.publish("default", lambda _: ON)
    (store.run_dir / "default.epoch").unlink()
    roster = await store.roster("default")
    assert not roster.whole
    descriptor = os.open(store.run_dir / "writer.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.vouch("default", roster.generation))
        # Not before the other has begun to wait, or has waited in vain.
        tasks.create_task(asyncio.to_thread(os.close, descriptor))
    assert (await store.roster("default")).whole


# A worker, counted.


def test_admission_sees_what_was_published(
    store: FileStore, worker: FileWorker
) -> None:
    """The first admission after a publication knows of it, with no delay."""
    assert not is_on(worker)
    publish(FileStore(store.path), ON)
    assert is_on(worker)
    publish(FileStore(store.path), MaintenanceState())
    assert not is_on(worker)


def test_publisher_that_is_a_worker_knows_at_once(
    store: FileStore, worker: FileWorker
) -> None:
    """The state of one's own process needs no request to be known."""
    state = publish(store, ON)
    assert worker.state == state


def test_publish_from_another_process(store: FileStore, worker: FileWorker) -> None:
    """It makes no difference who publishes."""
    assert in_child(lambda: publish(FileStore(store.path), ON))
    assert is_on(worker)


def test_counts_are_seen_by_others(store: FileStore, worker: FileWorker) -> None:
    """What is in flight moves to *old* when a newer epoch is adopted."""
    admission = worker.admit("work")
    assert alive(store) == [(1, 0)]
    publish(store, ON)
    assert alive(store) == [(0, 1)]
    ended(admission)
    assert alive(store) == [(0, 0)]


def test_leaving_is_clean(store: FileStore) -> None:
    """A worker that has left is no row, no name and no open file."""
    kept = set(_descriptors._ours)
    worker = store.worker("default")
    worker.enter()
    assert len(alive(store)) == 1
    worker.leave()
    roster = asyncio.run(store.roster("default"))
    assert (roster.rows, roster.uncounted, roster.whole) == ((), False, True)
    assert set(_descriptors._ours) == kept


def test_admission_after_another_thread_has_left(store: FileStore) -> None:
    """Work that begins while its worker leaves joins again, and is counted."""
    worker = store.worker("default")
    worker.enter()
    worker.leave()
    admission = worker.admit("late")
    assert alive(store) == [(1, 0)]
    ended(admission)
    worker.leave()
    assert alive(store) == []


def test_forgotten_worker_leaves(tmp_path: Path) -> None:
    """The last guard takes its row with it."""
    store = FileStore(tmp_path / "state")
    worker = store.worker("default")
    worker.join()
    assert len(alive(store)) == 1
    keeper = worker._keeper
    assert keeper is not None
    keeper.set()
    del worker
    gc.collect()
    until(lambda: alive(store) == [])


def test_forked_child_is_a_worker_of_its_own(
    store: FileStore, worker: FileWorker
) -> None:
    """It has none of the parent's requests, and a row of its own when it joins."""
    admission = worker.admit("work")

    def join() -> bool:
        assert not worker.joined
        assert own_counts(worker) == 0
        worker.join()
        return True

    with living_child(join):
        assert sorted(alive(store)) == [(0, 0), (1, 0)]
    assert alive(store) == [(1, 0)]
    ended(admission)


def test_child_that_collects_leaves_the_parent_alone(tmp_path: Path) -> None:
    """A row is taken away by the process that made it."""
    store = FileStore(tmp_path / "state")
    workers = [store.worker("default")]
    workers[0].join()

    def forget() -> bool:
        workers.clear()
        gc.collect()
        return True

    assert in_child(forget)
    assert len(alive(store)) == 1
    workers.pop().leave()


# A worker and its state file.


def keep(worker: FileWorker, looks: int = 1) -> None:
    """Let the keeper look."""
    for _ in range(looks):
        worker.tend()


def test_hand_edit_is_seen_by_the_keeper(store: FileStore, worker: FileWorker) -> None:
    """A state that was written by hand needs no epoch."""
    write(store, '{"active": true}')
    keep(worker)
    assert worker.state.active
    # Nor does one whose number is larger than those to come.
    write(store, json.dumps({"active": False, "epoch": EPOCH_LIMIT - 1}))
    keep(worker)
    assert not worker.state.active
    assert worker.state.epoch < EPOCH_LIMIT - 1


def test_keeper_sees_it_within_a_second(store: FileStore) -> None:
    """Nobody has to ask: a thread looks."""
    worker = store.worker("default")
    worker.enter()
    write(store, '{"active": true}')
    began = time.monotonic()
    until(lambda: worker.state.active)
    assert time.monotonic() - began < 5
    worker.leave()


def test_mounted_config_map_is_followed(tmp_path: Path) -> None:
    """A ConfigMap is replaced by turning a link; its workers count beside it."""
    for name, active in (("1", "false"), ("2", "true")):
        (tmp_path / "map" / name).mkdir(parents=True)
        (tmp_path / "map" / name / "default.json").write_text(f'{{"active": {active}}}')
    data = tmp_path / "map/..data"
    data.symlink_to("1")
    (tmp_path / "map/default.json").symlink_to("..data/default.json")
    store = FileStore(tmp_path / "map", run_dir=tmp_path / "run")
    worker = store.worker("default")
    worker.enter()
    assert not worker.state.active
    (tmp_path / "fresh").symlink_to("2")
    (tmp_path / "fresh").replace(data)
    keep(worker)
    assert worker.state.active
    worker.leave()


def test_removed_file_is_off_at_the_second_look(
    store: FileStore, worker: FileWorker
) -> None:
    """What deletes a directory deletes its files first: one look proves nothing."""
    publish(store, ON)
    store.run.state_path("default").unlink()
    keep(worker)
    assert worker.state.active
    keep(worker)
    assert not worker.state.active


def test_damaged_file_keeps_the_last_state(
    store: FileStore, worker: FileWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker says once that it cannot read it, and once that it can again."""
    publish(store, ON)
    write(store, "{")
    keep(worker, 3)
    assert worker.state.message == "closed"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "keeping the last state" in caplog.text
    publish(store, MaintenanceState())
    assert not worker.state.active
    assert "can be used again" in caplog.text


def test_damaged_file_at_a_cold_start_is_on(store: FileStore) -> None:
    """Whoever has never known a state does not guess that it is off."""
    store.path.mkdir()
    write(store, "{")
    worker = store.worker("default")
    worker.join()
    assert worker.state.active
    worker.leave()


def test_newer_state_that_cannot_be_read_is_on(
    store: FileStore, worker: FileWorker
) -> None:
    """A worker that knows that something was published does not stay open."""
    publish(store, MaintenanceState())
    epoch = store.run.open_epoch("default")
    write(store, "{")
    epoch.publish(worker.state.epoch + 1)
    epoch.close()
    assert is_on(worker)


def test_newer_state_that_was_lost_is_on(store: FileStore, worker: FileWorker) -> None:
    """A file that vanished right after it was published was not off."""
    publish(store, MaintenanceState())
    epoch = store.run.open_epoch("default")
    store.run.state_path("default").unlink()
    epoch.publish(worker.state.epoch + 1)
    epoch.close()
    assert is_on(worker)


def test_state_that_could_not_be_read_once_is_read_again(
    store: FileStore, worker: FileWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A trouble that passes leaves no trace in the file, and is looked for again."""
    publish(store, MaintenanceState())
    path = store.run.state_path("default")
    text = path.read_text()
    loop = path.with_name("loop")
    loop.symlink_to(loop)
    loop.replace(path)
    keep(worker, 2)
    assert "keeping the last state" in caplog.text
    path.unlink()
    path.write_text(text)
    keep(worker)
    assert "can be used again" in caplog.text


# A worker and its row.


def test_deleted_row_is_made_anew(store: FileStore, worker: FileWorker) -> None:
    """With what is in flight, and under the same id."""
    admission = worker.admit("work")
    shutil.rmtree(store.run_dir)
    assert alive(store) == []
    keep(worker)
    assert alive(store) == [(1, 0)]
    assert not asyncio.run(store.roster("default")).whole
    ended(admission)
    assert alive(store) == [(0, 0)]


def test_row_made_anew_has_seen_what_it_adopts(
    store: FileStore, worker: FileWorker
) -> None:
    """Old work stays old, and the present epoch is acknowledged."""
    admission = worker.admit("work")
    state = publish(store, ON)
    (store.run_dir / f"default.{worker.id}.slot").unlink()
    keep(worker)
    (row,) = asyncio.run(store.roster("default")).rows
    assert (row.seen, row.current, row.old) == (state.epoch, 0, 1)
    ended(admission)


def test_epochs_of_a_lost_roster_pass_for_no_new_ones(
    store: FileStore, worker: FileWorker
) -> None:
    """A clock that went back cannot make a worker acknowledge what it never saw."""
    far = MaintenanceState(epoch=EPOCH_LIMIT // 2)
    asyncio.run(store.publish("default", lambda _: far))
    write(store, far.to_json())
    publish(store, MaintenanceState())
    assert worker.state.epoch > EPOCH_LIMIT // 2
    shutil.rmtree(store.path)
    early = publish(FileStore(store.path), ON)
    assert early.epoch < worker.state.epoch
    admission = worker.admit("work")
    keep(worker)
    assert alive(store) == [(0, 1)]
    before = worker.state.epoch
    assert publish(store, ON).epoch > before > early.epoch
    assert worker.state.active
    ended(admission)


def test_emptied_row_is_made_anew(store: FileStore, worker: FileWorker) -> None:
    """A row that somebody truncated counts again at the next look."""
    admission = worker.admit("work")
    os.truncate(store.run_dir / f"default.{worker.id}.slot", 0)
    keep(worker)
    assert alive(store) == [(1, 0)]
    ended(admission)


def test_deleted_directory_is_written_back(
    store: FileStore, worker: FileWorker
) -> None:
    """The state comes back with its text, and under no smaller epoch."""
    state = publish(store, ON)
    shutil.rmtree(store.path)
    keep(worker)
    assert store.peek("default") == state
    assert asyncio.run(store.roster("default")).epoch == state.epoch
    keep(worker, 3)
    assert worker.state == state


def test_directory_that_never_had_a_state_stays_without(
    store: FileStore, worker: FileWorker
) -> None:
    """Nothing is written back where nothing was."""
    shutil.rmtree(store.path)
    keep(worker)
    assert not store.run.state_path("default").exists()
    assert not is_on(worker)


def test_stale_state_is_not_written_back(store: FileStore, worker: FileWorker) -> None:
    """Who has missed the last publication refuses until it is known again."""
    publish(store, MaintenanceState())
    epoch = store.run.open_epoch("default")
    epoch.publish(worker.state.epoch + 1)
    epoch.close()
    shutil.rmtree(store.path)
    keep(worker, 3)
    assert worker.state.active
    assert not store.run.state_path("default").exists()
    publish(store, MaintenanceState())
    assert not is_on(worker)


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ('{"active": false, "epoch": 1}', True),
        ('{"active": false}', False),
        ('{"active": fal', True),
    ],
)
def test_new_directory_with_a_state_of_its_own(
    store: FileStore, worker: FileWorker, text: str, *, active: bool
) -> None:
    """An older epoch is outdated; what has none was written by hand, and counts."""
    publish(store, ON)
    store.path.rename(store.path.with_name("before"))
    store.path.mkdir()
    write(store, text)
    keep(worker, 2)
    assert worker.state.active is active
    assert is_on(worker) is active


def test_row_that_cannot_be_made_anew(
    store: FileStore, worker: FileWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """The last state holds, it is said once, and tried again."""
    publish(store, ON)
    shutil.rmtree(store.path)
    store.path.write_text("another program's")
    keep(worker, 2)
    assert caplog.text.count("cannot make it anew") == 1
    assert is_on(worker)
    store.path.unlink()
    keep(worker)
    assert len(alive(store)) == 1


def test_row_without_room_is_kept(store: FileStore, worker: FileWorker) -> None:
    """When the new one fails halfway, nothing is left open."""
    publish(store, ON)
    target = store.run_dir / f"default.{worker.id}.slot"
    target.unlink()
    target.mkdir()
    keep(worker)
    kept = len(_descriptors._ours)
    keep(worker, 3)
    assert len(_descriptors._ours) == kept
    target.rmdir()
    keep(worker)
    assert len(alive(store)) == 1


def test_truncated_epoch_is_read_around(store: FileStore, worker: FileWorker) -> None:
    """Until there is a new one, each request reads the state itself."""
    publish(store, MaintenanceState())
    os.truncate(store.run_dir / "default.epoch", 0)
    write(store, ON.to_json())
    assert is_on(worker)
    keep(worker)
    assert len(alive(store)) == 1


# A worker that cannot be counted.


def failing(worker: FileWorker) -> None:
    """Make a row one that cannot be written."""
    slot = worker.link._slot
    assert slot is not None
    _descriptors.drop(slot.descriptor)
    slot.descriptor = _descriptors.keep(lambda: os.open(slot.path, os.O_RDONLY))


def test_count_that_cannot_be_written(
    store: FileStore, worker: FileWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """From then on nobody vouches for this worker, and it obeys all the same."""
    failing(worker)
    admission = worker.admit("work")
    roster = asyncio.run(store.roster("default"))
    assert (roster.rows, roster.uncounted) == ((), True)
    assert "is not counted" in caplog.text
    ended(admission)
    publish(store, ON)
    assert is_on(worker)
    shutil.rmtree(store.run_dir)
    publish(store, MaintenanceState())
    assert not is_on(worker)


def test_uncounted_worker_sees_hand_edits(store: FileStore, worker: FileWorker) -> None:
    """Every admission looks at the file itself."""
    worker.stand_aside("a reason")
    worker.stand_aside("another reason")
    write(store, '{"active": true, "epoch": 9}')
    assert is_on(worker)
    assert worker.state.epoch == 9
    store.run.state_path("default").unlink()
    keep(worker, 2)
    assert not worker.state.active


def test_uncounted_worker_follows_its_directory(
    store: FileStore, worker: FileWorker
) -> None:
    """In a new directory it is seen as it was in the old one."""
    worker.stand_aside("a reason")
    for _ in range(2):
        shutil.rmtree(store.path)
        keep(worker)
        assert asyncio.run(store.roster("default")).uncounted
        publish(store, ON)
        keep(worker)
        descriptor = os.open(store.path, os.O_RDONLY)
        os.close(descriptor)
        assert store.run._has_uncounted()
    worker.leave()
    assert not asyncio.run(store.roster("default")).uncounted


def test_worker_that_nobody_can_see_spoils_its_row(
    store: FileStore, worker: FileWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A row with wrong counts is worse than a lost one."""
    failing(worker)
    away = store.path.with_name("away")
    store.path.rename(away)
    is_on(worker)
    assert "or even see it" in caplog.text
    away.rename(store.path)
    roster = asyncio.run(store.roster("default"))
    assert roster.uncounted or roster.rows == ()


def test_lock_that_is_never_free(store: FileStore, worker: FileWorker) -> None:
    """A directory that another program keeps locked is not waited for, for long."""
    descriptor = os.open(store.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    worker.stand_aside("a reason")
    assert worker.link._presence is None
    os.close(descriptor)
    keep(worker)
    assert worker.link._presence is not None


@needs_root
def test_worker_without_rights_serves_what_it_can(public: Path) -> None:
    """It reads the state, is seen as uncounted, and takes nothing down."""
    store = FileStore(public / "state")
    publish(store, ON)

    def join() -> FileWorker | None:
        mine = FileStore(public / "state").worker("default")
        mine.join()
        return mine if is_on(mine) else None

    with living_child(join, user=NOBODY):
        roster = asyncio.run(store.roster("default"))
        assert (roster.rows, roster.uncounted) == ((), True)
    assert not asyncio.run(store.roster("default")).uncounted


@needs_root
def test_commands_of_another_user_are_refused(public: Path) -> None:
    """Whoever may not see the workers is told so, and never that there are none."""
    store = FileStore(public / "state")
    publish(store, ON)

    def denied() -> bool:
        for work in (lambda: alive(store), lambda: publish(store, MaintenanceState())):
            with pytest.raises(StoreError, match="run as the directory's owner"):
                work()
        return store.peek("default").active

    assert in_child(denied, user=NOBODY)


def test_keeper_goes_on_after_a_failure(
    store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody thought of is logged, and does not end the looks."""
    worker = store.worker("default")
    worker.enter()
    failures: list[int] = []

    def listener(state: MaintenanceState) -> None:
        failures.append(state.epoch)

    worker.listen(listener)
    counts, worker.counts = worker.counts, None  # type: ignore[method-assign,assignment]  # breaks the keeper
    until(lambda: "goes on" in caplog.text)
    worker.counts = counts  # type: ignore[method-assign]  # and mends it
    write(store, '{"active": true}')
    until(lambda: failures)
    worker.leave()


def test_keeper_of_a_worker_that_has_left_does_nothing(
    store: FileStore, worker: FileWorker
) -> None:
    """A look that comes late finds nobody to look after."""
    worker.leave()
    shutil.rmtree(store.path)
    keep(worker)
    assert not store.exists
    worker.join()


def test_keeper_ends_with_its_worker(tmp_path: Path) -> None:
    """A thread that looks after nobody is gone at its next look."""
    worker = FileStore(tmp_path / "state").worker("default")
    worker.join()
    del worker
    gc.collect()
    until(
        lambda: (
            "fastapi-maintenance keeper"
            not in {thread.name for thread in threading.enumerate()}
        )
    )


def test_worker_serves_where_it_cannot_join(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A place that is no directory takes no service down."""
    (tmp_path / "state").write_text("another program's")
    worker = FileStore(tmp_path / "state").worker("default")
    worker.enter()
    assert not is_on(worker)
    assert "is not counted" in caplog.text
    worker.leave()


@needs_root
def test_row_on_another_file_system_is_not_made(tmp_path: Path) -> None:
    """A directory that came back without locks that prove anything has no rows."""
    code = """
import asyncio, shutil, subprocess, sys, threading
from fastapi_maintenance.stores.file import FileStore
store = FileStore(sys.argv[1])
worker = store.worker("default")
worker._keeper = threading.Event()
worker.join()
for mounts in (["mount", "-t", "tmpfs", "none", "/proc"], ["umount", "/proc"]):
    subprocess.run(mounts, check=True)
    shutil.rmtree(store.path)
    worker.tend()
    print(len(list(store.run_dir.glob("*.slot"))), flush=True)
"""
    done = inside(":", code, tmp_path / "state")
    assert done.stdout == "0\n1\n", done.stderr
    assert "cannot make it anew: locks on a unknown file system prove" in done.stderr


def test_directory_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    """File systems give the number of a deleted directory to the next one."""
    path = tmp_path / "state"
    held = Held(path)
    assert held.stands()
    for _ in range(20):
        path.mkdir()
        assert not held.stands()
        held.hold()
        assert held.stands()
        path.rmdir()
        assert not held.stands()
    held.let_go()
    assert held.stands()


def test_epoch_that_cannot_be_is_read_around(
    store: FileStore, worker: FileWorker
) -> None:
    """Garbage in place of the epoch fails no request, and the roster is made anew."""
    path = store.run_dir / "default.epoch"
    publish(store, ON)
    with path.open("r+b") as file:
        file.write(b"\xff" * 8)
    assert is_on(worker)
    keep(worker)
    assert EpochFile(path).number == worker.state.epoch
    publish(store, MaintenanceState())
    assert not is_on(worker)
