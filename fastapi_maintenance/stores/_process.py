"""Who a process is, and what proves that it is gone.

Silence proves nothing. What does: the kernel released a lock that only the process
held, or the process table of the same kernel, boot and pid namespace has no such
process, or another one that started at another time.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WORKER_ID: Final = "[0-9]+-[0-9a-f]+"
"""The form of a worker's id, as a regular expression."""

_PROC = Path("/proc")


def new_worker_id() -> str:
    """Return an id that no other worker has, nor a later one of this process."""
    return f"{os.getpid()}-{os.urandom(4).hex()}"


def pid_of(worker: str) -> int:
    """Return the process of a worker's id, in its own pid namespace."""
    return int(worker.partition("-")[0])


@dataclass(frozen=True, kw_only=True, repr=False)
class ProcessIdentity:
    """Enough to tell a process from every other one, anywhere.

    Empty strings mean *could not be read*; they match nothing.

    Attributes:
        host: The machine's name, for people only.
        pid: Its number in its own pid namespace.
        started: When it started, in clock ticks since its boot.
        boot: The kernel's boot id.
        machine: The installation's id, which outlives a boot.
        namespace: The namespaces that give pids and start times their meaning.
    """

    host: str
    pid: int
    started: str
    boot: str
    machine: str
    namespace: str

    @classmethod
    def own(cls, proc: Path = _PROC) -> ProcessIdentity:
        """Return the identity of this process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_start_time("self", proc),
            boot=_text(proc / "sys/kernel/random/boot_id"),
            machine=_text(Path("/etc/machine-id")),
            namespace=_namespace(proc),
        )

    def same_boot(self, other: ProcessIdentity) -> bool:
        """Tell whether both run, or ran, under one boot of one kernel."""
        return bool(self.boot) and self.boot == other.boot

    def gone(self, observer: ProcessIdentity, proc: Path = _PROC) -> bool:
        """Tell whether it is proven that this process no longer exists.

        Args:
            observer: Who asks: the process table that is read is its own.
            proc: The process file system, which may be hidden or foreign.
        """
        if not self.same_boot(observer):
            return False
        if not self.namespace or self.namespace != observer.namespace:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        # A start time that cannot be read (hidepid) is no proof, nor is one from the
        # process table of another namespace, whose numbers mean other processes.
        if not _is_own_table(proc):
            return False
        started = _start_time(str(self.pid), proc)
        return bool(started and self.started and started != self.started)

    def restarted(self, observer: ProcessIdentity) -> bool:
        """Tell whether the observer's installation has been booted since.

        Clones of a machine share its id, so this proves the end of a process only
        where two running machines cannot have met: on a local file system.
        """
        return bool(
            self.boot
            and observer.boot
            and self.boot != observer.boot
            and self.machine
            and self.machine == observer.machine
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _namespace(proc: Path) -> str:
    try:
        pids = os.readlink(proc / "self/ns/pid")  # noqa: PTH115  # as fast, and fails alike
    except OSError:
        return ""
    try:
        # Start times are shifted by the reader's own time namespace.
        return f"{pids} {os.readlink(proc / 'self/ns/time')}"  # noqa: PTH115  # as fast, and fails alike
    except OSError:
        return pids


def _is_own_table(proc: Path) -> bool:
    # One number: seen from the table's namespace, this process is in no inner one.
    for line in _text(proc / "self/status").splitlines():
        name, _, numbers = line.partition(":")
        if name == "NSpid":
            return numbers.split() == [str(os.getpid())]
    return False


def _start_time(process: str, proc: Path) -> str:
    # Field 22 of stat(5); the command's name, field 2, may hold spaces.
    stat = _text(proc / process / "stat")
    _, _, rest = stat.rpartition(")")
    values = rest.split()
    return values[19] if len(values) > 19 else ""  # noqa: PLR2004  # as above
