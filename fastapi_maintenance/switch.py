"""Both sides of the switch: setting the state, fencing it, and counting work.

It knows no HTTP: the guard, the command line and the control router stand on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
import anyio.to_thread

from ._checks import check_text
from ._threads import ThreadLimit
from .fence import DrainError, DrainReport
from .orders import Order, default_actor, durable, joined, left, new_holder, opened
from .state import MaintenanceState
from .stores import FencedStore, Store, check_name, is_fenced
from .stores._admission import own_counts
from .stores._polled import INTERVAL, PolledStore
from .stores._worker import Worker
from .waiting import Fenced, Look, Plan, wait_until_drained

Clock = Callable[[], datetime]

# Joining may wait for a network, and must not take the threads of endpoints.
_joiners: Final = ThreadLimit("joining", 4)


class _MovedOnError(Exception):
    """Somebody has published since."""


def utc_now() -> datetime:
    """Return the present moment, aware."""
    return datetime.now(UTC)


class Switch:
    """One named switch of a store, seen from this process.

    Args:
        store: Where the state lives.
        name: Which switch of the store.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name: str = check_name(name)
        self.source: FencedStore = (
            store if is_fenced(store) else PolledStore(store)  # type: ignore[assignment]  # is_fenced looked
        )
        self.polled: PolledStore | None = (
            self.source if isinstance(self.source, PolledStore) else None
        )
        self.worker: Worker = self.source.worker(name)
        self.clock: Clock = utc_now

    @property
    def state(self) -> MaintenanceState:
        """The last state this worker knows; else what the store can say at once.

        Raises:
            StoreError: If it can say nothing without waiting.
        """
        if not self.worker.joined:
            return self.source.peek(self.name)
        self.worker.refresh()
        return self.worker.state

    def in_force(self, state: MaintenanceState) -> bool:
        """Tell whether a state refuses requests at this moment."""
        if not state.timed:
            return state.active
        return state.in_force(self.clock())

    async def join(self, patience: float = 2.0) -> None:
        """Be ready to decide: join the store, or read it again when it is overdue.

        Raises:
            StoreError: If this worker has never known a state and cannot now.
        """
        if self.polled is not None and not self.polled.worker(self.name).fresh:
            await self.polled.refresh(self.name)
        if not self.worker.joined:
            await anyio.to_thread.run_sync(
                self.worker.join,
                patience,
                limiter=_joiners.own(),
                abandon_on_cancel=True,
            )

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Be a worker for the time of the block, and leave cleanly after it.

        Raises:
            StoreError: If the store cannot be reached within 10 seconds.
        """
        if self.polled is not None:
            await self.join()
            failure: Exception | None = None
            async with anyio.create_task_group() as group:
                group.start_soon(self._poll, self.polled)
                try:
                    yield
                except Exception as error:  # noqa: BLE001  # a group would wrap it
                    failure = error
                group.cancel_scope.cancel()
            if failure is not None:
                raise failure
            return
        await anyio.to_thread.run_sync(self.worker.enter, limiter=_joiners.own())
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(
                    self.worker.leave, limiter=_joiners.own()
                )

    async def _poll(self, source: PolledStore) -> None:
        while True:
            await anyio.sleep(INTERVAL / 2)
            await source.refresh(self.name)

    async def enable(self, order: Order) -> MaintenanceState:
        """Publish what an operator asks for.

        Raises:
            StoreError: If the store cannot be set, or others hold it.
        """
        return await self.source.publish(
            self.name, lambda before: order.applied(before, self.clock())
        )

    async def disable(
        self, *, actor: str | None = None, force: bool = False
    ) -> MaintenanceState:
        """Open again.

        Raises:
            HeldError: If others hold it on, unless ``force``.
            StoreError: If the store cannot be set.
        """
        check_text(actor, "actor")
        return await self.source.publish(
            self.name,
            lambda before: opened(before, self.clock(), actor=actor, force=force),
        )

    async def drain(
        self,
        plan: Plan,
        *,
        order: Order | None = None,
        look: Look | None = None,
    ) -> DrainReport:
        """Publish a new epoch and wait until no older request is running.

        Args:
            plan: How long and for whom to wait.
            order: What to publish; by default the present state once more.
            look: Called with each look, to show it.

        Raises:
            FenceRefusedError: If the state to fence is off, planned or could open
                by the clock.
            StoreError: If the store cannot be read or set.
        """
        return await self.wait(await self.fence(plan, order), plan, look=look)

    async def fence(
        self, plan: Plan, order: Order | None = None, *, holder: str | None = None
    ) -> Fenced:
        """Publish a new epoch in the form that can be fenced.

        Args:
            plan: How long and for whom the wait will be.
            order: What to publish; by default the present state once more.
            holder: Hold it under this name, beside those who hold it already.

        Raises:
            FenceRefusedError: If the state to fence is off, planned or could open
                by the clock; nothing has changed then.
            StoreError: If the store cannot be read or set.
        """
        roster = await self.source.roster(self.name)
        before = MaintenanceState()

        def change(present: MaintenanceState) -> MaintenanceState:
            nonlocal before
            before, now = present, self.clock()
            if order is None:
                return plan.fenced(present, now)
            if holder is None:
                return plan.fenced(order.applied(present, now), now)
            return plan.fenced(joined(present, order, holder, now), now)

        state = await self.source.publish(self.name, change)
        return Fenced(
            state=state, before=before, roster=roster, own=self._own, holder=holder
        )

    def _own(self) -> Mapping[str, int]:
        return {self.worker.id: own_counts(self.worker)} if self.worker.joined else {}

    async def wait(
        self, fenced: Fenced, plan: Plan, *, look: Look | None = None
    ) -> DrainReport:
        """Wait until no request older than a fenced state is running.

        Raises:
            StoreError: If the workers cannot be read.
        """
        return await wait_until_drained(self.source, self.name, fenced, plan, look)

    async def undo(self, fenced: Fenced) -> MaintenanceState | None:
        """Put back what stood before, unless somebody has published since.

        Returns:
            The state that is published instead, or None where nothing was changed.

        Raises:
            StoreError: If the store cannot be set; the state stays on.
        """

        def change(present: MaintenanceState) -> MaintenanceState:
            if present.epoch != fenced.state.epoch:
                raise _MovedOnError
            if fenced.before.active:
                return fenced.before.but(extra=durable(fenced.before))
            return opened(present, self.clock(), actor=fenced.state.actor, force=True)

        try:
            return await self.source.publish(self.name, change)
        except _MovedOnError:
            if fenced.holder is None:
                return None
            return await self.release(fenced.holder, stays=False)

    @asynccontextmanager
    async def maintenance(
        self,
        plan: Plan,
        *,
        message: str | None = None,
        until: datetime | timedelta | None = None,
        stay_on_error: bool = True,
    ) -> AsyncIterator[DrainReport]:
        """Hold maintenance on, drained, for the time of a block.

        Raises:
            DrainError: If it was not drained; the block does not start and the
                state stays on.
            FenceRefusedError: If the present state could open by the clock.
            StoreError: If the store cannot be read or set.
        """
        actor = default_actor()
        order = Order(message=message, until=until, actor=actor)
        holder = new_holder(actor)
        fenced = await self.fence(plan, order, holder=holder)
        stays = True
        try:
            report = await self.wait(fenced, plan)
            if not report.drained:
                raise DrainError(report)
            stays = stay_on_error
            yield report
            stays = False
        finally:
            with anyio.CancelScope(shield=True):
                await self.release(holder, stays=stays)

    async def release(self, holder: str, *, stays: bool) -> MaintenanceState:
        """Let go of a hold; the last one to leave opens, unless it stays on.

        Raises:
            StoreError: If the store cannot be set; the state stays on.
        """

        def change(present: MaintenanceState) -> MaintenanceState:
            if holder not in present.holders:
                raise _MovedOnError  # Forced off, or replaced, meanwhile.
            return left(present, holder, self.clock(), stays=stays)

        try:
            return await self.source.publish(self.name, change)
        except _MovedOnError:
            # Published again, it would end the waits of those who hold it now.
            return await self.source.read(self.name)
