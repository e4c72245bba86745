"""A store of a user's own: read in the background, without a fence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final, NoReturn

import anyio

from ..fence import Roster
from ..state import MaintenanceState
from . import Change, Store, StoreError, describe
from ._worker import Worker

logger = logging.getLogger("fastapi_maintenance")

INTERVAL: Final = 1.0
"""Seconds between two readings; a request waits for one that is overdue."""

PATIENCE: Final = 2.0
"""Seconds that a reading may take; a store that hangs is a store that fails."""


class PolledStore:
    """Gives a store that can only read and publish what guards need besides."""

    pause: float = 0.1

    def __init__(self, store: Store) -> None:
        self.store = store
        self.location: str = describe(store)
        self._workers: dict[str, PolledWorker] = {}

    def worker(self, name: str) -> PolledWorker:
        """Return this process's worker."""
        if name not in self._workers:
            self._workers[name] = PolledWorker(
                PolledLink(), f"{name!r} in {self.location}"
            )
        return self._workers[name]

    def peek(self, name: str) -> MaintenanceState:
        """Return the last state that was read.

        Raises:
            StoreError: If none was read yet.
        """
        known = self.worker(name).link.known
        if known is None:
            raise StoreError(
                f"{self.location} has not been read yet; use"
                " FastAPI(lifespan=guard.lifespan), or ask after the first request"
            )
        return known

    async def read(self, name: str) -> MaintenanceState:
        """Read the store, and let this worker know."""
        worker = self.worker(name)
        before = worker.link.known
        state = None
        with anyio.move_on_after(PATIENCE) as limit:
            state = await self.store.read(name)
        if limit.cancelled_caught:
            raise StoreError(f"{self.location} did not answer within {PATIENCE:g} s")
        if not isinstance(state, MaintenanceState):
            raise StoreError(f"{self.location}.read() returned {state!r}, not a state")
        known = worker.link.known
        if known is not None and known is not before and known.epoch > state.epoch:
            # Published here while this was read, which is older then.
            return known
        worker.link.known = state
        worker.checked = time.monotonic()
        worker.refresh()
        return state

    async def refresh(self, name: str) -> None:
        """Read the store, or keep the last state that it gave.

        Raises:
            StoreError: If it cannot be read and never could.
        """
        worker = self.worker(name)
        if worker.link.known is not None:
            # One reading is enough: whoever comes meanwhile takes the last state.
            worker.checked = time.monotonic()
        try:
            await self.read(name)
        except Exception as error:
            worker.checked = time.monotonic()
            if worker.link.known is None:
                raise StoreError(f"{self.location} cannot be read: {error}") from error
            if not worker.failing:
                logger.exception(
                    "%s cannot be read; keeping the last state", self.location
                )
            worker.failing = True
        else:
            worker.failing = False

    def check(self, name: str) -> None:
        """Refuse to go by a state that nobody reads any more.

        Raises:
            StoreError: If it is overdue, and only waiting could read it.
        """
        worker = self.worker(name)
        if worker.joined and worker.age > INTERVAL + PATIENCE:
            raise StoreError(
                f"{self.location} was read {worker.age:.0f} s ago, and nothing reads it"
                " in the background; use `async with guard.admit()`, or stay inside"
                " `async with guard.lifespan():`"
            )

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Publish, and let this worker know at once."""
        state = await self.store.publish(name, change)
        worker = self.worker(name)
        known = worker.link.known
        # A late answer: what came after it may have been read meanwhile.
        if known is None or known.epoch <= state.epoch:
            worker.link.known = state
            worker.refresh()
        return state

    async def roster(self, name: str) -> Roster:
        """Return an empty roster: this store does not know its workers."""
        return Roster(generation="", rows=(), epoch=0, uncounted=True)

    async def forget(self, name: str, workers: Iterable[str]) -> NoReturn:
        """Refuse: there are no rows.

        Raises:
            StoreError: Always.
        """
        raise StoreError(f"{self.location} does not know its workers")

    async def vouch(self, name: str, generation: str) -> None:
        """Do nothing: there is no roster."""


class PolledLink:
    """Remembers the last state that was read."""

    immediate = False

    def __init__(self) -> None:
        self.known: MaintenanceState | None = None
        self._adopted: MaintenanceState | None = None

    def join(self, patience: float) -> MaintenanceState:
        if self.known is None:
            raise StoreError("the store has not been read yet; use guard.lifespan")
        self._adopted = self.known
        return self.known

    def leave(self) -> None:
        pass

    def count(self, current: int, old: int) -> None:
        pass

    def news(self) -> MaintenanceState | None:
        # A store makes its states anew at each reading, mostly of the same.
        if self.known == self._adopted:
            return None
        self._adopted = self.known
        return self.known

    def adopted(self, epoch: int) -> None:
        pass

    def forked(self) -> None:
        pass

    def stand_aside(self, why: str) -> None:
        pass


class PolledWorker(Worker):
    """A worker that knows when the store was read last."""

    link: PolledLink

    def __init__(self, link: PolledLink, title: str) -> None:
        self.checked: float = float("-inf")
        self.failing = False
        super().__init__(link, title)

    @property
    def fresh(self) -> bool:
        """Whether the store was read within the last interval."""
        return self.joined and self.age <= INTERVAL

    @property
    def age(self) -> float:
        """Seconds since the store was read last, or was tried to."""
        return time.monotonic() - self.checked
