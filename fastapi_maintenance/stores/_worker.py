"""One process as a store sees it: counting, generations, cancellation, fork."""

from __future__ import annotations

import threading
from itertools import count
from time import monotonic
from typing import Final

from ..state import MaintenanceState
from ._admission import Admission
from ._closing import CloseOrders
from ._fork import renew_in_children
from ._leftovers import Leftovers
from ._link import Label, Link, Listener
from ._news import News
from ._process import new_worker_id

_numbers: Final = count(1)


class Worker:
    """What one store and name see of this process.

    One lock makes counting and reading the epoch a single step. ``current`` and ``old``
    hold what is in flight, the oldest first; ``orders`` says what is to be closed.

    Args:
        link: What the engine does.
        title: The switch and its place, for the log.
    """

    def __init__(self, link: Link, title: str) -> None:
        self.link = link
        self.joined: bool = False
        self.state: MaintenanceState = MaintenanceState()
        self.current: dict[int, tuple[str | Label, float]] = {}
        self.old: dict[int, tuple[str | Label, float]] = {}
        self._unsorted = False
        # Looked up once: every request calls both, where it must.
        self._count = link.count if link.immediate else None
        self._newest = link.news if link.immediate else None
        self._users = 0
        self._failed: tuple[float, Exception] | None = None
        self._lock = threading.Lock()
        self._joining = threading.Lock()
        self._aside = False
        self._leftovers = Leftovers()
        self._late = self._leftovers.late
        self.orders: CloseOrders = CloseOrders()
        self._news = News(title)
        self.id: str = new_worker_id()
        renew_in_children(self)

    def join(self, patience: float = 2.0) -> None:
        """Join the store if this process has not; before anything is admitted.

        Args:
            patience: Seconds to wait for a store that does not answer.

        Raises:
            StoreError: If the store cannot be reached. Callers that waited for
                the same attempt get the same answer, at once.
        """
        asked = monotonic()
        with self._joining:
            if self.joined:
                return
            if self._failed is not None and self._failed[0] > asked:
                raise self._failed[1]
            try:
                self._joins()
                state = self.link.join(patience)
            except Exception as error:
                self._failed = (monotonic(), error)
                raise
            with self._lock:
                # What changed before anybody here could know is no news, unless it
                # is maintenance.
                known, self.state = self.state, state
                self.joined = True
                self._aside = False  # Its row is a new one, and counted.
                self.link.adopted(state.epoch)
                if state.active or known.active:
                    self._news.note(state, known)
                self._take_news()  # Published since the store was asked.
        self._tell()

    def _joins(self) -> None: ...  # What an engine's worker does first.

    def enter(self, patience: float = 10.0) -> None:
        """Join for one more user of this worker."""
        self.join(patience)
        with self._joining:
            self._users += 1

    def leave(self) -> None:
        """Leave the store when its last user does; work in flight keeps the row."""
        with self._joining:
            self._users = max(0, self._users - 1)
            if not self._users:
                self._depart()

    def _depart(self) -> None:
        """Remove the row, unless work is in flight; while nobody joins."""
        with self._lock:
            self._sweep()
            if not self.joined or self.current or self.old:
                return
            self.joined = False
        self.link.leave()

    def admit(self, label: str | Label) -> Admission:
        """Count one request, then read the state, in one step.

        Returns:
            The admission; its ``state`` is the one to decide by. Give it back
            with ``release`` when the request is refused.
        """
        number = next(_numbers)
        while True:
            with self._lock:
                # Another thread may have let this worker leave since it was asked.
                if self.joined:
                    self.current[number] = (label, monotonic())
                    try:
                        if self._count is not None:
                            self._count(len(self.current), len(self.old))
                        news = None if self._newest is None else self._newest()
                        if news is not None:
                            self._adopt(news, entering=number)
                    except BaseException:
                        # Nobody would give it back.
                        self.current.pop(number, None)
                        raise
                    state = self.state
                    break
            self.join()
        admission = Admission(self, number, state)
        if news is not None:
            try:
                self._tell()
            except BaseException:  # As of ``sys.exit`` in a listener.
                admission.release()
                raise
        return admission

    def look(self) -> MaintenanceState:
        """Return the newest state without counting: enough to refuse by."""
        if self._newest is not None:
            self.refresh()
        return self.state

    def recheck(self, admission: Admission) -> bool:
        """Count an admission under the present epoch, if that has moved.

        For a decision that had to wait: what it was taken by may be over.

        Returns:
            Whether ``admission.state`` has changed and is to be decided by again.
        """
        with self._lock:
            self._take_news()
            moved = admission.state is not self.state
            entry = self.old.pop(admission.number, None) if moved else None
            if entry is not None:
                self.current[admission.number] = entry
                self.orders.excuse(admission.number)
                self.link.count(len(self.current), len(self.old))
            admission.state = self.state
        self._tell()
        return moved

    def release(self, number: int) -> None:
        """Take one piece of work out of the counts."""
        if self._count is None:
            # Without the lock: whoever moves it copies it to ``old`` first, in one
            # step, and this looks there last. Neither can bring it back.
            self.current.pop(number, None)
            self.old.pop(number, None)
            return
        with self._lock:
            self.current.pop(number, None)
            self.old.pop(number, None)
            if self._late:
                self._sweep()
            if self.joined:  # Else the row is gone, or about to go.
                self._count(len(self.current), len(self.old))

    def release_later(self, number: int) -> None:
        """Release from a place that may hold the lock already."""
        self._late.append(number)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def cancelled(self, number: int) -> None:
        """Note work that was cancelled, and is counted until its threads have ended."""
        with self._lock:
            self._leftovers.expect(number)

    def refresh(self) -> None:
        """Adopt what is new; for keepers, and before the state is shown."""
        with self._lock:
            self._settle()
            if self.joined:
                self._take_news()
        self._tell()

    def counts(self) -> tuple[int, int, tuple[str, float] | None]:
        """Return current and old counts, and route and start of the oldest."""
        if self.state.active:
            self._leftovers.collect()
        self._sort()
        with self._lock:
            self._settle()
            # A copy, made in one step: what ends is taken out without the lock.
            counted = self.old.copy() or self.current.copy()
            oldest = next(iter(counted.values()), None)
            shown = oldest and (str(oldest[0]), oldest[1])
            return len(self.current), len(self.old), shown

    def stand_aside(self, why: str) -> None:
        """Say once, to coordinators and the log, that this worker is not counted."""
        if not self._aside:
            self._aside = True
            with self._lock:
                self.link.stand_aside(why)

    def listen(self, listener: Listener) -> None:
        """Call a function once for each change that this worker adopts."""
        self._news.listen(listener)

    def _take_news(self) -> None:
        news = self.link.news()
        if news is not None:
            self._adopt(news)

    def _adopt(self, state: MaintenanceState, entering: int = 0) -> None:
        # The state first: whatever fails below, nobody is let in by the one before.
        before, self.state = self.state, state
        # The entering request is decided under the new epoch. It stays counted
        # all the while: a gap of a microsecond would be a drain that lies.
        entry = self.current.pop(entering, None)
        self.old.update(self.current)
        self.current.clear()
        if entry is not None:
            self.current[entering] = entry
        self.link.count(len(self.current), len(self.old))
        self.link.adopted(state.epoch)
        self._unsorted = True
        self._news.note(state, before)
        self.orders.adopt(state.extra, self.old)

    def _sort(self) -> None:
        """Let go of what was counted unseen and is exempt: now somebody looks."""
        self._unsorted = False
        with self._lock:
            unseen = [
                (number, label)
                for counted in (self.old, self.current)
                for number, (label, _) in counted.copy().items()
                if not isinstance(label, str)
            ]
        for number, label in unseen:
            if label.is_exempt():  # Outside the lock: it runs code of the routes.
                self.release(number)
                self.orders.excuse(number)

    def _settle(self) -> None:
        if self._late:
            self._sweep()
            if self.joined:
                self.link.count(len(self.current), len(self.old))

    def _sweep(self) -> None:
        for number in self._leftovers.settled():
            self.current.pop(number, None)
            self.old.pop(number, None)

    def _tell(self) -> None:
        if self._unsorted:
            self._sort()
        self._news.tell()

    def forked(self) -> None:
        """Begin anew in a child, without the parent's requests, threads and locks."""
        self._lock = threading.Lock()
        self._joining = threading.Lock()
        self.current.clear()
        self.old.clear()
        self._leftovers.clear()
        self.orders = CloseOrders()
        self._users = 0
        self.joined = False
        self.state = MaintenanceState()
        self.id = new_worker_id()
        self.link.forked()
