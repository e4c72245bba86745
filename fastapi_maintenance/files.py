"""Files in a directory that other users may write to: read, replaced and made."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Final, TypeVar

LEFT_BEHIND_AFTER: Final = 3600.0
"""Seconds after which a temporary file is taken for a killed writer's."""

_TEMPORARY: Final = re.compile(r"\..+\.json\.[0-9a-f]{12}")

T = TypeVar("T")


def _flags(*names: str) -> int:
    """Return flags of ``os.open``, without those that this system lacks."""
    return reduce(or_, (getattr(os, name, 0) for name in names), 0)


NO_LINK: Final = _flags("O_NOFOLLOW")
# Without O_NONBLOCK, a pipe in a file's place would hang its reader.
READING: Final = os.O_RDONLY | _flags("O_CLOEXEC", "O_NONBLOCK", "O_BINARY")
_DIRECTORY: Final = os.O_RDONLY | _flags("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW")
LOCKING: Final = (os.O_RDWR | os.O_CREAT) | _flags(
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"
)
_WRITING: Final = (os.O_WRONLY | os.O_CREAT | os.O_EXCL) | _flags(
    "O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"
)


class UntrustedFileError(OSError):
    """The path holds something that cannot be a file of ours."""


def read_small(path: str | Path, limit: int, flags: int = 0) -> bytes | None:
    """Read a small regular file whole; None when there is none.

    Links are followed by default: a mounted ConfigMap is made of them.

    Raises:
        UntrustedFileError: If it is a device, a pipe, a directory, a dangling link,
            larger than the limit, or writable by everyone.
        OSError: If it cannot be read.
    """
    try:
        descriptor = retry_on_windows(lambda: os.open(path, READING | flags))
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114  # a text costs less
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
        content = b""
        while chunk := os.read(descriptor, limit + 1 - len(content)):
            content += chunk
        if len(content) > limit:
            raise UntrustedFileError(f"{path} is larger than {limit} bytes")
        return content
    finally:
        os.close(descriptor)


def read_own(path: Path, limit: int) -> bytes | None:
    """Read a file that this package has made, which is never a link.

    Raises:
        UntrustedFileError: If it is a link, or as for ``read_small``.
        OSError: If it cannot be read.
    """
    if path.is_symlink():
        raise UntrustedFileError(f"{path} is a link")
    return read_small(path, limit, NO_LINK)


def replace(path: Path, content: bytes, mode: int, *, durable: bool = False) -> None:
    """Replace a file so that every reader sees the old or the new one, whole.

    Raises:
        OSError: If it cannot be written; the old file stands then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_new(temporary, content, mode, durable=durable)
        retry_on_windows(lambda: os.replace(temporary, path))  # noqa: PTH105  # what the promise rests on
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable and os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, READING)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_left_behind(folder: Path) -> None:
    """Remove temporary files of ``replace`` whose writer was killed long ago."""
    with contextlib.suppress(OSError):  # The next call does it.
        for path in folder.iterdir():
            if not _TEMPORARY.fullmatch(path.name):
                continue
            if time.time() - path.lstat().st_mtime > LEFT_BEHIND_AFTER:
                path.unlink()


def write_new(path: Path, content: bytes, mode: int, *, durable: bool = False) -> None:
    """Write a file that is not there yet.

    Raises:
        OSError: If it is there, or cannot be written.
    """
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


def retry_on_windows(work: Callable[[], T]) -> T:
    """Try again for a second, as Windows refuses what another process has open."""
    for _ in range(50):
        try:
            return work()
        except PermissionError:
            if os.name == "posix":
                raise
            time.sleep(0.02)
    return work()


def make_directory(path: Path, mode: int) -> bool:
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
    if not is_directory(path):
        link = stat.S_ISLNK(found.st_mode)
        what = "a link of another user" if link else "another file"
        raise NotADirectoryError(
            errno.ENOTDIR, f"{what} is in the directory's place", str(path)
        )
    return False


def is_directory(path: Path) -> bool:
    """Tell whether it is a directory, and no link of another user seen by root."""
    if path.is_symlink() and other_owner(path) is not None:
        return False
    return path.is_dir()


def other_owner(*paths: Path) -> str | None:
    """Return the other user to whom a directory, its parent or a link to it belongs.

    A command that root runs stays out of it: the owner of a directory can put links
    where root would read and write.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    for path in paths:
        for above in path.parents:
            owner = above.lstat().st_uid if above.is_symlink() else 0
            if owner != 0:
                return _user_name(owner)
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
