"""Following a store: learn a newer state, adopt it, report.

There is one ``Keeper`` for each store: the thread, and when it looks. It has one
``Follower`` for each switch, which does the work of a look, and drives the ``Worker``,
which counts requests and does no I/O.

The fence rests on the order. A worker reports before it reads the state for the first
time, and adopts a state before it reports it.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Final

from .changes import SupersededError, published, replacing
from .fence import HEARTBEAT, Receipt, WorkerReport, new_generation
from .log import logger
from .state import MaintenanceState
from .stores import (
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
)
from .worker import Worker

QUICK: Final = 0.01
"""Seconds between two looks while older requests are in flight."""

QUICK_REMOTE: Final = 0.2
"""The same for a store whose reads cost a query, and that has no ``wait``."""

STALE: Final = 1.0
"""Seconds without a look after which a request looks at a local store itself."""

REAP_INTERVAL: Final = 2.0
"""Seconds between two looks for workers that died on this machine, while it is on.

Shorter than ``LOST_AFTER``, so that a drain on another machine does not lose them.
"""

YOUNG_SERVER: Final = 5.0
"""Seconds in which workers write back what a restarted server has lost."""


LEAVING: Final = 2.0
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
        """Look at every switch in this thread, where the keeper has none."""
        for follower in self.followers():
            follower.look()

    def start(self) -> None:
        """Start the thread, unless it runs or nothing else can set the store."""
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
        # A thread that waits ends at once when this keeper is collected.
        weakref.finalize(self, self._woken.set).atexit = False

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
        forked = getattr(self.store, "forked", None)
        if forked is not None:
            forked()
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
        self.worker: Worker = Worker(name, f"{name!r} in {location(store)}")
        if is_local(store) and not is_in_process(store):
            self.worker.stale_after = STALE
            self.worker.read = lambda: store.read(name)
        self._problems = LogOnce(f"maintenance: {self.worker.title}")
        self._reset()

    def _reset(self) -> None:
        # Held while the store is used for this worker.
        self._io = threading.Lock()
        self._joining = threading.Lock()
        self._failed: tuple[float, Exception] | None = None
        self._users = 0
        self._reported: WorkerReport | None = None
        self._reported_at = 0.0
        self._reaped_at = 0.0
        self._collected_at = 0.0
        self._owes_testimony = False

    def reset(self) -> None:
        """Begin again after a fork."""
        self.worker.reset()
        self.worker.notifier.reset()
        self._reset()

    def join(self) -> None:
        """Join the store, before anything is admitted.

        Callers that waited for the same attempt get the same error, at once.
        """
        if self.worker.joined:
            return
        asked = time.monotonic()
        with self._joining:
            if self.worker.joined:
                return
            if self._failed is not None and self._failed[0] > asked:
                raise self._failed[1]
            try:
                with self._io:
                    self._join()
                self.keeper.start()
            except Exception as error:  # noqa: BLE001  # raised again, as one kind
                # Without a thread, it would admit and never learn of a change.
                self.worker.joined = False
                failed = error
                if not isinstance(error, StoreError):
                    failed = StoreError(
                        f"{self.worker.title} cannot be joined:"
                        f" {type(error).__name__}: {error}"
                    )
                self._failed = (time.monotonic(), failed)
                raise failed from error.__cause__ if failed is error else error

    def enter(self) -> None:
        """Join for one more user of this worker."""
        self.join()
        with self._joining:
            self._users += 1

    def leave(self) -> None:
        """Leave the store when the last user does. Work in flight keeps the report."""
        with self._joining:
            self._users = max(0, self._users - 1)
            if self._users:
                return
            limit = time.monotonic() + LEAVING
            while self.worker.joined and not self._leave():
                if time.monotonic() >= limit:
                    return
                time.sleep(QUICK)
                self.look()

    def _leave(self) -> bool:
        with self._io:
            if not self.worker.leave():
                return False
            if self.keeper.fence is None:
                return True
            try:
                self.keeper.fence.remove(self.name, self.worker.id)
            except StoreError as error:
                if self.worker.counted:
                    logger.warning("maintenance: left, but its report stays: %s", error)
            return True

    def look(self) -> float:
        """Look at the store once: adopt, report; return the seconds until the next."""
        with self._io:
            if not self.worker.joined:
                return HEARTBEAT
            self._follow()
            self._report_if_due()
            self._collect_garbage()
            self.worker.close_due()
        return self._pause()

    def _join(self) -> None:
        worker, fence = self.worker, self.keeper.fence
        # An attempt that failed has admitted nothing, and has nothing to testify.
        worker.generation = None
        counted, young = False, False
        cannot: CannotJoinError | None = None
        if fence is not None:
            try:
                young = self._report(fence).young
                counted = True
            except CannotJoinError as error:
                cannot = error
                self._problems.say("join", f"is not counted: {error}")
        try:
            state = self._read()
            if young and (state is None or not state.enabled):
                state = self._await_write_back()
        except StoreError as error:
            if cannot is None or not isinstance(error.__cause__, PermissionError):
                raise
            # A directory that this user may not read must not take a service down.
            state = None
        worker.start(state or MaintenanceState(), counted=counted)
        if counted:
            self._problems.solved("join")

    def _read(self) -> MaintenanceState | None:
        """Read the state; any failure is a ``StoreError``."""
        try:
            state: object = self.keeper.store.read(self.name)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
        if state is not None and not isinstance(state, MaintenanceState):
            raise StoreError(f"read() returned {state!r}, which is not a state")
        return state

    def _await_write_back(self) -> MaintenanceState:
        """Wait for others to write back what a restarted server has lost."""
        limit = time.monotonic() + YOUNG_SERVER
        state = None
        while time.monotonic() < limit:
            time.sleep(0.1)
            state = self._read()
            if state is not None and state.enabled:
                return state
        if state is not None:
            return state

        # With a tag, so that it is not taken for what a person has written.
        off = MaintenanceState(epoch=1, tag=new_generation())
        try:
            return self.keeper.store.publish(self.name, replacing(None, lambda _: off))
        except SupersededError:
            return self._read() or MaintenanceState()

    def _follow(self) -> None:
        # From before the read: the process may be stopped right after it.
        asked = time.monotonic()
        try:
            state = self._read()
        except StoreError as error:
            self._problems.say("read", f"keeps the last state it knew: {error}")
            self.worker.checked = asked
            return
        self._problems.solved("read")
        self.worker.checked = asked
        self._learn(state)

    def _learn(self, stored: MaintenanceState | None) -> None:
        """Do what follows from what is stored."""
        worker, known = self.worker, self.worker.state
        if stored is None:
            if known.epoch:
                self._write_back(None)
        elif stored.epoch > known.epoch:
            worker.adopt(stored)
        elif not stored.tag or (stored.epoch, stored.tag) == (known.epoch, known.tag):
            # What was published has a tag, so that a person has written this.
            if stored not in (known, worker.edited):
                self._publish_edit(stored)
        elif worker.has_adopted(stored.tag):
            # The store was put back to what it was before.
            self._write_back(stored)
        else:
            # Two histories, such as before and after a loss.
            self._merge(stored)

    def _write_back(self, stored: MaintenanceState | None) -> None:
        """Store the known state again, where it was lost or rolled back."""
        known = self.worker.state
        if self._publish(stored, lambda _: known):
            logger.warning(
                "maintenance: %s: the store had lost the state of epoch %d, which was"
                " written back",
                self.worker.title,
                known.epoch,
            )
            self._testify()

    def _merge(self, stored: MaintenanceState) -> None:
        """Publish the stored or the known state, whichever is enabled, above both."""
        known = self.worker.state
        winner = stored if stored.enabled or not known.enabled else known
        epoch = max(stored.epoch, known.epoch) + 1
        self._publish(stored, lambda _: winner.replace(epoch=epoch))

    def _publish_edit(self, edited: MaintenanceState) -> None:
        """Publish what a person has written by hand."""
        known = self.worker.state
        if not self._publish(edited, published(lambda _: edited, above=[known.epoch])):
            # A file that cannot be written, or a link that something else maintains.
            # No drain can tell who has seen it.
            self.worker.adopt(
                edited.model_copy(update={"epoch": known.epoch, "tag": known.tag})
            )
            self.worker.edited = edited

    def _publish(self, stored: MaintenanceState | None, change: Change) -> bool:
        """Publish in place of what is stored, unless that has changed since.

        Returns:
            Whether the store can be set.
        """
        try:
            state = self.keeper.store.publish(self.name, replacing(stored, change))
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
        fence = self.keeper.fence
        if fence is None:
            return
        now = time.monotonic()
        due = now - self._reported_at >= HEARTBEAT
        if not self.worker.counted and not due:
            return
        report = self.worker.report()
        if not due and not _is_news(report, self._reported):
            return
        try:
            self._report(fence, report)
        except CannotJoinError as error:
            self._reported_at = now
            self.worker.counted = False
            self._problems.say("join", f"is not counted: {error}")
            return
        except StoreError as error:
            self._problems.say("report", f"cannot report: {error}")
            return
        self._problems.solved("report")
        if not self.worker.counted:
            self._count_from_now_on()
        if (
            self.worker.state.enabled
            and now - self._reaped_at >= REAP_INTERVAL
            and not is_in_process(self.keeper.store)
        ):
            self._reaped_at = now
            remove_dead(fence, self.name)

    def _count_from_now_on(self) -> None:
        """Be counted from now on, after a time without."""
        self._problems.solved("join")
        # What runs already is old: it was admitted before this moment.
        self.worker.adopt(self.worker.state)
        self._follow()
        self.worker.counted = True
        self._reported_at = 0.0

    def _report(
        self, fence: FencedStore, report: WorkerReport | None = None
    ) -> Receipt:
        worker = self.worker
        if report is None or not worker.counted:
            # It has seen nothing yet: it reads the state after it is on the list.
            report = worker.report().model_copy(update={"seen": 0, "tag": ""})
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

    def _collect_garbage(self) -> None:
        """Close what clients that left have left open, before the worker is drained."""
        # Python closes abandoned generators when it collects garbage. Until that is
        # done, the worker reports one more in flight than there is. Work inside of a
        # generator can be what is in flight, so it is done as requests end, too. It
        # takes time, and a worker that has served nothing since has nothing to close.
        worker, due = self.worker, self.worker.uncollected
        if due is None:
            return
        epoch, old = due
        recent = time.monotonic() - self._collected_at < HEARTBEAT
        if old and recent and epoch == worker.collected[0]:
            return
        # First, as requests are admitted at any moment.
        worker.served = False
        serving = bool(worker.current or worker.old)
        collected = _collect()
        if serving or not collected:
            worker.served = True
        if collected:
            worker.collected, worker.uncollected = due, None
            self._collected_at = time.monotonic()
            self._report_if_due()

    def _pause(self) -> float:
        """Return the seconds until the next look."""
        store, worker = self.keeper.store, self.worker
        interval = poll_interval(store)
        if self.keeper.fence is None:
            return interval
        reported = self._reported
        unfinished = worker.state.enabled and (
            worker.is_draining or (reported is not None and reported.old > 0)
        )
        if is_local(store) or hasattr(store, "wait"):
            return min(QUICK, interval) if unfinished else interval
        quick = unfinished or worker.state.enabled
        return min(QUICK_REMOTE, interval) if quick else interval


def _collect() -> bool:
    """Collect garbage; tell whether that was done.

    It is not while another thread does it, and finalizers may be at work there.
    """
    before = gc.get_stats()[-1]["collections"]
    gc.collect()
    return bool(gc.get_stats()[-1]["collections"] > before)


class LogOnce:
    """Logs a problem when it begins or changes, and when it is over."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._said: dict[str, str] = {}

    def say(self, kind: str, text: str) -> None:
        """Log a problem, unless it was the last one of its kind."""
        if self._said.get(kind) != text:
            self._said[kind] = text
            logger.error("%s: %s", self._title, text)

    def solved(self, kind: str) -> None:
        """Log that a problem is over, if there was one."""
        if self._said.pop(kind, None) is not None:
            logger.info("%s: works again (%s)", self._title, kind)


def remove_dead(fence: FencedStore, name: str) -> None:
    """Take workers that are proven dead off the list."""
    try:
        for worker in fence.roster(name).workers:
            if worker.liveness == "dead":
                fence.remove(name, worker.id)
    except StoreError:
        pass  # The next look does it again.


def keeper_of(store: Store) -> Keeper:
    """Return this process's one keeper for a place where a state lives."""
    named = getattr(store, "location", None)
    is_shared = not is_in_process(store)
    place = named if is_shared and isinstance(named, str) else id(store)
    with _registry_lock:
        keeper = _registry.get(place)
        if keeper is None or type(keeper.store) is not type(store):
            keeper = _registry[place] = Keeper(store)
        return keeper


_registry: Final[weakref.WeakValueDictionary[str | int, Keeper]] = (
    weakref.WeakValueDictionary()
)
_registry_lock = threading.Lock()
_keepers: Final[weakref.WeakSet[Keeper]] = weakref.WeakSet()


def _run(reference: weakref.ref[Keeper], store: Store, woken: threading.Event) -> None:
    """Poll until the keeper has nothing to follow, or is collected."""
    wait = getattr(store, "wait", None)
    while True:
        keeper = reference()
        pause = None if keeper is None else keeper.poll()
        if keeper is None or pause is None:
            return
        names = [follower.name for follower in keeper.followers()]
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
    for keeper in list(_keepers):
        keeper.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
