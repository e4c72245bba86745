"""The state in a directory: every worker of one machine, without a server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio.to_thread

from ..fence import Roster
from ..state import EPOCH_LIMIT, VERSION, MaintenanceState, StateFormatError, next_epoch
from . import DEFAULT_PATH, Change, StoreError
from ._disk import (
    UntrustedFileError,
    read_small,
    write_atomic,
)
from ._epoch import EpochFile
from ._keeper import FileWorker
from ._member import FileLink
from ._registry import worker_at
from ._rundir import RunDirectory


class FileStore:
    """Keeps each switch in ``<path>/<name>.json``; the default store.

    Nothing is touched before the first use, and an unusable directory never
    takes a service down: its workers read what they can and say so in the log.

    Args:
        path: The directory. A relative one is taken from the present directory.
        run_dir: Where workers keep their rows, ``run`` inside ``path`` by default.
            A directory on ``tmpfs`` that survives no reboot is a good one.
    """

    pause: float = 0.02

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not os.fspath(path):
            raise ValueError("path must name a directory, not ''")
        # Later changes of the working directory must not move the switch.
        self.path: Path = Path(os.path.abspath(path))  # noqa: PTH100  # links stay what they are
        self.run_dir: Path = Path(os.path.abspath(run_dir or self.path / "run"))  # noqa: PTH100  # links stay what they are
        self.run: RunDirectory = RunDirectory(self.path, self.run_dir)

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    @property
    def location(self) -> str:
        """The absolute path of the directory."""
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether the directory is there."""
        return self.path.is_dir()

    def worker(self, name: str) -> FileWorker:
        """Return this process's one worker for a switch in this directory."""
        place = f"file:{self.path}?{self.run_dir}"
        title = f"{name!r} in {self.path}"
        return worker_at(
            FileWorker, place, name, lambda: FileWorker(FileLink(self, name), title)
        )

    def peek(self, name: str) -> MaintenanceState:
        """Read the state file.

        Raises:
            StoreError: If it cannot be read or is no state.
        """
        path = self.run.state_path(name)
        try:
            found = read_small(path)
            return MaintenanceState.from_json(found[0]) if found else MaintenanceState()
        except (OSError, StateFormatError) as error:
            raise StoreError(
                f"cannot read {path}: {_why(error)}; mend it, or write it anew with"
                " `fastapi-maintenance on` or `off`"
            ) from error

    async def read(self, name: str) -> MaintenanceState:
        """Read the state file; off when there is none.

        Raises:
            StoreError: If it cannot be read or is no state.
        """
        return await anyio.to_thread.run_sync(self.peek, name)

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state file atomically, then raise the epoch.

        Raises:
            StoreError: If it cannot be written; the old state then stands, unless
                putting it back fails, too: the message then says so.
        """
        return await anyio.to_thread.run_sync(self._publish, name, change)

    async def roster(self, name: str) -> Roster:
        """Read every worker's row; remove those that are proven dead.

        Raises:
            StoreError: If the rows cannot be read, as by another user.
        """
        return await anyio.to_thread.run_sync(self._roster, name)

    async def forget(self, name: str, workers: Iterable[str]) -> None:
        """Remove rows that a person knows to be gone for good.

        Raises:
            StoreError: If one cannot be removed, or its process still runs.
        """
        await anyio.to_thread.run_sync(self._forget, name, tuple(workers))

    async def vouch(self, name: str, generation: str) -> None:
        """Take a roster as complete, on a person's word, while it is the present one.

        Raises:
            StoreError: If that cannot be stored.
        """
        await anyio.to_thread.run_sync(self._vouch, name, generation)

    def _publish(self, name: str, change: Change) -> MaintenanceState:
        with self._failing("cannot set maintenance"):
            uncountable = self.run.prepare()
            with self.run.writing():
                before, former = self._present(name)
                epoch = None if uncountable else self.run.open_epoch(name, before.epoch)
                try:
                    known = epoch.number if epoch else 0
                    state = change(before).but(epoch=_next(before.epoch, known))
                    content = state.to_json().encode()
                    self.run.leave_trace(name)
                    write_atomic(self.run.state_path(name), content, 0o644)
                    if epoch is not None:
                        self._raise_epoch(epoch, state.epoch, name, former)
                finally:
                    if epoch is not None:
                        epoch.close()
        worker = self.worker(name)
        if worker.joined:
            worker.refresh()
        return state

    def _raise_epoch(
        self, epoch: EpochFile, number: int, name: str, former: bytes | None
    ) -> None:
        """Raise the epoch, or put the state file back as it was."""
        try:
            epoch.publish(number)
        except OSError as error:
            path = self.run.state_path(name)
            try:
                if former is None:
                    path.unlink()
                else:
                    write_atomic(path, former, 0o644)
            except OSError as another:
                raise StoreError(
                    f"{path} has the new state, but raising the epoch failed"
                    f" ({_why(error)}), and so did putting the old state back"
                    f" ({_why(another)}); mend the disk, and set it again"
                ) from error
            raise

    def _present(self, name: str) -> tuple[MaintenanceState, bytes | None]:
        """Return the state, and what the file is when it is put back."""
        # What cannot be understood is closed; publishing mends it.
        closed = MaintenanceState(active=True)
        try:
            found = read_small(self.run.state_path(name))
        except UntrustedFileError:
            return closed, closed.to_json().encode()
        if found is None:
            return MaintenanceState(), None
        try:
            state = MaintenanceState.from_json(found[0])
        except StateFormatError:
            return closed, found[0]
        if state.version != VERSION:
            raise StoreError(
                f"{self.run.state_path(name)} was written by a newer release (version"
                f" {state.version}); upgrade fastapi-maintenance-guard here"
            )
        return state, found[0]

    def _roster(self, name: str) -> Roster:
        with self._failing("cannot read the workers"):
            return self.run.roster(name)

    def _forget(self, name: str, workers: tuple[str, ...]) -> None:
        with self._failing("cannot forget a worker"):
            for worker in workers:
                self.run.forget(name, worker)

    def _vouch(self, name: str, generation: str) -> None:
        with self._failing("cannot complete the roster"):
            self.run.complete(name, generation)

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{what} in {self.path}: {_why(error)}; run as the directory's owner"
                " or root, or choose another place with --store file:PATH"
            ) from error


def _next(*known: int) -> int:
    epoch = next_epoch(*known)
    if epoch >= EPOCH_LIMIT:
        raise StoreError(
            f"epoch {epoch - 1} is the last one; it was written by hand: remove"
            ' "epoch" from the state file, and the run directory beside it'
        )
    return epoch


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror.lower()}{place}"
    return str(error)
