"""The file fence's words: one epoch for all, one locked slot for each worker."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ..fence import Liveness, WorkerRow
from ._disk import give_to_owner_of, try_lock, write_atomic
from ._process import ProcessIdentity

WORD: Final = 8
"""Bytes that one ``pread`` or ``pwrite`` moves as a whole."""

_EPOCH_MAGIC: Final = b"FMEPOCH1"
_SLOT_MAGIC: Final = b"FMSLOT01"
_SLOT_SIZE: Final = 2048
_SEEN, _COUNTS, _MAGIC, _GENERATION, _IDENTITY, _OLDEST = 0, 8, 16, 24, 64, 1024
_HALF: Final = 32
_MOST: Final = (1 << _HALF) - 1


def word(value: int) -> bytes:
    """Return a number as the bytes of one word."""
    return value.to_bytes(WORD, "little")


class EpochFile:
    """The newest epoch of one switch, read by every request with one call.

    Attributes:
        generation: Changes when the file is made anew.
        whole: False when it replaced one that was lost, so that workers may be
            missing from the roster.

    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OSError: If it cannot be opened.
            ValueError: If it is truncated or another program's.

        """
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        head = os.pread(self.descriptor, 40, 0)
        if len(head) < 40 or head[8:16] != _EPOCH_MAGIC:
            os.close(self.descriptor)
            raise ValueError(f"{path} is no epoch file")
        self.generation = head[16:32].hex()
        self.whole = head[32] == 1

    @staticmethod
    def create(path: Path, epoch: int, *, whole: bool) -> None:
        """Make the file anew; it appears whole or not at all."""
        flag = word(1 if whole else 0)
        content = word(epoch) + _EPOCH_MAGIC + os.urandom(16) + flag
        write_atomic(path, content, 0o600)

    def read(self) -> bytes:
        """Return the epoch as one word; shorter when the file was truncated."""
        return os.pread(self.descriptor, WORD, 0)

    def publish(self, epoch: int) -> None:
        """Store the epoch. From here on, every admission sees it."""
        os.pwrite(self.descriptor, word(epoch), 0)

    def set_whole(self, whole: bool) -> None:  # a setter
        """Store whether the roster is known to be complete."""
        os.pwrite(self.descriptor, word(int(whole)), 32)
        self.whole = whole

    def stands(self) -> bool:
        """Tell whether the path still leads to this very file."""
        return _same_file(self.path, self.descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


class Slot:
    """A worker's own row. The lock on it is the proof that the worker lives."""

    def __init__(
        self,
        path: Path,
        identity: ProcessIdentity,
        *,
        generation: str,
        current: int,
        old: int,
        seen: int,
    ) -> None:
        """Make the row; it appears locked and with its counts, or not at all.

        Args:
            path: Where coordinators look for it.
            identity: Who this worker is.
            generation: That of the epoch file which this worker reads.
            current: Requests in flight under ``seen``.
            old: Requests in flight from before.
            seen: The adopted epoch.

        Raises:
            OSError: If it cannot be made or locked.

        """
        self.path = path
        temporary = path.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(temporary, flags, 0o600)
        try:
            if not try_lock(self.descriptor):
                raise BlockingIOError(f"{temporary} is locked by another process")
            give_to_owner_of(path.parent, self.descriptor)
            content = bytearray(_SLOT_SIZE)
            content[_SEEN : _SEEN + WORD] = word(seen)
            content[_COUNTS : _COUNTS + WORD] = word(old << _HALF | current)
            content[_MAGIC : _MAGIC + WORD] = _SLOT_MAGIC
            content[_GENERATION : _GENERATION + 16] = bytes.fromhex(generation)
            text = json.dumps(asdict(identity)).encode()
            content[_IDENTITY : _IDENTITY + len(text)] = text
            if len(content) != _SLOT_SIZE or len(text) > _OLDEST - _IDENTITY:
                raise OSError(f"host name too long: {identity.host!r}")
            os.pwrite(self.descriptor, content, 0)
            os.replace(temporary, path)
        except BaseException:
            os.close(self.descriptor)
            temporary.unlink(missing_ok=True)
            raise

    def count(self, current: int, old: int) -> None:
        """Store both counts in one word, so that no reader sees one moved alone."""
        # Twice for every request: spelt out, as a call costs as much as it says.
        os.pwrite(
            self.descriptor, (old << _HALF | current).to_bytes(WORD, "little"), _COUNTS
        )

    def seen(self, epoch: int) -> None:
        """Store the adopted epoch; the counts were stored before."""
        os.pwrite(self.descriptor, word(epoch), _SEEN)

    def oldest(self, entry: tuple[str, float] | None) -> None:
        """Store the route and start of the oldest request, for people."""
        text = b""
        if entry is not None:
            label = entry[0].encode(errors="replace")[:700].decode(errors="ignore")
            text = json.dumps([label, entry[1]]).encode()
        text = text[: _SLOT_SIZE - _OLDEST]
        os.pwrite(self.descriptor, text.ljust(_SLOT_SIZE - _OLDEST, b"\0"), _OLDEST)

    def stands(self) -> bool:
        """Tell whether coordinators can still find and read this row."""
        whole = os.fstat(self.descriptor).st_size >= _SLOT_SIZE
        return whole and _same_file(self.path, self.descriptor)

    def remove(self) -> None:
        """Take the row away and let go of the lock."""
        if _same_file(self.path, self.descriptor):
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def slot_path(run_dir: Path, name: str, worker: str) -> Path:
    """Return where a worker's row is."""
    return run_dir / f"{name}.{worker}.slot"


def read_rows(
    run_dir: Path, name: str, observer: ProcessIdentity, generation: str
) -> tuple[list[WorkerRow], dict[str, ProcessIdentity]]:
    """Read all rows of a switch, and remove those that are proven dead.

    Returns:
        The rows and who they are.

    Raises:
        OSError: If the directory or a row cannot be read. Never fewer rows.

    """
    rows: list[WorkerRow] = []
    identities: dict[str, ProcessIdentity] = {}
    pattern = re.compile(rf"{re.escape(name)}\.([0-9]+-[0-9a-f]+)\.slot")
    for entry in sorted(os.listdir(run_dir)):
        match = pattern.fullmatch(entry)
        if match is None:
            continue
        try:
            descriptor = os.open(run_dir / entry, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # It left between the listing and now, or another reaped it.
        try:
            row, identity = _read_row(descriptor, match[1], observer, generation)
        finally:
            os.close(descriptor)
        if row.liveness == "dead":
            (run_dir / entry).unlink(missing_ok=True)
        rows.append(row)
        if identity is not None:
            identities[row.id] = identity
    return rows, identities


def _read_row(
    descriptor: int, worker: str, observer: ProcessIdentity, generation: str
) -> tuple[WorkerRow, ProcessIdentity | None]:
    # The lock first: counts read after it was found free are final. Then the
    # epoch, then the counts: read the other way round, a move to ``old`` between
    # the two would be missed.
    free = try_lock(descriptor, shared=True)
    seen = int.from_bytes(os.pread(descriptor, WORD, _SEEN), "little")
    counts = int.from_bytes(os.pread(descriptor, WORD, _COUNTS), "little")
    rest = os.pread(descriptor, _SLOT_SIZE - _MAGIC, _MAGIC)
    identity = _identity(rest)
    pid = int(worker.partition("-")[0])
    if identity is None:
        # Truncated by somebody. Its worker makes it anew; nobody else can tell.
        return WorkerRow(id=worker, host="?", pid=pid, seen=0, liveness="lost"), None
    same = identity.same_boot(observer)
    dead = (free and same) or identity.gone(observer)
    # A lock that is free under another boot proves nothing about that kernel.
    liveness: Liveness = "dead" if dead else "lost" if free or not same else "alive"
    route, age = _oldest(rest, same_clock=same)
    # A worker that still reads an epoch file which was replaced decides by an old
    # epoch until it has noticed: its idleness says nothing.
    reads = rest[_GENERATION - _MAGIC :][:16].hex()
    row = WorkerRow(
        id=worker,
        host=identity.host,
        pid=identity.pid,
        seen=seen,
        current=counts & _MOST,
        old=counts >> _HALF,
        counts_first=reads == generation,
        liveness=liveness,
        oldest_route=route,
        oldest_age=age,
    )
    return row, identity


def _identity(rest: bytes) -> ProcessIdentity | None:
    if len(rest) != _SLOT_SIZE - _MAGIC or rest[:WORD] != _SLOT_MAGIC:
        return None
    text = rest[_IDENTITY - _MAGIC : _OLDEST - _MAGIC].rstrip(b"\0")
    try:
        return ProcessIdentity(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _oldest(rest: bytes, *, same_clock: bool) -> tuple[str | None, float | None]:
    try:
        route, started = json.loads(rest[_OLDEST - _MAGIC :].rstrip(b"\0") or b"null")
    except (ValueError, TypeError):
        return None, None
    # The monotonic clock is the machine's, so ages hold across processes.
    return route, max(0.0, time.monotonic() - started) if same_clock else None


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        found, ours = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_ino, found.st_dev) == (ours.st_ino, ours.st_dev)
