"""Names in the kernel: a list of workers that no hand can delete.

A worker binds an abstract socket for as long as it lives. When its row is gone,
because somebody deleted the directory or replaced it by a new release, the name
says that there is a worker, and a drain waits for it instead of not knowing it.

It adds to the rows and replaces none of them: names are Linux's own, and each
network namespace has its own. Anyone on the machine can bind one, and thereby hold
up a drain; nobody can make one end too early.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ._descriptors import keep
from ._process import WORKER_ID, pid_of

UNCOUNTED: Final = "uncounted"

_PREFIX: Final = "fastapi-maintenance"
_LIST: Final = Path("/proc/net/unix")


class Announced(NamedTuple):
    """What a name says.

    Attributes:
        worker: The worker's id.
        counted_in: The digest of the directory that has its row, or ``uncounted``.
    """

    worker: str
    counted_in: str

    @property
    def pid(self) -> int:
        """The process, in its own pid namespace."""
        return pid_of(self.worker)


def digest_of(*parts: str | os.PathLike[str]) -> str:
    """Return what stands for paths and names in an announcement."""
    text = b"\0".join(os.fsencode(part) for part in parts)
    return hashlib.sha256(text).hexdigest()[:24]


def announce(path: Path, name: str, worker: str, counted_in: str) -> int | None:
    """Bind a name that ends with this process, or with its descriptor.

    Returns:
        The descriptor, or None where the system has no such names.
    """
    address = f"\0{_PREFIX}/{digest_of(path, name)}/{worker}/{counted_in}"

    def bind() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            made.bind(address)
            return made.detach()

    try:
        return keep(bind)
    except OSError:
        return None


def announced(path: Path, name: str, listing: Path = _LIST) -> Iterator[Announced]:
    """Yield the workers that have announced themselves for a switch."""
    try:
        text = listing.read_bytes()
    except OSError:
        return
    pattern = rf"@{_PREFIX}/{digest_of(path, name)}/({WORKER_ID})/([0-9a-z]+)$"
    for found in re.finditer(pattern.encode(), text, re.MULTILINE):
        yield Announced(found[1].decode(), found[2].decode())
