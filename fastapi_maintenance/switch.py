"""The operator's side of a switch: set the state, wait until it is drained.

It knows no HTTP: the guard, the command line and the control router use it. What uses
the store raises ``StoreError`` if that cannot be read or set.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from .changes import (
    Changes,
    EnableOptions,
    SupersededError,
    default_actor,
    is_at_least_as_strict,
    new_holder,
    with_new_epoch,
)
from .checks import check_text, seconds
from .fence import (
    SETTLING,
    DrainError,
    DrainReport,
    Fence,
    Roster,
    Verdict,
    WorkerReport,
    has_acknowledged,
)
from .keeper import Keeper, keeper_of, remove_dead
from .limiters import limiter
from .log import logger
from .state import MaintenanceState
from .stores import (
    FencedStore,
    Store,
    StoreError,
    TemporaryStoreError,
    check_name,
    is_in_process,
    is_local,
    poll_interval,
    read_state,
    same_error,
)
from .worker import Worker

Clock = Callable[[], datetime]
ProgressCallback = Callable[[Roster, Verdict], None]
"""Called with each look of a drain, to show it."""

LOOK_INTERVAL: Final = 0.02
"""Seconds between two looks of a drain, at a store in a directory."""

REMOTE_LOOK_INTERVAL: Final = 0.05
"""The same for a store on a server."""

ACKNOWLEDGE: Final = 1.0
"""Seconds to wait until workers acknowledge, unless three ticks of a store are more."""

OUTAGE: Final = 10.0
"""Seconds of an outage of the store that a drain and a start outlive."""

T = TypeVar("T")


def utc_now() -> datetime:
    """Return the present moment, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class DrainOptions:
    """How long, and for whom, a drain waits.

    Attributes:
        timeout: Seconds; 0 looks once.
        workers: How many workers must have joined; None trusts the roster.
        close_after: Seconds after which older requests are asked to end.

    Raises:
        ValueError: If a number is negative, not finite or not whole.
        TypeError: If a number of seconds is no number.
    """

    timeout: float = 30.0
    workers: int | None = None
    close_after: float | None = None

    def __post_init__(self) -> None:
        seconds(self.timeout, "timeout")
        if self.close_after is not None:
            seconds(self.close_after, "close_after")
        if self.workers is not None and (
            type(self.workers) is not int or self.workers < 0
        ):
            raise ValueError(
                f"workers must be a whole number, 0 or more, not {self.workers!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What was published, and what stood before it.

    Attributes:
        state: The published state.
        before: The state that it replaced; None where nothing was stored.
        roster: The workers from before the publication; None if the store keeps none.
        holder: The name under which it is held, if it is.
    """

    state: MaintenanceState
    before: MaintenanceState | None
    roster: Roster | None
    holder: str | None = None


class Switch:
    """One named switch of a store, seen from this process.

    Args:
        store: Where the state lives.
        name: Which switch of the store.

    Attributes:
        settling: Seconds that a new roster is given for workers of an older one.
        outage: Seconds of an outage of the store that a drain and a start outlive.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name: str = check_name(name)
        self.keeper: Keeper = keeper_of(store)
        self._follower = self.keeper.follower(name)
        self.worker: Worker = self._follower.worker
        self.clock: Clock = utc_now
        self.settling: float = SETTLING
        self.outage: float = OUTAGE

    @property
    def state(self) -> MaintenanceState:
        """The last state that this worker knows; else what a local store has."""
        if self.worker.joined:
            return self.worker.state
        if is_local(self.store):
            return read_state(self.store, self.name) or MaintenanceState()
        raise StoreError(
            f"{self.worker.title} has not been read yet; use"
            " FastAPI(lifespan=guard.lifespan), so that a worker joins at its start"
        )

    def in_force(self, state: MaintenanceState) -> bool:
        """Tell whether a state refuses requests at this moment."""
        if not state.needs_clock:
            return state.enabled
        return state.in_force(self.clock())

    def join_blocking(self) -> None:
        """Join the store in this thread."""
        if not self.worker.joined:
            self._follower.join()

    async def join(self, patience: float = 2.0) -> None:
        """Join the store, if this worker has not.

        Args:
            patience: Seconds to wait for a store that does not answer.
        """
        if self.worker.joined:
            return
        if is_in_process(self.store):
            self._follower.join()
            return
        with anyio.move_on_after(patience) as scope:
            await _in_thread(self._follower.join, time.monotonic() + patience)
        if scope.cancelled_caught and not self.worker.joined:
            raise StoreError(
                f"{self.worker.title} was not joined within {patience:g} s: it does not"
                " answer, or has just started and waits for what workers write back"
            )

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Be a worker for the time of the block, and leave in order after it."""
        # First, as another lifespan of this process may be ending at this moment.
        self._follower.add_user()
        try:
            try:
                await self._retry(self._follower.join)
            except StoreError as error:
                # Without the chain, which servers print above the line that matters.
                raise same_error(error) from None
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await _in_thread(self._follower.leave)

    async def read(self) -> MaintenanceState:
        """Return the stored state; off where nothing is stored."""
        found = await _in_thread(read_state, self.store, self.name)
        return found or MaintenanceState()

    async def roster(self) -> Roster | None:
        """Return who has joined; None if the store keeps no reports.

        Workers that are proven dead are taken off the list.
        """
        fence = self.keeper.fence
        if fence is None:
            return None
        if is_in_process(self.store):
            await _in_thread(self.keeper.look)
        roster = await _in_thread(fence.roster, self.name)
        if len(roster.not_dead) < len(roster.workers):
            with suppress(StoreError):  # The next look does it again.
                await _in_thread(remove_dead, fence, self.name, roster)
        return roster

    async def forget(self, worker: str) -> None:
        """Take a worker off the list that is known to be gone for good."""
        if self.keeper.fence is None:
            raise StoreError(f"{self.worker.title} keeps no list of workers")
        await _in_thread(self.keeper.fence.remove, self.name, worker)

    async def enable(
        self, options: EnableOptions, acknowledge: float | None = None
    ) -> Publication:
        """Publish what an operator asks for, and wait until workers have adopted it."""
        patience = self._patience(acknowledge)
        publication = await self.publish(
            lambda before: Changes(now=self.clock()).turn_on(before, options)
        )
        await self.wait_until_acknowledged(publication.state, patience)
        return publication

    async def disable(
        self,
        *,
        actor: str | None = None,
        force: bool = False,
        acknowledge: float | None = None,
    ) -> Publication:
        """Open again, and wait until workers have adopted it."""
        if actor is not None:
            check_text(actor, "actor")
        patience = self._patience(acknowledge)
        publication = await self.publish(
            lambda before: Changes(now=self.clock()).turn_off(
                before, actor=actor, force=force
            )
        )
        await self.wait_until_acknowledged(publication.state, patience)
        return publication

    def _patience(self, acknowledge: float | None) -> float:
        if acknowledge is None:
            return max(ACKNOWLEDGE, 3 * poll_interval(self.store))
        return seconds(acknowledge, "acknowledge")

    async def publish(
        self,
        change: Callable[[MaintenanceState | None], MaintenanceState],
        holder: str | None = None,
    ) -> Publication:
        """Publish a change under an epoch above all that workers report."""
        roster = None
        try:
            roster = await self.roster()
        except StoreError as error:
            # The state matters more, and a drain says the same again.
            logger.warning("maintenance: the workers cannot be read: %s", error)
        reported = [worker.seen for worker in roster.workers] if roster else []
        found: list[MaintenanceState | None] = []

        def remembering(before: MaintenanceState | None) -> MaintenanceState:
            found.append(before)
            return change(before)

        state = await _in_thread(
            self.store.publish,
            self.name,
            with_new_epoch(remembering, above=[*reported, self.worker.state.epoch]),
        )
        if is_in_process(self.store):
            await _in_thread(self.keeper.look)
        elif self.worker.joined:
            self.keeper.wake()
        return Publication(state=state, before=found[-1], roster=roster, holder=holder)

    async def wait_until_acknowledged(
        self, state: MaintenanceState, patience: float | None = None
    ) -> list[WorkerReport]:
        """Wait until every worker that is not proven dead has adopted a state.

        Args:
            state: What was published.
            patience: Seconds, 0 does not wait; None is one, or three ticks of the
                store.

        Returns:
            The workers that have not; a warning names them, too.
        """
        patience = self._patience(patience)
        if patience == 0:
            return []
        limit = time.monotonic() + patience
        missing: list[WorkerReport] = []
        while True:
            error = None
            try:
                missing = await self._not_acknowledged(state)
            except StoreError as failure:
                error = failure
            if not (missing or error) or time.monotonic() >= limit:
                break
            await anyio.sleep(self._look_interval)
        if error is not None:
            logger.warning(
                "maintenance: %s: epoch %d may not be acknowledged by all workers: %s",
                self.worker.title,
                state.epoch,
                error,
            )
        elif missing:
            logger.warning(
                "maintenance: %s: epoch %d is not acknowledged by %s",
                self.worker.title,
                state.epoch,
                ", ".join(worker.name for worker in missing),
            )
        return missing

    async def _not_acknowledged(self, state: MaintenanceState) -> list[WorkerReport]:
        if self.keeper.fence is None:
            worker = self.worker
            waits = worker.joined and worker.state.epoch < state.epoch
            return [worker.make_report()] if waits else []
        roster = await self.roster()
        living = roster.not_dead if roster is not None else ()
        return [worker for worker in living if not has_acknowledged(worker, state)]

    async def drain(
        self,
        options: DrainOptions,
        *,
        enable: EnableOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> DrainReport:
        """Publish a new epoch and wait until no older request is running.

        Args:
            options: How long and for whom to wait.
            enable: What to publish; by default the present state once more.
            progress: Called with each look.
        """
        publication = await self.publish_to_drain(options, enable)
        return await self.wait_until_drained(publication, options, progress=progress)

    async def publish_to_drain(
        self,
        options: DrainOptions,
        enable: EnableOptions | None = None,
        *,
        holder: str | None = None,
    ) -> Publication:
        """Publish a new epoch in the form that can be drained.

        Args:
            options: How long and for whom the wait will be.
            enable: What to publish; by default the present state once more.
            holder: Hold it under this name, beside those who hold it already.

        Raises:
            CannotDrainError: If the state is off, planned, or could open by the clock;
                nothing has changed then.
        """

        def change(before: MaintenanceState | None) -> MaintenanceState:
            changes = Changes(now=self.clock())
            if enable is None:
                state = before or MaintenanceState()
            elif holder is None:
                state = changes.turn_on(before, enable)
            else:
                state = changes.add_hold(before, enable, holder)
            return changes.make_drainable(state, options.close_after)

        return await self.publish(change, holder)

    async def wait_until_drained(
        self,
        publication: Publication,
        options: DrainOptions,
        *,
        progress: ProgressCallback | None = None,
    ) -> DrainReport:
        """Wait until nothing older than a publication is running, or time is up."""
        started = time.monotonic()
        fence = Fence(
            state=publication.state,
            roster_before=publication.roster or Roster(complete=False),
            workers=options.workers,
            in_process=is_in_process(self.store),
            settling=self.settling,
        )
        while True:
            roster = await self._read_roster(fence)
            verdict = self._judge(fence, roster)
            overtaken = any(
                worker.seen > fence.state.epoch for worker in roster.workers
            )
            if verdict.final or verdict.outcome == "drained" or overtaken:
                # The state decides last: reports can be clean while another operator
                # has opened the service again.
                verdict = await self._check_state(verdict, publication, fence, roster)
            if progress is not None:
                progress(roster, verdict)
            waited = time.monotonic() - started
            late = waited >= options.timeout
            if verdict.outcome == "drained" or verdict.final or late:
                break
            await anyio.sleep(min(self._look_interval, options.timeout - waited))
        named_all = bool(options.workers) and options.workers == len(roster.not_dead)
        if verdict.outcome == "drained" and named_all and self.keeper.fence is not None:
            # A person's word completes a list that was not known to be complete.
            await _in_thread(self._complete, self.keeper.fence, roster.generation)
        return DrainReport(
            outcome=verdict.outcome,
            epoch=fence.state.epoch,
            workers=roster.not_dead,
            seconds=time.monotonic() - started,
            read_only=fence.state.read_only,
            reason=verdict.reason,
        )

    def _judge(self, fence: Fence, roster: Roster) -> Verdict:
        if self.keeper.fence is None:
            return Verdict(
                "unknown",
                "this store keeps no reports of workers; see the documentation of"
                " stores of your own",
                final=True,
            )
        return fence.judge(roster, time.monotonic(), self._own())

    def _own(self) -> str | None:
        """Return the worker on which a request waits for this drain."""
        # Read after the reports: a request that has ended since must not be taken off
        # the count of another one. And a request that waits for itself must not end the
        # wait for garbage to be collected.
        worker = self.worker
        if not worker.joined or worker.garbage.is_pending:
            return None
        return worker.id if worker.is_inside_admission() else None

    async def _read_roster(self, fence: Fence) -> Roster:
        limit = time.monotonic() + self.outage
        while True:
            try:
                return await self.roster() or Roster()
            except TemporaryStoreError:
                fence.pause()
                if time.monotonic() >= limit:
                    raise
            await anyio.sleep(self._look_interval)

    async def _check_state(
        self, verdict: Verdict, publication: Publication, fence: Fence, roster: Roster
    ) -> Verdict:
        """Return the verdict after a look at the state."""
        try:
            present = await _in_thread(read_state, self.store, self.name)
        except StoreError as error:
            # Workers keep what they know, and this process cannot say what that is.
            reason = f"the state cannot be read any more: {error}"
            final = not isinstance(error, TemporaryStoreError)
            return Verdict("unknown", reason, final=final)
        if present is None:
            # The store has lost it. A worker can report before it writes it back.
            reason = "the store has lost the state; waiting for a worker to restore it"
            return verdict if verdict.final else Verdict("lost", reason)
        who = present.actor or "another operator"
        if not present.enabled:
            reason = f"maintenance was switched off by {who}"
            return Verdict("superseded", reason, final=True)
        # Written back after a loss, or published by another one who holds it as well.
        same = present.tag == fence.state.tag or publication.holder in present.holders
        if not same or not is_at_least_as_strict(present, publication.state):
            reason = f"another state was published by {who}"
            return Verdict("superseded", reason, final=True)
        if present.epoch <= fence.state.epoch:
            return verdict
        fence.state = present
        return self._judge(fence, roster)

    def _complete(self, fence: FencedStore, generation: str) -> None:
        try:
            fence.confirm(self.name, generation, complete=True)
        except StoreError as error:
            logger.warning(
                "maintenance: the list of workers is still not complete: %s", error
            )

    async def undo(self, publication: Publication) -> MaintenanceState | None:
        """Put back what stood before, unless another state was published since.

        Returns:
            The state that is published instead; None where nothing was changed.
        """
        published_state, before = publication.state, publication.before

        def change(present: MaintenanceState | None) -> MaintenanceState:
            if present is None or present.tag != published_state.tag:
                raise SupersededError
            if before is not None and before.enabled:
                return before.replace(close_after=None)
            changes = Changes(now=self.clock())
            return changes.turn_off(present, actor=published_state.actor, force=True)

        try:
            undone = (await self.publish(change)).state
        except SupersededError:
            if publication.holder is None:
                return None
            return await self.release(publication.holder, stays=False)
        if not self.in_force(undone):
            await self.wait_until_acknowledged(undone)
        return undone

    @asynccontextmanager
    async def maintenance(
        self,
        options: DrainOptions,
        *,
        message: str | None = None,
        until: datetime | timedelta | None = None,
        stay_on_error: bool = True,
    ) -> AsyncIterator[DrainReport]:
        """Hold maintenance on, drained, for the time of a block."""
        actor = default_actor()
        enable = EnableOptions.from_arguments(message=message, until=until, actor=actor)
        holder = new_holder(actor)
        stays = True
        try:
            # A hold that is published after its owner has given up would stay.
            publication = await _to_its_end(
                lambda: self.publish_to_drain(options, enable, holder=holder)
            )
            report = await self.wait_until_drained(publication, options)
            if not report.drained:
                raise DrainError(report)
            stays = stay_on_error
            yield report
            stays = False
        finally:
            await _to_its_end(
                lambda: (
                    self.release(holder, stays=True)
                    if stays
                    else self.undo(publication)
                )
            )

    async def release(self, holder: str, *, stays: bool) -> MaintenanceState:
        """Release a hold; the last one to leave opens, unless it stays on."""

        def change(present: MaintenanceState | None) -> MaintenanceState:
            if present is None or holder not in present.holders:
                raise SupersededError  # Forced off, or replaced.
            changes = Changes(now=self.clock())
            return changes.release_hold(present, holder, stays=stays)

        try:
            publication = await self.publish(change)
        except SupersededError:
            # Publishing again would end the waits of those who hold it now.
            return await self.read()
        if not publication.state.enabled:
            await self.wait_until_acknowledged(publication.state)
        return publication.state

    @property
    def _look_interval(self) -> float:
        return LOOK_INTERVAL if is_local(self.store) else REMOTE_LOOK_INTERVAL

    async def _retry(self, work: Callable[[], T]) -> T:
        limit = time.monotonic() + self.outage
        while True:
            try:
                return await _in_thread(work)
            except TemporaryStoreError:
                if time.monotonic() >= limit:
                    raise
            await anyio.sleep(0.2)


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run what may block in a thread, beside those of endpoints."""
    return await anyio.to_thread.run_sync(
        work, *arguments, limiter=limiter("stores", 8), abandon_on_cancel=True
    )


async def _to_its_end(work: Callable[[], Awaitable[T]]) -> T:
    """Do what a cancellation of this task does not interrupt, but has to wait for."""
    ended: list[T | Exception] = []

    async def run() -> None:
        with anyio.CancelScope(shield=True):
            try:
                ended.append(await work())
            except Exception as error:  # noqa: BLE001  # raised below
                ended.append(error)

    # A task of its own: asyncio's own cancellations do not know shields.
    async with anyio.create_task_group() as group:
        group.start_soon(run)
    (outcome,) = ended
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
