"""Locks of files and directories, and what they prove.

The kernel unlocks a file when the last process that has locked it is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from filelock import lock_descriptor, unlock_descriptor

from .files import LOCKING, NO_LINK, READING, UntrustedFileError, retry_on_windows

try:
    import fcntl
except ImportError:  # Windows cannot lock a directory.
    fcntl = None  # type: ignore[assignment]  # the module, or nothing

LOCK_TIMEOUT: Final = 3.0
"""Seconds to wait for another process that writes."""

# Only local file systems: here a free lock proves that its holder is gone.
_COHERENT: Final = frozenset(
    {
        "bcachefs",
        "btrfs",
        "erofs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "overlay",
        "ramfs",
        "reiserfs",
        "rootfs",
        "squashfs",
        "tmpfs",
        "xfs",
        "zfs",
    }
)


class HeldLock:
    """A locked file or directory; the kernel unlocks it when this process is gone."""

    def __init__(self, descriptor: int) -> None:
        # ``__del__`` closes it if what follows fails.
        self.descriptor: int | None = descriptor
        self._process = os.getpid()
        self.inode: int = os.fstat(descriptor).st_ino
        _all_held.add(self)

    @classmethod
    def lock(cls, path: Path, timeout: float) -> HeldLock:
        """Lock a file, which is made if there is none. Links are not followed.

        Raises:
            TimeoutError: If another process holds it for so many seconds.
            OSError: If it cannot be opened or locked.
        """
        descriptor = retry_on_windows(lambda: os.open(path, LOCKING, 0o600))
        held = cls(descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UntrustedFileError(f"{path} is not a regular file")
            if not _within(timeout, lambda: _lock(descriptor)):
                raise TimeoutError(
                    errno.ETIMEDOUT, "another process holds the lock", str(path)
                )
        except BaseException:
            held.release()
            raise
        return held

    @classmethod
    def share(cls, directory: Path) -> HeldLock | None:
        """Lock a directory beside others that do; None where that is not possible.

        Raises:
            OSError: If it cannot be opened or locked.
        """
        if fcntl is None:
            return None
        descriptor = os.open(directory, READING)
        held = cls(descriptor)
        # Another process may be looking with ``is_shared`` at this moment.
        if _within(0.1, lambda: _share(descriptor)):
            return held
        held.release()
        return None

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


_all_held: Final[weakref.WeakSet[HeldLock]] = weakref.WeakSet()


def _after_fork() -> None:
    for held in list(_all_held):
        held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Be the only process that writes, for the time of a block.

    Raises:
        OSError: If the file cannot be locked.
    """
    while True:
        held = HeldLock.lock(lock, LOCK_TIMEOUT)
        try:
            # A file that was deleted while we waited for it excludes no process.
            if held.is_at(lock):
                yield
                return
        finally:
            held.release()


def is_free(path: Path, inode: int) -> bool:
    """Tell whether the lock file, if it still has this inode, can be locked.

    Does not create it.
    """
    try:
        descriptor = os.open(path, READING | NO_LINK)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_ino == inode and _lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def is_shared(directory: Path) -> bool:
    """Tell whether another process holds a shared lock on a directory, or may."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(directory, READING)
        try:
            # Another process may be looking, too.
            return not _within(0.02, lambda: _lock(descriptor))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # A directory that cannot be opened or locked may be shared.


def check_file_system(path: Path) -> None:
    """Refuse a file system whose locks prove nothing.

    Raises:
        OSError: If the path is on one.
    """
    kind = unsafe_file_system(path)
    if kind:
        raise OSError(
            errno.ENOTSUP, f"locks on {kind} prove nothing; choose a local directory"
        )


def unsafe_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
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


def _lock(descriptor: int) -> bool:
    return lock_descriptor(descriptor, blocking=False)


def _share(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _within(seconds: float, attempt: Callable[[], bool]) -> bool:
    """Tell whether an attempt succeeds before time has passed."""
    limit = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() >= limit:
            return False
        time.sleep(0.002)
    return True
