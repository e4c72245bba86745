"""The state in one process's memory: for one worker, and for tests."""

from __future__ import annotations

import threading

from ..fence import Membership, Receipt, Roster, WorkerReport, roster_of
from ..state import MaintenanceState
from . import (
    Change,
    Members,
    MembersChange,
    add_member,
    check_growth,
    mark_members,
    remove_member,
)


class MemoryStore:
    """Keeps the state in this process: other workers and the command see nothing.

    Args:
        enabled: Whether maintenance is on from the start.

    Examples:
        A route that is closed for good:

        >>> from fastapi import Depends, FastAPI
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> closed = MaintenanceGuard(MemoryStore(enabled=True))
        >>> app = FastAPI()
        >>> @app.get("/old", dependencies=[Depends(closed)])
        ... async def old() -> None: ...
    """

    location: str = "memory of this process"
    in_process: bool = True
    local: bool = True

    def __init__(self, enabled: bool = False) -> None:  # reads as in the documentation
        self._initial = MaintenanceState(enabled=enabled)
        self._states: dict[str, MaintenanceState] = {}
        self._memberships: dict[str, Membership] = {}
        self._reports: dict[str, dict[str, WorkerReport]] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> MaintenanceState:
        """Return the present state."""
        return self._states.get(name, self._initial)

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state.

        Raises:
            StoreError: If the epoch does not grow.
        """
        with self._lock:
            before = self.read(name)
            state = change(before)
            check_growth(before, state)
            self._states[name] = state
        return state

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report."""
        with self._lock:
            membership = self._change_members(name, add_member(report))
            reports = self._reports.setdefault(name, {})
            replaced = report.id in reports
            reports[report.id] = report
        return Receipt(membership.generation, membership.complete, replaced)

    def roster(self, name: str) -> Roster:
        """Return the workers of this process."""
        with self._lock:
            membership = self._memberships.get(name)
            if membership is None:
                return Roster()
            return roster_of(membership, self._reports.get(name, {}).values(), now=0)

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster."""
        with self._lock:
            after = self._change_members(
                name, mark_members(generation, complete=complete)
            )
        return "" if after is None else after.generation

    def remove(self, name: str, worker: str) -> None:
        """Remove a report."""
        with self._lock:
            self._change_members(name, remove_member(worker))
            self._reports.get(name, {}).pop(worker, None)

    def forked(self) -> None:
        """Begin again in a child: no worker of its parent is in it.

        A thread of the parent may have held the lock.
        """
        self._lock = threading.Lock()
        self._memberships.clear()
        self._reports.clear()

    def _change_members(self, name: str, change: MembersChange[Members]) -> Members:
        after = change(self._memberships.get(name), 0)
        if after is not None:
            self._memberships[name] = after
        return after
