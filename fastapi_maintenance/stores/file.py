"""The state in a directory: every worker of one machine, without a server."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from filelock import lock_descriptor, unlock_descriptor
from pydantic import BaseModel, ValidationError

from .. import processes
from ..fence import (
    SILENT_AFTER,
    Liveness,
    Membership,
    Receipt,
    Roster,
    WorkerReport,
    joined,
)
from ..state import SIZE_LIMIT, MaintenanceState, StateFormatError
from . import DEFAULT_PATH, CannotJoinError, Change, StoreError, check_growth

try:
    import fcntl
except ImportError:  # Windows: uncounted workers are not noticed there.
    fcntl = None  # type: ignore[assignment]  # the module, or nothing

LOCK_TIMEOUT: Final = 3.0
"""Seconds to wait for another process that writes."""

# The page cache and the locks of these are one kernel's own, so that a lock that can be
# taken means that its holder is gone. Network and pass-through systems emulate both.
_COHERENT: Final = frozenset(
    {
        *("bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs"),
        *("overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "xfs", "zfs"),
    }
)
_WORKER: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


def _flags(*names: str) -> int:
    """Return flags of ``os.open``, without those that this system lacks."""
    return sum(getattr(os, name, 0) for name in names)


_NO_LINK: Final = _flags("O_NOFOLLOW")
# Without O_NONBLOCK, a pipe in a file's place would hang its reader.
_READING: Final = os.O_RDONLY | _flags("O_CLOEXEC", "O_NONBLOCK", "O_BINARY")
_DIRECTORY: Final = os.O_RDONLY | _flags("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW")
_LOCKING: Final = (os.O_RDWR | os.O_CREAT) | _flags(
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"
)
_WRITING: Final = (os.O_WRONLY | os.O_CREAT | os.O_EXCL) | _flags(
    "O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"
)

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


class UntrustedFileError(OSError):
    """The path holds something that cannot be a file of ours."""


class FileStore:
    """Keeps each switch in ``<path>/<name>.json``; the default store.

    Nothing is touched before the first use. A directory that cannot be used never takes
    a service down: its workers read what they can, and say so in the log.

    Args:
        path: The directory. A relative one is taken from the present directory.
        run_dir: Where workers keep their reports, ``run`` inside ``path`` by default.

    Raises:
        ValueError: If the path is empty, or has a null character.
    """

    local: bool = True
    poll_interval: float = 0.05

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
        self._known: dict[str, tuple[bytes, MaintenanceState]] = {}
        self._held: dict[tuple[str, str], _Held] = {}
        self._uncounted: set[tuple[str, str]] = set()
        self._mark: _Held | None = None
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
        """Read the state file; None when there is none.

        Raises:
            StoreError: If it cannot be read or is not a state.
        """
        path = self.state_path(name)
        try:
            content = _read_small(path)
            if content is None:
                return None
            known = self._known.get(name)
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
            with _explained("cannot set maintenance", self.path):
                self._make_path()
                # Beside the state, so that a command makes nothing among the reports.
                stack.enter_context(_writing(self.path / f"{name}.lock"))
                if path.is_symlink():
                    raise StoreError(
                        f"{path} is a link, such as a ConfigMap's; change what it"
                        " points to"
                    )
            before = self._before(name)
            state = change(before)
            check_growth(before, state)
            with _explained("cannot set maintenance", self.path):
                _replace(path, state.to_json().encode(), 0o644, durable=True)
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
        """Read every report.

        Raises:
            StoreError: If they cannot be read, as by another user.
        """
        folder = self.run_dir / name
        with _explained("cannot read the workers", self.run_dir):
            uncounted = self._has_uncounted()
            while True:
                before = _model(Membership, folder / "members.json")
                if before is None:
                    # Reports without a list are what a deletion has left.
                    return Roster(complete=False, uncounted=uncounted)
                workers = tuple(self._workers(folder))
                if _model(Membership, folder / "members.json") == before:
                    break
            return Roster(
                generation=before.generation,
                complete=before.complete,
                age=max(0.0, time.time() - before.made),
                members=before.members,
                workers=workers,
                uncounted=uncounted,
            )

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster.

        Raises:
            StoreError: If that cannot be stored.
        """
        folder = self.run_dir / name
        with _explained("cannot mark the list of workers", self.run_dir):
            if not self._has_folder(folder):
                return ""
            with _writing(folder / "lock"):
                before = _model(Membership, folder / "members.json")
                if before is None:
                    return ""
                after = before.confirmed(generation, complete=complete, now=time.time())
                if after != before:
                    _replace_model(folder / "members.json", after)
                return after.generation

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, then remove its report and its lock.

        Raises:
            StoreError: If that cannot be stored.
        """
        if not _WORKER.fullmatch(worker):
            raise StoreError(f"not the id of a worker: {worker!r}")
        folder = self.run_dir / name
        with _explained("cannot remove a worker", self.run_dir), self._thread:
            self._unmark_uncounted(name, worker)
            if self._has_folder(folder):
                with _writing(folder / "lock"):
                    before = _model(Membership, folder / "members.json")
                    if before is not None and worker in before.members:
                        _replace_model(folder / "members.json", before.without(worker))
                (folder / f"{worker}.json").unlink(missing_ok=True)
            held = self._held.pop((name, worker), None)
            if held is not None:
                held.release()
            with contextlib.suppress(OSError):  # Nothing rests on it.
                (folder / f"{worker}.lock").unlink()

    def forked(self) -> None:
        """Begin again in a child, which holds none of its parent's locks."""
        self._thread = threading.RLock()
        self._held.clear()  # Each closes its copy.
        self._uncounted.clear()
        self._mark = None

    def _has_folder(self, folder: Path) -> bool:
        return _is_directory(self.run_dir) and _is_directory(folder)

    def _make_path(self) -> None:
        # Only in a directory of our own: in another, git would ignore what others made.
        if _make_directory(self.path, 0o755):
            with contextlib.suppress(FileExistsError):
                _write(self.path / ".gitignore", b"*\n", 0o644)

    def _before(self, name: str) -> MaintenanceState | None:
        try:
            return self.read(name)
        except StoreError:
            # What cannot be understood counts as closed; publishing repairs it.
            return MaintenanceState(enabled=True)

    def _report(self, name: str, report: WorkerReport) -> Receipt:
        folder = self.run_dir / name
        self._make_path()
        _make_directory(self.run_dir, 0o700)
        _make_directory(folder, 0o700)
        lock = folder / f"{report.id}.lock"
        held = earlier = self._held.get((name, report.id))
        if held is None or not held.is_at(lock):
            # The first report, or a cleaner of temporary files has removed the lock
            # under the living worker.
            _check_file_system(self.run_dir)
            held = self._held[name, report.id] = _Held.lock(lock, LOCK_TIMEOUT)
        path = folder / f"{report.id}.json"
        replaced = path.exists()
        _replace_model(path, report.model_copy(update={"lock": held.inode}))
        if earlier is not None and earlier is not held:
            # Not before a report names the new one: a free lock means death.
            earlier.release()
        members = folder / "members.json"
        membership = _model(Membership, members)
        if membership is None or report.id not in membership.members:
            with _writing(folder / "lock"):
                membership = joined(_model(Membership, members), report, time.time())
                _replace_model(members, membership)
        return Receipt(membership.generation, membership.complete, replaced)

    def _workers(self, folder: Path) -> Iterator[WorkerReport]:
        for file in sorted(os.listdir(folder)):  # noqa: PTH208  # raises what glob hides
            worker, kind = os.path.splitext(file)  # noqa: PTH122  # text, not a path
            if kind != ".json" or worker == "members" or not _WORKER.fullmatch(worker):
                continue
            path = folder / file
            try:
                age = time.time() - path.lstat().st_mtime
            except FileNotFoundError:
                continue
            report = _model(WorkerReport, path)
            if report is None or report.id != worker:
                # A report that cannot be read is a worker that has said nothing.
                report = WorkerReport(id=worker, host="unknown", pid=0)
            yield report.listed(self._liveness(folder, report, age), age)

    def _liveness(self, folder: Path, report: WorkerReport, age: float) -> Liveness:
        if (
            report.lock is not None
            and processes.may_share_kernel(report.process)
            and _is_free(folder / f"{report.id}.lock", report.lock)
        ) or processes.is_gone(report.process, report.pid):
            return "dead"
        return "silent" if age > SILENT_AFTER else "alive"

    def _mark_uncounted(self, name: str, worker: str) -> None:
        """Hold a shared lock on the directory: a drain sees that we exist."""
        self._uncounted.add((name, worker))
        with contextlib.suppress(OSError):
            if self._mark is None or not self._mark.is_at(self.path):
                self._drop_mark()
                self._mark = _Held.share(self.path)

    def _unmark_uncounted(self, name: str, worker: str) -> None:
        self._uncounted.discard((name, worker))
        if not self._uncounted:
            self._drop_mark()

    def _drop_mark(self) -> None:
        if self._mark is not None:
            self._mark.release()
            self._mark = None

    def _has_uncounted(self) -> bool:
        if fcntl is None:
            return False
        try:
            descriptor = os.open(self.path, _READING)
        except OSError:
            return False
        try:
            for _ in range(10):
                if lock_descriptor(descriptor, blocking=False):
                    return False
                time.sleep(0.002)  # Another drain may be looking at this moment.
            return True
        except OSError:
            return True  # Where a directory cannot be locked, nothing is known.
        finally:
            os.close(descriptor)


class _Held:
    """A locked file or directory; the kernel unlocks it when this process is gone."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        self.inode: int = os.fstat(descriptor).st_ino
        self._process = os.getpid()
        _all_held.add(self)

    @classmethod
    def lock(cls, path: Path, timeout: float) -> _Held:
        """Lock a file, which is made if there is none. Links are not followed.

        Raises:
            TimeoutError: If another process holds it for so many seconds.
            OSError: If it cannot be opened or locked.
        """
        held = cls(_retried(lambda: os.open(path, _LOCKING, 0o600)))
        try:
            held._acquire(path, timeout)
        except BaseException:
            held.release()
            raise
        return held

    @classmethod
    def share(cls, path: Path) -> _Held | None:
        """Lock a directory beside others that do; None where that is not possible.

        Raises:
            OSError: If it cannot be opened or locked.
        """
        if fcntl is None:
            return None
        held = cls(os.open(path, _READING))
        for _ in range(50):
            try:
                fcntl.flock(held._open, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.002)  # A drain may be looking at this moment.
            else:
                return held
        held.release()
        return None

    def _acquire(self, path: Path, timeout: float) -> None:
        if not stat.S_ISREG(os.fstat(self._open).st_mode):
            raise UntrustedFileError(f"{path} is not a regular file")
        limit = time.monotonic() + timeout
        while not lock_descriptor(self._open, blocking=False):
            if time.monotonic() >= limit:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another process holds the lock", str(path)
                )
            time.sleep(0.002)

    @property
    def _open(self) -> int:
        assert self.descriptor is not None  # noqa: S101  # for the type checker
        return self.descriptor

    def is_at(self, path: Path) -> bool:
        """Tell whether the path still leads to what is locked."""
        try:
            return self.descriptor is not None and path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock; in a child of a fork, only close, as the lock is its parent's."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is None:
            return
        if self._process == os.getpid():
            # A child that is being forked may have a copy, which would keep the lock.
            with contextlib.suppress(OSError):
                unlock_descriptor(descriptor)
        os.close(descriptor)

    def __del__(self) -> None:
        self.release()


_all_held: Final[weakref.WeakSet[_Held]] = weakref.WeakSet()


def _after_fork() -> None:
    for held in list(_all_held):
        held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _writing(lock: Path) -> Iterator[None]:
    """Be the only one that writes."""
    while True:
        held = _Held.lock(lock, LOCK_TIMEOUT)
        try:
            # One that was deleted while we waited for it excludes nobody.
            if held.is_at(lock):
                yield
                return
        finally:
            held.release()


def _is_free(path: Path, inode: int) -> bool:
    """Tell whether the very lock file of an inode can be locked. Makes nothing."""
    try:
        descriptor = os.open(path, _READING | _NO_LINK)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_ino == inode and lock_descriptor(
            descriptor, blocking=False
        )
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _check_file_system(path: Path) -> None:
    kind = foreign_file_system(path)
    if kind:
        raise OSError(
            errno.ENOTSUP, f"locks on {kind} prove nothing; choose a local directory"
        )


def foreign_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of a file system whose locks prove nothing, or ``""``.

    Where the system does not list its mounts, nothing is known against it.
    """
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
        real = os.path.realpath(path)
    except OSError:
        return ""
    best, kind = -1, ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        columns = left.split(" ")
        if len(columns) < 5 or not right:  # noqa: PLR2004  # proc(5)
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), columns[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # The last mount on a point hides the ones before it.
        if inside and len(point) >= best:
            best, kind = len(point), right.split(" ")[0]
    return "" if kind in _COHERENT else kind


def foreign_owner(*paths: Path) -> str | None:
    """Return the other user to whom a directory or its parent belongs, seen by root.

    A command that root runs stays out of it: the owner of a directory can put links
    where root would read and write.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    for path in paths:
        for place in (path, Path(os.path.realpath(path))):
            # Where there is nothing yet, what is above decides.
            while not os.path.lexists(place):
                place = place.parent  # noqa: PLW2901
            for found in (place, place.parent):
                owner = found.lstat().st_uid
                if owner != 0:
                    return _user_name(owner)
    return None


def _user_name(number: int) -> str:
    try:
        import pwd  # noqa: PLC0415  # not on Windows

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"#{number}"


def _read_small(path: Path, flags: int = 0) -> bytes | None:
    """Read a small regular file whole; None when there is none.

    Links are followed by default: a mounted ConfigMap is made of them.

    Raises:
        UntrustedFileError: If it is a device, a pipe, a directory, a dangling link,
            larger than 64 KiB, or writable by everyone.
        OSError: If it cannot be read.
    """
    try:
        descriptor = _retried(lambda: os.open(path, _READING | flags))
    except FileNotFoundError:
        if path.is_symlink():
            raise UntrustedFileError(f"{path} is a link to nothing") from None
        return None
    except NotADirectoryError:
        return None  # Another file is in the directory's place.
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFileError(f"{path} is not a regular file")
        if os.name == "posix" and status.st_mode & stat.S_IWOTH:
            raise UntrustedFileError(
                f"{path} is writable by everyone; `chmod o-w` it first"
            )
        content = os.read(descriptor, SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise UntrustedFileError(f"{path} is larger than {SIZE_LIMIT} bytes")
        return content
    finally:
        os.close(descriptor)


def _model(kind: type[Model], path: Path) -> Model | None:
    """Read a document of this package; None if there is none that can be trusted.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        content = None if path.is_symlink() else _read_small(path, _NO_LINK)
        return None if content is None else kind.model_validate_json(content)
    except (UntrustedFileError, ValidationError):
        return None


def _replace_model(path: Path, model: BaseModel) -> None:
    _replace(path, model.model_dump_json().encode(), 0o600)


def _replace(path: Path, content: bytes, mode: int, *, durable: bool = False) -> None:
    """Replace a file so that every reader sees the old or the new one, whole.

    Raises:
        OSError: If it cannot be written; the old file stands then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _write(temporary, content, mode, durable=durable)
        _retried(lambda: os.replace(temporary, path))  # noqa: PTH105  # what the promise rests on
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable and os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, _READING)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _write(path: Path, content: bytes, mode: int, *, durable: bool = False) -> None:
    descriptor = os.open(path, _WRITING, mode)
    try:
        if os.name == "posix":
            os.fchmod(descriptor, mode)  # The umask may have taken some of it.
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retried(work: Callable[[], Result]) -> Result:
    """Try again for a second, as Windows refuses what another process has open."""
    for _ in range(50):
        try:
            return work()
        except PermissionError:
            if os.name == "posix":
                raise
            time.sleep(0.02)
    return work()


def _make_directory(path: Path, mode: int) -> bool:
    """Make a directory with its parents, unless it is there.

    Returns:
        Whether it was made.

    Raises:
        OSError: If it cannot be made, or something else is in its place. For root in
            another user's directory, a link is something else.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode)
        except FileExistsError:
            return False  # Another worker was first.
        if os.name == "posix":
            # The umask may have taken some of the mode. Not by the path: its owner
            # could have put a link there since.
            descriptor = os.open(path, _DIRECTORY)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
        return True
    if not _is_directory(path):
        link = stat.S_ISLNK(found.st_mode)
        what = "a link of another user" if link else "another file"
        raise NotADirectoryError(
            errno.ENOTDIR, f"{what} is in the directory's place", str(path)
        )
    return False


def _is_directory(path: Path) -> bool:
    """Tell whether it is a directory, and no link of another user seen by root."""
    if path.is_symlink() and foreign_owner(path) is not None:
        return False
    return path.is_dir()


@contextlib.contextmanager
def _explained(what: str, path: Path) -> Iterator[None]:
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
