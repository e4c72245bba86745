"""A store of a user's own, with a server that can fail and lose what it has."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

from fastapi_maintenance import (
    Change,
    MaintenanceState,
    Receipt,
    Roster,
    WorkerReport,
)
from fastapi_maintenance.fence import SILENT_AFTER, Liveness, Membership, with_member
from tests.waiting import until


class Server:
    """What is stored: shared by clients that stand for processes of their own."""

    def __init__(self) -> None:
        self.state: MaintenanceState | None = None
        self.membership: Membership | None = None
        self.reports: dict[str, tuple[WorkerReport, float]] = {}
        self.dead: set[str] = set()
        self.lock = threading.RLock()

    def lose_roster(self) -> None:
        """Forget who has joined."""
        with self.lock:
            self.membership = None
            self.reports.clear()

    def lose_everything(self) -> None:
        """Forget the state as well."""
        with self.lock:
            self.lose_roster()
            self.state = None


class TwoMethods:
    """The least that is a store. It has no location: each one is its own process.

    Args:
        server: Where it keeps things; a new one by default.
        local: Whether a read costs microseconds.
        poll_interval: Seconds; by default a keeper looks when a test tells it to.
    """

    def __init__(
        self,
        server: Server | None = None,
        *,
        local: bool = True,
        poll_interval: float = 3600.0,
    ) -> None:
        self.server = server or Server()
        self.local = local
        self.poll_interval = poll_interval
        self.errors: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.before_publish: Callable[[], object] = bool

    def read(self, name: str) -> MaintenanceState | None:
        """Return the state."""
        self._call("read")
        return self.server.state

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        self._call("publish")
        self.before_publish()
        with self.server.lock:
            before = self.server.state
            state = change(before)
            assert before is None or state.epoch > before.epoch
            self.server.state = state
        return state

    def await_keeper(self) -> None:
        """Wait until the keeper of a worker that has joined has looked once.

        From then on it sleeps, unless it is woken or older work is in flight.
        """
        until(lambda: self.calls.count("read") > 1, what="the keeper looks")

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method in self.errors:
            # A new one each time: an exception keeps the frames that it has passed.
            error = copy.copy(self.errors[method])
            error.__cause__ = self.errors[method].__cause__
            raise error


class OwnStore(TwoMethods):
    """A store of all six methods."""

    young = False

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report."""
        self._call("report")
        server = self.server
        with server.lock:
            membership = with_member(server.membership, report, time.monotonic())
            server.membership = membership
            replaced = report.id in server.reports
            server.reports[report.id] = report, time.monotonic()
        return Receipt(membership.generation, membership.complete, replaced, self.young)

    def roster(self, name: str) -> Roster:
        """Return who has joined."""
        self._call("roster")
        now = time.monotonic()
        with self.server.lock:
            membership = self.server.membership
            if membership is None:
                return Roster(complete=False)
            workers = []
            for report, reported in self.server.reports.values():
                age = now - reported
                liveness: Liveness = "silent" if age > SILENT_AFTER else "alive"
                if report.id in self.server.dead:
                    liveness = "dead"
                workers.append(report.with_liveness(liveness, age))
            return Roster(
                generation=membership.generation,
                complete=membership.complete,
                age=now - membership.made,
                members=membership.members,
                workers=tuple(workers),
            )

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster."""
        self._call("confirm")
        with self.server.lock:
            if self.server.membership is None:
                return ""
            self.server.membership = self.server.membership.with_completeness(
                generation, complete=complete, now=time.monotonic()
            )
            return self.server.membership.generation

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list."""
        self._call("remove")
        with self.server.lock:
            if self.server.membership is not None:
                self.server.membership = self.server.membership.without(worker)
            self.server.reports.pop(worker, None)
