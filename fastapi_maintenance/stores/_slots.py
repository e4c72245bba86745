"""One locked slot for each worker: its row, as it writes it and others read it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..fence import Liveness, WorkerRow
from ..state import EPOCH_LIMIT
from ._descriptors import drop, keep
from ._disk import give_to_owner_of, same_file, try_lock, unlock
from ._epoch import WORD, word
from ._process import WORKER_ID, ProcessIdentity, pid_of

_SLOT_MAGIC: Final = b"FMSLOT01"
_SLOT_SIZE: Final = 2048
_SEEN, _COUNTS, _MAGIC, _GENERATION, _IDENTITY, _OLDEST = 0, 8, 16, 24, 64, 1024
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_HALF: Final = 32
_MOST: Final = (1 << _HALF) - 1


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
    ) -> None:
        """Make the row; it appears locked and with its counts, or not at all.

        It has seen no epoch yet: one of a roster that was lost may be larger than
        those to come, and would pass for having seen them.

        Args:
            path: Where coordinators look for it.
            identity: Who this worker is.
            generation: That of the epoch file which this worker reads.
            current: Requests in flight under the adopted epoch.
            old: Requests in flight from before.

        Raises:
            OSError: If it cannot be made or locked.
        """
        self.path = path
        text = json.dumps(asdict(identity)).encode()
        if len(text) > _OLDEST - _IDENTITY:
            raise OSError(errno.ENAMETOOLONG, "host name too long", identity.host)
        content = bytearray(_SLOT_SIZE)
        content[_COUNTS : _COUNTS + WORD] = word(old << _HALF | current)
        content[_MAGIC : _MAGIC + WORD] = _SLOT_MAGIC
        content[_GENERATION : _GENERATION + 16] = bytes.fromhex(generation)
        content[_IDENTITY : _IDENTITY + len(text)] = text
        self._fixed = bytes(content[_MAGIC:_OLDEST])
        temporary = path.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = keep(lambda: os.open(temporary, flags, 0o600))
        try:
            give_to_owner_of(path.parent, self.descriptor)
            whole = os.pwrite(self.descriptor, content, 0) == _SLOT_SIZE
            if not whole or not try_lock(self.descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            temporary.replace(path)
        except BaseException:
            drop(self.descriptor)
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
            text = json.dumps([label, entry[1]], ensure_ascii=False).encode()
        text = text[: _SLOT_SIZE - _OLDEST]
        os.pwrite(self.descriptor, text.ljust(_SLOT_SIZE - _OLDEST, b"\0"), _OLDEST)

    def stands(self) -> bool:
        """Tell whether coordinators can still find and read this row."""
        with contextlib.suppress(OSError):
            found = os.pread(self.descriptor, len(self._fixed), _MAGIC)
            return found == self._fixed and same_file(self.path, self.descriptor)
        return False

    def remove(self) -> None:
        """Take the row away and let go of the lock."""
        if same_file(self.path, self.descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        drop(self.descriptor)

    def spoil(self) -> None:
        """Make the row one that nobody believes: its counts are wrong."""
        try:
            os.ftruncate(self.descriptor, 0)
        except OSError:
            self.remove()
        else:
            drop(self.descriptor)


def slot_path(run_dir: Path, name: str, worker: str) -> Path:
    """Return where a worker's row is."""
    return run_dir / f"{name}.{worker}.slot"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sight:
    """From where rows are looked at.

    Attributes:
        observer: Who looks.
        generation: That of the epoch file.
        epoch: The newest published epoch.
        coherent: Whether locks on this file system prove anything.
    """

    observer: ProcessIdentity
    generation: str
    epoch: int
    coherent: bool = True


def read_rows(
    run_dir: Path, name: str, sight: Sight
) -> tuple[list[WorkerRow], dict[str, ProcessIdentity]]:
    """Read all rows of a switch, and remove those that are proven dead.

    Call it while nobody can join.

    Returns:
        The rows and who they are.

    Raises:
        OSError: If the directory or a row cannot be read. Never fewer rows.
    """
    rows: list[WorkerRow] = []
    identities: dict[str, ProcessIdentity] = {}
    for entry, worker, ending in _entries(run_dir, name):
        if ending == "new":
            # Its maker was killed: whoever makes one holds the writers' lock.
            entry.unlink(missing_ok=True)
            continue
        try:
            descriptor = keep(partial(os.open, entry, _READ))
        except FileNotFoundError:
            continue  # It left between the listing and now, or another reaped it.
        try:
            row, identity = _read_row(descriptor, worker, sight)
        finally:
            drop(descriptor)
        if row.liveness == "dead":
            entry.unlink(missing_ok=True)
        rows.append(row)
        if identity is not None:
            identities[row.id] = identity
    return rows, identities


def highest_seen(run_dir: Path, name: str) -> int:
    """Return the newest epoch that any row has seen, for a file that begins anew.

    Raises:
        OSError: If the directory or a row cannot be read.
    """
    highest = 0
    for entry, _, _ in _entries(run_dir, name):
        with contextlib.suppress(FileNotFoundError), entry.open("rb") as file:
            highest = max(highest, int.from_bytes(file.read(WORD), "little"))
    return highest if highest < EPOCH_LIMIT - 1 else 0


def _entries(run_dir: Path, name: str) -> Iterator[tuple[Path, str, str]]:
    pattern = re.compile(rf"{re.escape(name)}\.({WORKER_ID})\.(slot|new)")
    for entry in sorted(run_dir.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is not None:
            yield entry, match[1], match[2]


def _read_row(
    descriptor: int, worker: str, sight: Sight
) -> tuple[WorkerRow, ProcessIdentity | None]:
    # The lock first: counts read after it was found free are final. Then the
    # epoch, then the counts: read the other way round, a move to ``old`` between
    # the two would be missed.
    free = try_lock(descriptor, shared=True)
    if free:
        unlock(descriptor)
    seen = int.from_bytes(os.pread(descriptor, WORD, _SEEN), "little")
    counts = int.from_bytes(os.pread(descriptor, WORD, _COUNTS), "little")
    rest = os.pread(descriptor, _SLOT_SIZE - _MAGIC, _MAGIC)
    identity = _identity(rest)
    pid = pid_of(worker)
    # For people alone, who ask how long a machine has been silent: clocks may differ.
    silent = max(0.0, time.time() - os.fstat(descriptor).st_mtime)
    if identity is None:
        # Truncated by somebody. Its worker makes it anew; nobody else can tell.
        row = WorkerRow(
            id=worker, host="?", pid=pid, seen=0, liveness="lost", report_age=silent
        )
        return row, None
    observer = sight.observer
    same = identity.same_boot(observer)
    # A lock that is free proves nothing about another kernel, unless this very
    # installation has been booted since.
    proof = sight.coherent and free and (same or identity.restarted(observer))
    dead = proof or identity.gone(observer)
    liveness: Liveness = "dead" if dead else "lost" if free or not same else "alive"
    route, age = _oldest(rest, same_clock=same)
    # A worker that still reads an epoch file which was replaced decides by an old
    # epoch until it has noticed: its idleness says nothing. Nor does that of another
    # kernel, which may read an epoch of its own.
    reads = rest[_GENERATION - _MAGIC :][:16].hex()
    row = WorkerRow(
        id=worker,
        host=identity.host,
        pid=identity.pid,
        # Nobody sees what was never published: such a number proves nothing.
        seen=seen if seen <= sight.epoch else 0,
        current=counts & _MOST,
        old=counts >> _HALF,
        counts_first=same and reads == sight.generation,
        liveness=liveness,
        oldest_route=route,
        oldest_age=age,
        report_age=silent if liveness == "lost" else 0.0,
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
