"""The memory barrier that the fence's proof asks for, on processors that need it."""

from __future__ import annotations

import platform
import sys
from typing import Final

# The number of membarrier(2), which has no function in the C library.
_NUMBERS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
_GLOBAL: Final = 1


def pass_barrier(machine: str | None = None) -> bool:
    """Let every running thread of the machine pass a full memory barrier.

    A worker stores its count and then loads the epoch; a coordinator stores the
    epoch and then loads the counts. Only full barriers between the two keep both
    from loading what was there before. The system calls are none by contract: on
    x86 the file's lock happens to be one, on ARM it is not. After this call, every
    count that was stored before an old epoch was loaded can be read.

    Returns:
        Whether the kernel knows how; it takes about 10 ms.
    """
    number = _NUMBERS.get(platform.machine() if machine is None else machine)
    if number is None or not sys.platform.startswith("linux"):
        return False
    import ctypes  # noqa: PLC0415  # costs every start, and only publishers need it

    return int(ctypes.CDLL(None).syscall(number, _GLOBAL, 0, 0)) == 0
