"""The state in one process's memory: for one worker, and for tests."""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Iterable

from ..fence import Roster, WorkerRow
from ..state import MaintenanceState, next_epoch
from . import Change
from ._fork import renew_in_children
from ._worker import Worker


class MemoryStore:
    """Keeps the state in this process: other workers and the command see nothing.

    Args:
        active: Whether maintenance is on from the start.

    Examples:
        A route that is closed for good:

        >>> from fastapi import Depends, FastAPI
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> closed = MaintenanceGuard(MemoryStore(active=True))
        >>> app = FastAPI()
        >>> @app.get("/old", dependencies=[Depends(closed)])
        ... async def old() -> None: ...
    """

    location = "memory of this process"
    pause: float = 0.005

    def __init__(self, active: bool = False) -> None:  # reads as in the documentation
        self._initial = MaintenanceState(active=active)
        self._states: dict[str, MaintenanceState] = {}
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        renew_in_children(self)

    def peek(self, name: str) -> MaintenanceState:
        """Return the present state."""
        return self._states.get(name, self._initial)

    async def read(self, name: str) -> MaintenanceState:
        """Return the present state."""
        return self.peek(name)

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state; every guard of this store sees it at once."""
        with self._lock:
            before = self.peek(name)
            state = change(before).but(epoch=next_epoch(before.epoch))
            self._states[name] = state
        self.worker(name).refresh()
        return state

    def forked(self) -> None:
        """Begin anew in a child, where a thread of the parent may have had the lock."""
        self._lock = threading.Lock()

    def worker(self, name: str) -> Worker:
        """Return the one worker of this process."""
        with self._lock:
            if name not in self._workers:
                self._workers[name] = Worker(
                    _MemoryLink(weakref.proxy(self), name),
                    f"{name!r} in {self.location}",
                )
            return self._workers[name]

    async def roster(self, name: str) -> Roster:
        """Return the one row, of this process."""
        worker = self.worker(name)
        worker.refresh()
        current, old, oldest = worker.counts()
        row = WorkerRow(
            id=worker.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            seen=worker.state.epoch,
            current=current,
            old=old,
            counts_first=True,
            oldest_route=oldest and oldest[0],
            oldest_age=oldest and time.monotonic() - oldest[1],
        )
        return Roster(
            generation="memory",
            rows=(row,) if worker.joined else (),
            epoch=self.peek(name).epoch,
            uncounted=getattr(worker.link, "uncounted", False),
        )

    async def forget(self, name: str, workers: Iterable[str]) -> None:
        """Do nothing: the only row is this process."""

    async def vouch(self, name: str, generation: str) -> None:
        """Do nothing: the roster cannot be lost."""


class _MemoryLink:
    # Publishing refreshes the one worker before it returns.
    immediate = False

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._seen = 0
        self.uncounted = False

    def join(self, patience: float) -> MaintenanceState:
        return self._store.peek(self._name)

    def leave(self) -> None:
        pass

    def count(self, current: int, old: int) -> None:
        pass

    def news(self) -> MaintenanceState | None:
        state = self._store.peek(self._name)
        return state if state.epoch != self._seen else None

    def adopted(self, epoch: int) -> None:
        self._seen = epoch

    def forked(self) -> None:
        pass

    def stand_aside(self, why: str) -> None:
        self.uncounted = True
