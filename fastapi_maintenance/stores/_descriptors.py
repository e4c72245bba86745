"""Descriptors whose locks speak for one process: a forked child lets go of them.

A lock of ``flock`` belongs to the open file, which a fork shares. Kept open in a
child, it would keep a dead parent alive, and a writers' lock locked for good.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

at_fork: Callable[..., object] = getattr(os, "register_at_fork", dict)
"""Registers what is called around a fork; does nothing where nobody can fork."""

# Reentrant: a finalizer may run, and close one, while the same thread opens one.
_lock = threading.RLock()
_ours: set[int] = set()


def keep(make: Callable[[], int]) -> int:
    """Open a descriptor that no forked child keeps.

    Raises:
        OSError: If it cannot be opened.
    """
    with _lock:
        descriptor = make()
        _ours.add(descriptor)
    return descriptor


def drop(descriptor: int) -> None:
    """Close it.

    Raises:
        OSError: If it cannot be closed.
    """
    with _lock:
        _ours.discard(descriptor)
        os.close(descriptor)


def _close_all() -> None:
    for descriptor in _ours:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _ours.clear()
    _lock.release()


# No fork comes between the opening of a descriptor and its entry here.
at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_close_all)
