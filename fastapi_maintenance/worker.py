"""Counting in one process: admit a request, adopt a state, release a request.

One lock makes "count, then read the state" a single step. There is no I/O under it; an
admission reads a local store only if its keeper has not looked for a second.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from time import monotonic
from types import TracebackType
from typing import Final, Protocol, Self

from . import threads
from .fence import Oldest, WorkerReport
from .garbage import Garbage
from .log import logger
from .notifier import ChangeNotifier
from .processes import ProcessIdentity
from .state import MaintenanceState

STALE: Final = 1.0
"""Seconds without a look of the keeper after which a request reads a local store."""

REMEMBERED_TAGS: Final = 100
"""Publications by which a worker notices that a store was rolled back."""

_COLLECTING: Final = Oldest(route="(closing abandoned streams)", seconds=0.0)

_admission: ContextVar[Admission | None] = ContextVar(
    "fastapi_maintenance", default=None
)


class UnresolvedLabel(Protocol):
    """The label of a request whose route is not known yet; ``str`` gives its text."""

    def is_exempt(self) -> bool:
        """Tell whether the request turned out to be exempt, and is not counted."""
        ...


class Admission:
    """One counted piece of work, in flight until it is released.

    It is a context manager, for the exit stack of a request. Once it is entered, it is
    also the value of a context variable, by which threads that outlive the request are
    found.

    Attributes:
        worker: The worker that counts it.
        label: How it is shown.
        state: The state that decides it.
        started: When it was admitted, by the monotonic clock.
        ended: Whether it was released.
        outer: The admission that this work runs under, such as another guard's.
        closing: Whether it is asked to end.
    """

    # Every request makes one of these, so ``__init__`` sets only what always differs.
    ended: bool = False
    closing: bool = False
    outer: Admission | None = None
    _closers: list[Callable[[], object]] | None = None
    _entered: Token[Admission | None] | None = None

    def __init__(
        self, worker: Worker, label: str | UnresolvedLabel, started: float
    ) -> None:
        self.worker: Worker = worker
        self.label: str | UnresolvedLabel = label
        self.started: float = started
        self.state: MaintenanceState = worker.state

    def enter_context(self) -> Self:
        """Make this the innermost admission of the calling context."""
        outer = _admission.get()
        if outer is not None:
            outer = _unended(outer)
            if outer is not None:
                # A context can serve for ever, and its admissions overlap. Those that
                # have ended are dropped from the chain.
                outer.outer = _unended(outer.outer)
                self.outer = outer
        self._entered = _admission.set(self)
        return self

    __enter__ = enter_context

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the count back. Never blocks."""
        # It stays in its context: threads that go on are recognised by it.
        self.ended = True
        self._entered = self._closers = None
        # Without the lock, as the garbage collector can run this inside of ``admit``.
        # ``Worker._adopt`` copies to ``old`` in one step and this looks there last, so
        # that no admission comes back.
        worker = self.worker
        worker.current.pop(self, None)
        worker.old.pop(self, None)

    def leave_context(self) -> None:
        """Undo ``enter_context``, unless another one was entered since."""
        # What the context does later, such as waiting for the next job in a thread, is
        # not work of this admission.
        if self._entered is not None and _admission.get() is self:
            with suppress(ValueError):  # Closed from another context.
                _admission.reset(self._entered)

    def is_own(self) -> bool:
        """Tell whether the calling code is this work itself, and not a task of it."""
        # Tasks and threads run in a copy of the context in which they were started.
        # Only the context itself can reset what was set in it.
        if self._entered is None:
            return False
        innermost = _admission.get()
        try:
            _admission.reset(self._entered)
        except ValueError:
            return False
        self._entered = _admission.set(self)
        if innermost is not self:
            _admission.set(innermost)
        return True

    def on_close(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call a function, from any thread, when this work is asked to end.

        Returns:
            A function that removes the callback.
        """
        closers = self._closers
        if closers is None:
            closers = self._closers = []
        closers.append(callback)
        if self.closing:
            callback()

        def remove() -> None:
            if callback in closers:
                closers.remove(callback)

        return remove

    def close(self) -> None:
        """Ask this work to end."""
        if self.closing:
            return
        self.closing = True
        for callback in tuple(self._closers or ()):
            callback()


class Worker:
    """This process as a worker of one switch: it counts, and knows the state.

    Args:
        name: The switch.
        title: The switch and its place, for the log.
        read: Reads the store, where that is quick enough for a request.

    Attributes:
        name: The switch.
        title: The switch and its place, for the log.
        id: Unique for this worker; it gets another one when it has left, and by a fork.
        state: The state that is adopted.
        joined: Whether requests may be admitted.
        counted: Whether the store keeps this worker's reports.
        generation: The roster that it remembers; None before it has joined one.
        edited: A state that was edited by hand and could not be published.
        current: What was admitted under ``state``, the oldest first.
        old: What was admitted before it.
        checked: When a store was last read, by the monotonic clock.
        garbage: When garbage has to be collected before the worker is drained.
        stale_after: Seconds after which an admission reads the store itself.
        notifier: Tells of changes.
    """

    def __init__(
        self,
        name: str,
        title: str,
        read: Callable[[], MaintenanceState | None] | None = None,
    ) -> None:
        self.name = name
        self.title = title
        self.notifier: ChangeNotifier = ChangeNotifier(title)
        self._read = read
        self.stale_after: float = STALE if read is not None else float("inf")
        self.reset()

    def take_new_id(self) -> None:
        """Be another worker, as one that has left may count as dead for ever."""
        self.id: str = f"{os.getpid()}-{os.urandom(6).hex()}"

    def reset(self) -> None:
        """Begin again, as after a fork: nothing in flight, not joined."""
        self.take_new_id()
        self.process: str = ""
        self.host: str = socket.gethostname()
        self.pid: int = os.getpid()
        self.state: MaintenanceState = MaintenanceState()
        self.joined: bool = False
        self.counted: bool = False
        self.generation: str | None = None
        self.edited: MaintenanceState | None = None
        self.current: dict[Admission, None] = {}
        self.old: dict[Admission, None] = {}
        self.checked: float = 0.0
        self.garbage: Garbage = Garbage()
        self._uncountable: str | None = None
        # When older work is asked to end, and the adoption that it is older than.
        self._closing: list[tuple[float, float]] = []
        self._tags: deque[str] = deque(maxlen=REMEMBERED_TAGS)
        # Reentrant: a finalizer that the garbage collector runs in here may admit work.
        self._lock = threading.RLock()

    def start(self, state: MaintenanceState, *, counted: bool) -> None:
        """Begin to admit: the worker has reported, and has read the state since."""
        with self._lock:
            before = self.state
            # A state that was off before this worker joined is no change.
            changed = (state.enabled or before.enabled) and self.notifier.note(
                state, before
            )
            self._adopt(state)
            self.joined = True
            self.counted = counted
            self.checked = monotonic()
        if not threads.are_visible():
            self.mark_uncounted(
                "this AnyIO or Python does not show which threads still work for a"
                " request"
            )
        if changed:
            self.notifier.tell(state)

    def leave(self) -> bool:
        """Leave if nothing is at work; tell whether it has left."""
        with self._lock:
            if not self.joined or self.current or self.old:
                return False
            # What is exempt too: only the application can tell, and its code must not
            # run under the lock.
            if self.garbage.is_pending or self._at_work(None):
                return False
            self.joined = False
            self.generation = None
            return True

    def admit(self, label: str | UnresolvedLabel) -> Admission | None:
        """Count one piece of work, then read the state, in one step.

        Returns:
            The admission. Decide by its ``state``, and release it if the work is
            refused. None if this worker has not joined, or has left.
        """
        now = monotonic()
        admission = Admission(self, label, now)
        with self._lock:
            if not self.joined:
                return None
            self.current[admission] = None
            admission.state = self.state
            self.garbage.served = True
        if now - self.checked > self.stale_after:
            self._read_for(admission)
        return admission

    def readmit(self, admission: Admission) -> bool:
        """Count an admission under the present state, if that is a newer one.

        Returns:
            Whether ``admission.state`` has changed, so that it has to be decided again.
        """
        with self._lock:
            if admission not in self.old:
                return False
            self.old.pop(admission, None)
            self.current[admission] = None
            if admission.ended:
                # It was released at this moment, without the lock.
                self.current.pop(admission, None)
            admission.state = self.state
            return True

    def adopt(self, state: MaintenanceState) -> None:
        """Decide by a state from now on; what is in flight is old."""
        with self._lock:
            before = self.state
            if state.epoch < before.epoch:
                # This thread was stopped after it had read an older state.
                return
            changed = self.notifier.note(state, before)
            self._adopt(state)
        self.drop_exempt()
        if changed:
            self.notifier.tell(state)

    def has_adopted(self, tag: str) -> bool:
        """Tell whether a publication was ever adopted."""
        return tag in self._tags

    def drop_exempt(self) -> None:
        """Release requests that turned out to be exempt once their route was known."""
        with self._lock:
            unsure = [
                admission
                for counted in (self.old, self.current)
                for admission in counted.copy()
                if not isinstance(admission.label, str)
            ]
        for admission in unsure:
            # Outside of the lock, as this runs code of the application's routes.
            if _is_exempt(admission.label):
                admission.release()

    def close_due(self) -> None:
        """Ask older work to end, if ``close_after`` has passed."""
        if not self._closing:
            return
        now = monotonic()
        with self._lock:
            due = [adopted for moment, adopted in self._closing if moment <= now]
            self._closing = [entry for entry in self._closing if entry[0] > now]
        for admission in self.old.copy() if due else ():
            if admission.started > max(due):
                continue  # It was let in under maintenance.
            try:
                admission.close()
            except Exception:
                logger.exception("maintenance: work could not be asked to end")

    def collect_garbage(self) -> bool:
        """Collect garbage if the last report waits for it; tell whether it was done."""
        return self.garbage.collect(lambda: bool(self.current or self.old))

    def mark_uncounted(self, why: str) -> None:
        """Say once, in the log and in reports, that work here cannot be counted."""
        if self._uncountable is None:
            self._uncountable = why
            logger.error("maintenance: %s is not counted: %s", self.title, why)

    def own_admission(self) -> Admission | None:
        """Return the innermost admission of this worker that the caller runs under."""
        return next((found for found in held() if found.worker is self), None)

    def is_inside_admission(self) -> bool:
        """Tell whether the calling code is itself a counted request or block."""
        # The innermost alone: a server may serve several requests in one context.
        own = self.own_admission()
        return own is not None and own.is_own()

    @property
    def is_draining(self) -> bool:
        """Whether older work is in flight."""
        return bool(self.old)

    def make_report(self) -> WorkerReport:
        """Return the report of this moment; drop what turned out to be exempt."""
        if self.state.enabled:
            # Only a drain looks so closely: there can be many long streams.
            self.drop_exempt()
        # Only now: building a guard reads no files.
        self.process = self.process or str(ProcessIdentity.own())
        now = monotonic()
        with self._lock:
            # Before the threads: a request that ends in between is in one of them.
            # Copied in one step, as releases do not take the lock.
            state, old, current = self.state, self.old.copy(), self.current.copy()
        left = self._left_behind(state) if state.enabled else []
        older = len(old) + len(left)
        collects = self.garbage.is_due(state.epoch, older)
        uncounted = self._uncountable is not None or self.edited is not None
        return WorkerReport(
            id=self.id,
            host=self.host,
            pid=self.pid,
            process=self.process,
            generation=self.generation,
            seen=state.epoch if self.joined else 0,
            tag=state.tag if self.joined else "",
            current=len(current),
            old=older or int(collects),
            oldest=_COLLECTING
            if collects and not older
            else _oldest([*old, *left] or current, now),
            left_behind=len(left),
            uncounted=int(uncounted),
        )

    def _adopt(self, state: MaintenanceState) -> None:
        self.state = state
        self.garbage.adopted(enabled=state.enabled)
        self.old.update(self.current)
        self.current.clear()
        self.edited = None
        self._tags.append(state.tag)
        if not state.enabled:
            self._closing.clear()
        elif state.close_after is not None and self.old:
            # What an earlier publication asks to end keeps its own time: another
            # operator's, which asks for nothing, does not take it back.
            now = monotonic()
            self._closing.append((now + state.close_after, now))

    def _read_for(self, admission: Admission) -> None:
        """Read the store for an admission, as its keeper has not for too long."""
        # A process that was stopped and goes on admits before its keeper has run.
        found = None
        try:
            found = self._read() if self._read is not None else None
        except Exception:  # noqa: BLE001  # the last state stands; the keeper logs
            return
        if found is None:
            return
        if found.epoch > self.state.epoch:
            self.adopt(found)
        if self.readmit(admission):
            return  # By this, or by the keeper since.
        if not found.tag or found.tag == self.state.tag:
            admission.state = found

    def _left_behind(self, present: MaintenanceState) -> list[Admission]:
        """Return the ended admissions of older states for which threads still work."""
        found = []
        for chain in self._at_work(present):
            # Work that counts itself can run inside of an exempt request.
            counted = [one for one in chain if not _is_exempt(one.label)]
            if counted and counted[-1].ended:
                found.append(counted[-1])
        return found

    def _at_work(self, present: MaintenanceState | None) -> list[list[Admission]]:
        """Return for each thread at work the admissions that it works for.

        Args:
            present: Those of this state are left out.

        Returns:
            The innermost first, exempt and ended ones too.
        """
        chains = []
        for context in threads.contexts_at_work():
            chain = []
            admission = context.get(_admission)
            while admission is not None:
                # By identity: an edit that could not be published has the epoch and the
                # tag of the state that it replaces.
                if admission.worker is self and admission.state is not present:
                    chain.append(admission)
                admission = admission.outer
            if chain:
                chains.append(chain)
        return chains


@contextmanager
def not_working_for_a_request() -> Iterator[None]:
    """Run a block whose threads do not count as work of the present request."""
    token = _admission.set(None)
    try:
        yield
    finally:
        _admission.reset(token)


def held() -> Iterator[Admission]:
    """Yield the admissions that the calling code runs under, the innermost first."""
    admission = _unended(_admission.get())
    while admission is not None:
        yield admission
        admission = _unended(admission.outer)


def _is_exempt(label: str | UnresolvedLabel) -> bool:
    return not isinstance(label, str) and label.is_exempt()


def _oldest(admissions: Collection[Admission], now: float) -> Oldest | None:
    if not admissions:
        return None
    first = min(admissions, key=lambda admission: admission.started)
    label = str(first.label)
    if first.ended:
        label += " (left behind by its request)"
    return Oldest(route=label, seconds=round(max(0.0, now - first.started), 3))


def _unended(admission: Admission | None) -> Admission | None:
    while admission is not None and admission.ended:
        admission = admission.outer
    return admission
