"""Which process this is, and whether another one is gone.

Silence proves nothing. This does: the process table of the same boot and pid namespace
has no such process, or another one that started at another time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_MACHINE_ID: Final = Path("/etc/machine-id")


class ProcessIdentity(NamedTuple):
    """Enough to tell a process from every other one. Empty: could not be read.

    Attributes:
        boot: The kernel's boot id.
        machine: A hash of the installation's id, which outlives a boot.
        namespace: The namespaces that give pids and start times their meaning.
        started: When the process started, in clock ticks since the boot. Never a time
            of day, which follows the clock.
    """

    boot: str = ""
    machine: str = ""
    namespace: str = ""
    started: str = ""

    @classmethod
    def own(cls, proc: Path = _PROC) -> ProcessIdentity:
        """Return the identity of this process."""
        return _identity(os.getpid(), proc)

    @classmethod
    def read(cls, proc: Path) -> ProcessIdentity:
        """Read the identity of this process from a process file system."""
        return cls(
            boot=_text(proc / "sys/kernel/random/boot_id"),
            machine=_machine(),
            namespace=_namespace(proc),
            started=_status("self", proc).started,
        )

    def __str__(self) -> str:
        return "|".join(self)

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Read what ``str`` has written; of any other text, all fields are empty."""
        parts = text.split("|")
        return cls(*parts) if len(parts) == len(cls._fields) else cls()


def is_gone(process: str, pid: int, proc: Path = _PROC) -> bool:
    """Tell whether it is proven that a process no longer exists.

    Args:
        process: Its identity, as its report has it.
        pid: Its number in its own pid namespace.
        proc: The process file system.
    """
    other, own = ProcessIdentity.parse(process), ProcessIdentity.own(proc)
    if not (other.boot and other.namespace):
        return False
    if (other.boot, other.namespace) != (own.boot, own.namespace):
        return False
    # On Windows, signal 0 would be a CTRL_C.
    if sys.platform == "win32" or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    # A start time that cannot be read (hidepid) proves nothing. In the process table
    # of another namespace, the same number is another process.
    if not _is_own_table(proc):
        return False
    found = _status(str(pid), proc)
    # A zombie keeps its number until its parent waits for it.
    ended = found.state == "Z" and found.threads in {"0", "1"}
    known = bool(found.started and other.started)
    return known and (ended or found.started != other.started)


def may_share_kernel(process: str, proc: Path = _PROC) -> bool:
    """Tell whether locks of a process would be seen here.

    They are not if it runs on another kernel, such as a guest with a shared folder.
    """
    other, own = ProcessIdentity.parse(process), ProcessIdentity.own(proc)
    if not (other.boot and own.boot) or other.boot == own.boot:
        return True
    # The same machine before a reboot: its locks went with it.
    return bool(own.machine) and own.machine == other.machine


@lru_cache(maxsize=8)
def _identity(_pid: int, proc: Path) -> ProcessIdentity:
    return ProcessIdentity.read(proc)


if hasattr(os, "register_at_fork"):
    # A descendant can get the number that its ancestor had.
    os.register_at_fork(after_in_child=_identity.cache_clear)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _machine(path: Path = _MACHINE_ID) -> str:
    # machine-id(5) asks that the id itself is never sent over a network.
    text = _text(path)
    salted = f"fastapi-maintenance {text}".encode()
    return hashlib.sha256(salted).hexdigest()[:16] if text else ""


def _namespace(proc: Path) -> str:
    try:
        pids = os.readlink(proc / "self/ns/pid")  # noqa: PTH115  # text, not a path
    except OSError:
        return ""
    try:
        # Start times are shifted by the reader's own time namespace.
        return f"{pids} {os.readlink(proc / 'self/ns/time')}"  # noqa: PTH115
    except OSError:
        return pids


def _is_own_table(proc: Path) -> bool:
    # One number: this process is in no namespace inside of the table's own.
    for line in _text(proc / "self/status").splitlines():
        name, _, numbers = line.partition(":")
        if name == "NSpid":
            return numbers.split() == [str(os.getpid())]
    return False


class _Status(NamedTuple):
    state: str
    threads: str
    started: str


def _status(process: str, proc: Path) -> _Status:
    # Fields 3, 20 and 22 of stat(5); the command's name, field 2, may hold spaces.
    _, _, rest = _text(proc / process / "stat").rpartition(")")
    values = [*rest.split(), *[""] * 20]
    return _Status(values[0], values[17], values[19])
