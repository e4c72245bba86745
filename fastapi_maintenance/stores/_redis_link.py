"""A worker of a Redis store: what it knows, what it reports, how it joins."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final

from ..state import MaintenanceState
from . import StoreError
from ._process import ProcessIdentity
from ._redis_client import redis
from ._redis_errors import UnsettledError
from ._redis_known import Known, patiently, understand
from ._redis_rows import dead_fields, encode, field_of, kernel_of
from ._redis_scripts import Keys, Reply, Scripts
from ._worker import Worker

if TYPE_CHECKING:
    from ._redis_thread import Hub

logger = logging.getLogger("fastapi_maintenance")

HEARTBEAT: Final = 1.0
"""Seconds between two reports when nothing happens, give or take a tenth."""


class RedisLink:
    """Holds the newest state in memory; only threads of ours talk to Redis.

    Args:
        scripts: Where it reports.
        keys: Those of its switch.
        hub: The thread that reports for it.
    """

    immediate = False

    def __init__(self, scripts: Scripts, keys: Keys, hub: Hub) -> None:
        self.scripts = scripts
        self.keys = keys
        self.hub = hub
        self.place: str = scripts.place
        self.worker: Callable[[], Worker | None] = lambda: None
        self.uncounted: bool = False
        self.process: int = 0
        self.reported_old: int = 0
        self.due: float = 0.0
        self.known: Known = Known()
        self.heard: bool = False
        self._adopted = 0
        self._field = ""
        self._said: set[str] = set()
        self._fresh()

    def _fresh(self) -> None:
        # Held for a report, so that a row never returns after it has left.
        self._turn = threading.Lock()
        self._offering = threading.Lock()

    def join(self, patience: float) -> MaintenanceState:
        """Make the row and read the state, trying again for so many seconds.

        Raises:
            StoreError: If Redis cannot be reached in time, or refuses.
        """
        worker = self.worker()
        self.process = os.getpid()
        self._field = field_of(worker.id if worker else "", self._identity)
        try:
            patiently(patience, self._enlist)
        except StoreError:
            # A row that admits nothing must not hold up anybody.
            field, self._field = self._field, ""
            with contextlib.suppress(StoreError):
                self.scripts.remove(self.keys, field)
            raise
        return self.known.state

    def _enlist(self) -> None:
        with self._turn:
            # It acknowledges nothing yet: that is said once it is adopted.
            reply = self._sync(0, (0, 0), None)
        if reply.wrong:
            raise self.refused(reply.wrong)
        if reply.unsettled:
            # A loss that others are about to mend must not pass for *off*.
            raise UnsettledError(
                f"{self.place} has just started, or lost its data; waiting for other"
                " workers to bring back the state",
                reply.unsettled,
            )

    def leave(self) -> None:
        """Remove the row; without Redis it stays, and its process's end proves it."""
        with self._turn:
            field, self._field = self._field, ""
            try:
                if field:
                    self.scripts.remove(self.keys, field)
            except StoreError as error:
                logger.warning("maintenance: left without a word: %s", error)

    def count(self, current: int, old: int) -> None:
        """Do nothing: the hub asks the worker for its counts."""

    def news(self) -> MaintenanceState | None:
        known = self.known
        return known.state if known.epoch > self._adopted else None

    def adopted(self, epoch: int) -> None:
        self._adopted = epoch

    def forked(self) -> None:
        # No thread, no row and none of the parent's locks; what is known stays.
        self._field = ""
        self.__dict__.pop("_identity", None)
        self._fresh()
        self.hub.forked()

    def stand_aside(self, why: str) -> None:
        self.uncounted = True
        self._said_once(f"maintenance: this worker is not counted: {why}")

    def offer(self, known: Known) -> bool:
        """Take a newer state in; requests see it from their next admission on."""
        with self._offering:
            self.heard = True
            if known.epoch <= self.known.epoch:
                return False
            self.known = known
            return True

    def report(self) -> bool:
        """Report the row and read; called by the hub and by those who join.

        Returns:
            Whether there was news, which is adopted now.

        Raises:
            StoreError: If Redis cannot be reached, or refuses.
        """
        worker = self.worker()
        with self._turn:
            if not self._field or worker is None or not worker.joined:
                return False
            # The epoch before the counts: adopting in between only makes the
            # counts larger than this epoch deserves.
            seen = worker.state.epoch
            current, old, oldest = worker.counts()
            reply = self._sync(seen, (current, old), oldest)
            self.reported_old = old
            self.due = time.monotonic() + HEARTBEAT * random.uniform(0.9, 1.1)  # noqa: S311  # not a secret
            dead = dead_fields(reply.rows, self._identity)
            if dead:
                self.scripts.remove(self.keys, *dead)
        if reply.wrong:
            self._said_once(
                f"maintenance: this worker cannot report, so that no drain can vouch"
                f" for it: {self.refused(reply.wrong)}"
            )
        worker.refresh()
        return worker.state.epoch > seen

    def refused(self, why: str) -> StoreError:
        """Return the error for a write that the server refused."""
        return self.scripts.explain(redis.ResponseError(why))

    def _sync(
        self, seen: int, counts: tuple[int, int], oldest: tuple[str, float] | None
    ) -> Reply:
        identity = self._identity
        if oldest is not None:
            oldest = (oldest[0], time.monotonic() - oldest[1])
        row = encode(
            identity,
            uncounted=self.uncounted,
            seen=seen,
            current=counts[0],
            old=counts[1],
            oldest=oldest,
        )
        known = self.known
        doc = b""
        while True:
            reply = self.scripts.sync(
                self.keys,
                kernel_of(identity),
                self._field,
                row,
                str(known.epoch),
                known.tag,
                doc,
                secrets.token_hex(8),
                self.keys.channel,
            )
            if not reply.asks or doc:
                break
            # Redis knows less than we do: it lost data, or was restored.
            doc = known.doc
            logger.warning(
                "maintenance: %s has lost the state; writing it back", self.place
            )
        if reply.doc:
            self.offer(understand(self.place, reply.epoch, reply.tag, reply.doc))
        self.heard = True
        if not reply.run:
            self._said_once(
                f"maintenance: {self.place} denies INFO, so that a restart which loses"
                " workers cannot be noticed: each drain needs --workers N; allow +info"
            )
        return reply

    @cached_property
    def _identity(self) -> ProcessIdentity:
        return ProcessIdentity.own()

    def _said_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


class RedisWorker(Worker):
    """A worker whose row the hub keeps."""

    link: RedisLink

    def __init__(self, link: RedisLink, title: str) -> None:
        super().__init__(link, title)
        self._silent = False
        self._rename()
        link.worker = weakref.ref(self)
        weakref.finalize(
            self, _abandon, weakref.ref(self), link, self.current, self.old
        )

    def _joins(self) -> None:
        self.link.hub.attend(self)
        self._silent = True

    def join(self, patience: float = 2.0) -> None:
        try:
            super().join(patience)
        finally:
            self._dismiss()
        if self._silent:
            # At once: that it has joined is to be acknowledged.
            self._silent = False
            try:
                self.link.report()
            except StoreError as error:
                logger.warning("maintenance: joined, but: %s", error)
            self.link.hub.stir.set()

    def leave(self) -> None:
        super().leave()
        self._dismiss()

    def depart(self) -> None:
        """Leave whoever still uses it: other threads may still work at exit."""
        with self._joining:
            self._depart()

    def _dismiss(self) -> None:
        with self._joining:
            if not self.joined:
                self.link.hub.dismiss(self)

    def _rename(self) -> None:
        # Containers number their processes alike: more chance than one machine needs.
        self.id: str = self.id + os.urandom(4).hex()

    def forked(self) -> None:
        super().forked()
        self._rename()


def _abandon(
    reference: weakref.ref[RedisWorker],
    link: RedisLink,
    *in_flight: Mapping[int, object],
) -> None:
    # At exit, or when the last guard is gone. A row with work in flight stays: the
    # process has not finished, and its end is proof enough on this machine.
    worker = reference()
    if os.getpid() != link.process:
        return
    if worker is not None:
        worker.depart()
    elif not any(in_flight):
        link.leave()
