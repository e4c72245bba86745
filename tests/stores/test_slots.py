"""Rows and the epoch: what is written is what others read, or do not believe."""

import dataclasses
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from fastapi_maintenance.fence import WorkerRow
from fastapi_maintenance.state import EPOCH_LIMIT
from fastapi_maintenance.stores import _descriptors
from fastapi_maintenance.stores._epoch import DamagedEpochError, EpochFile
from fastapi_maintenance.stores._process import ProcessIdentity
from fastapi_maintenance.stores._slots import (
    Sight,
    Slot,
    highest_seen,
    read_rows,
    slot_path,
)
from tests.stores.children import in_child

GENERATION = "00" * 16
WORKER = "1-ab"


def sight(**changes: object) -> Sight:
    """Return how this process looks at rows."""
    seen = Sight(observer=ProcessIdentity.own(), generation=GENERATION, epoch=100)
    return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]  # the parts of any test


def slot(folder: Path, current: int = 0, old: int = 0, **changes: object) -> Slot:
    """Make a row of this process, with parts of its identity replaced."""
    return Slot(
        slot_path(folder, "default", WORKER),
        dataclasses.replace(ProcessIdentity.own(), **changes),  # type: ignore[arg-type]  # the parts of any test
        generation=GENERATION,
        current=current,
        old=old,
    )


def only_row(folder: Path, **changes: object) -> WorkerRow:
    """Return the one row there is."""
    (row,), _ = read_rows(folder, "default", sight(**changes))
    return row


@pytest.fixture
def epoch(tmp_path: Path) -> Path:
    """An epoch file."""
    path = tmp_path / "default.epoch"
    EpochFile.create(path, 7, whole=True)
    return path


def test_epoch_is_read_as_published(epoch: Path) -> None:
    """What one process publishes, another one reads."""
    writer, reader = EpochFile(epoch), EpochFile(epoch)
    assert (reader.number, reader.whole) == (7, True)
    writer.publish(8)
    writer.set_whole(False)
    assert reader.number == 8
    assert not EpochFile(epoch).whole
    assert writer.generation == reader.generation
    assert epoch.stat().st_mode & 0o777 == 0o600
    writer.close()
    reader.close()
    assert reader.read() == b""


@pytest.mark.parametrize("content", [b"", b"x" * 39, b"x" * 100])
def test_epoch_of_another_program_is_refused(epoch: Path, content: bytes) -> None:
    """A file that is truncated, or somebody else's, is no epoch, and stays unopened."""
    epoch.write_bytes(content)
    kept = set(_descriptors._ours)
    with pytest.raises(DamagedEpochError, match="no epoch file"):
        EpochFile(epoch)
    assert set(_descriptors._ours) == kept


def test_epoch_stands_until_it_is_replaced(epoch: Path) -> None:
    """Whoever reads an epoch can tell when others read another one."""
    file = EpochFile(epoch)
    assert file.stands()
    EpochFile.create(epoch, 7, whole=True)
    assert not file.stands()
    file.close()
    file = EpochFile(epoch)
    os.truncate(epoch, 3)
    assert not file.stands()
    file.close()


def test_row_is_read_as_written(tmp_path: Path) -> None:
    """Counts, epoch and the oldest request arrive whole."""
    row = slot(tmp_path, current=2, old=3)
    assert only_row(tmp_path).seen == 0
    row.count(4, 5)
    row.seen(9)
    row.oldest(("GET /orders", time.monotonic()))
    found = only_row(tmp_path)
    assert (found.current, found.old, found.seen) == (4, 5, 9)
    assert (found.liveness, found.counts_first) == ("alive", True)
    assert found.oldest_route == "GET /orders"
    assert found.oldest_age is not None
    assert found.oldest_age < 60
    row.oldest(None)
    assert only_row(tmp_path).oldest_route is None
    row.remove()
    assert read_rows(tmp_path, "default", sight()) == ([], {})


def test_row_shows_a_long_route_in_part(tmp_path: Path) -> None:
    """A label that does not fit is cut between characters."""
    row = slot(tmp_path)
    row.oldest(("GET /" + "ü" * 1000, time.monotonic()))
    route = only_row(tmp_path).oldest_route
    assert route is not None
    assert route.startswith("GET /üü")
    row.remove()


def test_row_of_this_process_is_not_seen_by_others(tmp_path: Path) -> None:
    """Rows of other switches, and other files, are none of ours."""
    row = slot(tmp_path)
    (tmp_path / "other.1-ab.slot").touch()
    (tmp_path / "default.epoch").touch()
    assert len(read_rows(tmp_path, "default", sight())[0]) == 1
    row.remove()


def test_row_needs_a_name_that_fits(tmp_path: Path) -> None:
    """A row that could not say whose it is, is not made."""
    with pytest.raises(OSError, match="host name too long"):
        slot(tmp_path, host="h" * 2000)
    assert list(tmp_path.iterdir()) == []


def test_row_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """It appears whole, or not at all."""
    slot_path(tmp_path, "default", WORKER).mkdir()
    kept = set(_descriptors._ours)
    with pytest.raises(IsADirectoryError):
        slot(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".slot"]
    assert set(_descriptors._ours) == kept


def test_row_that_is_cut_short_is_not_made(tmp_path: Path) -> None:
    """A row that others could not read would be lost for ever."""

    def cut() -> bool:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
        try:
            with pytest.raises(OSError, match="No space left"):
                slot(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        return list(tmp_path.iterdir()) == []

    assert in_child(cut)


def test_row_knows_whether_it_stands(tmp_path: Path) -> None:
    """A row that was removed, replaced, emptied or written over is made anew."""
    first = slot(tmp_path)
    assert first.stands()
    second = slot(tmp_path)
    assert not first.stands()
    second.oldest(("GET /", 0.0))
    assert second.stands()
    os.truncate(second.path, 0)
    assert not second.stands()
    second.oldest(("GET /", 0.0))  # As long as it was, and yet no row.
    assert not second.stands()
    second.path.unlink()
    assert not second.stands()
    _descriptors.drop(second.descriptor)
    assert not second.stands()
    first.remove()


def test_row_that_was_replaced_removes_only_itself(tmp_path: Path) -> None:
    """The row of another process under the same path stays."""
    first, second = slot(tmp_path), slot(tmp_path)
    first.remove()
    assert second.stands()
    second.remove()


def test_spoilt_row_is_believed_by_nobody(tmp_path: Path) -> None:
    """A row whose counts are wrong says only that there is a worker."""
    slot(tmp_path).spoil()
    row = only_row(tmp_path)
    assert (row.id, row.liveness, row.host) == (WORKER, "lost", "?")


def test_row_that_cannot_be_spoilt_is_removed(tmp_path: Path) -> None:
    """Rather no row than one with wrong counts."""
    row = slot(tmp_path)
    _descriptors.drop(row.descriptor)
    row.descriptor = _descriptors.keep(lambda: os.open(row.path, os.O_RDONLY))
    row.spoil()
    assert not row.path.exists()


def test_row_of_a_dead_worker_is_removed(tmp_path: Path) -> None:
    """The kernel let go of its lock: that is proof, and the row goes."""
    assert in_child(lambda: slot(tmp_path, current=1))
    row = only_row(tmp_path)
    assert (row.liveness, row.current) == ("dead", 1)
    assert list(tmp_path.iterdir()) == []


def test_free_lock_proves_nothing_elsewhere(tmp_path: Path) -> None:
    """Another kernel's lock is not ours to see, nor is one on a network."""
    ours = dataclasses.asdict(ProcessIdentity.own())
    assert in_child(lambda: slot(tmp_path, **ours))
    assert only_row(tmp_path, coherent=False).liveness == "lost"
    elsewhere = dataclasses.replace(ProcessIdentity.own(), boot="another", machine="")
    assert only_row(tmp_path, observer=elsewhere).liveness == "lost"
    restarted = dataclasses.replace(elsewhere, machine="m")
    assert only_row(tmp_path, observer=restarted).liveness == "lost"
    assert len(list(tmp_path.iterdir())) == 1


def test_free_lock_of_the_boot_before(tmp_path: Path) -> None:
    """A restart of this very machine has ended whoever held it."""
    assert in_child(lambda: slot(tmp_path, boot="before", machine="m"))
    observer = dataclasses.replace(ProcessIdentity.own(), machine="m")
    assert only_row(tmp_path, observer=observer).liveness == "dead"


def test_row_of_another_boot_is_lost(tmp_path: Path) -> None:
    """A lock that is held under another kernel says nothing about counts here."""
    row = slot(tmp_path, boot="another")
    row.oldest(("GET /", 0.0))
    found = only_row(tmp_path)
    assert (found.liveness, found.counts_first) == ("lost", False)
    assert (found.oldest_route, found.oldest_age) == ("GET /", None)
    row.remove()


def test_row_of_another_generation_must_acknowledge(tmp_path: Path) -> None:
    """Who reads an epoch file that was replaced may not know the epoch."""
    row = slot(tmp_path)
    assert not only_row(tmp_path, generation="11" * 16).counts_first
    row.remove()


def test_row_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    """An epoch that was never published cannot have been seen."""
    row = slot(tmp_path)
    row.seen(101)
    assert only_row(tmp_path).seen == 0
    row.remove()


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"pid": 1}'])
def test_row_without_an_identity_is_lost(tmp_path: Path, text: bytes) -> None:
    """A row that was written over says only that there was a worker."""
    row = slot(tmp_path)
    os.pwrite(row.descriptor, text.ljust(900, b"\0"), 64)
    assert only_row(tmp_path).liveness == "lost"
    row.remove()


def test_row_with_a_damaged_label_is_believed(tmp_path: Path) -> None:
    """What only people read decides nothing."""
    row = slot(tmp_path)
    os.pwrite(row.descriptor, b"{", 1024)
    assert (only_row(tmp_path).oldest_route, only_row(tmp_path).oldest_age) == (
        None,
    ) * 2
    row.remove()


def test_half_made_row_of_a_killed_worker_is_removed(tmp_path: Path) -> None:
    """Nobody makes one while rows are read."""
    (tmp_path / "default.1-ab.new").touch()
    assert read_rows(tmp_path, "default", sight()) == ([], {})
    assert list(tmp_path.iterdir()) == []


def test_row_that_leaves_while_it_is_read(tmp_path: Path) -> None:
    """Between listing and opening a worker may leave cleanly."""
    (tmp_path / "default.1-ab.slot").symlink_to("gone")
    assert read_rows(tmp_path, "default", sight()) == ([], {})
    assert highest_seen(tmp_path, "default") == 0


def test_highest_seen(tmp_path: Path) -> None:
    """An epoch file that begins anew begins above what rows have seen."""
    row = slot(tmp_path)
    row.seen(12)
    assert highest_seen(tmp_path, "default") == 12
    row.seen(EPOCH_LIMIT)
    assert highest_seen(tmp_path, "default") == 0
    row.remove()
