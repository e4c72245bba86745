"""The operator's side: publishing, acknowledging, draining, holding, and work."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI

from fastapi_maintenance import (
    DrainError,
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    Roster,
    Store,
    StoreError,
    WorkerReport,
)
from fastapi_maintenance import switch as switch_module
from fastapi_maintenance.changes import (
    CannotDrainError,
    EnableOptions,
    HeldError,
    default_actor,
    new_holder,
    with_new_epoch,
)
from fastapi_maintenance.fence import Verdict
from fastapi_maintenance.state import OPERATOR
from fastapi_maintenance.stores import TemporaryStoreError
from fastapi_maintenance.switch import DrainOptions, Switch, utc_now
from tests.calls import HTTP
from tests.guards import switch_of
from tests.own_store import OwnStore, Server, TwoMethods
from tests.waiting import eventually, in_own_task, until

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ONCE = DrainOptions(timeout=0.0)
LONG = DrainOptions(timeout=30)
GONE = WorkerReport(id="gone", host="h", pid=1)


def switch(store: Store | None = None, **fields: Any) -> Switch:
    """Return a joined switch at a moment of its own, with a state."""
    made = switch_of(MemoryStore() if store is None else store)
    made.clock = lambda: NOW
    made.join_blocking()
    if isinstance(store, TwoMethods):
        store.await_keeper()
    put(made, MaintenanceState(**fields))
    return made


def put(made: Switch, state: MaintenanceState) -> None:
    """Publish a state as another operator does."""
    made.store.publish(made.name, with_new_epoch(lambda _: state))
    made.keeper.look()


def quick(server: Server | None = None) -> OwnStore:
    """Return a store whose keeper looks all the time."""
    return OwnStore(server, poll_interval=0.01)


class Held:
    """Work in a thread of its own, which a drain has to wait for."""

    def __init__(self, made: Switch) -> None:
        self._ended = threading.Event()
        begun = threading.Event()

        def work() -> None:
            with made.worker.admit("work") or pytest.fail("not joined"):
                begun.set()
                self._ended.wait(60)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        assert begun.wait(60)

    def end(self) -> None:
        """End the work."""
        self._ended.set()
        self._thread.join(60)


class TestOptions:
    """How long and for whom a drain waits."""

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout": -1},
            {"timeout": float("nan")},
            {"close_after": -0.1},
            {"workers": -1},
            {"workers": 1.5},
            {"workers": True},
        ],
    )
    def test_numbers_that_cannot_work_are_refused(
        self, options: dict[str, Any]
    ) -> None:
        """A mistake is said before anything is published."""
        with pytest.raises(ValueError, match="must be"):
            DrainOptions(**options)


class TestAcknowledging:
    """``enable`` and ``disable`` return when every worker has adopted the state."""

    async def test_all_have_adopted_it(self) -> None:
        """A request that begins afterwards is decided by the new state everywhere."""
        server = Server()
        workers = [switch(quick(server)) for _ in range(3)]
        publication = await workers[0].enable(EnableOptions())
        assert [made.worker.state for made in workers] == [publication.state] * 3
        publication = await workers[1].disable()
        assert [made.worker.state for made in workers] == [publication.state] * 3

    async def test_worker_that_has_not_is_named(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After the given seconds it returns, with a warning."""
        server = Server()
        made = switch(quick(server))
        asleep = switch(OwnStore(server))
        asleep.worker.host = "asleep"
        asleep.keeper.look()
        publication = await made.enable(EnableOptions(), acknowledge=0.01)
        assert publication.state.enabled
        assert "is not acknowledged by " in caplog.text
        missing = await made.wait_until_acknowledged(publication.state, 0.01)
        assert [worker.id for worker in missing] == [asleep.worker.id]
        asleep.keeper.look()
        assert await made.wait_until_acknowledged(publication.state, 0.01) == []

    async def test_dead_worker_is_not_waited_for(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A worker whose death is proven needs no new state."""
        server = Server()
        made = switch(quick(server))
        made.store.report("default", GONE)  # type: ignore[attr-defined]  # it can
        server.dead.add(GONE.id)
        await made.enable(EnableOptions())
        assert "not acknowledged" not in caplog.text

    async def test_zero_does_not_wait(self, caplog: pytest.LogCaptureFixture) -> None:
        """With 0, it returns at once and warns of nothing."""
        server = Server()
        made, asleep = switch(quick(server)), switch(OwnStore(server))
        publication = await made.enable(EnableOptions(), acknowledge=0)
        assert asleep.worker.state.epoch < publication.state.epoch
        await made.disable(acknowledge=0)
        assert "not acknowledged" not in caplog.text

    @pytest.mark.parametrize(("poll_interval", "patience"), [(0.01, 0.1), (0.1, 0.3)])
    async def test_it_waits_for_three_ticks_of_the_store(
        self,
        monkeypatch: pytest.MonkeyPatch,
        poll_interval: float,
        patience: float,
    ) -> None:
        """By default it waits for a second, and longer where stores are slow."""
        monkeypatch.setattr(switch_module, "ACKNOWLEDGE", 0.1)
        server = Server()
        made = switch(OwnStore(server, poll_interval=poll_interval))
        asleep = switch(OwnStore(server))
        began = anyio.current_time()
        publication = await made.enable(EnableOptions())
        assert anyio.current_time() - began >= patience
        assert asleep.worker.state != publication.state

    @pytest.mark.parametrize("acknowledge", [-1, float("inf"), "1"])
    async def test_seconds_that_cannot_work_change_nothing(
        self, acknowledge: Any
    ) -> None:
        """The mistake is said before anything is published."""
        made = switch()
        before = made.state
        for change in (
            made.enable(EnableOptions(), acknowledge),
            made.disable(acknowledge=acknowledge),
        ):
            with pytest.raises((ValueError, TypeError), match="acknowledge must be"):
                await change
        assert made.state == before

    async def test_store_of_two_methods_is_acknowledged_by_this_process(self) -> None:
        """Without reports, only this worker can be waited for."""
        made = switch(TwoMethods(poll_interval=0.01))
        publication = await made.enable(EnableOptions())
        assert made.worker.state == publication.state
        asleep = switch(TwoMethods())
        state = asleep.state.replace(epoch=asleep.state.epoch + 1)
        assert len(await asleep.wait_until_acknowledged(state, 0.01)) == 1
        unjoined = Switch(TwoMethods(), "default")
        assert await unjoined.wait_until_acknowledged(state, 0.01) == []

    async def test_workers_that_cannot_be_read_do_not_stop_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The state matters more; the log says what could not be seen."""
        store = quick()
        made = switch(store)
        store.errors["roster"] = StoreError("no rights")
        publication = await in_own_task(made.enable(EnableOptions(), 0.01))
        assert publication.roster is None
        assert store.server.state == publication.state
        assert "the workers cannot be read: no rights" in caplog.text
        assert "may not be acknowledged by all workers: no rights" in caplog.text

    async def test_workers_that_cannot_be_read_are_asked_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a warning, every worker has acknowledged: also after an error."""
        store = quick()
        made = switch(store)
        asked: list[int] = []
        listing = store.roster

        def roster(name: str) -> Roster:
            asked.append(1)
            if len(asked) < 4:
                raise TemporaryStoreError("away")
            return listing(name)

        state = made.store.publish("default", with_new_epoch(lambda _: made.state))
        store.roster = roster  # type: ignore[method-assign]  # it fails for a while
        assert await made.wait_until_acknowledged(state, 30) == []
        assert len(asked) >= 4
        assert made.worker.state == state
        assert "acknowledged" not in caplog.text


class TestPublishing:
    """What an operator changes."""

    async def test_epoch_is_above_all_that_workers_report(self) -> None:
        """A store that has lost its state does not start below them."""
        server = Server()
        made, ahead = switch(quick(server)), switch(OwnStore(server))
        far = MaintenanceState(epoch=2**52, tag="far")
        ahead.worker.adopt(far)
        ahead._follower._report_if_due()
        server.state = None
        publication = await made.publish(lambda _: MaintenanceState())
        assert publication.state.epoch == 2**52 + 1

    async def test_what_stood_before_is_remembered(self) -> None:
        """A publication knows the state and the workers from before it."""
        made = switch(enabled=True, message="before")
        publication = await made.enable(EnableOptions(message="after"))
        assert publication.before is not None
        assert publication.before.message == "before"
        assert publication.roster is not None
        assert len(publication.roster.workers) == 1
        assert publication.holder is None

    async def test_switching_off_is_refused_while_others_hold_it(self) -> None:
        """Opening under the work of others needs force."""
        made = switch(enabled=True, holders=("job#1", OPERATOR))
        with pytest.raises(HeldError, match=r"held by job#1.*off --force"):
            await made.disable()
        assert made.state.enabled
        state = (await made.disable(actor="ada", force=True)).state
        assert (state.enabled, state.actor, state.since) == (False, "ada", NOW)
        with pytest.raises(ValueError, match="actor"):
            await made.disable(actor="")

    async def test_state_by_the_clock(self) -> None:
        """A window begins and ends by the clock of the switch."""
        made = switch(
            enabled=True, starts_at=NOW + HOUR, until=NOW + 2 * HOUR, auto_off=True
        )
        seen = []
        for hours in range(3):
            made.clock = lambda hours=hours: NOW + hours * HOUR  # type: ignore[misc]  # bound at once
            seen.append(made.in_force(made.state))
        assert seen == [False, True, False]
        assert utc_now().utcoffset() == timedelta(0)

    async def test_command_reads_what_is_stored(self) -> None:
        """A process that has not joined reads the store, if that is quick."""
        store = OwnStore()
        made = Switch(store, "default")
        assert await made.read() == made.state == MaintenanceState()
        store.server.state = MaintenanceState(epoch=1, enabled=True)
        assert made.state.enabled
        assert (await made.read()).enabled
        assert await made.roster() == Roster(complete=False)
        with pytest.raises(StoreError, match="has not been read yet"):
            Switch(OwnStore(local=False), "default").state  # noqa: B018  # it raises


class TestWorkers:
    """What an operator can do about workers."""

    async def test_dead_ones_are_taken_off_the_list(self) -> None:
        """A look at the workers removes those whose death is proven."""
        server = Server()
        made = switch(quick(server))
        made.store.report("default", GONE)  # type: ignore[attr-defined]  # it can
        server.dead.add(GONE.id)
        roster = await made.roster()
        assert roster is not None
        assert len(roster.not_dead) == 1
        assert list(server.reports) == [made.worker.id]

    async def test_lost_one_can_be_forgotten(self) -> None:
        """A person may know that a worker is gone for good."""
        server = Server()
        made = switch(quick(server))
        made.store.report("default", GONE)  # type: ignore[attr-defined]  # it can
        await made.forget(GONE.id)
        assert list(server.reports) == [made.worker.id]
        short = Switch(TwoMethods(), "default")
        assert await short.roster() is None
        with pytest.raises(StoreError, match="keeps no list of workers"):
            await short.forget("a")


class TestJoining:
    """Requests wait for a store no longer than they must."""

    async def test_store_that_hangs_is_given_up(self) -> None:
        """A request is refused when the store has not answered in time."""
        store, go = OwnStore(), threading.Event()
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            go.wait(60)
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # it hangs
        made = Switch(store, "default")
        with pytest.raises(StoreError, match=r"was not joined within 0.01 s"):
            await made.join(patience=0.01)
        go.set()
        await made.join(patience=30)
        assert made.worker.joined
        await made.join()

    async def test_start_that_is_cancelled_keeps_nothing(self) -> None:
        """A later lifespan of the same process leaves as if it were the first."""
        store = OwnStore()
        begun, go = threading.Event(), threading.Event()
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            begun.set()
            go.wait(30)
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # it hangs
        made = Switch(store, "default")
        with anyio.move_on_after(30) as scope:

            async def cancel() -> None:
                await anyio.to_thread.run_sync(begun.wait)
                scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(cancel)
                async with made.attached():
                    raise AssertionError
        go.set()
        await eventually(lambda: made.worker.joined)
        async with made.attached():
            pass
        assert not made.worker.joined

    async def test_start_outlives_an_outage(self) -> None:
        """A worker that starts while its server restarts waits for it."""
        store = OwnStore()
        store.errors["report"] = TemporaryStoreError("restarting")
        made = Switch(store, "default")

        async def end_outage() -> None:
            while store.calls.count("report") < 2:
                await anyio.sleep(0.001)
            store.errors.clear()

        async with anyio.create_task_group() as group:
            group.start_soon(end_outage)
            async with made.attached():
                assert made.worker.joined
        assert not made.worker.joined

    async def test_start_fails_after_a_long_outage(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A roll-out stops instead of replacing good workers by refusing ones."""
        monkeypatch.setattr(switch_module, "OUTAGE", 0.01)
        store = OwnStore()
        store.errors["report"] = TemporaryStoreError("gone")
        with pytest.raises(TemporaryStoreError, match="gone"):
            async with Switch(store, "default").attached():
                raise AssertionError
        store.errors["report"] = StoreError("refused")
        with pytest.raises(StoreError, match="refused"):
            async with Switch(store, "default").attached():
                raise AssertionError


class TestDraining:
    """A drain waits until nothing older runs, and nothing older can start."""

    async def test_what_cannot_be_drained_stays_as_it_is(self) -> None:
        """A drain that is refused has changed nothing."""
        made = switch(enabled=True, until=NOW + HOUR, auto_off=True)
        before = made.state
        with pytest.raises(CannotDrainError, match="auto_off"):
            await made.drain(ONCE)
        assert made.state == before

    async def test_window_that_has_begun_loses_its_clock(self) -> None:
        """A drain publishes it as in force at once: no worker's clock can doubt it."""
        made = switch(enabled=True, starts_at=NOW - HOUR)
        assert (await made.drain(ONCE)).drained
        assert (made.state.starts_at, made.state.since) == (None, NOW - HOUR)

    async def test_drain_can_publish_what_it_waits_for(self) -> None:
        """A change and its drain are one publication."""
        made = switch()
        looks: list[Verdict] = []
        options = DrainOptions(timeout=5, close_after=3.0)
        report = await made.drain(
            options,
            enable=EnableOptions(message="m"),
            progress=lambda _, verdict: looks.append(verdict),
        )
        assert report.drained
        assert (made.state.message, made.state.epoch) == ("m", report.epoch)
        assert made.state.close_after == 3.0
        assert [verdict.outcome for verdict in looks][-1] == "drained"
        assert (await made.drain(ONCE)).drained
        assert made.state.close_after is None

    @pytest.mark.parametrize("make", [MemoryStore, quick])
    async def test_work_that_ends_is_waited_for(
        self, make: Callable[[], Store]
    ) -> None:
        """A drain ends with the work that it waits for."""
        made = switch(make(), enabled=True)
        held = Held(made)
        outcomes: list[str] = []

        def progress(_: Roster, verdict: Verdict) -> None:
            outcomes.append(verdict.outcome)
            if "still running on" in verdict.reason:
                held.end()

        report = await made.drain(LONG, progress=progress)
        assert (report.outcome, outcomes[0], outcomes[-1]) == (
            "drained",
            "busy",
            "drained",
        )
        assert report.seconds > 0
        assert not report.read_only

    @pytest.mark.parametrize("timeout", [0.0, 0.02])
    async def test_work_that_outlasts_the_time_is_busy(self, timeout: float) -> None:
        """What still runs is named."""
        made = switch(enabled=True, read_only=True)
        held = Held(made)
        report = await made.drain(DrainOptions(timeout=timeout))
        held.end()
        assert (report.outcome, report.read_only) == ("busy", True)
        assert "work, " in report.reason

    async def test_every_worker_is_waited_for(self) -> None:
        """Work on another worker of the store holds a drain up as well."""
        server = Server()
        made, other = switch(quick(server)), switch(quick(server))
        await made.enable(EnableOptions())
        await made.disable()
        held = Held(other)

        def progress(roster: Roster, verdict: Verdict) -> None:
            assert len(roster.workers) == 2
            if "still running on" in verdict.reason:
                held.end()

        report = await made.drain(LONG, enable=EnableOptions(), progress=progress)
        assert report.drained
        assert {worker.id for worker in report.workers} == {
            made.worker.id,
            other.worker.id,
        }

    async def test_command_drains_the_workers_of_others(self) -> None:
        """A process that has not joined publishes, and waits for those that have."""
        server = Server()
        worker, command = switch(quick(server)), switch_of(quick(server))
        report = await command.drain(LONG, enable=EnableOptions())
        assert report.drained
        assert [found.id for found in report.workers] == [worker.worker.id]
        assert not command.worker.joined

    async def test_store_of_two_methods_cannot_tell(self) -> None:
        """A drain of it is *unknown* at once, and not waited for."""
        made = switch(TwoMethods(poll_interval=0.01), enabled=True)
        with anyio.fail_after(10):
            report = await made.drain(LONG)
        assert (report.outcome, report.drained, report.workers) == (
            "unknown",
            False,
            (),
        )

    async def test_number_that_was_right_completes_the_list(self) -> None:
        """A list that lost workers is complete again when N have acknowledged."""
        store = quick()
        made = switch(store, enabled=True)
        store.server.lose_roster()
        made._follower._reported_at = 0.0
        made.keeper.look()
        assert (await made.drain(LONG)).outcome == "lost"
        assert (await made.drain(DrainOptions(timeout=0, workers=2))).drained is False
        assert store.server.membership is not None
        assert not store.server.membership.complete
        assert (await made.drain(DrainOptions(timeout=30, workers=1))).drained
        assert store.server.membership.complete
        assert (await made.drain(LONG)).drained

    async def test_number_that_is_too_small_completes_nothing(self) -> None:
        """A wait can end without the list, by what it saw before the loss."""
        server = Server()
        workers = [switch(quick(server)) for _ in range(3)]
        held = Held(workers[0])
        lost: list[int] = []

        def have_testified() -> bool:
            membership = server.membership
            return len(server.reports) == 3 and not getattr(membership, "complete", 1)

        def progress(_: Roster, verdict: Verdict) -> None:
            if "still running on" in verdict.reason and not lost:
                lost.append(1)
                server.lose_roster()
                for made in workers:
                    made._follower._reported_at = 0.0
                until(have_testified)
                held.end()

        options = DrainOptions(timeout=30, workers=2)
        report = await workers[0].drain(
            options, enable=EnableOptions(), progress=progress
        )
        assert (report.drained, len(report.workers), lost) == (True, 3, [1])
        assert server.membership is not None
        assert not server.membership.complete

    async def test_list_that_cannot_be_completed_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The drain ends well without it."""
        store = quick()
        made = switch(store, enabled=True)
        store.errors["confirm"] = StoreError("no rights")
        assert (await made.drain(DrainOptions(timeout=30, workers=1))).drained
        assert "the list of workers is still not complete: no rights" in caplog.text

    async def test_list_that_is_lost_at_the_end_is_not_made_again(self) -> None:
        """The drain ends well; neither it nor a worker that leaves makes a list."""
        store = OwnStore()
        made = switch(store, enabled=True)
        options = DrainOptions(timeout=30, workers=1)
        publication = await made.publish_to_drain(options)
        made.keeper.look()

        def lose(*_: object) -> None:
            store.server.lose_roster()

        report = await made.wait_until_drained(publication, options, progress=lose)
        assert report.drained
        made._follower.leave()
        assert store.calls[-2:] == ["confirm", "remove"]
        assert store.server.membership is None


class TestOutages:
    """A drain outlives ten seconds without its store."""

    @pytest.mark.parametrize("method", ["roster", "read"])
    async def test_drain_goes_on_after_an_outage(self, method: str) -> None:
        """What can be over in a moment is waited for, and no worker is blamed."""
        store = quick()
        made = switch(store, enabled=True)
        publication = await made.publish_to_drain(LONG)
        store.errors[method] = TemporaryStoreError("restarting")

        async def end_outage() -> None:
            before = store.calls.count(method)
            while store.calls.count(method) < before + 3:
                await anyio.sleep(0.001)
            store.errors.clear()

        async with anyio.create_task_group() as group:
            group.start_soon(end_outage)
            report = await made.wait_until_drained(publication, LONG)
        assert report.drained

    async def test_long_outage_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After that, the error says why the drain cannot tell."""
        monkeypatch.setattr(switch_module, "OUTAGE", 0.01)
        store = quick()
        made = switch(store, enabled=True)
        publication = await made.publish_to_drain(LONG)
        store.errors["roster"] = TemporaryStoreError("gone")
        with pytest.raises(TemporaryStoreError, match="gone"):
            await made.wait_until_drained(publication, LONG)
        store.errors["roster"] = StoreError("refused")
        with pytest.raises(StoreError, match="refused"):
            await made.wait_until_drained(publication, LONG)

    async def test_state_that_cannot_be_read_makes_it_unknown(self) -> None:
        """Clean reports are not enough when it cannot be said what the state is."""
        store = OwnStore()
        made = switch(store, enabled=True)
        publication = await made.publish_to_drain(ONCE)
        made.keeper.look()
        store.errors["read"] = StoreError("the disk is gone")
        report = await in_own_task(made.wait_until_drained(publication, LONG))
        assert report.outcome == "unknown"
        assert "the disk is gone" in report.reason


class TestOtherOperators:
    """Another publication ends a wait, unless it keeps what was waited for."""

    @pytest.mark.parametrize(
        "overtaking",
        [
            MaintenanceState(),
            MaintenanceState(actor="bob"),
            MaintenanceState(enabled=True, actor="bob"),
            MaintenanceState(enabled=True, starts_at=NOW + HOUR),
            MaintenanceState(enabled=True, read_only=True),
            MaintenanceState(enabled=True, until=NOW + HOUR, auto_off=True),
        ],
        ids=["off", "off by bob", "on", "planned", "read-only", "auto_off"],
    )
    @pytest.mark.parametrize("busy", [False, True])
    async def test_drain_that_is_overtaken_is_superseded(
        self, overtaking: MaintenanceState, busy: bool
    ) -> None:
        """It ends at once, whatever the reports say, and names who it was."""
        made = switch(enabled=True)
        held = Held(made)
        publication = await made.publish_to_drain(LONG)
        if not busy:
            held.end()
        put(made, overtaking)
        report = await made.wait_until_drained(publication, LONG)
        held.end()
        assert report.outcome == "superseded"
        assert (overtaking.actor or "another operator") in report.reason

    async def test_later_holder_does_not_end_an_earlier_wait(self) -> None:
        """A later state that keeps the waiter's own hold becomes its publication."""
        made = switch()
        first = await made.publish_to_drain(LONG, EnableOptions(), holder="one#1")
        held = Held(made)
        second = await made.publish_to_drain(LONG, EnableOptions(), holder="two#2")
        assert second.state.holders == ("one#1", "two#2")
        report = await made.wait_until_drained(
            first, LONG, progress=lambda *_: held.end()
        )
        assert (report.outcome, report.epoch) == ("drained", second.state.epoch)
        assert (await made.wait_until_drained(second, LONG)).drained

    @pytest.mark.parametrize(
        "looser",
        [
            {"read_only": True},
            {"until": NOW + HOUR, "auto_off": True},
            {"starts_at": NOW + HOUR},
        ],
    )
    async def test_hold_does_not_cover_a_looser_state(
        self, looser: dict[str, Any]
    ) -> None:
        """A later state that keeps the hold but lets work in ends the wait."""
        made = switch()
        publication = await made.publish_to_drain(ONCE, EnableOptions(), holder="a#1")
        put(made, publication.state.replace(**looser))
        assert (
            await made.wait_until_drained(publication, LONG)
        ).outcome == "superseded"

    async def test_edit_by_hand_is_no_publication_of_ours(self) -> None:
        """A state with our epoch and other content is another one."""
        store = OwnStore()
        made = switch(store, enabled=True)
        publication = await made.publish_to_drain(ONCE)
        made.keeper.look()
        store.server.state = publication.state.replace(read_only=True)
        assert (
            await made.wait_until_drained(publication, LONG)
        ).outcome == "superseded"

    async def test_state_that_was_written_back_is_ours(self) -> None:
        """After a loss, a worker may publish it again under a larger epoch."""
        store = quick()
        made = switch(store)
        publication = await made.publish_to_drain(LONG, EnableOptions())
        again = publication.state.replace(epoch=publication.state.epoch + 1)
        store.server.state = again
        report = await made.wait_until_drained(publication, LONG)
        assert (report.outcome, report.epoch) == ("drained", again.epoch)

    async def test_store_that_was_put_back_does_not_end_a_wait(self) -> None:
        """An earlier state that has the hold is replaced by the workers in a moment."""
        store = quick()
        made = switch(store)
        first = await made.publish_to_drain(LONG, EnableOptions(), holder="one#1")
        second = await made.publish_to_drain(LONG, EnableOptions(), holder="two#2")
        await made.wait_until_acknowledged(second.state)
        store.server.state = first.state
        report = await made.wait_until_drained(
            first, DrainOptions(timeout=30, workers=1)
        )
        assert (report.outcome, report.epoch) == ("drained", second.state.epoch)
        assert store.server.state == second.state

    async def test_store_that_is_put_back_at_the_end_changes_nothing(self) -> None:
        """What all have acknowledged was no looser than the state that is back."""
        store = OwnStore()
        made = switch(store)
        held = Held(made)
        first = await made.publish_to_drain(LONG, EnableOptions(), holder="one#1")
        made.keeper.look()
        second = await made.publish_to_drain(LONG, EnableOptions(), holder="two#2")
        made.keeper.look()

        def put_back(_: Roster, verdict: Verdict) -> None:
            if verdict.outcome == "busy":
                held.end()
                made.keeper.look()
                store.server.state = first.state

        options = DrainOptions(timeout=30, workers=1)
        report = await made.wait_until_drained(first, options, progress=put_back)
        assert (report.outcome, report.epoch) == ("drained", second.state.epoch)

    async def test_lost_state_is_waited_for(self) -> None:
        """A store without a state is not *off*: a worker will write it back."""
        store = OwnStore()
        made = switch(store)
        publication = await made.publish_to_drain(LONG, EnableOptions())
        made.keeper.look()
        verdicts: list[Verdict] = []

        def write_back(_: Roster, verdict: Verdict) -> None:
            verdicts.append(verdict)
            store.server.state = publication.state

        with made._follower._io:  # Its keeper does not come to it.
            store.server.state = None
            report = await made.wait_until_drained(
                publication, LONG, progress=write_back
            )
        assert verdicts[0].outcome == "lost"
        assert "the store has lost the state" in verdicts[0].reason
        assert report.drained


class TestUndoing:
    """What was published can be taken back, if it is still what is published."""

    async def test_what_stood_before_is_put_back(self) -> None:
        """Off stays off, and on stays what it was."""
        made = switch()
        publication = await made.enable(EnableOptions(message="m", actor="ada"))
        state = await made.undo(publication)
        assert state is not None
        assert (state.enabled, state.actor) == (False, "ada")
        made = switch(enabled=True, message="before")
        publication = await made.enable(EnableOptions(message="after"))
        state = await made.undo(publication)
        assert state is not None
        assert (state.enabled, state.message) == (True, "before")
        assert (await made.undo(publication), made.state.message) == (None, "before")

    async def test_hold_alone_is_taken_back_after_others(self) -> None:
        """Where another operator has published since, only the own hold is released."""
        made = switch()
        publication = await made.publish_to_drain(ONCE, EnableOptions(), holder="a#1")
        await made.publish_to_drain(ONCE, EnableOptions(), holder="b#2")
        state = await made.undo(publication)
        assert state is not None
        assert (state.enabled, state.holders) == (True, ("b#2",))

    async def test_older_work_is_asked_to_end_once(self) -> None:
        """Neither undoing nor leaving closes what was let in since a drain."""
        made = switch(enabled=True)
        closing = DrainOptions(timeout=0.0, close_after=3.0)
        assert (await made.drain(closing)).drained
        assert made.state.close_after == 3.0
        undone = await made.undo(
            await made.publish_to_drain(ONCE, EnableOptions(message="m"))
        )
        assert undone is not None
        assert (undone.enabled, undone.close_after) == (True, None)
        await made.publish_to_drain(ONCE, EnableOptions(), holder="one#1")
        await made.publish_to_drain(closing, EnableOptions(), holder="two#2")
        left = await made.release("two#2", stays=False)
        assert (left.holders, left.close_after) == ((OPERATOR, "one#1"), None)


async def joined_guard(store: Store | None = None) -> MaintenanceGuard:
    """Return a guard that has joined."""
    guard = MaintenanceGuard(store or MemoryStore())
    await guard._switch.join()
    return guard


class TestMaintenanceBlocks:
    """``guard.maintenance()`` runs a block while nothing else runs."""

    async def test_block_opens_at_its_end(self) -> None:
        """A block runs drained and held, and what it closed is open after it."""
        guard = await joined_guard()
        async with guard.maintenance(message="moving", until=HOUR) as report:
            state = guard.state
            assert report.drained
            assert (state.enabled, state.message) == (True, "moving")
            assert state.until is not None
            assert state.actor == default_actor()
            assert [holder.partition("#")[0] for holder in state.holders] == [
                default_actor()
            ]
        assert not guard.state.enabled

    async def test_block_puts_back_what_stood_before(self) -> None:
        """An operator's own read-only maintenance is what it was, text included."""
        guard = await joined_guard()
        await guard.enable(read_only=True, message="reads go on", until=HOUR)
        before = guard.state
        async with guard.maintenance(message="migrating"):
            assert not guard.state.read_only
        now = guard.state
        assert now.replace(epoch=before.epoch, tag=before.tag) == before

    @pytest.mark.parametrize("stay", [True, False])
    async def test_block_that_fails_stays_on_unless_told_otherwise(
        self, stay: bool
    ) -> None:
        """A failed migration must not open the service, and is a person's to open."""
        guard = await joined_guard()
        with pytest.raises(KeyError):
            async with guard.maintenance(stay_on_error=stay):
                raise KeyError("migration")
        state = guard.state
        assert (state.enabled, state.holders) == (stay, (OPERATOR,) if stay else ())
        assert not (await guard.disable()).enabled

    @pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
    async def test_block_that_is_cancelled_stays_on(self) -> None:
        """A cancelled block has not ended: it stays on, and its hold is given back."""
        guard = await joined_guard()
        async with anyio.create_task_group() as group, guard.maintenance():
            group.cancel_scope.cancel()
            await anyio.sleep_forever()
        assert (guard.state.enabled, guard.state.holders) == (True, (OPERATOR,))

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("cancellations", [1, 3])
    async def test_block_that_is_cancelled_while_it_publishes_leaves_no_hold(
        self, fails: bool, cancellations: int
    ) -> None:
        """The thread that publishes goes on; its hold is given back all the same."""
        store = quick()
        guard = await joined_guard(store)
        begun, go = threading.Event(), threading.Event()

        def publishing() -> None:
            begun.set()
            go.wait(30)
            if fails:
                raise StoreError("away")

        async def block() -> None:
            async with guard.maintenance():
                raise AssertionError

        store.before_publish = publishing
        task = asyncio.create_task(block())
        await anyio.to_thread.run_sync(begun.wait)
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0)
        store.before_publish = bool
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.server.state is not None or fails
        if store.server.state is not None:
            assert store.server.state.holders == (OPERATOR,)
        assert not (await guard.disable()).enabled

    async def test_block_that_is_not_drained_does_not_start(self) -> None:
        """While requests run the block does not, and the state stays on."""
        guard = await joined_guard()
        held = Held(guard._switch)
        try:
            with pytest.raises(DrainError, match="busy") as error:
                async with guard.maintenance(drain_timeout=0.02):
                    raise AssertionError
        finally:
            held.end()
        assert error.value.report.outcome == "busy"
        assert guard.state.enabled

    async def test_overlapping_blocks_hold_it_together(self) -> None:
        """Blocks of several tasks each hold it; the last one to leave opens."""
        guard = await joined_guard()
        async with guard.maintenance(message="one"):
            async with guard.maintenance():
                assert len(guard.state.holders) == 2
                assert guard.state.message == "one"
            with pytest.raises(StoreError, match="is held by"):
                await guard.disable()
            assert guard.state.enabled
        assert not guard.state.enabled

    async def test_blocks_of_several_processes_hold_it_together(self) -> None:
        """The last process to leave opens for all of them."""
        server = Server()
        first, second = [await joined_guard(quick(server)) for _ in range(2)]
        inside, leave = anyio.Event(), anyio.Event()

        async def other() -> None:
            async with second.maintenance(workers=2):
                inside.set()
                await leave.wait()

        async with anyio.create_task_group() as group:
            async with first.maintenance(workers=2):
                group.start_soon(other)
                await inside.wait()
                assert len(first.state.holders) == 2
            assert first.state.enabled
            leave.set()
        assert not (await first._switch.read()).enabled

    async def test_operator_s_own_maintenance_stays_on(self) -> None:
        """What a person switched on before the block is on after it."""
        guard = await joined_guard()
        await guard.enable(message="mine", read_only=True, retry_after=5)
        async with guard.maintenance():
            state = guard.state
            assert (state.message, state.retry_after) == ("mine", 5)
            # What let reads in has to give way to the block.
            assert not state.read_only
        state = guard.state
        assert (state.enabled, state.read_only, state.holders) == (True, True, ())

    async def test_actor_is_who_published_last(self) -> None:
        """A holder that joins or leaves is named, not the one before."""
        made = switch()
        seen = []
        for actor in ("ada", None, "bob"):
            options = EnableOptions(actor=actor)
            holder = new_holder(actor or "cleo")
            fenced = await made.publish_to_drain(ONCE, options, holder=holder)
            seen.append(fenced.state.actor)
        assert seen == ["ada", "ada", "bob"]
        gone = [await made.release(who, stays=False) for who in made.state.holders]
        assert [state.actor for state in gone] == ["ada", "cleo", "bob"]
        assert not made.state.enabled

    async def test_block_that_was_forced_open_leaves_the_new_state_alone(self) -> None:
        """After ``off --force`` the end of the block publishes nothing."""
        guard = await joined_guard()
        async with guard.maintenance():
            opened = await guard._switch.disable(force=True)
        assert guard.state == opened.state

    async def test_block_is_refused_where_it_could_open_by_the_clock(self) -> None:
        """No block runs in a window that ends by itself."""
        guard = await joined_guard()
        await guard.enable(until=HOUR, auto_off=True)
        with pytest.raises(CannotDrainError, match="auto_off"):
            async with guard.maintenance():
                raise AssertionError


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestDrainsInsideOfWork:
    """Counted work that drains does not wait for itself."""

    async def test_request_leaves_itself_out(self, anyio_backend: str) -> None:
        """A request that drains is not waited for; another one is."""
        guard = MaintenanceGuard(MemoryStore())
        app = FastAPI(dependencies=[Depends(guard)])
        outcomes: list[str] = []
        begun, leave = anyio.Event(), anyio.Event()

        @app.get("/migrate")
        async def migrate() -> None:
            async with guard.maintenance(drain_timeout=30) as report:
                outcomes.append(report.outcome)

        @app.get("/look")
        async def look() -> None:
            await guard.enable()
            outcomes.append((await guard.drain(timeout=0)).outcome)
            await guard.disable()

        @app.get("/slow")
        async def slow() -> None:
            begun.set()
            await leave.wait()

        async with requesting(app) as request:
            await request("/migrate")
            async with anyio.create_task_group() as group:
                group.start_soon(request, "/slow")
                await begun.wait()
                await request("/look")
                leave.set()
            await request("/look")
        assert outcomes == ["drained", "busy", "drained"]
        assert not guard.is_active

    async def test_task_of_a_request_does_not_leave_it_out(
        self, anyio_backend: str
    ) -> None:
        """A task that a request has started is not that request."""
        guard = await joined_guard()
        outcomes: list[str] = []

        async def drain() -> None:
            await guard.enable()
            outcomes.append((await guard.drain(timeout=0)).outcome)

        async with guard.admit(), anyio.create_task_group() as group:
            group.start_soon(drain)
        assert outcomes == ["busy"]
        await drain()
        assert outcomes == ["busy", "drained"]

    async def test_block_of_work_leaves_itself_out(self, anyio_backend: str) -> None:
        """A job that counts itself can drain."""
        guard = await joined_guard()
        async with guard.admit():
            await guard.enable()
            assert (await guard.drain(timeout=30)).drained


@asynccontextmanager
async def requesting(app: FastAPI) -> AsyncIterator[Callable[[str], Any]]:
    """Give what sends a request without a client, on either event loop."""

    async def request(path: str) -> None:
        async def receive() -> Any: ...

        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        await app({**HTTP, "path": path}, receive, send)
        assert statuses == [200]

    yield request


class TestWorkOutsideOfRequests:
    """``guard.admit()``: jobs and consumers obey the switch and are counted."""

    async def test_work_obeys_and_is_counted(self) -> None:
        """It is admitted, counted and refused like a request."""
        guard = await joined_guard()
        worker = guard._switch.worker
        for _ in range(2):
            with guard.admit():
                assert len(worker.current) == 1
            async with guard.admit():
                assert len(worker.current) == 1
        await guard.enable(message="closed")
        with pytest.raises(MaintenanceError, match="closed") as refused, guard.admit():
            raise AssertionError
        assert refused.value.status_code == 503
        with pytest.raises(MaintenanceError):
            async with guard.admit():
                raise AssertionError
        assert (worker.current, worker.old) == ({}, {})

    async def test_work_joins_by_itself(self) -> None:
        """No lifespan is needed for it, in a thread neither."""
        guard = MaintenanceGuard("memory:")
        with guard.admit():
            assert guard._switch.worker.joined
        other = MaintenanceGuard("memory:")
        async with other.admit():
            assert other._switch.worker.joined

    async def test_failed_work_is_not_counted_any_more(self) -> None:
        """An error ends the work and passes."""
        guard = await joined_guard()
        with pytest.raises(KeyError), guard.admit():
            raise KeyError
        with pytest.raises(KeyError):
            async with guard.admit():
                raise KeyError
        assert guard._switch.worker.current == {}

    async def test_one_admission_is_one_work(self) -> None:
        """Entering the same object again would lose a count: it is refused."""
        guard = await joined_guard()
        worker, work = guard._switch.worker, guard.admit()
        with work:
            with pytest.raises(RuntimeError, match=r"guard\.admit\(\) for each"), work:
                raise AssertionError
            assert len(worker.current) == 1
        with work:
            assert len(worker.current) == 1
        work.__exit__(None, None, None)
        assert worker.current == {}


async def test_abandoned_wait_leaves_no_thread_waiting() -> None:
    """A drain that is cancelled ends at once, and the state stays on."""
    made = switch(enabled=True)
    held = Held(made)
    task = asyncio.ensure_future(made.drain(LONG))
    while not made.worker.old:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.end()
    assert made.state.enabled
