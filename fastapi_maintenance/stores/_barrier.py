"""The memory barrier that the fence's proof asks for, on processors that need it."""

from __future__ import annotations

import logging
import platform
import sys
from typing import Final

logger = logging.getLogger("fastapi_maintenance")

# The number of membarrier(2), which has no function in the C library.
_NUMBERS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
_GLOBAL: Final = 1


# Where the system calls between the two happen to be full barriers.
_ORDERED: Final = frozenset({"x86_64", "i686", "i386"})


def pass_barrier(machine: str | None = None) -> None:
    """Let every running thread of the machine pass a full memory barrier.

    A worker stores its count and then loads the epoch; a coordinator stores the
    epoch and then loads the counts. Only full barriers between the two keep both
    from loading what was there before. The system calls are none by contract: on
    x86 the file's lock happens to be one, on ARM it is not. After this call, every
    count that was stored before an old epoch was loaded can be read.

    It takes about 10 ms. Where it is needed and cannot be had, the log says so.
    """
    machine = platform.machine() if machine is None else machine
    if not membarrier(machine) and machine not in _ORDERED:
        logger.warning(
            "maintenance: no memory barrier on this %s machine: a drain may miss a"
            " request that begins at the very moment of the change; allow the system"
            " call membarrier, and use a Python that has ctypes",
            machine,
        )


def membarrier(machine: str) -> bool:
    """Ask the kernel for the barrier; tell whether it knows how."""
    number = _NUMBERS.get(machine)
    if number is None or not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes  # noqa: PLC0415  # costs every start, and only publishers need it
    except ImportError:
        return False  # This Python was built without libffi.
    return int(ctypes.CDLL(None).syscall(number, _GLOBAL, 0, 0)) == 0
