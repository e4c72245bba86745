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

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """Enough to tell a process from every other one, anywhere.

    Empty strings mean *could not be read*; they match nothing.

    Attributes:
        host: The machine's name, for people only.
        pid: Its number in its own pid namespace.
        started: When it started, in clock ticks since its boot.
        boot: The kernel's boot id.
        machine: The installation's id, which outlives a boot.
        namespace: The pid namespace.

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
            started=_start_time(os.getpid(), proc),
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
            # The same installation under another boot has been restarted since.
            return bool(
                self.boot
                and observer.boot
                and self.machine
                and self.machine == observer.machine
            )
        if not self.namespace or self.namespace != observer.namespace:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        # A start time that cannot be read (hidepid) is no proof.
        started = _start_time(self.pid, proc)
        return bool(started and self.started and started != self.started)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _namespace(proc: Path) -> str:
    try:
        return os.readlink(proc / "self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int, proc: Path) -> str:
    # Field 22 of stat(5); the command's name, field 2, may hold spaces.
    stat = _text(proc / str(pid) / "stat")
    _, _, rest = stat.rpartition(")")
    values = rest.split()
    return values[19] if len(values) > 19 else ""
