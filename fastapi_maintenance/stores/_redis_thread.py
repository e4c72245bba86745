"""The one thread of a process that talks to a Redis, for all switches there."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from . import StoreError
from ._redis_client import Connector, PubSub, redis
from ._redis_errors import TemporaryError, explain
from ._redis_known import Backoff
from ._redis_link import HEARTBEAT

if TYPE_CHECKING:
    from ._redis_link import RedisWorker

logger = logging.getLogger("fastapi_maintenance")

QUICK: Final = 0.03
"""Seconds between two looks at the counts while older requests are in flight."""

_SLICE: Final = 0.2
_AGAIN: Final = 60.0


class Ear:
    """Hears that something was published; what, is read elsewhere.

    Where listening is denied, or fails alone, it only lets time pass: heartbeats
    bring the news then.
    """

    def __init__(self, connector: Connector, prefix: str) -> None:
        self.connector = connector
        self._prefix = prefix
        self._pubsub: PubSub | None = None
        self._channels: set[str] = set()
        self._denied_until = 0.0
        self._told = False

    def listen(self, channels: set[str]) -> bool:
        """Subscribe to these channels and no others.

        Returns:
            Whether it has only now begun: what was said before was not heard.

        Raises:
            StoreError: If Redis cannot be reached.
        """
        if channels == self._channels or time.monotonic() < self._denied_until:
            return False
        self.close()
        try:
            pool = self.connector.client.connection_pool
            self._pubsub = PubSub(pool, ignore_subscribe_messages=True)
            self._pubsub.subscribe(*sorted(channels))
            for _ in channels:
                self._pubsub.get_message(timeout=1.0)
        except Exception as error:
            self.close()
            unreachable = isinstance(error, redis.ConnectionError | redis.TimeoutError)
            if isinstance(error, redis.RedisError) and not unreachable:
                self._deny(error)
                return False
            raise self._explained(error) from error
        self._channels = channels
        return True

    def wait(self, seconds: float, stir: threading.Event) -> set[str]:
        """Return the channels that were heard within so many seconds.

        Args:
            seconds: How long at most.
            stir: Ends the wait where nothing can be heard.

        Raises:
            StoreError: If the connection is lost.
        """
        heard: set[str] = set()
        if self._pubsub is None:
            stir.wait(seconds)
            stir.clear()
            return heard
        try:
            message = self._pubsub.get_message(timeout=seconds)
            while message is not None:
                heard.add(message["channel"].decode())
                message = self._pubsub.get_message(timeout=0.0)
        except Exception as error:
            self.close()
            raise self._explained(error) from error
        return heard

    def close(self) -> None:
        """Stop listening."""
        pubsub, self._pubsub = self._pubsub, None
        self._channels = set()
        if pubsub is not None:
            pubsub.close()

    def abandon(self) -> object:
        """Close the parent's connection without a word; in the child, after a fork."""
        pubsub, self._pubsub = self._pubsub, None
        self._channels = set()
        if pubsub is not None and pubsub.connection is not None:
            pubsub.connection.disconnect()
        return pubsub

    def _deny(self, error: Exception) -> None:
        self._denied_until = time.monotonic() + _AGAIN
        if not self._told:
            logger.warning(
                "maintenance: cannot listen for changes, which take up to %s second"
                " to be seen instead: %s",
                f"{HEARTBEAT:g}",
                self._explained(error),
            )
        self._told = True

    def _explained(self, error: Exception) -> StoreError:
        return explain(error, self.connector.place, self._prefix)


class Hub:
    """Reports for the workers of one place, from one daemon thread.

    Args:
        connector: Where they report.
        prefix: That of the store.
    """

    def __init__(self, connector: Connector, prefix: str) -> None:
        self._connector = connector
        self._prefix = prefix
        self.stir: threading.Event = threading.Event()
        self._workers: weakref.WeakSet[RedisWorker] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ear = Ear(connector, prefix)
        self._backoff = Backoff()
        self._failing = False
        self._inherited: list[object] = []

    def attend(self, worker: RedisWorker) -> None:
        """Report for one more worker, as soon as it has joined.

        Raises:
            StoreError: If there can be no thread.
        """
        with self._lock:
            self._workers.add(worker)
            if self._thread is not None and self._thread.is_alive():
                return
            # One of its own: a thread that is about to end closes what it had.
            self._ear = Ear(self._connector, self._prefix)
            thread = threading.Thread(
                target=_run,
                args=(weakref.ref(self), self._ear, self.stir),
                name="fastapi-maintenance redis",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as error:
                self._workers.discard(worker)
                raise StoreError(
                    f"cannot start the thread for {self._connector.place}: {error};"
                    " allow this user more processes"
                ) from error
            self._thread = thread

    def dismiss(self, worker: RedisWorker) -> None:
        """Report no longer for a worker."""
        with self._lock:
            self._workers.discard(worker)
        self.stir.set()

    def forked(self) -> None:
        """Let go of the parent's thread, locks and connection."""
        self._inherited += [self._ear.abandon(), self._ear]
        self.stir = threading.Event()
        self._lock = threading.Lock()
        self._thread = None
        self._workers = weakref.WeakSet()
        self._ear = Ear(self._connector, self._prefix)

    def members(self) -> list[RedisWorker]:
        """Return whom to attend; when it is nobody, the thread is to end."""
        with self._lock:
            workers = list(self._workers)
            if not workers:
                self._thread = None
            return workers

    def round(self, workers: list[RedisWorker], heard: set[str]) -> float:
        """Report for those who are due, and adopt what is new.

        Args:
            workers: For whom.
            heard: The channels on which something was published.

        Returns:
            The seconds until the next round at the latest.
        """
        pause = _SLICE
        problem: StoreError | None = None
        try:
            channels = {w.link.keys.channel for w in workers if w.joined}
            if channels and self._ear.listen(channels):
                heard = channels
            for worker in workers:
                if not worker.joined:
                    continue  # It is about to, or to be dismissed.
                try:
                    pause = min(pause, self._tend(worker, heard))
                except TemporaryError:
                    raise
                except StoreError as error:
                    # One switch's trouble must not keep the others from reporting.
                    worker.link.due = time.monotonic() + HEARTBEAT
                    problem = error
        except StoreError as error:
            self.failed(error)
            return self._backoff.next()
        self._backoff.reset()
        self._say(problem)
        return pause

    def failed(self, error: StoreError) -> None:
        """Begin anew: Redis does not answer."""
        self._ear.close()
        self._say(error)

    def _say(self, problem: StoreError | None) -> None:
        # Once when it begins and once when it ends.
        if problem is not None and not self._failing:
            logger.error("maintenance: %s; keeping the last state", problem)
        if problem is None and self._failing:
            logger.warning("maintenance: %s answers again", self._connector.place)
        self._failing = problem is not None

    def _tend(self, worker: RedisWorker, heard: set[str]) -> float:
        link = worker.link
        called = link.keys.channel in heard
        now = time.monotonic()
        old = worker.counts()[1]
        if called or now >= link.due or old != link.reported_old:
            before = link.known.epoch
            while link.report():
                pass
            if not called and link.known.epoch > before:
                # News that was not heard: the connection may be deaf.
                self._ear.close()
                return 0.0
            old = link.reported_old
        return QUICK if old else max(0.0, link.due - now)


def _run(hub_: weakref.ref[Hub], ear: Ear, stir: threading.Event) -> None:
    pause = 0.0
    while True:
        heard: set[str] = set()
        problem: StoreError | None = None
        try:
            heard = ear.wait(pause, stir)
        except StoreError as error:
            problem = error
        hub = hub_()
        workers = [] if hub is None else hub.members()
        if hub is None or not workers:
            break
        try:
            if problem is not None:
                hub.failed(problem)
            pause = hub.round(workers, heard)
        except Exception:
            with contextlib.suppress(Exception):  # A log handler can fail, too.
                logger.exception(
                    "the thread of a maintenance worker failed; it goes on"
                )
            pause = HEARTBEAT
        del hub, workers
    ear.close()
    ear.connector.close()
