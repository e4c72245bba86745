"""The state in a directory: every worker of one machine, without a server."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from .. import processes
from ..fence import Membership, Receipt, Roster, WorkerReport, roster_of
from ..files import (
    UntrustedFileError,
    is_directory,
    make_directory,
    read_own,
    read_small,
    remove_left_behind,
    replace,
    write_new,
)
from ..locks import (
    LOCK_TIMEOUT,
    HeldLock,
    check_file_system,
    exclusive,
    is_free,
    is_shared,
)
from ..state import SIZE_LIMIT, MaintenanceState, StateFormatError
from . import (
    DEFAULT_PATH,
    CannotJoinError,
    Change,
    Members,
    MembersChange,
    StoreError,
    add_member,
    judge_liveness,
    mark_members,
    next_state,
    parse,
    parse_membership,
    remove_member,
)

MEMBERS_LIMIT: Final = 1 << 20
"""Bytes of a list of workers: some 40,000 of them."""

_WORKER: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


class FileStore:
    """Keeps each switch in ``<path>/<name>.json``; the default store.

    Nothing is touched before the first use. A directory that cannot be used never takes
    a service down: its workers read what they can, and say so in the log.

    Args:
        path: The directory. A relative one is taken from the current directory.
        run_dir: Where workers keep their reports, ``run`` inside ``path`` by default.

    Raises:
        ValueError: If the path is empty, or has a null character.
    """

    local: bool = True
    poll_interval: float = 0.06

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        for given in (path, run_dir or "run"):
            if not os.fspath(given) or "\0" in os.fspath(given):
                raise ValueError(f"path must name a directory, not {given!r}")
        # A later change of the working directory must not move the switch, and links
        # stay what they are.
        self.path: Path = Path(os.path.abspath(path))  # noqa: PTH100
        self.run_dir: Path = Path(os.path.abspath(run_dir or self.path / "run"))  # noqa: PTH100
        self._state_paths: dict[str, str] = {}
        self._known: dict[str, tuple[bytes, MaintenanceState]] = {}
        self._held: dict[tuple[str, str], HeldLock] = {}
        self._uncounted: set[tuple[str, str]] = set()
        self._mark: HeldLock | None = None
        self._thread = threading.RLock()

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    @property
    def location(self) -> str:
        """The absolute path, and the run directory if that is elsewhere."""
        if self.run_dir == self.path / "run":
            return str(self.path)
        return f"{self.path} (reports in {self.run_dir})"

    @property
    def exists(self) -> bool:
        """Whether the directory is there."""
        return self.path.is_dir()

    def state_path(self, name: str) -> Path:
        """Return where the state of a switch is."""
        return self.path / f"{name}.json"

    def read(self, name: str) -> MaintenanceState | None:
        """Read the state file; None when there is none."""
        # Idle workers do this 16 times a second.
        path = self._state_paths.get(name)
        if path is None:
            path = self._state_paths[name] = str(self.state_path(name))
        try:
            content = read_small(path, SIZE_LIMIT)
            if content is None:
                return None
            known = self._known.get(name)
            # The bytes, as a file that was written again may have the same times.
            if known is not None and known[0] == content:
                return known[1]
            state = MaintenanceState.from_json(content)
        except (OSError, StateFormatError) as error:
            raise StoreError(
                f"cannot read {path}: {_why(error)}; repair it, or replace it with"
                " `fastapi-maintenance on` or `off`"
            ) from error
        self._known[name] = content, state
        return state

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state file atomically.

        Raises:
            StoreError: If it cannot be written, or is a link that something else
                maintains; the old state stands then.
        """
        path = self.state_path(name)
        with contextlib.ExitStack() as stack:
            # What ``change`` raises is not translated.
            with _translate_errors("cannot set maintenance", self.path):
                self._make_path()
                # Beside the state, so that a command creates nothing among the reports.
                stack.enter_context(exclusive(self.path / f"{name}.lock"))
                if path.is_symlink():
                    raise StoreError(
                        f"{path} is a link, such as a ConfigMap's; change what it"
                        " points to"
                    )
                try:
                    stored = read_small(path, SIZE_LIMIT)
                except UntrustedFileError:
                    stored = b""  # As if it were damaged.
            state = next_state(stored, change)
            with _translate_errors("cannot set maintenance", self.path):
                replace(path, state.to_json().encode(), 0o644, durable=True)
            remove_left_behind(self.path)
        return state

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a worker's report, and a lock that ends with its process.

        Raises:
            CannotJoinError: If the directory cannot be used for that.
        """
        with self._thread:
            try:
                receipt = self._report(name, report)
            except OSError as error:
                self._mark_uncounted(name, report.id)
                raise CannotJoinError(
                    f"workers cannot report in {self.run_dir}: {_why(error)}; let this"
                    " user write there, or choose another directory with"
                    " FASTAPI_MAINTENANCE_STORE=file:PATH"
                ) from error
            self._unmark_uncounted(name, report.id)
        return receipt

    def roster(self, name: str) -> Roster:
        """Read the list of workers and every report."""
        folder = self.run_dir / name
        with _translate_errors("cannot read the workers", self.run_dir):
            uncounted = is_shared(self.path)
            while True:
                membership = _read_members(folder)
                workers = () if membership is None else tuple(_read_workers(folder))
                if _read_members(folder) == membership:
                    break
        return roster_of(membership, workers, time.time(), uncounted=uncounted)

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster."""
        folder = self.run_dir / name
        with _translate_errors("cannot mark the list of workers", self.run_dir):
            if not self._has_folder(folder):
                return ""
            after = _change_members(folder, mark_members(generation, complete=complete))
        return "" if after is None else after.generation

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, then remove its report and its lock."""
        if not _WORKER.fullmatch(worker):
            raise StoreError(f"not the id of a worker: {worker!r}")
        folder = self.run_dir / name
        with _translate_errors("cannot remove a worker", self.run_dir), self._thread:
            self._unmark_uncounted(name, worker)
            has_folder = self._has_folder(folder)
            if has_folder:
                _change_members(folder, remove_member(worker))
                (folder / f"{worker}.json").unlink(missing_ok=True)
            held = self._held.pop((name, worker), None)
            if held is not None:
                held.release()
            if has_folder:
                with contextlib.suppress(OSError):  # Nothing rests on it.
                    (folder / f"{worker}.lock").unlink()

    def forked(self) -> None:
        """Begin again in a child, which holds none of its parent's locks."""
        self._thread = threading.RLock()
        self._held.clear()  # ``locks`` has closed this child's copies.
        self._uncounted.clear()
        self._mark = None

    def _has_folder(self, folder: Path) -> bool:
        return is_directory(self.run_dir) and is_directory(folder)

    def _make_path(self) -> None:
        # Only in a directory of our own: in another, git would ignore what others made.
        if make_directory(self.path, 0o755):
            with contextlib.suppress(FileExistsError):
                write_new(self.path / ".gitignore", b"*\n", 0o644)

    def _report(self, name: str, report: WorkerReport) -> Receipt:
        folder = self.run_dir / name
        self._make_path()
        make_directory(self.run_dir, 0o700)
        make_directory(folder, 0o700)
        lock = folder / f"{report.id}.lock"
        held = earlier = self._held.get((name, report.id))
        if held is None or not held.is_at(lock):
            # The first report, or a cleaner of temporary files has removed the lock
            # under the living worker.
            check_file_system(self.run_dir)
            remove_left_behind(folder)
            held = self._held[name, report.id] = HeldLock.lock(lock, LOCK_TIMEOUT)
        path = folder / f"{report.id}.json"
        replaced = path.exists()
        _replace_model(path, report.model_copy(update={"lock": held.inode}))
        if earlier is not None and earlier is not held:
            # Not before a report names the new one: a free lock means death.
            earlier.release()
        membership = _read_members(folder)
        if membership is None or report.id not in membership.members:
            membership = _change_members(folder, add_member(report))
        return Receipt(membership.generation, membership.complete, replaced)

    def _mark_uncounted(self, name: str, worker: str) -> None:
        """Hold a shared lock on the directory: a drain sees that we exist."""
        self._uncounted.add((name, worker))
        with contextlib.suppress(OSError):
            if self._mark is None or not self._mark.is_at(self.path):
                self._drop_mark()
                self._mark = HeldLock.share(self.path)

    def _unmark_uncounted(self, name: str, worker: str) -> None:
        self._uncounted.discard((name, worker))
        if not self._uncounted:
            self._drop_mark()

    def _drop_mark(self) -> None:
        if self._mark is not None:
            self._mark.release()
            self._mark = None


def _change_members(folder: Path, change: MembersChange[Members]) -> Members:
    """Change the list of workers.

    Raises:
        OSError: If it cannot be read or written.
    """
    with exclusive(folder / "lock"):
        before = _read_members(folder)
        after = change(before, time.time())
        if after is not None and after != before:
            _replace_model(folder / "members.json", after)
        return after


def _read_members(folder: Path) -> Membership | None:
    return parse_membership(_read_trusted(folder / "members.json", MEMBERS_LIMIT))


def _read_workers(folder: Path) -> Iterator[WorkerReport]:
    for file in sorted(os.listdir(folder)):  # noqa: PTH208  # raises what glob hides
        worker, kind = os.path.splitext(file)  # noqa: PTH122  # text, not a path
        if kind != ".json" or worker == "members" or not _WORKER.fullmatch(worker):
            continue
        path = folder / file
        try:
            age = time.time() - path.lstat().st_mtime
        except FileNotFoundError:
            continue
        report = parse(WorkerReport, _read_trusted(path, SIZE_LIMIT))
        found = judge_liveness(worker, report, age)
        yield (
            found.with_liveness("dead", age) if _has_unlocked(folder, found) else found
        )


def _has_unlocked(folder: Path, worker: WorkerReport) -> bool:
    """Tell whether a worker's lock proves that its process is gone."""
    return (
        worker.lock is not None
        and processes.may_share_kernel(worker.process)
        and is_free(folder / f"{worker.id}.lock", worker.lock)
    )


def _read_trusted(path: Path, limit: int) -> bytes | None:
    """Read a file of this package; None if there is none that can be trusted.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        return read_own(path, limit)
    except UntrustedFileError:
        return None


def _replace_model(path: Path, model: BaseModel) -> None:
    replace(path, model.model_dump_json().encode(), 0o600)


@contextlib.contextmanager
def _translate_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "repair that"
        if isinstance(error, PermissionError):
            remedy = "run as the directory's owner"
        raise StoreError(
            f"{what} in {path}: {_why(error)}; {remedy}, or choose another place with"
            " --store file:PATH"
        ) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror.lower()}{place}"
    return str(error)
