"""One process: counting in one step, adopting, reporting, telling of changes."""

import contextvars
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    StoreError,
    threads,
)
from fastapi_maintenance import worker as worker_module
from fastapi_maintenance.notifier import ChangeNotifier
from fastapi_maintenance.worker import Admission, Worker, held
from tests.stores.redis_server import shared_server
from tests.waiting import Work, until

OFF = MaintenanceState(epoch=1, tag="off")
ON = MaintenanceState(epoch=7, tag="on", enabled=True)


def joined(
    state: MaintenanceState = OFF,
    read: Callable[[], MaintenanceState | None] | None = None,
) -> Worker:
    """Return a worker that has joined with a state."""
    worker = Worker("default", "'default' in a test", read)
    worker.start(state, counted=True)
    return worker


def admitted(worker: Worker, label: str = "work") -> Admission:
    """Return an admission by a worker that has joined."""
    admission = worker.admit(label)
    assert admission is not None
    return admission


def adopt(worker: Worker, state: MaintenanceState = ON) -> None:
    """Adopt a state as the keeper does, and have nothing to collect."""
    worker.adopt(state)
    worker.garbage.wanted = False


def counts(worker: Worker) -> tuple[int, int]:
    """Return what is reported, current and old."""
    report = worker.make_report()
    return report.current, report.old


class TestCounting:
    """A request is counted, and decided by the state of that very moment."""

    def test_request_is_current_until_a_newer_state_is_adopted(self) -> None:
        """What is in flight is old from then on, and what comes later is current."""
        worker = joined()
        with admitted(worker) as first:
            assert first.state is OFF
            adopt(worker)
            with admitted(worker) as second:
                assert second.state is ON
                assert counts(worker) == (1, 1)
            assert counts(worker) == (0, 1)
        assert counts(worker) == (0, 0)

    def test_decision_that_waited_is_taken_under_the_present_state(self) -> None:
        """A request that is admitted again is counted under a newer state."""
        worker = joined()
        with admitted(worker) as admission:
            assert not worker.readmit(admission)
            adopt(worker)
            assert counts(worker) == (0, 1)
            assert worker.readmit(admission)
            assert admission.state is ON
            assert counts(worker) == (1, 0)
            assert not worker.readmit(admission)

    def test_what_ends_while_admitted_again_is_counted_no_more(self) -> None:
        """A release without the lock, while it is admitted again, is not undone."""
        worker = joined()
        admission = admitted(worker)
        adopt(worker)
        worker.current = Interrupted(admission.release)
        assert worker.readmit(admission)
        assert counts(worker) == (0, 0)

    def test_what_ends_in_a_move_is_counted_no_more(self) -> None:
        """A release between the two steps of adopting leaves nothing in either."""
        worker = joined()
        admission = admitted(worker)
        worker.old = Interrupted(admission.release)
        adopt(worker)
        assert counts(worker) == (0, 0)

    def test_count_is_given_back_once(self) -> None:
        """Giving back twice, in any way, takes nothing from others."""
        worker = joined()
        with admitted(worker, "other"):
            admission = admitted(worker)
            for _ in range(2):
                admission.release()
                admission.__exit__(None, None, None)
            assert counts(worker) == (1, 0)

    def test_work_ends_in_any_context_that_closes_it(self) -> None:
        """A task that closes another one's stack gives the count back all the same."""
        worker = joined()
        admission = contextvars.copy_context().run(admitted(worker).__enter__)
        assert counts(worker) == (1, 0)
        admission.leave_context()
        admission.__exit__(None, None, None)
        assert counts(worker) == (0, 0)

    def test_worker_that_has_not_joined_admits_nothing(self) -> None:
        """Before it has joined, and after it has left, no request is admitted."""
        worker = Worker("default", "a test")
        assert worker.admit("work") is None
        worker.start(OFF, counted=True)
        assert admitted(worker).state is OFF

    def test_worker_leaves_when_nothing_is_in_flight(self) -> None:
        """Leaving and admitting exclude each other; in-flight work keeps the worker."""
        worker = joined()
        with admitted(worker):
            assert not worker.leave()
            adopt(worker)
            assert not worker.leave()
        assert worker.leave()
        assert not worker.leave()
        assert worker.admit("work") is None
        report = worker.make_report()
        assert (report.seen, report.tag, report.generation) == (0, "", None)

    def test_older_state_is_not_adopted(self) -> None:
        """A thread that was stopped after it had read a state cannot bring it back."""
        worker = joined(ON)
        worker.adopt(OFF)
        assert worker.state is ON

    def test_threads_and_changes_lose_no_count(self) -> None:
        """However threads admit while the state moves, every count is given back."""
        worker = joined()
        done, worked = threading.Event(), set()

        def work() -> None:
            while not done.is_set():
                with admitted(worker) as admission:
                    worked.add(threading.get_ident())
                    worker.readmit(admission)

        most = 0
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            workers = [threading.Thread(target=work) for _ in range(4)]
            for thread in workers:
                thread.start()
            epoch = 2
            while epoch < 300 or len(worked) < len(workers):
                adopt(worker, MaintenanceState(epoch=epoch, tag=str(epoch)))
                most = max(most, sum(counts(worker)))
                epoch += 1
        finally:
            sys.setswitchinterval(before)
            done.set()
        for thread in workers:
            thread.join(30)
        assert most <= len(workers)
        assert counts(worker) == (0, 0)

    @pytest.mark.parametrize("state", [ON, OFF.replace(epoch=8)])
    def test_finalizer_may_admit_inside_of_the_lock(
        self, state: MaintenanceState
    ) -> None:
        """The garbage collector can run in the middle of each step."""
        worker = joined()
        finalizers = 0

        def finalize() -> None:
            nonlocal finalizers
            if finalizers < 10:
                finalizers += 1
                with admitted(worker):
                    pass

        done = threading.Event()

        def work() -> None:
            worker.current = Interrupted(finalize)
            worker.old = Interrupted(finalize)
            admission = admitted(worker)
            adopt(worker, state)
            worker.readmit(admission)
            admission.release()
            done.set()

        threading.Thread(target=work, daemon=True).start()
        assert done.wait(30)
        assert finalizers == 10
        assert counts(worker) == (0, 0)


class Interrupted(dict[Admission, None]):
    """Counts, and another thread that releases as soon as they have grown."""

    def __init__(self, release: Callable[[], None]) -> None:
        super().__init__()
        self.release = release

    def __setitem__(self, key: Admission, value: None) -> None:
        super().__setitem__(key, value)
        self.release()

    def update(self, *others: Any, **more: Any) -> None:  # a dict's own
        super().update(*others, **more)
        self.release()


class TestContext:
    """Which work a task, or a thread, runs under."""

    @pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
    async def test_own_work_is_what_the_very_task_runs_under(self) -> None:
        """A task knows its own work, innermost first; one that it starts has none."""
        worker, stranger = joined(), joined()

        async def other() -> None:
            assert [a.worker for a in held()] == [worker, stranger, worker]
            assert not worker.is_inside_admission()

        with admitted(worker) as outer, admitted(stranger), admitted(worker) as inner:
            assert [a.worker for a in held()] == [worker, stranger, worker]
            assert worker.is_inside_admission()
            assert stranger.is_inside_admission()
            async with anyio.create_task_group() as group:
                group.start_soon(other)
            inner.release()
            assert worker.is_inside_admission()
            outer.release()
            assert not worker.is_inside_admission()
            assert stranger.is_inside_admission()
            assert not outer.is_own()
        assert not stranger.is_inside_admission()

    def test_thread_is_not_the_work_that_started_it(self) -> None:
        """A copy of the context, such as a thread has, is not the request itself."""
        worker = joined()
        with admitted(worker):
            assert worker.is_inside_admission()
            assert not contextvars.copy_context().run(worker.is_inside_admission)
            assert worker.is_inside_admission()

    def test_admissions_that_overlap_do_not_pile_up(self) -> None:
        """A context that serves on keeps none of those that have ended."""
        worker = joined()
        before = admitted(worker).__enter__()
        for _ in range(100):
            after = admitted(worker).__enter__()
            before.release()
            before = after
        kept = 0
        admission: Admission | None = before
        while admission is not None:
            kept, admission = kept + 1, admission.outer
        assert kept <= 3
        assert list(held()) == [before]
        before.release()
        assert list(held()) == []

    def test_block_sets_its_context_back(self) -> None:
        """What a context does after a block is not taken for the block's work."""
        worker = joined()
        with admitted(worker) as outer:
            inner = admitted(worker).__enter__()
            inner.leave_context()
            inner.release()
            assert list(held()) == [outer]
            inner.leave_context()
            assert worker_module._admission.get() is outer


class TestReporting:
    """What a worker says of itself."""

    def test_oldest_work_is_named(self) -> None:
        """The route and the age of the oldest work are for people."""
        worker = joined()
        assert worker.make_report().oldest is None
        with admitted(worker, "GET /a") as first, admitted(worker, "GET /b"):
            first.started = monotonic() - 60
            oldest = worker.make_report().oldest
            assert oldest is not None
            assert (oldest.route, round(oldest.seconds)) == ("GET /a", 60)
            adopt(worker)
            with admitted(worker, "GET /c"):
                found = worker.make_report().oldest
                assert found is not None
                assert found.route == "GET /a"

    def test_thread_that_was_left_behind_is_the_oldest(self) -> None:
        """A request that came later does not hide it."""
        worker = joined()
        go = threading.Event()
        with admitted(worker, "GET /left") as left:
            context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool, admitted(worker, "GET /b"):
            pool.submit(context.run, go.wait, 30)
            adopt(worker)
            until(lambda: worker.make_report().left_behind == 1)
            oldest = worker.make_report().oldest
            go.set()
        assert left.ended
        assert oldest is not None
        assert oldest.route == "GET /left (left behind by its request)"

    def test_garbage_is_reported_until_it_is_collected(self) -> None:
        """An enabled state is not drained before abandoned streams are closed."""
        worker = joined()
        with admitted(worker, "GET /a"):
            pass
        worker.adopt(ON)
        report = worker.make_report()
        assert (report.seen, report.old) == (ON.epoch, 1)
        assert report.oldest is not None
        assert worker.garbage.is_pending
        assert worker.collect_garbage()
        assert worker.make_report().old == 0
        worker.adopt(OFF.replace(epoch=8))
        assert worker.make_report().old == 0

    def test_worker_that_has_served_nothing_has_nothing_to_collect(self) -> None:
        """Without a request there is no stream that a client could have left."""
        worker = joined()
        worker.adopt(ON)
        assert (worker.make_report().seen, worker.make_report().old) == (ON.epoch, 0)

    def test_worker_that_cannot_count_says_so_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A drain is unknown from then on, and the log says why."""
        worker = joined()
        assert worker.make_report().uncounted == 0
        worker.mark_uncounted("no stack")
        worker.mark_uncounted("no stack")
        assert worker.make_report().uncounted == 1
        assert caplog.text.count("is not counted: no stack") == 1

    def test_releases_that_hide_their_threads_make_it_uncounted(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where threads cannot be seen, no drain is promised."""
        monkeypatch.setattr(threads, "_ANYIO", None)
        worker = joined()
        assert worker.make_report().uncounted == 1
        assert "which threads still work" in caplog.text

    def test_worker_knows_what_it_has_adopted(self) -> None:
        """By the tags of the past, a worker notices that a store was put back."""
        worker = joined()
        adopt(worker)
        assert worker.has_adopted("off")
        assert worker.has_adopted("on")
        assert not worker.has_adopted("another")

    def test_building_a_worker_reads_no_files(self) -> None:
        """A guard is built at import, where nothing may be touched."""
        events = recorded(lambda: Worker("default", "a test"))
        assert [name for name in events if name == "open"] == []
        worker = Worker("default", "a test")
        assert worker.make_report().process
        assert worker.make_report().process == worker.process

    def test_child_of_a_fork_is_another_worker(self) -> None:
        """It has another id, has not joined, and nothing is in flight."""
        worker = joined(ON)
        admission = admitted(worker)
        before = worker.id
        worker.reset()
        assert worker.id != before
        assert (worker.joined, worker.state) == (False, MaintenanceState())
        admission.release()
        assert worker.make_report().in_flight == 0


class Lazy:
    """A label that knows later whether its route is exempt."""

    def __init__(self, *, exempt: bool) -> None:
        self.exempt = exempt

    def __str__(self) -> str:
        return "GET /late"

    def is_exempt(self) -> bool:
        """Tell what is known by now."""
        return self.exempt


def test_what_turns_out_to_be_exempt_is_dropped() -> None:
    """Work that was counted before its route was known is sorted out by a drain."""
    worker = joined()
    exempt, business = Lazy(exempt=True), Lazy(exempt=False)
    assert worker.admit(exempt) is not None
    with admitted(worker), worker.admit(business) or admitted(worker):
        # While it is off, that would cost more than it is worth.
        assert counts(worker) == (3, 0)
        late = worker.admit(Lazy(exempt=True))
        assert late is not None
        adopt(worker)
        assert late.ended
        assert counts(worker) == (0, 2)
        business.exempt = True
        assert counts(worker) == (0, 1)


class TestClosing:
    """Old work is asked to end when its time has come."""

    def test_only_old_work_is_asked(self) -> None:
        """Work that was let in under maintenance goes on."""
        worker = joined()
        asked: list[str] = []
        old = admitted(worker)
        old.on_close(lambda: asked.append("old"))
        taken_back = old.on_close(lambda: asked.append("taken back"))
        taken_back()
        taken_back()
        adopt(worker, ON.replace(close_after=0.0))
        new = admitted(worker)
        new.on_close(lambda: asked.append("new"))
        assert worker.is_draining
        worker.close_due()
        worker.close_due()
        old.close()
        assert (asked, old.closing, new.closing) == (["old"], True, False)
        old.on_close(lambda: asked.append("late"))
        assert asked == ["old", "late"]
        old.release()
        assert not worker.is_draining

    def test_later_publication_does_not_take_it_back(self) -> None:
        """Another operator asks for nothing; what was asked before ends in its time."""
        worker = joined()
        with admitted(worker) as old:
            adopt(worker, ON.replace(close_after=0.0))
            with admitted(worker) as let_in:
                adopt(worker, ON.replace(epoch=8))
                worker.close_due()
                assert (old.closing, let_in.closing) == (True, False)

    def test_time_must_have_come(self) -> None:
        """Nothing is asked to end early, nor without older work, nor when it is off."""
        worker = joined()
        with admitted(worker) as old:
            adopt(worker, ON.replace(close_after=3600.0))
            worker.close_due()
            assert (old.closing, worker.is_draining) == (False, True)
        adopt(worker, ON.replace(epoch=8, close_after=0.0))
        assert not worker.is_draining
        with admitted(worker) as old:
            adopt(worker, OFF.replace(epoch=9, close_after=0.0))
            worker.close_due()
            assert not old.closing

    def test_work_that_cannot_be_asked_does_not_stop_the_others(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that raises is logged, and the next one is asked."""
        worker = joined()
        asked: list[str] = []

        def fails() -> None:
            raise ValueError("broken")

        admitted(worker).on_close(fails)
        admitted(worker).on_close(lambda: asked.append("second"))
        adopt(worker, ON.replace(close_after=0.0))
        worker.close_due()
        assert asked == ["second"]
        assert "could not be asked to end" in caplog.text


class TestStaleKeeper:
    """A process that was stopped and goes on looks before it admits."""

    def stale(
        self, read: Callable[[], MaintenanceState | None], state: MaintenanceState = OFF
    ) -> Worker:
        """Return a worker whose keeper has not looked for two seconds."""
        worker = joined(state, read)
        worker.checked = monotonic() - 2
        return worker

    def test_newer_state_is_adopted(self) -> None:
        """The first request is decided by what is stored, and counted under it."""
        worker = self.stale(lambda: ON)
        with admitted(worker):  # What ran when the process was stopped is old.
            admission = admitted(worker)
            assert (admission.state, worker.state) == (ON, ON)
            assert admission in worker.current

    def test_keeper_may_adopt_it_first(self) -> None:
        """What the keeper adopts while a request reads the store is counted once."""

        def read() -> MaintenanceState:
            worker.adopt(ON)
            return ON

        worker = self.stale(read)
        admission = admitted(worker)
        assert admission.state is ON
        assert admission in worker.current
        assert admission not in worker.old

    def test_nothing_is_read_while_the_keeper_looks(self) -> None:
        """A request touches nothing but memory."""
        worker = self.stale(lambda: ON)
        worker.checked = monotonic()
        assert admitted(worker).state is OFF

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_hand_edit_decides_and_is_not_adopted(self, epoch: int) -> None:
        """An edit is published by the keeper; until then it decides all the same."""
        tag = "off" if epoch else ""
        edited = MaintenanceState(epoch=epoch, tag=tag, enabled=True)
        worker = self.stale(lambda: edited)
        admission = admitted(worker)
        assert admission.state is edited
        assert worker.state is OFF
        # A handler that was asked in between does not bring the known state back.
        assert not worker.readmit(admission)
        assert admission.state is edited

    @pytest.mark.parametrize(
        "stored",
        [None, OFF, MaintenanceState(epoch=1, tag="another history", enabled=False)],
    )
    def test_anything_else_leaves_the_known_state(
        self, stored: MaintenanceState | None
    ) -> None:
        """A missing file and another history are the keeper's to judge."""
        worker = self.stale(lambda: stored, ON)
        assert admitted(worker).state is ON

    def test_store_that_cannot_be_read_leaves_the_known_state(self) -> None:
        """An error admits nothing that the last known state would not."""

        def fails() -> MaintenanceState | None:
            raise StoreError("away")

        assert admitted(self.stale(fails, ON)).state is ON
        assert admitted(self.stale(fails)).state is OFF


def tell(
    notifier: ChangeNotifier, state: MaintenanceState, before: MaintenanceState
) -> None:
    """Note a change and tell of it, as a worker does."""
    assert notifier.note(state, before)
    notifier.tell(state)


class Told(list[int]):
    """The epochs that a listener was called with, and when they are enough."""

    def __init__(self, *, enough: int) -> None:
        super().__init__()
        self.enough = enough
        self.done = threading.Event()

    def __call__(self, state: MaintenanceState) -> None:
        """Keep the epoch."""
        self.append(state.epoch)
        if len(self) == self.enough:
            self.done.set()


class TestTellingOfChanges:
    """``on_change`` hears of each change once, in order, in a thread of its own."""

    def test_each_change_is_told_once_in_order(self) -> None:
        """A state that is published again, for a drain, is no change."""
        worker = joined()
        told = Told(enough=3)
        worker.notifier.listen(told)
        for epoch, message in ((7, "a"), (8, "a"), (9, "b"), (10, "c")):
            worker.adopt(
                MaintenanceState(
                    epoch=epoch, tag=str(epoch), enabled=True, message=message
                )
            )
        assert told.done.wait(30)
        assert told == [7, 9, 10]

    def test_changes_of_before_the_join_are_told_if_they_matter(self) -> None:
        """A listener is called when a worker joins under maintenance, not when off."""
        for state, expected in ((OFF, []), (ON, [7])):
            worker = Worker("default", "a test")
            told = Told(enough=1)
            worker.notifier.listen(told)
            worker.start(state, counted=True)
            if expected:
                assert told.done.wait(30)
            assert told == expected

    def test_changes_wait_for_a_slow_listener(self) -> None:
        """What changes while a listener works is told after it, by the same thread."""
        notifier = ChangeNotifier("a test")
        work, told = Work(), Told(enough=2)
        notifier.listen(lambda _: work.run())
        notifier.listen(told)
        tell(notifier, ON, OFF)
        assert work.begun.wait(30)
        tell(notifier, OFF.replace(epoch=8), ON)
        work.released.set()
        assert told.done.wait(30)
        assert told == [7, 8]

    def test_listeners_are_told_in_the_order_of_adoption(self) -> None:
        """Also where one thread adopts while another one is still dropping work."""
        worker = joined(OFF)
        told = Told(enough=2)
        worker.notifier.listen(told)

        class Slow:
            def is_exempt(self) -> bool:
                if worker.state.epoch == ON.epoch:
                    worker.adopt(OFF.replace(epoch=8))
                return False

        assert worker.admit(Slow()) is not None
        worker.adopt(ON)
        assert told.done.wait(30)
        assert told == [7, 8]

    def test_plan_is_not_called_on(self, caplog: pytest.LogCaptureFixture) -> None:
        """The log says from when a planned window refuses."""
        caplog.set_level("INFO")
        starts_at = datetime(2030, 1, 1, tzinfo=UTC)
        joined(OFF).adopt(ON.replace(starts_at=starts_at))
        assert "is planned from 2030-01-01T00:00:00+00:00" in caplog.text

    def test_listener_that_fails_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The next listener and the next change are told of all the same."""
        notifier = ChangeNotifier("a test")
        told = Told(enough=2)

        def fails(_: MaintenanceState) -> None:
            raise ValueError("broken")

        notifier.listen(fails)
        notifier.listen(told)
        tell(notifier, ON, OFF)
        tell(notifier, OFF.replace(epoch=8), ON)
        assert told.done.wait(30)
        assert told == [7, 8]
        assert "on_change failed for epoch 7" in caplog.text

    def test_process_without_threads_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where no thread can be started, a change is told with the next one."""
        notifier = ChangeNotifier("a test")
        told = Told(enough=2)
        notifier.listen(told)

        def no_more(thread: threading.Thread) -> None:
            raise RuntimeError(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            tell(notifier, ON, OFF)
        assert "listeners are not told" in caplog.text
        tell(notifier, OFF.replace(epoch=8), ON)
        assert told.done.wait(30)
        assert told == [7, 8]

    def test_child_of_a_fork_tells_of_its_own_changes(self) -> None:
        """What the parent had to tell is the parent's."""
        notifier = ChangeNotifier("a test")
        told = Told(enough=1)
        notifier.listen(told)
        notifier._states.append(OFF)
        notifier.reset()
        tell(notifier, ON, OFF)
        assert told.done.wait(30)
        assert told == [7]

    def test_log_filter_that_fails_fails_no_request(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Requests are admitted, and listeners told, whatever happens to the log."""

        def fails(record: logging.LogRecord) -> bool:
            raise OSError(record.getMessage())

        logger = logging.getLogger("fastapi_maintenance")
        monkeypatch.setattr(logger, "filters", [fails])
        logger.setLevel(logging.INFO)
        worker = joined()
        told = Told(enough=1)
        worker.notifier.listen(told)
        try:
            worker.adopt(ON)
        finally:
            logger.setLevel(logging.NOTSET)
        assert told.done.wait(30)
        assert admitted(worker).state is ON


_recorders: dict[int, list[str]] = {}


def _hook(event: str, _: tuple[object, ...]) -> None:
    _recorders.get(threading.get_ident(), []).append(event)


_hook.__cantrace__ = True  # type: ignore[attr-defined]  # Python's, for coverage


def recorded(work: Callable[[], object]) -> list[str]:
    """Return the audit events of this thread while a function runs."""
    if _hook not in _installed:
        # A hook stays for the life of the process.
        _installed.append(_hook)
        sys.addaudithook(_hook)
    events = _recorders[threading.get_ident()] = []
    try:
        work()
    finally:
        _recorders.clear()
    return events


_installed: list[Callable[[str, tuple[object, ...]], None]] = []


@pytest.fixture(
    params=["memory", "file", pytest.param("redis", marks=pytest.mark.redis)]
)
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> MaintenanceGuard:
    """Return a guard on each kind of store."""
    if request.param == "memory":
        return MaintenanceGuard("memory:")
    if request.param == "file":
        return MaintenanceGuard(FileStore(tmp_path))
    return MaintenanceGuard(shared_server().url("prefix=audited"))


def test_request_does_nothing_that_is_audited(guard: MaintenanceGuard) -> None:
    """With the guard off, a request opens no file and no socket, on any store."""

    async def nothing() -> None: ...

    async def answer() -> None: ...

    def events(dependency: Any) -> list[str]:
        """Return what a request does, in the very thread that runs the loop."""
        app = FastAPI(dependencies=[Depends(dependency)])
        app.add_api_route("/target", answer)
        with TestClient(app) as client:
            client.get("/target")
            portal = client.portal
            assert portal is not None
            found: list[str] = []

            async def count() -> None:
                _recorders[threading.get_ident()] = found

            portal.call(count)
            for _ in range(20):
                assert client.get("/target").status_code == 200
            _recorders.clear()
        return sorted(found)

    recorded(lambda: None)
    guard._switch.join_blocking()
    ours = set(events(guard)) - set(events(nothing))
    assert ours == set()
