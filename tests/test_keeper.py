"""The thread that follows a store: learn, adopt, report, and what it does after faults.

A keeper's thread looks when the test says so: ``look`` is one tick, in this thread.
"""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastapi_maintenance import (
    EnvStore,
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    StoreError,
    keeper,
)
from fastapi_maintenance.changes import EnableOptions, with_new_epoch
from fastapi_maintenance.fence import Receipt, WorkerReport
from fastapi_maintenance.keeper import Keeper, keeper_of
from fastapi_maintenance.log import LogOnce
from fastapi_maintenance.stores import (
    CannotJoinError,
    TemporaryStoreError,
    same_error,
)
from fastapi_maintenance.switch import Switch
from fastapi_maintenance.worker import Admission, Worker
from tests.own_store import OwnStore, Server, TwoMethods
from tests.stores.children import in_child
from tests.waiting import until

OFF = MaintenanceState(epoch=1, tag="off")
ON = MaintenanceState(epoch=7, tag="on", enabled=True)


def joined(store: TwoMethods) -> Switch:
    """Return a switch whose worker has joined and reported."""
    switch = Switch(store, "default")
    switch.join_blocking()
    store.await_keeper()
    look(switch)
    return switch


def admitted(switch: Switch) -> Admission:
    """Return work that a worker has admitted."""
    admission = switch.worker.admit("work")
    assert admission is not None
    return admission


def look(switch: Switch, *, heartbeat: bool = False) -> None:
    """Have the keeper look once, and at its heartbeat report in any case."""
    if heartbeat:
        switch._follower._reported_at = 0.0
    switch.keeper.look()


def report_of(store: OwnStore, worker: Worker) -> WorkerReport:
    """Return what a worker has told the store."""
    return store.server.reports[worker.id][0]


def complete(store: OwnStore) -> bool:
    """Tell whether the roster is known to be complete."""
    return store.roster("default").complete


def keeper_threads() -> set[threading.Thread]:
    """Return the threads of all keepers that are still needed."""
    gc.collect()
    return {
        thread
        for thread in threading.enumerate()
        if thread.name == "fastapi-maintenance keeper"
    }


class Waiting:
    """A lock that knows how many have asked for it."""

    def __init__(self) -> None:
        self.asked = 0
        self._lock = threading.Lock()

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock."""
        self.asked += 1
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


class TestJoining:
    """A worker is listed before it reads the state, and admits nothing before that."""

    def test_worker_is_listed_before_it_reads_the_state(self) -> None:
        """A publication that it does not read finds it on the list."""
        store = OwnStore()
        store.server.state = ON
        seen: list[WorkerReport] = []
        switch = Switch(store, "default")
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            if not seen:
                seen.extend(report for report, _ in store.server.reports.values())
                assert switch.worker.admit("work") is None
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # to look at this moment
        switch.join_blocking()
        assert [(report.seen, report.tag) for report in seen] == [(0, "")]
        assert switch.worker.state == ON
        until(lambda: report_of(store, switch.worker).seen == ON.epoch)

    def test_nothing_stored_is_off(self) -> None:
        """A store that never had a state has a worker admit everything."""
        switch = joined(OwnStore())
        assert switch.worker.state == MaintenanceState()
        assert switch.state == MaintenanceState()

    def test_it_joins_once(self) -> None:
        """Joining again does nothing."""
        store = OwnStore()
        switch = joined(store)
        before = list(store.calls)
        switch.join_blocking()
        assert store.calls == before

    @pytest.mark.parametrize("method", ["report", "read"])
    def test_store_that_fails_is_not_joined(self, method: str) -> None:
        """A worker that could join and has not admits nothing; it tries again."""
        store = OwnStore()
        store.errors[method] = TemporaryStoreError("away")
        switch = Switch(store, "default")
        for _ in range(2):
            with pytest.raises(TemporaryStoreError, match="away"):
                switch.join_blocking()
            assert switch.worker.admit("work") is None
            assert not store.server.reports
        store.errors.clear()
        switch.join_blocking()
        assert switch.worker.joined

    def test_store_that_hangs_keeps_one_thread(self) -> None:
        """Requests that come while a worker joins give up instead of piling up."""
        store = OwnStore()
        begun, go = threading.Event(), threading.Event()
        switch = Switch(store, "default")
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            begun.set()
            go.wait(30)
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # it hangs
        thread = threading.Thread(target=switch.join_blocking)
        thread.start()
        assert begun.wait(30)
        with pytest.raises(StoreError, match="is still joining"):
            switch._follower.join(time.monotonic() + 0.01)
        # One that has waited for its thread longer than its own time.
        with pytest.raises(StoreError, match="is still joining"):
            switch._follower.join(time.monotonic() - 1)
        go.set()
        thread.join(30)
        assert switch.worker.joined

    @pytest.mark.parametrize("method", ["report", "read"])
    def test_work_of_the_joining_thread_itself_is_refused(self, method: str) -> None:
        """A finalizer that admits work can run in any thread, and must not hang it."""
        store = OwnStore()
        guard = MaintenanceGuard(store)
        failed: list[str] = []
        inner = getattr(store, method)

        def finalizing(*arguments: object) -> object:
            try:
                with guard.admit():
                    raise AssertionError
            except StoreError as error:
                failed.append(str(error))
            return inner(*arguments)

        setattr(store, method, finalizing)
        guard._switch.join_blocking()
        setattr(store, method, inner)
        assert "is still joining" in failed[0]
        assert guard._switch.worker.joined

    def test_error_of_a_class_of_its_own_is_told_to_all(self) -> None:
        """A store's own ``StoreError`` may take other arguments."""

        class OwnError(StoreError):
            def __init__(self, code: int, text: str) -> None:
                super().__init__(f"{text} ({code})")

        store = OwnStore()
        switch = Switch(store, "default")

        def read(name: str) -> MaintenanceState | None:
            raise OwnError(5, "away")

        store.read = read  # type: ignore[method-assign]  # it fails in its own way
        with pytest.raises(OwnError, match=r"away \(5\)"):
            switch.join_blocking()
        with pytest.raises(StoreError, match=r"away \(5\)"):
            raise same_error(OwnError(5, "away"))

    def test_work_of_a_failed_start_keeps_its_report(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Work that was let in before the keeper's thread could not start counts."""
        store = OwnStore()
        switch = Switch(store, "default")

        def fails() -> None:
            admitted(switch)
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(switch.keeper, "start", fails)
            with pytest.raises(StoreError, match="can't start new thread"):
                switch.join_blocking()
        store.errors["read"] = StoreError("away")
        with pytest.raises(StoreError, match="away"):
            switch.join_blocking()
        assert list(store.server.reports) == [switch.worker.id]

    def test_callers_of_one_attempt_join_together(self) -> None:
        """Requests that come while a worker joins wait for it, and join no more."""
        store = OwnStore()
        begun, go = threading.Event(), threading.Event()
        switch = Switch(store, "default")
        waiting = Waiting()
        switch._follower._changing = waiting  # type: ignore[assignment]  # to see who waits
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            begun.set()
            go.wait(30)
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # a slow one
        threads = [threading.Thread(target=switch.join_blocking) for _ in range(2)]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        until(lambda: waiting.asked == 2)
        go.set()
        for thread in threads:
            thread.join(30)
        assert switch.worker.joined
        until(lambda: report_of(store, switch.worker).tag == switch.worker.state.tag)
        assert len(store.server.reports) == 1

    def test_callers_of_one_attempt_get_one_answer(self) -> None:
        """Many requests that wait for a store that is down do not ask it in turn."""
        store = OwnStore()
        begun, go = threading.Event(), threading.Event()
        failed: list[str] = []
        switch = Switch(store, "default")

        def fails(name: str, report: WorkerReport) -> None:
            store.calls.append("attempt")
            begun.set()
            go.wait(30)
            raise TemporaryStoreError("away")

        store.report = fails  # type: ignore[assignment, method-assign]  # a slow failure
        waiting = Waiting()
        switch._follower._changing = waiting  # type: ignore[assignment]  # to see who waits

        def join() -> None:
            try:
                switch.join_blocking()
            except StoreError as error:
                failed.append(str(error))

        threads = [threading.Thread(target=join) for _ in range(4)]
        threads[0].start()
        assert begun.wait(30)
        for thread in threads[1:]:
            thread.start()
        until(lambda: waiting.asked == 4)
        go.set()
        for thread in threads:
            thread.join(30)
        assert failed == ["away"] * 4
        assert store.calls.count("attempt") == 1

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (ValueError("no such table"), "ValueError: no such table"),
            ({"enabled": False}, "which is not a state"),
        ],
    )
    def test_store_of_a_user_may_fail_in_any_way(
        self, answer: object, says: str
    ) -> None:
        """An error of a driver, or an answer that is no state, refuses requests."""
        store = TwoMethods()

        def read(name: str) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        store.read = read  # type: ignore[assignment, method-assign]  # the mistake
        with pytest.raises(StoreError, match=says):
            Switch(store, "default").join_blocking()


class TestFollowing:
    """A newer state is adopted, then reported."""

    def test_newer_state_is_adopted_and_reported(self) -> None:
        """The report says the publication, and what is older."""
        store = OwnStore()
        switch = joined(store)
        with admitted(switch):
            store.server.state = ON
            look(switch)
            report = report_of(store, switch.worker)
            assert (report.seen, report.tag, report.old) == (ON.epoch, ON.tag, 1)
        look(switch)
        assert report_of(store, switch.worker).old == 0

    def test_nothing_new_is_reported_at_the_heartbeat_alone(self) -> None:
        """Requests that come and go change nothing for a drain."""
        store = OwnStore()
        switch = joined(store)
        before = store.calls.count("report")
        with admitted(switch):
            look(switch)
            assert store.calls.count("report") == before
            look(switch, heartbeat=True)
            assert store.calls.count("report") == before + 1
            assert report_of(store, switch.worker).current == 1

    def test_store_without_reports_is_read_alone(self) -> None:
        """A store of two methods is followed, and keeps no reports."""
        store = TwoMethods()
        switch = joined(store)
        store.server.state = ON
        look(switch)
        assert switch.worker.state == ON
        assert set(store.calls) == {"read"}

    @pytest.mark.parametrize(
        ("store", "quiet", "on", "unfinished"),
        [
            (OwnStore(poll_interval=0.05), 0.05, 0.05, 0.01),
            (OwnStore(local=False, poll_interval=1.0), 1.0, 0.2, 0.2),
            (TwoMethods(poll_interval=1.0), 1.0, 1.0, 1.0),
        ],
        ids=["local", "remote", "without reports"],
    )
    def test_it_looks_more_often_while_a_drain_may_wait(
        self, store: TwoMethods, quiet: float, on: float, unfinished: float
    ) -> None:
        """Ticks are short while older requests run, and cost little else."""
        switch = joined(store)
        assert switch._follower.look() == quiet
        with admitted(switch):
            store.server.state = ON
            assert switch._follower.look() == unfinished
        switch._follower.look()
        assert switch._follower.look() == on

    def test_worker_that_has_left_is_not_followed(self) -> None:
        """A tick of a worker that has left touches nothing."""
        store = OwnStore()
        switch = joined(store)
        switch._follower.leave()
        calls = list(store.calls)
        look(switch)
        assert store.calls == calls


class TestReadErrors:
    """A store that cannot be read leaves the last known state, and says so once."""

    def test_error_is_logged_when_it_begins_changes_and_ends(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log has one line per problem, however often the keeper looks."""
        caplog.set_level("INFO")
        store = OwnStore()
        store.server.state = ON
        switch = joined(store)
        for text in ("disk full", "disk gone"):
            store.errors["read"] = StoreError(text)
            for _ in range(5):
                look(switch)
            assert caplog.text.count(f"keeps the last state it knew: {text}") == 1
        assert switch.worker.state == ON
        store.errors.clear()
        look(switch)
        look(switch)
        assert caplog.text.count("works again (read)") == 1

    def test_report_errors_are_logged_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A worker that cannot report serves on, and reports as soon as it can."""
        store = OwnStore()
        switch = joined(store)
        store.errors["report"] = TemporaryStoreError("away")
        store.server.state = ON
        for _ in range(5):
            look(switch, heartbeat=True)
        assert caplog.text.count("cannot report: away") == 1
        assert report_of(store, switch.worker).seen != ON.epoch
        store.errors.clear()
        look(switch)
        assert report_of(store, switch.worker).seen == ON.epoch

    def test_keeper_survives_what_it_did_not_expect(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bug in a user's store does not end the thread that follows it."""
        store = OwnStore(poll_interval=0.01)
        switch = joined(store)
        store.errors["report"] = ValueError("a bug")
        store.server.state = ON
        until(lambda: "keeper of a worker failed" in caplog.text)
        store.errors.clear()
        store.server.state = OFF.replace(epoch=8)
        until(lambda: report_of(store, switch.worker).seen == 8)


class TestLoss:
    """A store that loses its data does not end maintenance, and its roster knows."""

    @pytest.mark.parametrize("state", [OFF, ON])
    def test_lost_state_is_written_back(
        self, state: MaintenanceState, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It keeps its epoch and its tag, and the roster is not complete any more."""
        store = OwnStore()
        store.server.state = state
        switch = joined(store)
        assert complete(store)
        store.server.state = None
        look(switch)
        assert store.server.state == state
        assert not complete(store)
        assert "which was written back" in caplog.text

    def test_state_that_never_was_is_not_written(self) -> None:
        """A worker that found nothing stores nothing."""
        store = OwnStore()
        look(joined(store))
        assert store.server.state is None

    @pytest.mark.parametrize("reports", ["kept", "lost"])
    def test_testimony_that_fails_is_given_later(self, reports: str) -> None:
        """A store that fails again cannot make a worker forget what it has lost."""
        store = OwnStore()
        switch = joined(store)
        if reports == "lost":
            store.server.lose_roster()
        else:
            store.server.membership = None
        joined(OwnStore(store.server))  # It remembers nothing, and makes a roster.
        store.errors["confirm"] = TemporaryStoreError("away")
        look(switch, heartbeat=True)
        assert complete(store)
        store.errors.clear()
        look(switch, heartbeat=True)
        assert not complete(store)
        generation = store.roster("default").generation
        look(switch, heartbeat=True)
        assert store.roster("default").generation == generation

    def test_store_without_a_roster_is_written_back_too(self) -> None:
        """A store of two methods keeps its state, and there is nothing to testify."""
        store = TwoMethods()
        store.server.state = ON
        switch = joined(store)
        store.server.state = None
        look(switch)
        assert store.server.state == ON

    def test_another_worker_may_be_faster(self) -> None:
        """What was published in between stands."""
        store = OwnStore()
        store.server.state = ON
        switch = joined(store)
        store.server.state = None
        newer = OFF.replace(epoch=9)

        def overtake() -> None:
            store.server.state = newer

        store.before_publish = overtake
        look(switch)
        look(switch)
        assert store.server.state == newer
        assert switch.worker.state == newer

    def test_write_back_that_fails_is_tried_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log says it once, and the last known state decides until then."""
        store = OwnStore()
        store.server.state = ON
        switch = joined(store)
        store.server.state = None
        store.errors["publish"] = StoreError("read-only")
        for _ in range(3):
            look(switch)
        assert caplog.text.count("cannot write the state back: read-only") == 1
        assert switch.worker.state == ON
        store.errors.clear()
        look(switch)
        assert store.server.state == ON

    def test_store_that_was_put_back_is_put_right(self) -> None:
        """A backup that is restored under workers does not undo a publication."""
        store = OwnStore()
        store.server.state = OFF
        switch = joined(store)
        store.server.state = ON
        look(switch)
        store.server.state = OFF
        look(switch)
        # The epoch must grow for the store: it is written under the one it had.
        assert store.server.state == ON
        assert not complete(store)

    def test_lost_report_is_testified(self, caplog: pytest.LogCaptureFixture) -> None:
        """A worker whose report is gone says that others may be missing, too."""
        store = OwnStore()
        switch = joined(store)
        store.server.lose_roster()
        look(switch, heartbeat=True)
        assert switch.worker.id in store.server.reports
        assert not complete(store)
        assert "the list of workers is not complete" in caplog.text

    def test_roster_that_a_cold_worker_made_is_corrected(self) -> None:
        """A complete roster of another generation is not, for one who knows better."""
        server = Server()
        first = joined(OwnStore(server))
        server.lose_roster()
        store = OwnStore(server)
        joined(store)
        assert complete(store)
        look(first, heartbeat=True)
        assert not complete(store)
        assert len(store.roster("default").members) == 2

    def test_testimony_is_given_once(self) -> None:
        """Workers that come back one after the other agree on one new roster."""
        server = Server()
        workers = [joined(OwnStore(server)) for _ in range(3)]
        server.lose_everything()
        for _ in range(3):
            for switch in workers:
                look(switch, heartbeat=True)
        assert server.membership is not None
        generation = server.membership.generation
        for switch in workers:
            look(switch, heartbeat=True)
            assert switch.worker.generation == generation
        assert len(server.membership.members) == 3
        OwnStore(server).confirm("default", generation, complete=True)
        for switch in workers:
            look(switch, heartbeat=True)
        assert server.membership.complete

    def test_testimony_that_fails_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A store that takes reports and no marks is not trusted silently."""
        store = OwnStore()
        switch = joined(store)
        store.errors["confirm"] = StoreError("no rights")
        store.server.lose_roster()
        look(switch, heartbeat=True)
        assert "cannot report: no rights" in caplog.text

    @pytest.mark.parametrize(("state", "seconds"), [(OFF, 60), (ON, 2)])
    def test_dead_workers_are_taken_off_the_list(
        self, state: MaintenanceState, seconds: float
    ) -> None:
        """Without that, each killed worker would make the next drain *lost*."""
        server = Server()
        store = OwnStore(server)
        server.state = state
        switch = joined(store)
        kept = switch._follower
        store.report("default", WorkerReport(id="gone", host="h", pid=1))
        server.dead.add("gone")
        kept._reaped_at = time.monotonic() - seconds + 1
        look(switch, heartbeat=True)
        assert "gone" in server.reports
        kept._reaped_at -= 1
        store.errors["roster"] = StoreError("away")
        look(switch, heartbeat=True)
        assert "gone" in server.reports
        kept._reaped_at = 0
        del store.errors["roster"]
        look(switch, heartbeat=True)
        assert list(server.reports) == [switch.worker.id]


class TestOvertaking:
    """A request of a worker whose keeper was stopped looks at the store itself."""

    def test_older_state_that_was_being_read_is_no_loss(self) -> None:
        """The list of workers stays complete, and nothing is said to be lost."""
        store = OwnStore()
        switch = joined(store)
        first = with_new_epoch(lambda _: ON)(None)
        store.server.state = first
        look(switch)
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            found = reading(name)
            store.read = reading  # type: ignore[method-assign]  # once
            store.server.state = with_new_epoch(lambda _: OFF)(found)
            switch.worker.adopt(store.server.state)
            return found

        store.read = read  # type: ignore[method-assign]  # it is overtaken
        look(switch)
        assert store.server.membership is not None
        assert store.server.membership.complete
        assert not switch.worker.state.enabled


class TestHistories:
    """Another publication under an epoch that is not larger: two histories."""

    def test_state_of_a_newer_release_is_left_alone(self) -> None:
        """Only that release can publish it again; here it is obeyed."""
        store = OwnStore()
        store.server.state = OFF.replace(epoch=7)
        switch = joined(store)
        text = '{"version": 2, "enabled": true, "epoch": 1, "tag": "other", "more": 1}'
        store.server.state = MaintenanceState.from_json(text)
        for _ in range(2):
            look(switch)
        assert store.server.state.to_json() == text
        assert switch.worker.state.enabled
        assert switch.worker.make_report().uncounted

    def test_own_state_of_a_newer_release_stays(self) -> None:
        """It cannot be put above another history, and goes on to refuse."""
        store = OwnStore()
        text = '{"version": 2, "enabled": true, "epoch": 7, "tag": "new", "more": 1}'
        store.server.state = MaintenanceState.from_json(text)
        switch = joined(store)
        store.server.state = OFF.replace(epoch=6, tag="other")
        look(switch)
        assert store.server.state.tag == "other"
        assert switch.worker.state.to_json() == text

    @pytest.mark.parametrize(
        ("known", "stored", "winner"),
        [
            (OFF.replace(epoch=7), ON.replace(tag="other"), "other"),
            (ON, OFF.replace(epoch=7, tag="other"), "on"),
            (ON, ON.replace(tag="other"), "other"),
            (OFF.replace(epoch=7), OFF.replace(epoch=7, tag="other"), "other"),
            (ON, ON.replace(epoch=3, tag="other"), "other"),
            (ON, MaintenanceState(epoch=1, tag="cold"), "on"),
        ],
    )
    def test_enabled_state_wins_above_both(
        self, known: MaintenanceState, stored: MaintenanceState, winner: str
    ) -> None:
        """It keeps its tag, so that its coordinator knows it again."""
        store = OwnStore()
        store.server.state = known
        switch = joined(store)
        store.server.state = stored
        look(switch)
        assert store.server.state is not None
        assert store.server.state.tag == winner
        assert store.server.state.epoch == max(known.epoch, stored.epoch) + 1
        assert switch.worker.state == store.server.state

    def test_two_workers_agree(self) -> None:
        """The one that comes later adopts what the first one has published."""
        server = Server()
        server.state = OFF.replace(epoch=7)
        workers = [joined(OwnStore(server)) for _ in range(2)]
        server.state = ON.replace(tag="other")
        for _ in range(2):
            for switch in workers:
                look(switch)
        assert workers[0].worker.state == workers[1].worker.state == server.state
        assert server.state.epoch == 8

    def test_another_publication_may_come_first(self) -> None:
        """What an operator publishes at that moment stands."""
        store = OwnStore()
        store.server.state = ON
        switch = joined(store)
        store.server.state = OFF.replace(epoch=7, tag="other")
        newer = OFF.replace(epoch=9, tag="operator")

        def overtake() -> None:
            store.server.state = newer

        store.before_publish = overtake
        look(switch)
        look(switch)
        assert switch.worker.state == store.server.state == newer


class TestHandEdits:
    """A state that a person or a tool has written is published under a new epoch."""

    @pytest.mark.parametrize("epoch", [0, OFF.epoch])
    def test_edit_is_published(self, epoch: int) -> None:
        """It decides everywhere, and a drain can tell who has seen it."""
        server = Server()
        server.state = OFF
        workers = [joined(OwnStore(server)) for _ in range(2)]
        server.state = MaintenanceState(
            epoch=epoch, tag=OFF.tag if epoch else "", enabled=True, message="by hand"
        )
        for switch in workers:
            look(switch)
        found = server.state
        assert found is not None
        assert (found.enabled, found.message) == (True, "by hand")
        assert found.epoch > OFF.epoch
        assert found.tag not in {"", OFF.tag}
        assert [switch.worker.state for switch in workers] == [found, found]

    def test_edit_of_a_cold_start_is_taken_as_it_is(self) -> None:
        """What was written before the first worker started is no change."""
        store = OwnStore()
        store.server.state = MaintenanceState(enabled=True)
        switch = joined(store)
        look(switch)
        assert (
            store.server.state == switch.worker.state == MaintenanceState(enabled=True)
        )
        store.server.state = MaintenanceState()
        look(switch)
        assert not switch.worker.state.enabled
        assert switch.worker.state.epoch > 0

    def test_edit_that_cannot_be_stored_is_adopted_and_uncounted(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A link that a tool maintains is obeyed; no drain can promise anything."""
        store = OwnStore()
        store.server.state = OFF
        switch = joined(store)
        store.errors["publish"] = StoreError("a link")
        edited = MaintenanceState(enabled=True, message="by hand")
        store.server.state = edited
        for _ in range(3):
            look(switch)
        worker = switch.worker
        assert (worker.state.enabled, worker.state.message) == (True, "by hand")
        assert (worker.state.epoch, worker.state.tag) == (OFF.epoch, OFF.tag)
        assert report_of(store, worker).uncounted == 1
        assert store.calls.count("publish") == 1
        assert "cannot write the state back: a link" in caplog.text
        store.server.state = MaintenanceState()
        look(switch)
        assert not worker.state.enabled
        store.server.state = ON
        look(switch)
        assert worker.state == ON
        assert report_of(store, worker).uncounted == 0

    def test_operator_may_publish_first(self) -> None:
        """An edit that is overtaken is gone."""
        store = OwnStore()
        store.server.state = OFF
        switch = joined(store)
        store.server.state = MaintenanceState(enabled=True)
        store.before_publish = lambda: setattr(store.server, "state", ON)
        look(switch)
        look(switch)
        assert switch.worker.state == store.server.state == ON

    def test_state_of_a_newer_release_is_obeyed(self) -> None:
        """What is written by hand for a newer release is not replaced."""
        store = OwnStore()
        store.server.state = OFF
        switch = joined(store)
        newer = MaintenanceState.from_json('{"version": 9, "enabled": true}')
        store.server.state = newer
        look(switch)
        assert store.server.state == newer
        assert switch.worker.state.enabled
        assert report_of(store, switch.worker).uncounted == 1


class TestYoungServer:
    """A server that has just started may have lost a state that others know."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keeper, "YOUNG_SERVER", 0.3)

    def test_state_of_others_is_waited_for(self) -> None:
        """A worker that starts does not take a restarted server for *off*."""
        store = OwnStore()
        store.young = True
        reads: list[int] = []
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            reads.append(1)
            if len(reads) == 2:
                store.server.state = ON
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # others write it back
        switch = Switch(store, "default")
        switch.join_blocking()
        assert switch.worker.state == ON

    def test_worker_that_waits_for_them_is_not_silent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes on to report that it is there and has adopted nothing."""
        monkeypatch.setattr(keeper, "HEARTBEAT", 0.05)
        store = OwnStore()
        store.young = True
        reports: list[int] = []
        reporting = store.report

        def report(name: str, report: WorkerReport) -> Receipt:
            reports.append(report.seen)
            return reporting(name, report)

        with monkeypatch.context() as patch:
            patch.setattr(store, "report", report)
            Switch(store, "default").join_blocking()
        assert reports[:2] == [0, 0]

    def test_off_is_stored_where_no_worker_knows_more(self) -> None:
        """Under the smallest epoch, so that any other state is larger."""
        store = OwnStore()
        store.young = True
        Switch(store, "default").join_blocking()
        stored = store.server.state
        assert stored is not None
        assert stored == MaintenanceState(epoch=1, tag=stored.tag)
        assert stored.tag  # Without one it would pass for written by hand.

    def test_others_may_be_later_than_that(self) -> None:
        """What is stored in the last moment is not overwritten."""
        store = OwnStore()
        store.young = True
        store.before_publish = lambda: setattr(store.server, "state", ON)
        switch = Switch(store, "default")
        switch.join_blocking()
        assert switch.worker.state == ON

    @pytest.mark.parametrize("written_back", [True, False])
    def test_older_state_may_be_off(self, written_back: bool) -> None:
        """A server can come back with a snapshot from before maintenance."""
        store = OwnStore()
        store.young = True
        store.server.state = OFF
        reading = store.read
        reads: list[int] = []

        def read(name: str) -> MaintenanceState | None:
            reads.append(1)
            if written_back and len(reads) == 2:
                store.server.state = ON
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # others write it back
        switch = Switch(store, "default")
        switch.join_blocking()
        assert switch.worker.state == (ON if written_back else OFF)

    def test_next_attempt_waits_too(self) -> None:
        """An error in the meantime does not make the server an old one."""
        store = OwnStore()
        store.young = True
        reporting, remembered = store.report, []

        def report(name: str, report: WorkerReport) -> Receipt:
            remembered.append(report.generation)
            store.errors["read"] = TemporaryStoreError("away")
            return reporting(name, report)

        store.report = report  # type: ignore[method-assign]  # it fails once more
        switch = Switch(store, "default")
        for _ in range(2):
            with pytest.raises(TemporaryStoreError):
                switch.join_blocking()
        # A store asks about its age for workers that remember no roster.
        assert remembered == [None, None]

    def test_state_that_is_there_is_not_waited_for(self) -> None:
        """A young server that has an enabled state has lost nothing."""
        store = OwnStore()
        store.young = True
        store.server.state = ON
        switch = Switch(store, "default")
        switch.join_blocking()
        assert store.calls.count("publish") == 0


class TestWorkersThatCannotJoin:
    """A directory that cannot be written takes no service down."""

    def test_it_serves_uncounted_and_joins_later(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What ran until then counts as old; the log says the problem and its end."""
        caplog.set_level("INFO")
        store = OwnStore()
        store.errors["report"] = CannotJoinError("no rights")
        switch = Switch(store, "default")
        switch.join_blocking()
        look(switch)
        assert caplog.text.count("is not counted: no rights") == 1
        with admitted(switch):
            store.errors.clear()
            look(switch, heartbeat=True)
            look(switch)
            report = report_of(store, switch.worker)
            assert (report.seen, report.current, report.old) == (0, 0, 1)
            store.server.state = ON
            look(switch)
            assert report_of(store, switch.worker).seen == ON.epoch
        assert "works again (join)" in caplog.text

    def test_first_report_says_that_it_has_seen_nothing(self) -> None:
        """It may have missed a publication, so it reads the state after joining."""
        store = OwnStore()
        store.errors["report"] = CannotJoinError("no rights")
        switch = Switch(store, "default")
        switch.join_blocking()
        store.errors.clear()
        seen: list[int] = []
        reporting = store.report

        def report(name: str, report: WorkerReport) -> object:
            seen.append(report.seen)
            if len(seen) == 1:
                store.server.state = ON
            return reporting(name, report)

        store.report = report  # type: ignore[assignment, method-assign]  # at this moment
        look(switch, heartbeat=True)
        assert seen[0] == 0
        assert switch.worker.state == ON
        look(switch)
        assert report_of(store, switch.worker).seen == ON.epoch

    def test_store_may_fail_at_that_moment(self) -> None:
        """A worker that is listed and cannot read has acknowledged nothing."""
        store = OwnStore()
        store.errors["report"] = CannotJoinError("no rights")
        switch = Switch(store, "default")
        switch.join_blocking()
        store.errors.clear()
        store.errors["read"] = StoreError("away")
        look(switch, heartbeat=True)
        store.server.state = ON
        look(switch)
        assert report_of(store, switch.worker).seen == 0
        store.errors.clear()
        look(switch)
        assert report_of(store, switch.worker).seen == ON.epoch

    def test_right_may_be_lost_later(self, caplog: pytest.LogCaptureFixture) -> None:
        """A worker that was counted goes on serving, and tries again."""
        store = OwnStore()
        switch = joined(store)
        store.errors["report"] = CannotJoinError("no rights")
        look(switch, heartbeat=True)
        look(switch)
        assert not switch.worker.counted
        assert switch.worker.admit("work") is not None
        assert caplog.text.count("is not counted: no rights") == 1
        store.errors.clear()
        look(switch, heartbeat=True)
        assert switch.worker.counted

    def test_state_that_may_not_be_read_is_off(self) -> None:
        """A cold start without any right serves; any other error refuses."""
        store = OwnStore()
        store.errors["report"] = CannotJoinError("no rights")
        store.errors["read"] = StoreError("broken")
        switch = Switch(store, "default")
        with pytest.raises(StoreError, match="broken"):
            switch.join_blocking()
        forbidden = StoreError("forbidden")
        forbidden.__cause__ = PermissionError()
        store.errors["read"] = forbidden
        switch.join_blocking()
        assert switch.worker.state == MaintenanceState()
        store.errors.clear()
        store.server.state = ON
        look(switch)
        assert switch.worker.state == ON


class TestLeaving:
    """The last user takes the worker off the list, unless work is in flight."""

    def test_last_user_leaves(self) -> None:
        """Several lifespans of one worker leave together."""
        store = OwnStore()
        switch = Switch(store, "default")
        kept = switch._follower
        kept.add_user()
        kept.join()
        kept.add_user()
        kept.join()
        kept.leave()
        assert switch.worker.joined
        kept.leave()
        assert not switch.worker.joined
        assert store.server.reports == {}
        assert store.server.membership is not None
        assert store.server.membership.members == frozenset()
        kept.leave()
        assert store.calls.count("remove") == 1

    def test_worker_that_has_left_joins_as_another(self) -> None:
        """What proves that it is gone must not be said of one that is there again."""
        store = OwnStore()
        switch = Switch(store, "default")
        kept = switch._follower
        kept.add_user()
        kept.join()
        first = switch.worker.id
        kept.leave()
        kept.add_user()
        kept.join()
        assert switch.worker.id != first
        store.remove("default", first)
        assert list(store.server.reports) == [switch.worker.id]

    @pytest.mark.parametrize("method", ["remove", "roster"])
    def test_store_that_fails_in_its_own_way_ends_no_server(
        self, method: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A lifespan ends, whatever a store of a user's own raises."""
        store = OwnStore()
        switch = joined(store)
        admission = admitted(switch)
        store.before_publish = bool
        store.errors[method] = OSError("broken")
        switch._follower._reaped_at = 0
        reading = store.read

        def read(name: str) -> MaintenanceState | None:
            switch._follower._reported_at = 0
            admission.release()
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # it has looked once
        switch._follower.leave()
        assert "left, but its report may stay: broken" in caplog.text

    def test_work_that_ends_at_this_moment_is_waited_for(self) -> None:
        """Servers cancel long streams, and end the lifespan before those have ended."""
        store = OwnStore()
        switch = joined(store)
        admission = admitted(switch)
        looking = store.read

        def read(name: str) -> MaintenanceState | None:
            admission.release()
            return looking(name)

        store.read = read  # type: ignore[method-assign]  # it has looked once
        switch._follower.leave()
        assert not switch.worker.joined
        assert store.server.reports == {}

    async def test_store_of_two_methods_is_left_at_once(self) -> None:
        """Nothing can be drained there, so that nothing has to be waited for."""
        store = TwoMethods()
        switch = joined(store)
        admitted(switch).release()
        await switch.enable(EnableOptions())
        assert switch.worker.make_report().old == 1
        switch._follower.leave()
        assert not switch.worker.joined

    def test_garbage_is_collected_first(self) -> None:
        """A worker that leaves in the middle of a drain closes abandoned streams."""
        store = OwnStore()
        switch = joined(store)
        admitted(switch).release()
        switch.worker.adopt(ON)
        assert switch.worker.make_report().old == 1
        assert not switch.worker.leave()
        switch._follower.leave()
        assert not switch.worker.joined

    def test_work_in_flight_keeps_the_report(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A drain still sees what runs on after the lifespan's end."""
        monkeypatch.setattr(keeper, "LEAVE_TIMEOUT", 0.05)
        store = OwnStore()
        switch = joined(store)
        with admitted(switch):
            switch._follower.leave()
            assert switch.worker.id in store.server.reports
        switch._follower.leave()
        assert store.server.reports == {}

    def test_worker_may_join_again(self) -> None:
        """It is on the list again, before it admits anything."""
        store = OwnStore()
        switch = joined(store)
        switch._follower.leave()
        store.server.state = ON
        assert switch.worker.admit("work") is None
        switch.join_blocking()
        assert switch.worker.state == ON
        assert switch.worker.id in store.server.reports
        assert complete(store)

    def test_report_that_cannot_be_removed_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A process that ends is not stopped by its store."""
        store = OwnStore()
        switch = joined(store)
        store.errors["remove"] = StoreError("away")
        switch._follower.leave()
        assert not switch.worker.joined
        assert "left, but its report may stay: away" in caplog.text

    def test_uncounted_worker_leaves_quietly(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What could not report has nothing to remove, and says nothing about it."""
        store = OwnStore()
        store.errors["report"] = CannotJoinError("no rights")
        store.errors["remove"] = StoreError("no rights")
        for leaving in (store, TwoMethods()):
            switch = Switch(leaving, "default")
            switch.join_blocking()
            switch._follower.leave()
            assert not switch.worker.joined
        assert "left" not in caplog.text


class TestThreads:
    """One thread per store and process, for as long as a worker needs it."""

    @pytest.fixture
    def running(self) -> Callable[[], int]:
        """Return what counts the keepers that this test has started."""
        others = keeper_threads()
        return lambda: len(keeper_threads() - others)

    def test_switches_of_one_store_share_it(self, running: Callable[[], int]) -> None:
        """Each name has a worker, and one keeper follows them all."""
        store = OwnStore(poll_interval=0.01)
        switches = [Switch(store, name) for name in ("one", "two")]
        assert switches[0].keeper is switches[1].keeper
        assert switches[0].worker is not switches[1].worker
        assert Switch(store, "one").worker is switches[0].worker
        for switch in switches:
            switch.join_blocking()
        assert running() == 1
        store.server.state = ON
        until(lambda: all(switch.worker.state == ON for switch in switches))
        switches[0]._follower.leave()
        assert running() == 1
        switches[1]._follower.leave()
        until(lambda: running() == 0)
        switches[0].join_blocking()
        assert running() == 1
        switches[0]._follower.leave()
        until(lambda: running() == 0)

    def test_places_are_told_apart(self, tmp_path: Path) -> None:
        """Guards of one place share a worker; memory and other engines never do."""
        one = FileStore(tmp_path)
        assert keeper_of(one) is keeper_of(FileStore(tmp_path))
        assert keeper_of(one) is not keeper_of(FileStore(tmp_path / "other"))
        memory = MemoryStore()
        assert keeper_of(memory) is keeper_of(memory)
        assert keeper_of(memory) is not keeper_of(MemoryStore())
        stranger = OwnStore()
        stranger.location = one.location  # type: ignore[attr-defined]  # the same text
        assert keeper_of(stranger) is not keeper_of(one)

    def test_keeper_ends_with_the_guard(
        self, running: Callable[[], int], tmp_path: Path
    ) -> None:
        """200 guards that were dropped without a lifespan keep no threads."""
        for number in range(200):
            guard = MaintenanceGuard(FileStore(tmp_path / str(number % 4)))
            guard._switch.join_blocking()
            assert running() > 0
            del guard
        until(lambda: running() == 0)

    def test_worker_without_a_thread_admits_nothing(
        self, running: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no thread can be started, it could not learn of a change."""

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        store = OwnStore(local=False, poll_interval=0.01)
        switch = Switch(store, "default")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(StoreError, match="RuntimeError: can't start new"):
                switch.join_blocking()
            assert switch.worker.admit("work") is None
        switch.join_blocking()
        store.server.state = ON
        until(lambda: switch.worker.state == ON)
        switch._follower.leave()
        until(lambda: running() == 0)

    def test_old_work_is_not_watched_while_it_is_off(self) -> None:
        """A WebSocket that outlives maintenance does not keep the keeper busy."""
        store = OwnStore(poll_interval=60)
        switch = joined(store)
        with admitted(switch):
            switch.worker.adopt(ON)
            assert switch._follower.look() < 1
            switch.worker.adopt(OFF.replace(epoch=8))
            assert switch._follower.look() == 60

    def test_memory_needs_no_thread(self, running: Callable[[], int]) -> None:
        """What only this process can set need not be followed."""
        for store in (MemoryStore(), EnvStore("NOT_SET")):
            guard = MaintenanceGuard(store)
            with guard.admit():
                assert running() == 0

    def test_store_may_say_when_to_look(self, running: Callable[[], int]) -> None:
        """A store with ``wait`` is looked at when that returns, or when it is woken."""

        class Listening(OwnStore):
            def __init__(self) -> None:
                super().__init__(local=False)
                self.changed = threading.Event()
                self.waited: list[list[str]] = []

            def wait(self, names: list[str], seconds: float) -> None:
                self.waited.append(names)
                self.changed.wait(seconds)
                self.changed.clear()

            def wake(self) -> None:
                self.changed.set()

        store = Listening()
        switch = Switch(store, "default")
        switch.join_blocking()
        until(lambda: store.waited)
        store.server.state = ON
        switch.keeper.wake()
        until(lambda: report_of(store, switch.worker).seen == ON.epoch)
        assert store.waited[0] == ["default"]
        switch._follower.leave()
        switch.keeper.wake()
        until(lambda: running() == 0)

    def test_wait_that_fails_is_replaced_by_polling(
        self, running: Callable[[], int]
    ) -> None:
        """A connection that breaks while it listens does not end the keeper."""

        class Broken(OwnStore):
            def wait(self, names: list[str], seconds: float) -> None:
                raise OSError(names, seconds)

        store = Broken(poll_interval=0.01)
        switch = Switch(store, "default")
        switch.join_blocking()
        store.server.state = ON
        until(lambda: report_of(store, switch.worker).seen == ON.epoch)
        switch._follower.leave()
        until(lambda: running() == 0)

    def test_worker_that_joins_at_the_last_moment_is_followed(self) -> None:
        """A keeper that is about to end looks once more, or another one starts."""
        store = OwnStore()
        switch = joined(store)
        kept = Keeper(store)
        assert kept.poll() is None
        late = kept.follower("default")
        leaving = late.keeper.followers

        def present() -> list[object]:
            found: list[object] = []
            late.worker.start(OFF, counted=True)
            return found

        kept.followers = present  # type: ignore[method-assign, assignment]  # the race
        assert kept.poll() == 0.0
        kept.followers = leaving  # type: ignore[method-assign]  # the end of it
        assert switch.worker.joined


class TestStaleKeeper:
    """A process that was stopped and goes on refuses from its first request."""

    def test_request_reads_a_local_store_itself(self, tmp_path: Path) -> None:
        """The keeper has not looked for a second, and the state has changed."""
        store = FileStore(tmp_path)
        switch = Switch(store, "default")
        kept = switch._follower
        kept.join()
        with kept._io:  # The keeper's thread does not come to it.
            state = store.publish("default", with_new_epoch(lambda _: ON))
            switch.worker.checked = time.monotonic() - 1.1
            admission = switch.worker.admit("work")
            assert admission is not None
            assert admission.state == state

    def test_remote_store_is_left_to_its_keeper(self) -> None:
        """A request never waits for a server."""
        store = OwnStore(local=False)
        switch = joined(store)
        store.server.state = ON
        switch.worker.checked = time.monotonic() - 60
        calls = list(store.calls)
        admission = switch.worker.admit("work")
        assert admission is not None
        assert not admission.state.enabled
        assert store.calls == calls

    def test_moment_of_the_look_is_that_before_it(self) -> None:
        """A process that is stopped in the middle of a look has not looked since."""
        store = OwnStore()
        switch = joined(store)
        reading, before = store.read, 0.0

        def read(name: str) -> MaintenanceState | None:
            nonlocal before
            before = time.monotonic()
            return reading(name)

        store.read = read  # type: ignore[method-assign]  # to know the moment
        look(switch)
        assert switch.worker.checked <= before


@pytest.fixture
def file_switch(tmp_path: Path) -> Iterator[Switch]:
    """Return a switch on a directory, whose worker leaves at the end."""
    switch = Switch(FileStore(tmp_path), "default")
    switch.join_blocking()
    yield switch
    switch._follower.leave()


class TestForks:
    """A forked child is another worker, with a thread and locks of its own."""

    def test_child_joins_by_itself(self, file_switch: Switch) -> None:
        """It has not joined, has another id, and its end is not its parent's."""
        worker = file_switch.worker
        before = worker.id
        admission = worker.admit("work")
        assert admission is not None

        def child() -> bool:
            apart = not worker.joined and worker.id != before
            apart = apart and worker.admit("work") is None
            admission.release()
            file_switch.join_blocking()
            listed = file_switch.keeper.store.roster("default")  # type: ignore[attr-defined]  # a directory's
            both = {report.id for report in listed.not_dead} == {before, worker.id}
            return apart and both and worker.make_report().in_flight == 0

        assert in_child(child)
        assert worker.make_report().in_flight == 1
        store = file_switch.store
        assert isinstance(store, FileStore)
        roster = store.roster("default")
        dead = {report.id for report in roster.workers if report.liveness == "dead"}
        assert before not in dead
        assert {report.id for report in roster.workers} - {before} == dead
        admission.release()

    def test_child_has_a_keeper_of_its_own(self, file_switch: Switch) -> None:
        """A change reaches a child that joined, without any request."""

        def child() -> bool:
            file_switch.join_blocking()
            told = threading.Event()
            file_switch.worker.notifier.listen(lambda _: told.set())
            file_switch.store.publish("default", with_new_epoch(lambda _: ON))
            return told.wait(20)

        assert in_child(child)
        until(lambda: file_switch.worker.state.enabled)

    def test_fork_in_the_middle_of_a_look(self, file_switch: Switch) -> None:
        """Locks that a thread of the parent held at that moment do not hang a child."""
        kept = file_switch._follower

        def child() -> bool:
            file_switch.join_blocking()
            return file_switch.worker.joined

        locks: list[Any] = [  # of several types
            kept._io,
            kept._changing,
            file_switch.worker._lock,
            file_switch.keeper._lock,
            file_switch.worker.notifier._lock,
            keeper._registry_lock,
        ]
        for lock in locks:
            lock.acquire()
        try:
            assert in_child(child)
        finally:
            for lock in locks:
                lock.release()

    def test_fork_of_two_guards_of_one_place(self, tmp_path: Path) -> None:
        """A lock that the parent held does not hang the child through either guard."""
        guards = [MaintenanceGuard(FileStore(tmp_path)) for _ in range(2)]
        stores = [guard._switch.store for guard in guards]
        removed = threading.Semaphore(0)

        def remove(store: FileStore) -> None:
            store.remove("default", "1-a")
            removed.release()

        def child() -> bool:
            for store in stores:
                threading.Thread(target=remove, args=(store,), daemon=True).start()
            return all(removed.acquire(timeout=20) for _ in stores)

        with contextlib.ExitStack() as held:
            for store in stores:
                assert isinstance(store, FileStore)
                held.enter_context(store._thread)
            assert in_child(child)

    def test_child_on_memory_is_alone(self) -> None:
        """The workers of a parent's memory are not those of its child."""
        guard = MaintenanceGuard(MemoryStore())
        guard._switch.join_blocking()

        def child() -> bool:
            guard._switch.join_blocking()
            store = guard._switch.store
            assert isinstance(store, MemoryStore)
            workers = store.roster("default").workers
            return [report.pid for report in workers] == [os.getpid()]

        assert in_child(child)


def test_problem_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Each kind of problem has its own last word."""
    caplog.set_level("INFO")
    log = LogOnce("a test")
    say: list[Callable[[], None]] = [
        lambda: log.say("read", "a"),
        lambda: log.say("read", "a"),
        lambda: log.say("report", "b"),
        lambda: log.solved("read"),
        lambda: log.solved("read"),
        lambda: log.say("read", "a"),
    ]
    for step in say:
        step()
    assert [record.message for record in caplog.records] == [
        "a test: a",
        "a test: b",
        "a test: works again (read)",
        "a test: a",
    ]
