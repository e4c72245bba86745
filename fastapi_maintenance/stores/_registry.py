"""One worker for each process, place and name, however many stores mean that place."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from ._descriptors import at_fork
from ._worker import Worker

W = TypeVar("W", bound=Worker)

_by_place: weakref.WeakValueDictionary[tuple[str, str], Worker] = (
    weakref.WeakValueDictionary()
)
_by_place_lock: Final = threading.Lock()
# A child would wait for ever for a thread that stayed in the parent.
at_fork(
    before=_by_place_lock.acquire,
    after_in_parent=_by_place_lock.release,
    after_in_child=_by_place_lock.release,
)


def worker_at(kind: type[W], place: str, name: str, make: Callable[[], W]) -> W:
    """Return this process's worker for a place and name; make it if it is new.

    Two store objects that mean the same place share it: a process is one row.
    """
    with _by_place_lock:
        worker = _by_place.get((place, name))
        if worker is None:
            worker = _by_place[place, name] = make()
        if not isinstance(worker, kind):
            raise TypeError(f"{place} is a place of {type(worker).__name__}")
        return worker
