"""Both sides of the switch: setting the state, fencing it, and counting work.

It knows no HTTP: the guard, the command line and the control router stand on it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from ._checks import check_aware, check_text, whole_seconds
from .fence import DrainError, DrainReport, Roster
from .state import OPERATOR, MaintenanceState
from .stores import FencedStore, Store, StoreError, check_name, is_fenced
from .stores._polled import INTERVAL, PolledStore
from .waiting import Look, Plan, wait_until_drained

TOKEN_LENGTH: Final = 16
"""The shortest bypass token, in characters."""

Clock = Callable[[], datetime]

_joiners: RunVar[anyio.CapacityLimiter] = RunVar("fastapi_maintenance_joiners")


class HeldError(StoreError):
    """Others hold maintenance on; opening would open it under them."""


class _MovedOnError(Exception):
    """Somebody has published since."""


def utc_now() -> datetime:
    """Return the present moment, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an operator asks for with ``enable`` or ``on``; validated when made.

    Raises:
        ValueError: If a time is naive, the end is not after the start, a text
            is not one line, or the token is too short.
        TypeError: If a value has another type than documented.

    """

    message: str | None = None
    at: datetime | None = None
    until: datetime | timedelta | None = None
    auto_off: bool = False
    retry_after: int | timedelta | None = None
    read_only: bool = False
    bypass_token: str | None = None
    actor: str | None = None

    def __post_init__(self) -> None:
        check_text(self.message, "message")
        check_text(self.actor, "actor")
        check_aware(self.at, "at")
        if self.retry_after is not None:
            whole_seconds(self.retry_after, "retry_after")
        if self.bypass_token is not None:
            digest(self.bypass_token)
        if isinstance(self.until, timedelta):
            if self.until <= timedelta(0):
                raise ValueError(f"until must be a time to come, not {self.until!r}")
        else:
            check_aware(self.until, "until")
        if self.auto_off and self.until is None:
            raise ValueError("auto_off needs an end: give until as well")

    def applied(self, before: MaintenanceState, now: datetime) -> MaintenanceState:
        """Return the state that follows.

        Raises:
            HeldError: If it could open under the work of another holder.

        """
        begun = self.at is None or self.at <= now
        start = now if self.at is None else self.at
        if before.active and before.begun and begun and before.since is not None:
            start = before.since
        end = self.until
        if isinstance(end, timedelta):
            end = (now if begun or self.at is None else self.at) + end
        if end is not None and begun and end <= now:
            raise ValueError(f"until ({end.isoformat()}) has passed already")
        others = before.active and set(before.holders) - {OPERATOR}
        looser = not begun or self.auto_off or (self.read_only and not before.read_only)
        if others and looser:
            raise HeldError(
                f"{', '.join(sorted(others))} works under maintenance now; a planned"
                " start, auto_off or read_only could open it meanwhile"
            )
        seconds = self.retry_after
        token = self.bypass_token
        kept = before.bypass if before.active else None
        return MaintenanceState(
            active=True,
            since=start,
            begun=begun,
            until=end,
            auto_off=self.auto_off,
            message=self.message,
            retry_after=None
            if seconds is None
            else whole_seconds(seconds, "retry_after"),
            read_only=self.read_only,
            actor=self.actor,
            holders=_held_too(before),
            bypass=kept if token is None else digest(token),
            extra=_durable(before),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """What was published to be waited for, and what stood before it.

    Attributes:
        state: The published state.
        before: The state that it replaced.
        roster: The workers from before the publication.
        own: Returns, per worker, the counted requests that wait here themselves.
        holder: The name under which it is held, if it is.

    """

    state: MaintenanceState
    before: MaintenanceState
    roster: Roster
    own: Callable[[], Mapping[str, int]]
    holder: str | None


class Switch:
    """One named switch of a store, seen from this process.

    Args:
        store: Where the state lives.
        name: Which switch of the store.

    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = check_name(name)
        self.source: FencedStore = (
            store if is_fenced(store) else PolledStore(store)  # type: ignore[assignment]  # is_fenced looked
        )
        self.polled = self.source if isinstance(self.source, PolledStore) else None
        self.worker = self.source.worker(name)
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
                self.worker.join, patience, limiter=_limiter(), abandon_on_cancel=True
            )

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Be a worker for the time of the block, and leave cleanly after it.

        Raises:
            StoreError: If the store cannot be reached within 10 seconds.

        """
        if self.polled is not None:
            async with anyio.create_task_group() as group:
                await self.join()
                group.start_soon(self._poll, self.polled)
                yield
                group.cancel_scope.cancel()
            return
        await anyio.to_thread.run_sync(self.worker.enter, limiter=_limiter())
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.worker.leave, limiter=_limiter())

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

        def change(before: MaintenanceState) -> MaintenanceState:
            others = sorted(set(before.holders) - {OPERATOR}) if before.active else []
            if others and not force:
                raise HeldError(
                    f"maintenance is held by {', '.join(others)}; wait until they are"
                    " done, or use `off --force` if they are gone"
                )
            return MaintenanceState(
                since=self.clock(), actor=actor, extra=_durable(before)
            )

        return await self.source.publish(self.name, change)

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
            return plan.fenced(_joined(present, order, holder, now), now)

        state = await self.source.publish(self.name, change)
        return Fenced(
            state=state, before=before, roster=roster, own=self._own, holder=holder
        )

    def _own(self) -> Mapping[str, int]:
        return {self.worker.id: self.worker.own()} if self.worker.joined else {}

    async def wait(
        self, fenced: Fenced, plan: Plan, *, look: Look | None = None
    ) -> DrainReport:
        """Wait until no request older than a fenced state is running.

        Raises:
            StoreError: If the workers cannot be read.

        """
        return await wait_until_drained(
            self.source,
            self.name,
            fenced.state,
            fenced.roster,
            plan,
            own=fenced.own,
            holder=fenced.holder,
            look=look,
        )

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
                return fenced.before
            return MaintenanceState(
                since=self.clock(), actor=fenced.state.actor, extra=_durable(present)
            )

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
        actor: str | None = None,
    ) -> AsyncIterator[DrainReport]:
        """Hold maintenance on, drained, for the time of a block.

        Raises:
            DrainError: If it was not drained; the block does not start and the
                state stays on.
            FenceRefusedError: If the present state could open by the clock.
            StoreError: If the store cannot be read or set.

        """
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
            left = tuple(other for other in present.holders if other != holder)
            if stays and OPERATOR not in left:
                # What stays on is a person's to open, without force.
                left = (*left, OPERATOR)
            if left:
                return present.but(holders=left)
            return MaintenanceState(
                since=self.clock(),
                actor=holder.partition("#")[0],
                extra=_durable(present),
            )

        try:
            return await self.source.publish(self.name, change)
        except _MovedOnError:
            # Published again, it would end the waits of those who hold it now.
            return await self.source.read(self.name)


def digest(token: str) -> str:
    """Return how a bypass token is stored.

    Raises:
        ValueError: If it has fewer than 16 characters, or some that no header
            and cookie can carry.

    """
    if len(str(token)) < TOKEN_LENGTH:
        raise ValueError(
            f"a bypass token needs at least {TOKEN_LENGTH} characters; take"
            " secrets.token_urlsafe(32)"
        )
    if not all(
        "!" <= character <= "~" and character not in '",;\\' for character in token
    ):
        raise ValueError(
            "a bypass token must be visible ASCII without quotes, commas, semicolons"
            " and backslashes; take secrets.token_urlsafe(32)"
        )
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def new_holder(actor: str | None = None) -> str:
    """Return a name to hold maintenance on by, which no other holder has."""
    return f"{actor or default_actor()}#{secrets.token_hex(4)}"


def default_actor() -> str:
    """Return who runs this process, as ``user@host/pid``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}/{os.getpid()}"


def _held_too(before: MaintenanceState) -> tuple[str, ...]:
    # An operator's own ``on`` needs a name only beside the holds of others.
    if not before.active or not before.holders or OPERATOR in before.holders:
        return before.holders if before.active else ()
    return (*before.holders, OPERATOR)


def _joined(
    present: MaintenanceState, order: Order, holder: str, now: datetime
) -> MaintenanceState:
    if not present.active:
        return order.applied(present, now).but(holders=(holder,))
    asked = order.applied(MaintenanceState(), now)
    return present.but(
        holders=(*(present.holders or (OPERATOR,)), holder),
        message=asked.message or present.message,
        until=asked.until or present.until,
        retry_after=present.retry_after
        if asked.retry_after is None
        else asked.retry_after,
        bypass=asked.bypass or present.bypass,
        # The stricter of both: reads may disturb whoever did not ask for them.
        read_only=present.read_only and asked.read_only,
    )


def _durable(before: MaintenanceState) -> dict[str, object]:
    # Keys of newer releases are kept; an order to close belongs to one drain.
    return {key: value for key, value in before.extra.items() if key != "close_after"}


def _limiter() -> anyio.CapacityLimiter:
    # Joining may wait for a network, and must not take the threads of endpoints.
    try:
        return _joiners.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(4)
        _joiners.set(limiter)
        return limiter
