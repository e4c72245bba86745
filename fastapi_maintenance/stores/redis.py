"""The state in Redis or Valkey: every worker on every machine, one switch."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import anyio.to_thread

from ..fence import Roster
from ..state import VERSION, MaintenanceState, StateFormatError
from . import Change, StoreError
from ._process import ProcessIdentity
from ._redis_client import Connector, check_prefix, redis, split_prefix
from ._redis_known import Known, patiently, understand
from ._redis_link import RedisLink, RedisWorker
from ._redis_rows import decode, identities
from ._redis_scripts import Keys, Scripts, Stored
from ._redis_thread import Hub
from ._registry import worker_at
from ._vanished import Vanished

PATIENCE: Final = 3.0
"""Seconds for which a command of an operator is tried again."""

WAITING: Final = 10.0
"""Seconds for which a drain outlives an outage: a restart, a failover."""


class RedisStore:
    """Keeps each switch in Redis 6.2 or later, or in Valkey.

    Requests read memory; a thread in each process reports its row and hears of
    changes within milliseconds. Whatever Redis loses, workers keep the last state
    and write it back. A list of workers that Redis may have lost (a new server, a
    restart, a failover) is complete again once a drain with ``--workers N`` ended.

    Args:
        url: ``redis://USER:PASSWORD@HOST:6379/0``, ``rediss://`` for TLS,
            ``unix:///SOCKET``, with any option that redis-py knows; or a
            ``redis.Redis`` of your own, as Sentinel's ``master_for`` makes one. The
            client shows the way; the store connects by itself, with short timeouts.
        prefix: Names the application: two of them on one server must not switch
            each other. 1 to 64 of ``A-Z a-z 0-9 _ . : -``.

    Raises:
        ValueError: If the prefix is missing or the URL cannot work.
        TypeError: If ``url`` is neither a string nor a ``redis.Redis``.
    """

    pause: float = 0.05

    def __init__(self, url: str | redis.Redis, *, prefix: str) -> None:
        self.prefix: str = check_prefix(prefix)
        if isinstance(url, str):
            url, other = split_prefix(url)
            if other not in {None, prefix}:
                raise ValueError(
                    f"prefix is {prefix!r}, and {other!r} in the URL; give it once"
                )
            connector = Connector.of_url(url)
        elif isinstance(url, redis.Redis):
            connector = Connector.of_client(url)
        else:
            raise TypeError(
                f"RedisStore takes a URL or a redis.Redis, not {type(url).__name__};"
                " a client of redis.asyncio cannot be used from a thread"
            )
        self._connector = connector
        self._scripts = Scripts(connector, self.prefix)
        self._workers: dict[str, RedisWorker] = {}
        self._vanished: defaultdict[str, Vanished] = defaultdict(Vanished)

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        """Return the store that a URL with ``?prefix=NAME`` names.

        Raises:
            ValueError: If the prefix is missing or the URL cannot work.
        """
        _, prefix = split_prefix(url)
        return cls(url, prefix=check_prefix(prefix))

    def __repr__(self) -> str:
        return f"RedisStore({self.location!r})"

    @property
    def location(self) -> str:
        """The server and the prefix, without user and password."""
        place = self._connector.place
        return f"{place}{'&' if '?' in place else '?'}prefix={self.prefix}"

    def worker(self, name: str) -> RedisWorker:
        """Return this process's one worker for a switch under this prefix."""
        place = self.location
        if name not in self._workers:
            self._workers[name] = worker_at(
                RedisWorker, place, name, lambda: self._make(place, name)
            )
        return self._workers[name]

    def _make(self, place: str, name: str) -> RedisWorker:
        with _hubs_lock:
            hub = _hubs.get(place)
            if hub is None:
                hub = _hubs[place] = Hub(self._connector, self.prefix)
        link = RedisLink(self._scripts, self._keys(name), hub)
        return RedisWorker(link, f"{name!r} in {place}")

    def peek(self, name: str) -> MaintenanceState:
        """Return the last state that this process has read.

        Raises:
            StoreError: If it has read none.
        """
        link = self.worker(name).link
        if not link.heard:
            raise StoreError(
                f"{self.location} has not been read yet; use"
                " FastAPI(lifespan=guard.lifespan), or `await store.read(name)` first"
            )
        return link.known.state

    async def read(self, name: str) -> MaintenanceState:
        """Read the state; off when none was ever published.

        Raises:
            StoreError: If Redis cannot be reached or refuses.
        """
        return await anyio.to_thread.run_sync(self._read, name, abandon_on_cancel=True)

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state; every connected worker sees it within milliseconds.

        Raises:
            StoreError: If it cannot be set.
        """
        return await anyio.to_thread.run_sync(self._publish, name, change)

    async def roster(self, name: str) -> Roster:
        """Read every worker's row; remove those that are proven dead.

        Raises:
            StoreError: If Redis cannot be reached for 10 seconds, or refuses.
        """
        return await anyio.to_thread.run_sync(
            self._roster, name, abandon_on_cancel=True
        )

    async def forget(self, name: str, workers: Iterable[str]) -> None:
        """Remove rows that a person knows to be gone for good.

        Raises:
            StoreError: If Redis cannot be reached or refuses.
        """
        gone = set(workers)
        await anyio.to_thread.run_sync(self._forget, name, gone)

    async def vouch(self, name: str, generation: str) -> None:
        """Take a roster as complete, on a person's word, while it is the present one.

        Raises:
            StoreError: If Redis cannot be reached or refuses.
        """
        await anyio.to_thread.run_sync(self._vouch, name, generation)

    def _keys(self, name: str) -> Keys:
        return Keys.of(self.prefix, name)

    def _read(self, name: str) -> MaintenanceState:
        keys = self._keys(name)
        stored = patiently(PATIENCE, lambda: self._scripts.read(keys))
        known = understand(self.location, stored.epoch, stored.tag, stored.doc)
        self.worker(name).link.offer(known)
        return known.state

    def _publish(self, name: str, change: Change) -> MaintenanceState:
        keys = self._keys(name)
        mine: dict[str, Known] = {}

        def attempt() -> Known | None:
            nonce = secrets.token_hex(8)
            before = self._scripts.begin(keys, nonce)
            if not before.doc and before.unsettled:
                # Workers are about to bring back what others hold.
                time.sleep(before.unsettled)
                before = self._scripts.begin(keys, nonce)
            if before.tag in mine:
                # It was carried out when the connection broke.
                return mine[before.tag]
            state, doc = self._next(before, change)
            known = mine[nonce] = Known(state.epoch, nonce, doc, state)
            done = self._scripts.replace(keys, before, state.epoch, nonce, doc)
            return known if done else None

        published = None
        while published is None:
            published = patiently(PATIENCE, attempt)
        worker = self.worker(name)
        worker.link.offer(published)
        if worker.joined:
            worker.refresh()
            worker.link.due = 0.0
            worker.link.hub.stir.set()
        return published.state

    def _next(self, stored: Stored, change: Change) -> tuple[MaintenanceState, bytes]:
        try:
            present = (
                MaintenanceState.from_json(stored.doc)
                if stored.doc
                else MaintenanceState()
            ).but(epoch=stored.epoch)
        except StateFormatError:
            # What cannot be understood is closed; publishing mends it.
            present = MaintenanceState(epoch=stored.epoch, active=True)
        if present.version != VERSION:
            raise StoreError(
                f"the state in {self.location} was written by a newer release (version"
                f" {present.version}); upgrade fastapi-maintenance-guard here"
            )
        epoch = max(stored.epoch + 1, stored.floor + 1, stored.now)
        state = change(present).but(epoch=epoch)
        return state, state.to_json().encode()

    def _roster(self, name: str) -> Roster:
        keys = self._keys(name)
        looked = patiently(WAITING, lambda: self._scripts.look(keys))
        observer = ProcessIdentity.own()
        entries = {
            field: decode(
                field, value, now=looked.now, epoch=looked.epoch, observer=observer
            )
            for field, value in looked.rows
        }
        dead = [field for field, entry in entries.items() if entry.dead]
        if dead:
            self._scripts.remove(keys, *dead)
        return Roster(
            generation=looked.generation,
            rows=(
                *(entry.row for entry in entries.values()),
                *self._vanished[name].dead(identities(entries.values()), observer),
            ),
            epoch=looked.epoch,
            whole=looked.whole,
            uncounted=any(
                entry.uncounted and not entry.dead for entry in entries.values()
            ),
        )

    def _forget(self, name: str, workers: set[str]) -> None:
        keys = self._keys(name)
        looked = patiently(PATIENCE, lambda: self._scripts.look(keys))
        fields = [
            field for field, _ in looked.rows if field.rpartition("/")[2] in workers
        ]
        if fields:
            self._scripts.remove(keys, *fields)

    def _vouch(self, name: str, generation: str) -> None:
        keys = self._keys(name)
        patiently(PATIENCE, lambda: self._scripts.vouch(keys, generation))


_hubs: Final[weakref.WeakValueDictionary[str, Hub]] = weakref.WeakValueDictionary()
_hubs_lock: Final = threading.Lock()
