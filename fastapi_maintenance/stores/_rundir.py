"""The run directory of a file store: who is a worker there, and how to tell."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

from ..fence import Roster, WorkerRow
from ..state import MaintenanceState, StateFormatError
from . import StoreError
from ._descriptors import drop, keep
from ._disk import (
    foreign_file_system,
    locked,
    make_directory,
    read_small,
    try_lock,
    unlock,
    write_atomic,
)
from ._epoch import DamagedEpochError, EpochFile
from ._presence import UNCOUNTED, announced, digest_of
from ._process import WORKER_ID, ProcessIdentity
from ._slots import Sight, highest_seen, read_rows, slot_path
from ._vanished import Vanished

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
        self.digest: str = digest_of(run_dir)
        self._vanished: defaultdict[str, Vanished] = defaultdict(Vanished)

    def prepare(self) -> str:
        """Make the directories where they are missing.

        Returns:
            Why workers cannot be counted there, or ``""``.

        Raises:
            OSError: If they cannot be made.
        """
        if not _stands(self.path):
            make_directory(self.path, 0o755)
            with contextlib.suppress(OSError):
                write_atomic(self.path / ".gitignore", b"*\n", 0o644)
        make_directory(self.run_dir, 0o700)
        kind = foreign_file_system(self.run_dir)
        return kind and f"locks on a {kind} file system prove nothing"

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of those who publish and join."""
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
        with contextlib.suppress(FileNotFoundError, DamagedEpochError):
            return EpochFile(path)
        lost = lost or self._had_roster(name)
        with contextlib.suppress(OSError, StateFormatError):
            found = read_small(self.state_path(name))
            if found is not None:
                floor = max(floor, MaintenanceState.from_json(found[0]).epoch)
        floor = max(floor, highest_seen(self.run_dir, name))
        # Before the file: whoever is killed in between has lost a roster of nobody,
        # while the other way round the next loss would go unnoticed.
        self.leave_trace(name)
        EpochFile.create(path, floor, whole=not lost)
        return EpochFile(path)

    def leave_trace(self, name: str) -> None:
        """Note beside the state that this boot has a roster, where that can be written.

        It cannot where only root may set the state. Whoever publishes can.
        """
        boot = ProcessIdentity.own().boot.encode()
        with contextlib.suppress(OSError):
            if not self._trace(name).exists() or self._trace(name).read_bytes() != boot:
                write_atomic(self._trace(name), boot, 0o644)

    def state_path(self, name: str) -> Path:
        """Return the state file of a switch."""
        return self.path / f"{name}.json"

    def roster(self, name: str) -> Roster:
        """Read every row; remove those that are proven dead.

        Raises:
            OSError: If they cannot be read. Never fewer rows.
        """
        if not _stands(self.run_dir):
            ghosts, uncounted = self._unlisted(name, set())
            uncounted = uncounted or (_stands(self.path) and self._has_uncounted())
            whole = not ghosts and not self._had_roster(name)
            return Roster(
                generation="",
                rows=tuple(ghosts),
                epoch=0,
                whole=whole,
                uncounted=uncounted,
            )
        observer = ProcessIdentity.own()
        foreign = bool(foreign_file_system(self.run_dir))
        with self.writing():
            epoch = self.open_epoch(name)
            sight = Sight(
                observer=observer,
                generation=epoch.generation,
                epoch=epoch.number,
                coherent=not foreign,
            )
            whole = epoch.whole
            epoch.close()
            rows, identities = read_rows(self.run_dir, name, sight)
            # Names after rows: whoever leaves lets go of the name first. Nobody can
            # join meanwhile.
            ghosts, uncounted = self._unlisted(name, {row.id for row in rows})
            uncounted = self._has_uncounted() or uncounted or foreign
        return Roster(
            generation=sight.generation,
            rows=(*rows, *ghosts, *self._vanished[name].dead(identities, observer)),
            epoch=sight.epoch,
            whole=whole,
            uncounted=uncounted,
        )

    def complete(self, name: str, generation: str) -> None:
        """Take a roster as complete, if it is still the present one.

        Raises:
            OSError: If that cannot be stored.
        """
        with self.writing():
            epoch = self.open_epoch(name)
            try:
                if epoch.generation == generation:
                    epoch.set_whole(True)
            finally:
                epoch.close()

    def _trace(self, name: str) -> Path:
        # Kept beside the state, so that it outlives the run directory.
        return self.path / f"{name}.roster"

    def _had_roster(self, name: str) -> bool:
        """Tell whether this boot had a roster, whose workers may still be running."""
        try:
            boot = self._trace(name).read_bytes()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # There is a trace, and nobody knows of what.
        return boot in {ProcessIdentity.own().boot.encode(), b""}

    def _unlisted(self, name: str, listed: set[str]) -> tuple[list[WorkerRow], bool]:
        """Return workers whose rows are missing, and whether some are uncounted."""
        ghosts, uncounted = {}, False
        for found in announced(self.path, name):
            if found.counted_in == UNCOUNTED:
                uncounted = True
            elif found.worker in listed:
                continue
            elif found.counted_in != self.digest:
                uncounted = True  # It has its row in another run directory.
            else:
                ghosts[found.worker] = WorkerRow(
                    id=found.worker,
                    host=ProcessIdentity.own().host,
                    pid=found.pid,
                    seen=0,
                    liveness="lost",
                )
        return list(ghosts.values()), uncounted

    def _has_uncounted(self) -> bool:
        # They hold a shared lock on the directory from before they read the state.
        descriptor = keep(lambda: os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            for _ in range(5):
                # Another coordinator's probe holds it for microseconds.
                if try_lock(descriptor):
                    unlock(descriptor)
                    return False
                time.sleep(0.001)
            return True
        finally:
            drop(descriptor)

    def forget(self, name: str, worker: str) -> None:
        """Remove a row.

        Raises:
            StoreError: If it is none, or that of a process that still runs.
            OSError: If it cannot be removed.
        """
        if re.fullmatch(WORKER_ID, worker) is None:
            raise StoreError(
                f"no worker has this id: {worker!r}; `fastapi-maintenance status"
                " --json` lists them"
            )
        for found in announced(self.path, name):
            if found.worker == worker:
                raise StoreError(
                    f"worker {worker} is there: its process {found.pid} still runs;"
                    " stop that instead"
                )
        self._vanished[name].forget(worker)
        slot_path(self.run_dir, name, worker).unlink(missing_ok=True)


def _stands(path: Path) -> bool:
    # Not ``is_dir``: what cannot be looked at is an error, not a missing directory.
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
