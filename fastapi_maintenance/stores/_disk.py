"""Files that are never half-written and locks that the kernel keeps honest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ._descriptors import drop, keep

SIZE_LIMIT: Final = 64 * 1024

LOCK_PATIENCE: Final = 10.0
"""Seconds to wait for a writer that may have been stopped while it wrote."""

# Page cache and locks of these are one kernel's own, so that a lock that is free
# means that its holder is gone. Network and pass-through systems emulate both.
_COHERENT: Final = frozenset(
    {
        *("bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs"),
        *("overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "xfs", "zfs"),
    }
)


class UntrustedFileError(OSError):
    """The path holds something that cannot be a state file."""


def read_small(path: Path) -> tuple[bytes, os.stat_result] | None:
    """Read a small regular file whole.

    Symbolic links are followed, as a mounted ConfigMap is made of them.

    Returns:
        Its bytes and status, or None when there is no such file.

    Raises:
        UntrustedFileError: If it is a device, pipe, folder, dangling link, larger
            than 64 KiB, or writable by everyone.
        OSError: If it cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        if path.is_symlink():
            raise UntrustedFileError(f"{path} is a link to nothing") from None
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFileError(f"{path} is not a regular file")
        if status.st_mode & stat.S_IWOTH:
            raise UntrustedFileError(
                f"{path} is writable by everyone; `chmod o-w` it first"
            )
        content = os.read(descriptor, SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise UntrustedFileError(f"{path} is larger than {SIZE_LIMIT} bytes")
        return content, status
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes, mode: int) -> None:
    """Replace a file so that every reader sees the old or the new one, whole.

    A symbolic link is replaced; what it points to is not touched.

    Raises:
        OSError: If it cannot be written; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            give_to_owner_of(path.parent, descriptor)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory with exactly this mode; its parent's owner gets it.

    Raises:
        OSError: If it cannot be made, or something else is in its place.
    """
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "another file is in the directory's place", str(path)
            ) from None
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
        give_to_owner_of(path.parent, descriptor)
    finally:
        os.close(descriptor)


def give_to_owner_of(directory: Path, descriptor: int) -> None:
    """Let what root makes belong to the service, as its surroundings do."""
    if os.geteuid() == 0:
        owner = directory.stat()
        if (owner.st_uid, owner.st_gid) != (0, 0):
            # Root in a user namespace may not know that owner: nothing is lost then.
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner.st_uid, owner.st_gid)


def same_file(path: Path, descriptor: int) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        found, ours = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_ino, found.st_dev) == (ours.st_ino, ours.st_dev)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock that the kernel drops when its last holder is gone.

    Returns:
        Whether it was free.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Drop a lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(path: Path, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it.

    Raises:
        TimeoutError: If somebody else has it for too long.
        OSError: If the file cannot be opened or locked.
    """
    limit = time.monotonic() + patience
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    while True:
        descriptor = keep(lambda: os.open(path, flags, 0o600))
        try:
            give_to_owner_of(path.parent, descriptor)
            while not try_lock(descriptor):
                if time.monotonic() >= limit:
                    raise TimeoutError(
                        errno.ETIMEDOUT, "another process holds the lock", str(path)
                    )
                time.sleep(0.002)
            # Whoever waited for a file that was deleted meanwhile holds nothing.
            if same_file(path, descriptor):
                yield
                return
        finally:
            # Closing alone would leave it locked by a child that forked just now.
            with contextlib.suppress(OSError):
                unlock(descriptor)
            drop(descriptor)


def foreign_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of a file system whose locks prove nothing, or ``""``.

    Where the mounts cannot be read, nothing is known, and that is ``"unknown"``.
    """
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
        real = os.path.realpath(path)
    except OSError:
        return "unknown"
    best, kind = -1, "unknown"
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
