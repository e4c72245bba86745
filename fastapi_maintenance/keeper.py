"""Following a store: learn a newer state, adopt it, report.

There is one ``Keeper`` for each store: the thread, and when it looks. It has one
``Follower`` for each switch, which does the work of a look, and drives the ``Worker``,
which counts requests.

The fence rests on the order. A worker reports before it reads the state for the first
time, and adopts a state before it reports it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from .changes import SupersededError, only_if_stored, with_new_epoch
from .fence import HEARTBEAT, Receipt, Roster, WorkerReport, new_generation
from .log import LogOnce, logger
from .state import VERSION, MaintenanceState
from .stores import (
    YOUNG_SERVER,
    CannotJoinError,
    Change,
    FencedStore,
    Store,
    StoreError,
    has_fence,
    is_in_process,
    is_local,
    location,
    poll_interval,
    read_state,
    same_error,
)
from .worker import Worker

DRAIN_INTERVAL: Final = 0.01
"""Seconds between two looks while older requests are in flight."""

DRAIN_INTERVAL_REMOTE: Final = 0.2
"""The same for a store whose reads cost a query, and that has no ``wait``."""

REAP_INTERVAL: Final = 2.0
"""Seconds between two looks for workers that died on this machine, while it is on.

Shorter than ``LOST_AFTER``, so that a drain on another machine does not lose them.
"""

IDLE_REAP_INTERVAL: Final = 60.0
"""The same while it is off, so that the list of workers does not grow for ever."""

LEAVE_TIMEOUT: Final = 2.0
"""Seconds for which a worker that leaves waits for work that is about to end.

Servers cancel what is left of long streams, and end the lifespan at the same moment.
"""


class Keeper:
    """Follows one store for all switches of this process.

    Args:
        store: What is followed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fence: FencedStore | None = store if has_fence(store) else None
        self._followers: weakref.WeakValueDictionary[str, Follower] = (
            weakref.WeakValueDictionary()
        )
        self._reset()
        _keepers.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        # A thread that waits ends at once when this keeper is collected.
        weakref.finalize(self, self._woken.set).atexit = False

    def follower(self, name: str) -> Follower:
        """Return this process's one follower of a switch."""
        with self._lock:
            follower = self._followers.get(name)
            if follower is None:
                follower = self._followers[name] = Follower(self, name)
            return follower

    def followers(self) -> list[Follower]:
        """Return the followers of the switches that are in use."""
        with self._lock:
            return list(self._followers.values())

    def wake(self) -> None:
        """Have the thread look at the store now."""
        self._woken.set()
        wake = getattr(self.store, "wake", None)
        if wake is not None:
            wake()

    def look(self) -> None:
        """Look from the calling thread, for stores that have no keeper thread."""
        for follower in self.followers():
            follower.look()

    def start(self) -> None:
        """Start the thread, unless it runs or the store is this process's own."""
        if is_in_process(self.store):
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(
                target=_run,
                args=(weakref.ref(self), self.store, self._woken),
                name="fastapi-maintenance keeper",
                daemon=True,
            )
            self._thread.start()

    def poll(self) -> float | None:
        """Look at every switch that was joined, in the keeper's thread.

        Returns:
            Seconds until the next time; None if there is none, and the thread ends.
        """
        joined = [follower for follower in self.followers() if follower.worker.joined]
        pauses = []
        for follower in joined:
            try:
                pauses.append(follower.look())
            except Exception:
                logger.exception(
                    "maintenance: the keeper of a worker failed; it goes on"
                )
                pauses.append(HEARTBEAT)
        if pauses:
            return min(pauses)
        with self._lock:
            # A worker that joins after this starts another thread.
            if any(follower.worker.joined for follower in self._followers.values()):
                return 0.0
            self._thread = None
            return None

    def forked(self) -> None:
        """Begin again in a child: another worker, and no thread."""
        self._reset()
        for follower in list(self._followers.values()):
            follower.reset()


class Follower:
    """Follows one switch for this process's worker: joins, looks, reports, leaves.

    Args:
        keeper: The keeper of the store, whose thread calls ``look``.
        name: The switch.
    """

    def __init__(self, keeper: Keeper, name: str) -> None:
        self.keeper = keeper
        self.name = name
        store = keeper.store
        can_read = is_local(store) and not is_in_process(store)
        self.worker: Worker = Worker(
            name,
            f"{name!r} in {location(store)}",
            partial(store.read, name) if can_read else None,
        )
        self._problems = LogOnce(f"maintenance: {self.worker.title}")
        self._reset()

    def _reset(self) -> None:
        # Held while the store is used for this worker.
        self._io = threading.Lock()
        # Held while the worker joins or leaves, by this thread.
        self._changing = threading.Lock()
        self._changer: int | None = None
        self._failed: tuple[float, StoreError] | None = None
        self._counting = threading.Lock()
        self._users = 0
        self._reported: WorkerReport | None = None
        self._reported_at = 0.0
        self._reaped_at = 0.0
        self._owes_testimony = False

    def reset(self) -> None:
        """Begin again after a fork."""
        self.worker.reset()
        self.worker.notifier.reset()
        self._reset()

    def join(self, deadline: float | None = None) -> None:
        """Join the store, before anything is admitted.

        Callers that waited for the same attempt get the same error, at once.

        Args:
            deadline: Until when to wait for the attempt of another thread, by the
                monotonic clock.

        Raises:
            StoreError: If the worker has not joined.
        """
        asked = time.monotonic()
        with self._joining_or_leaving(deadline):
            if self.worker.joined:
                return
            if self._failed is not None and self._failed[0] > asked:
                raise same_error(self._failed[1])
            try:
                with self._io:
                    self._join()
                self.keeper.start()
            except StoreError as error:
                self._failed = time.monotonic(), same_error(error)
                raise
            except Exception as error:
                # Without a thread, it would admit and never learn of a change.
                self.worker.joined = False
                failed = StoreError(
                    f"{self.worker.title} cannot be joined:"
                    f" {type(error).__name__}: {error}"
                )
                self._failed = time.monotonic(), same_error(failed)
                raise failed from error

    @contextmanager
    def _joining_or_leaving(self, deadline: float | None) -> Iterator[None]:
        """Be the only thread that has the worker join or leave.

        Raises:
            StoreError: If another thread is at it for too long; or this very thread, as
                the garbage collector may run work of the application anywhere.
        """
        patience = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if self._changer == threading.get_ident() or not self._changing.acquire(
            timeout=patience
        ):
            raise StoreError(f"{self.worker.title} is still joining or leaving")
        self._changer = threading.get_ident()
        try:
            yield
        finally:
            self._changer = None
            self._changing.release()

    def add_user(self) -> None:
        """Keep this worker from leaving; ``leave`` takes it back."""
        with self._counting:
            self._users += 1

    def leave(self) -> None:
        """Leave the store when the last user does. Work in flight keeps the report."""
        with self._counting:
            self._users = max(0, self._users - 1)
        deadline = time.monotonic() + LEAVE_TIMEOUT
        try:
            while not self._leave(deadline) and time.monotonic() < deadline:
                time.sleep(DRAIN_INTERVAL)
                self.look()
        except Exception as error:  # noqa: BLE001  # a server ends all the same
            logger.warning("maintenance: left, but its report may stay: %s", error)

    def _leave(self, deadline: float) -> bool:
        """Leave if nothing is at work; tell whether no more tries are needed."""
        with self._joining_or_leaving(deadline), self._io:
            if self._users or not self.worker.joined:
                return True
            if not self.worker.leave():
                return False
            self._take_off_the_list()
            return True

    def _take_off_the_list(self) -> None:
        fence = self.keeper.fence
        if fence is None:
            return
        try:
            fence.remove(self.name, self.worker.id)
        except StoreError:
            if self.worker.counted:
                raise
        else:
            # Another process may have seen that this one is gone, and say so later.
            self.worker.take_new_id()

    def look(self) -> float:
        """Look at the store once: adopt, report; return the seconds until the next."""
        with self._io:
            if not self.worker.joined:
                return HEARTBEAT
            self._follow()
            self._report_if_due()
            if self.worker.collect_garbage():
                self._report_if_due()
            self.worker.close_due()
        return self._pause()

    def _join(self) -> None:
        worker, fence = self.worker, self.keeper.fence
        # An attempt that failed has admitted nothing, and has nothing to testify.
        worker.generation = None
        receipt = cannot = None
        if fence is not None:
            try:
                receipt = self._register(fence)
            except CannotJoinError as error:
                cannot = error
                self._problems.say("join", f"is not counted: {error}")
        try:
            state = self._first_state(fence if receipt and receipt.young else None)
        except StoreError as error:
            # A directory that this user may not read must not take a service down.
            if cannot is None or not isinstance(error.__cause__, PermissionError):
                # A drain would wait for a worker that runs nothing, unless an earlier
                # attempt has failed after it had let work in.
                if not (worker.current or worker.old):
                    with suppress(StoreError):
                        self._take_off_the_list()
                raise
            state = MaintenanceState()
        worker.start(state, counted=receipt is not None)
        if receipt is not None:
            self._problems.solved("join")

    def _first_state(self, young: FencedStore | None) -> MaintenanceState:
        """Return the state by which the worker begins.

        Args:
            young: The store, if its server has just started.
        """
        state = self._read()
        if young is not None and (state is None or not state.enabled):
            state = self._await_write_back(young)
        return state or MaintenanceState()

    def _read(self) -> MaintenanceState | None:
        return read_state(self.keeper.store, self.name)

    def _await_write_back(self, fence: FencedStore) -> MaintenanceState:
        """Wait for others to write back what a restarted server has lost."""
        limit = time.monotonic() + YOUNG_SERVER
        state = None
        while time.monotonic() < limit:
            time.sleep(0.1)
            if time.monotonic() - self._reported_at >= HEARTBEAT:
                self._register(fence)  # It is starting, and not silent.
            state = self._read()
            if state is not None and state.enabled:
                return state
        if state is not None:
            return state

        # With a tag, so that it is not taken for what a person has written.
        off = MaintenanceState(epoch=1, tag=new_generation())
        try:
            return self.keeper.store.publish(
                self.name, only_if_stored(None, lambda _: off)
            )
        except SupersededError:
            return self._read() or MaintenanceState()

    def _follow(self) -> None:
        # From before the read: the process may be stopped right after it.
        asked = time.monotonic()
        # And a request may adopt a newer state than the one that is being read.
        own = self.worker.state
        try:
            state = self._read()
        except StoreError as error:
            self._problems.say("read", f"keeps the last state it knew: {error}")
        else:
            self._problems.solved("read")
            self._learn(state, own)
        self.worker.checked = asked

    def _learn(self, stored: MaintenanceState | None, own: MaintenanceState) -> None:
        """Do what follows from what is stored.

        Args:
            stored: What was read.
            own: What the worker had adopted before that.
        """
        worker = self.worker
        if stored is None:
            if own.epoch:
                self._write_back(None, own)
        elif stored.epoch > own.epoch:
            worker.adopt(stored)
        elif not stored.tag or (stored.epoch, stored.tag) == (own.epoch, own.tag):
            # What was published has a tag, so that a person has written this.
            if stored not in (own, worker.edited):
                self._publish_edit(stored)
        elif worker.has_adopted(stored.tag):
            # The store was put back to what it was before.
            self._write_back(stored, own)
        # Two histories, such as before and after a loss.
        elif stored != worker.edited:
            self._merge(stored, own)

    def _write_back(
        self, stored: MaintenanceState | None, own: MaintenanceState
    ) -> None:
        """Store the worker's state again, where it was lost or rolled back."""
        if self._publish(stored, lambda _: own):
            logger.warning(
                "maintenance: %s: the store had lost the state of epoch %d, which was"
                " written back",
                self.worker.title,
                own.epoch,
            )
            self._testify()

    def _merge(self, stored: MaintenanceState, own: MaintenanceState) -> None:
        """Publish the stored or the own state, whichever is enabled, above both."""
        winner = stored if stored.enabled or not own.enabled else own
        if winner.version != VERSION:
            # Only the release that has written it can write it under another epoch.
            if winner is stored:
                self._adopt_here(stored)
            return
        epoch = max(stored.epoch, own.epoch) + 1
        self._publish(stored, lambda _: winner.replace(epoch=epoch))

    def _publish_edit(self, edited: MaintenanceState) -> None:
        """Publish what a person has written by hand."""
        own = self.worker.state
        change = with_new_epoch(lambda _: edited, above=[own.epoch])
        if not self._publish(edited, change):
            # A file that cannot be written, or a link that something else maintains.
            self._adopt_here(edited)

    def _adopt_here(self, stored: MaintenanceState) -> None:
        """Adopt what cannot be published: no drain can tell who has seen it."""
        own = self.worker.state
        self.worker.adopt(
            stored.model_copy(update={"epoch": own.epoch, "tag": own.tag})
        )
        self.worker.edited = stored

    def _publish(self, stored: MaintenanceState | None, change: Change) -> bool:
        """Publish in place of what is stored, unless that has changed since.

        Returns:
            Whether the store can be set.
        """
        try:
            state = self.keeper.store.publish(self.name, only_if_stored(stored, change))
        except SupersededError:
            return True
        except StoreError as error:
            self._problems.say("publish", f"cannot write the state back: {error}")
            return False
        self._problems.solved("publish")
        if state.epoch > self.worker.state.epoch:
            self.worker.adopt(state)
        return True

    def _report_if_due(self) -> None:
        fence, worker = self.keeper.fence, self.worker
        if fence is None:
            return
        now = time.monotonic()
        due = now - self._reported_at >= HEARTBEAT
        if not worker.counted and not due:
            return
        report = worker.make_report()
        if not due and not _is_news(report, self._reported):
            return
        try:
            if worker.counted:
                self._report(fence, report)
            else:
                self._register(fence)
        except CannotJoinError as error:
            self._reported_at = now
            worker.counted = False
            self._problems.say("join", f"is not counted: {error}")
            return
        except StoreError as error:
            self._problems.say("report", f"cannot report: {error}")
            return
        self._problems.solved("report")
        if not worker.counted:
            self._count_from_now_on()
        interval = REAP_INTERVAL if worker.state.enabled else IDLE_REAP_INTERVAL
        if now - self._reaped_at >= interval and not is_in_process(self.keeper.store):
            self._reaped_at = now
            with suppress(StoreError):  # The next look does it again.
                remove_dead(fence, self.name, fence.roster(self.name))

    def _count_from_now_on(self) -> None:
        """Be counted from now on, after a time without."""
        self._problems.solved("join")
        # What runs already is old: it was admitted before this moment.
        self.worker.adopt(self.worker.state)
        self._follow()
        self.worker.counted = True

    def _register(self, fence: FencedStore) -> Receipt:
        """Get on the list of workers, before the state is read."""
        report = self.worker.make_report()
        return self._report(fence, report.model_copy(update={"seen": 0, "tag": ""}))

    def _report(self, fence: FencedStore, report: WorkerReport) -> Receipt:
        worker = self.worker
        receipt = fence.report(self.name, report)
        self._reported, self._reported_at = report, time.monotonic()
        remembered = worker.generation
        worker.generation = receipt.generation
        if remembered is not None and (
            not receipt.replaced
            or (receipt.generation != remembered and receipt.complete)
        ):
            self._owes_testimony = True
        if self._owes_testimony:
            self._testify()
        return receipt

    def _testify(self) -> None:
        """Say that the store has lost something, so that its roster is not complete."""
        fence, worker = self.keeper.fence, self.worker
        if fence is None or worker.generation is None:
            return
        # Until it is stored: nothing else remembers what was lost.
        self._owes_testimony = True
        try:
            worker.generation = fence.confirm(
                self.name, worker.generation, complete=False
            )
        except StoreError as error:
            self._problems.say("report", f"cannot report: {error}")
            return
        self._owes_testimony = False
        logger.warning(
            "maintenance: %s: the store has lost data; the list of workers is not"
            " complete until a drain with --workers N succeeds",
            worker.title,
        )

    def _pause(self) -> float:
        """Return the seconds until the next look."""
        store, worker = self.keeper.store, self.worker
        interval = poll_interval(store)
        if self.keeper.fence is None:
            return interval
        if not worker.state.enabled:
            return interval
        if not (is_local(store) or hasattr(store, "wait")):
            return min(DRAIN_INTERVAL_REMOTE, interval)
        reported = self._reported
        is_draining = worker.is_draining or (reported is not None and reported.old > 0)
        return min(DRAIN_INTERVAL, interval) if is_draining else interval


def remove_dead(fence: FencedStore, name: str, roster: Roster) -> None:
    """Take the workers of a roster that are proven dead off the list.

    Raises:
        StoreError: If the store cannot be set.
    """
    for worker in roster.workers:
        if worker.liveness == "dead":
            fence.remove(name, worker.id)


def keeper_of(store: Store) -> Keeper:
    """Return this process's one keeper for a place where a state lives."""
    named = getattr(store, "location", None)
    is_shared = not is_in_process(store)
    place = named if is_shared and isinstance(named, str) else id(store)
    key = type(store), place
    with _registry_lock:
        if hasattr(store, "forked"):
            _forkable[id(store)] = store
        keeper = _registry.get(key)
        if keeper is None:
            keeper = _registry[key] = Keeper(store)
        return keeper


_registry: Final[weakref.WeakValueDictionary[tuple[type, str | int], Keeper]] = (
    weakref.WeakValueDictionary()
)
_registry_lock = threading.Lock()
# Several stores of one place share a keeper; each has locks or sockets of its own.
_forkable: Final[weakref.WeakValueDictionary[int, Store]] = (
    weakref.WeakValueDictionary()
)
_keepers: Final[weakref.WeakSet[Keeper]] = weakref.WeakSet()


def _run(reference: weakref.ref[Keeper], store: Store, woken: threading.Event) -> None:
    """Poll until the keeper has nothing to follow, or is collected."""
    wait = getattr(store, "wait", None)
    while True:
        keeper = reference()
        pause = None if keeper is None else keeper.poll()
        if keeper is None or pause is None:
            return
        names = [follower.name for follower in keeper.followers()] if wait else []
        # If this held the keeper while it waits, the keeper would never be collected.
        del keeper
        if wait is None:
            woken.wait(pause)
        elif pause and not woken.is_set():
            try:
                wait(names, pause)
            except Exception:  # noqa: BLE001  # the next read says what is wrong
                woken.wait(pause)
        woken.clear()


def _is_news(report: WorkerReport, known: WorkerReport | None) -> bool:
    """Tell whether a drain would want to know: not how many requests are current."""
    return known is None or (
        (report.seen, report.tag, report.old, report.uncounted, report.generation)
        != (known.seen, known.tag, known.old, known.uncounted, known.generation)
    )


def _after_fork() -> None:
    global _registry_lock  # noqa: PLW0603  # the parent's may be held for ever
    _registry_lock = threading.Lock()
    for store in list(_forkable.values()):
        forked = getattr(store, "forked")  # noqa: B009  # stores need not have it
        forked()
    for keeper in list(_keepers):
        keeper.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
