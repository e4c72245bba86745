"""The run directory of a file store: who is a worker there, and how to tell."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ..fence import Roster, WorkerRow
from ..state import MaintenanceState, StateFormatError
from ._disk import (
    HAS_LOCKS,
    foreign_file_system,
    locked,
    make_directory,
    read_small,
    try_lock,
    unlock,
    write_atomic,
)
from ._process import ProcessIdentity
from ._slots import EpochFile, read_rows

_LOCK: Final = "writer.lock"


class RunDirectory:
    """Holds the epoch files, the workers' rows and the writers' lock.

    Args:
        path: The store's directory, which outlives this one.
        run_dir: The directory itself; mode 0700, of the service's user.

    """

    def __init__(self, path: Path, run_dir: Path) -> None:
        self.path = path
        self.run_dir = run_dir
        self._seen: dict[str, ProcessIdentity] = {}

    def prepare(self) -> str:
        """Make the directories where they are missing.

        Returns:
            Why workers cannot be counted there, or ``""``.

        Raises:
            OSError: If they cannot be made.

        """
        if not self.path.is_dir():
            make_directory(self.path, 0o755)
            with contextlib.suppress(OSError):
                write_atomic(self.path / ".gitignore", b"*\n", 0o644)
        if not HAS_LOCKS:
            return "this operating system has no flock"
        make_directory(self.run_dir, 0o700)
        kind = foreign_file_system(self.run_dir)
        return kind and f"locks on a {kind} file system prove nothing"

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of those who publish and join."""
        if not HAS_LOCKS:
            return contextlib.nullcontext()
        return locked(self.run_dir / _LOCK)

    def open_epoch(self, name: str, floor: int = 0, *, lost: bool = False) -> EpochFile:
        """Open the epoch file, made anew where it is missing or truncated.

        Args:
            name: The switch.
            floor: An epoch that the new file must not fall below.
            lost: Whether the caller knows that an earlier roster was lost.

        Raises:
            OSError: If it cannot be made. Call it while ``writing()``.

        """
        path = self.run_dir / f"{name}.epoch"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return EpochFile(path)
        lost = lost or self._had_roster(name)
        with contextlib.suppress(OSError, StateFormatError):
            found = read_small(self.state_path(name))
            if found is not None:
                floor = max(floor, MaintenanceState.from_json(found[0]).epoch)
        EpochFile.create(path, floor, whole=not lost)
        boot = ProcessIdentity.own().boot.encode()
        write_atomic(self._trace(name), boot, 0o644)
        return EpochFile(path)

    def state_path(self, name: str) -> Path:
        """Return the state file of a switch."""
        return self.path / f"{name}.json"

    def roster(self, name: str) -> Roster:
        """Read every row; remove those that are proven dead.

        Raises:
            OSError: If they cannot be read. Never fewer rows.

        """
        if not self.run_dir.is_dir() or not HAS_LOCKS:
            whole = HAS_LOCKS and not self._had_roster(name)
            return Roster(generation="", rows=(), epoch=0, whole=whole)
        observer = ProcessIdentity.own()
        with self.writing():
            epoch = self.open_epoch(name)
            number = int.from_bytes(epoch.read(), "little")
            generation, whole = epoch.generation, epoch.whole
            epoch.close()
            rows, identities = read_rows(self.run_dir, name, observer, generation)
            uncounted = self._has_uncounted()
        foreign = bool(foreign_file_system(self.run_dir))
        rows += self._vanished(identities, observer)
        return Roster(
            generation=generation,
            rows=tuple(rows),
            epoch=number,
            whole=whole,
            uncounted=uncounted or foreign,
        )

    def _trace(self, name: str) -> Path:
        # Kept beside the state, so that it outlives the run directory.
        return self.path / f"{name}.roster"

    def _had_roster(self, name: str) -> bool:
        """Tell whether this boot had a roster, whose workers may still be running."""
        try:
            boot = self._trace(name).read_bytes()
        except OSError:
            return False
        return boot in {ProcessIdentity.own().boot.encode(), b""}

    def _vanished(
        self, present: dict[str, ProcessIdentity], observer: ProcessIdentity
    ) -> list[WorkerRow]:
        # Rows of a roster that was deleted: their processes can still be proven
        # dead, and only then may a drain stop waiting for them.
        rows = []
        for worker, identity in list(self._seen.items()):
            if worker not in present and identity.gone(observer):
                del self._seen[worker]
                rows.append(
                    WorkerRow(
                        id=worker,
                        host=identity.host,
                        pid=identity.pid,
                        seen=0,
                        liveness="dead",
                    )
                )
        self._seen.update(present)
        return rows

    def _has_uncounted(self) -> bool:
        # They hold a shared lock on the directory from before they read the state.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            free = try_lock(descriptor)
            if free:
                unlock(descriptor)
            return not free
        finally:
            os.close(descriptor)

    def forget(self, name: str, worker: str) -> None:
        """Remove a row.

        Raises:
            OSError: If it cannot be removed.

        """
        self._seen.pop(worker, None)
        (self.run_dir / f"{name}.{worker}.slot").unlink(missing_ok=True)
