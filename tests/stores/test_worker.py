"""One process as a store sees it: counting in one step, joining, leaving, telling."""

import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.stores._admission import Admission, held, own_counts
from fastapi_maintenance.stores._registry import worker_at
from fastapi_maintenance.stores._worker import Worker

ON = MaintenanceState(epoch=7, active=True)


class Engine:
    """An engine that keeps what it was told, and does what a test wants."""

    immediate = True

    def __init__(self) -> None:
        self.state = MaintenanceState(epoch=1)
        self.told: list[tuple[object, ...]] = []
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self._adopted = 0

    def join(self, patience: float) -> MaintenanceState:
        self.told.append(("join", patience))
        self.begun.set()
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.state

    def leave(self) -> None:
        self.told.append(("leave",))

    def count(self, current: int, old: int) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(("count", current, old))

    def news(self) -> MaintenanceState | None:
        return self.state if self.state.epoch != self._adopted else None

    def adopted(self, epoch: int) -> None:
        self._adopted = epoch
        self.told.append(("adopted", epoch))

    def forked(self) -> None: ...

    def stand_aside(self, why: str) -> None:
        self.told.append(("aside", why))


def joined() -> tuple[Worker, Engine]:
    """Return a worker that has joined, and its engine with nothing told yet."""
    engine = Engine()
    worker = Worker(engine, "'default' in a test")
    worker.join()
    engine.told.clear()
    return worker, engine


def test_request_is_counted_before_the_epoch_is_read() -> None:
    """The count is visible, then the news is adopted, and the request is new in it."""
    worker, engine = joined()
    with worker.admit("first"):
        engine.state = ON
        engine.told.clear()
        with worker.admit("second") as second:
            assert second.state == ON
            assert engine.told == [("count", 2, 0), ("count", 1, 1), ("adopted", 7)]
            assert worker.counts()[:2] == (1, 1)
    assert worker.counts() == (0, 0, None)


def test_decision_that_waited_is_taken_under_the_newest_epoch() -> None:
    """A recheck finds the news, and counts the request as new under it."""
    worker, engine = joined()
    with worker.admit("work") as admission:
        assert not worker.recheck(admission)
        engine.state = ON
        assert worker.recheck(admission)
        assert (admission.state, worker.counts()[:2]) == (ON, (1, 0))
        assert engine.told[-3:] == [("count", 0, 1), ("adopted", 7), ("count", 1, 0)]


def test_request_that_cannot_be_counted_does_not_run() -> None:
    """A failure of the engine admits nothing and leaves nothing counted."""
    worker, engine = joined()
    engine.error = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        worker.admit("work")
    engine.error = None
    assert worker.counts() == (0, 0, None)
    assert list(held()) == []


def test_count_is_given_back_once() -> None:
    """Giving back twice, in any way, takes nothing from others."""
    worker, _ = joined()
    with worker.admit("other"):
        admission = worker.admit("work")
        admission.release()
        admission.release()
        admission.__exit__(None, None, None)
        admission.__exit__(None, None, None)
        worker.release(admission.number)
        worker.release(10**9)
        assert worker.counts()[0] == 1


def test_work_ends_in_whichever_context_closes_it() -> None:
    """A task that closes another one's stack gives the count back all the same."""
    worker, _ = joined()
    admission = contextvars.copy_context().run(worker.admit, "work")
    assert worker.counts()[0] == 1
    admission.__exit__(None, None, None)
    assert worker.counts()[0] == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.anyio
async def test_own_work_is_what_the_very_task_runs_under() -> None:
    """A task knows its own counts, innermost first; one that it starts has none."""

    async def other() -> None:
        assert [a.worker for a in held()] == [worker, stranger, worker]
        assert own_counts(worker) == 0

    worker, _ = joined()
    stranger, _ = joined()
    with worker.admit("a") as outer, stranger.admit("b"), worker.admit("c") as inner:
        assert [a.worker for a in held()] == [worker, stranger, worker]
        assert own_counts(worker) == 2
        async with anyio.create_task_group() as group:
            group.start_soon(other)
        inner.release()
        assert own_counts(worker) == 1
        assert own_counts(worker) == 1
        outer.release()
        assert (own_counts(worker), own_counts(stranger)) == (0, 1)


def chained(length: int, end: BaseException) -> BaseException:
    """Return an exception with so many before it."""
    for _ in range(length):
        error = ValueError()
        error.__context__ = end
        end = error
    return end


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ValueError(), 0),
        (chained(3, ValueError()), 0),
        (KeyboardInterrupt(), 1),
        (GeneratorExit(), 1),
        (chained(3, KeyboardInterrupt()), 1),
        (chained(30, KeyboardInterrupt()), 0),
    ],
    ids=["error", "errors", "interrupt", "exit", "because of one", "long ago"],
)
def test_cancelled_work_counts_until_nothing_holds_it(
    error: BaseException, counted: int
) -> None:
    """An interruption, or what was made of it, does not end the work's threads."""
    worker, _ = joined()
    admission: Admission | None = worker.admit("work")
    assert admission is not None
    for _ in range(2):
        admission.__exit__(type(error), error, None)
    assert worker.counts()[0] == counted
    admission = None
    assert worker.counts()[0] == 0


def test_end_that_comes_inside_the_lock_waits_for_the_next_look() -> None:
    """The collector may end work while the lock is held, and must not wait for it."""
    worker, engine = joined()
    first, second = worker.admit("a"), worker.admit("b")
    with worker._lock:
        worker.release_later(first.number)
        assert len(worker.current) == 2
    first.number = 0
    engine.told.clear()
    second.release()
    assert engine.told == [("count", 0, 0)]
    third = worker.admit("c")
    with worker._lock:
        worker.release_later(third.number)
    third.number = 0
    worker.refresh()
    assert worker.current == {}


def test_join_that_fails_is_told_to_all_who_waited_for_it() -> None:
    """Callers of one attempt get its answer; a later one is an attempt of its own."""
    engine = Engine()
    engine.error = StoreError("away")
    engine.gate.clear()
    worker = Worker(engine, "'default' in a test")
    failed: list[str] = []

    def join() -> None:
        try:
            worker.join(0.5)
        except StoreError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=join) for _ in range(4)]
    threads[0].start()
    assert engine.begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    engine.gate.set()
    for thread in threads:
        thread.join(30)
    assert failed == ["away"] * 4
    assert ("join", 0.5) in engine.told
    engine.error = None
    worker.join()
    assert worker.joined
    worker.join()
    assert [told for told in engine.told if told[0] == "adopted"] == [("adopted", 1)]


def test_last_user_leaves_and_work_keeps_the_row() -> None:
    """A worker leaves with its last user, unless something is in flight."""
    worker, engine = joined()
    worker.enter()
    worker.enter()
    worker.leave()
    assert worker.joined
    with worker.admit("work"):
        worker.leave()
        assert worker.joined
    worker.leave()
    assert not worker.joined
    worker.leave()
    assert engine.told.count(("leave",)) == 1


def test_request_that_meets_a_worker_that_left_joins_it_again() -> None:
    """Nothing is admitted by a worker that has left between two steps."""
    worker, engine = joined()
    worker.enter()
    worker.leave()
    engine.state = ON
    admission = worker.admit("work")
    assert admission.state == ON
    assert ("join", 2.0) in engine.told
    assert worker.counts()[:2] == (1, 0)
    admission.release()


def test_each_change_is_told_once_in_order() -> None:
    """Listeners hear of each change that was adopted, in the order of the epochs."""
    worker, engine = joined()
    told: list[int] = []
    worker.listen(lambda state: told.append(state.epoch))
    for epoch, message in ((7, "a"), (8, "a"), (9, "b")):
        engine.state = MaintenanceState(epoch=epoch, active=True, message=message)
        worker.refresh()
        worker.refresh()
    assert told == [7, 9]


def test_worker_that_stands_aside_says_so_once() -> None:
    """Engines are told once that a worker cannot be counted."""
    worker, engine = joined()
    worker.stand_aside("no stack")
    worker.stand_aside("no stack")
    assert engine.told == [("aside", "no stack")]


def test_worker_that_joins_again_can_stand_aside_again() -> None:
    """A new row is counted until its engine is told that it cannot be."""
    worker, engine = joined()
    worker.stand_aside("no stack")
    worker.leave()
    worker.join()
    engine.told.clear()
    worker.stand_aside("no stack")
    assert engine.told == [("aside", "no stack")]


class Lazy:
    """A label that knows later whether its route is exempt."""

    def __init__(self, *, exempt: bool) -> None:
        self.exempt = exempt

    def __str__(self) -> str:
        return "GET /late"

    def is_exempt(self) -> bool:
        return self.exempt


def test_what_proves_to_be_exempt_is_let_go_when_somebody_looks() -> None:
    """Work that was counted before anybody knew is sorted out by the first look."""
    worker, engine = joined()
    with worker.admit(Lazy(exempt=True)), worker.admit(Lazy(exempt=False)):
        assert len(worker.current) == 2
        count, _, oldest = worker.counts()
        assert count == 1
        assert oldest is not None
        assert oldest[0] == "GET /late"
    engine.state = ON
    with worker.admit(Lazy(exempt=True)):
        worker.refresh()
        assert worker.counts()[:2] == (0, 0)


def test_one_place_is_one_worker() -> None:
    """Stores of one place and name share a worker, while any of them uses it."""
    engine = Engine()

    def make() -> Worker:
        return Worker(engine, "a test")

    worker = worker_at(Worker, "test:place", "default", make)
    assert worker_at(Worker, "test:place", "default", make) is worker
    other = worker_at(Worker, "test:place", "other", make)
    assert other is not worker

    class OfAnotherEngine(Worker):
        pass

    with pytest.raises(TypeError, match="test:place is a place of Worker"):
        worker_at(
            OfAnotherEngine,
            "test:place",
            "default",
            lambda: OfAnotherEngine(engine, "a test"),
        )


@pytest.mark.parametrize("immediate", [True, False])
def test_threads_and_changes_lose_no_count(immediate: bool) -> None:
    """Whatever threads admit and release while the state moves, all is given back."""
    engine = Engine()
    engine.immediate = immediate
    worker = Worker(engine, "'default' in a test")
    worker.join()
    done = threading.Event()
    most = 0
    worked: set[int] = set()

    def work() -> None:
        while not done.is_set():
            with worker.admit("work") as admission:
                worked.add(admission.number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for epoch in range(2, 500):
            engine.state = MaintenanceState(epoch=epoch)
            worker.refresh()
            current, old, _ = worker.counts()
            most = max(most, current + old)
    finally:
        sys.setswitchinterval(before)
        done.set()
    for thread in threads:
        thread.join(30)
    assert most <= len(threads)
    assert len(worked) >= len(threads)
    assert worker.counts() == (0, 0, None)


class Changing(dict[int, Any]):
    """Counts that other threads change all the time: only a copy can be walked."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError

    def items(self) -> Any:  # a dict's own
        raise AssertionError

    def values(self) -> Any:  # a dict's own
        raise AssertionError


def test_counts_are_looked_at_in_copies() -> None:
    """What ends meanwhile, without the lock, does not disturb who looks."""
    engine = Engine()
    engine.immediate = False
    worker = Worker(engine, "'default' in a test")
    worker.join()
    worker.current, worker.old = Changing(), Changing()
    with worker.admit("work"):
        assert worker.counts()[:2] == (1, 0)


def test_admissions_that_overlap_do_not_pile_up() -> None:
    """A context that serves on keeps none of those that have ended."""
    worker, _ = joined()
    before = worker.admit("0")
    for number in range(1, 100):
        after = worker.admit(str(number))
        before.__exit__(None, None, None)
        before = after
    kept = 0
    admission: Admission | None = before
    while admission is not None:
        kept, admission = kept + 1, admission.outer
    assert kept <= 3
    assert [held_now.number for held_now in held()] == [before.number]
    before.release()


def test_work_that_is_cancelled_does_not_end_what_runs_inside() -> None:
    """An interruption of an outer admission leaves the inner one in the context."""
    worker, _ = joined()
    outer = worker.admit("outer")
    inner = worker.admit("inner")
    outer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert inner in list(held())
    inner.release()
    inner.outer = None
    del outer
    assert worker.counts() == (0, 0, None)


class Interrupted(dict[int, Any]):
    """What is old, and another thread that releases while it grows."""

    def __init__(self, release: Callable[[], None]) -> None:
        super().__init__()
        self.release = release

    def update(self, *others: Any, **more: Any) -> None:  # a dict's own
        super().update(*others, **more)
        self.release()


def test_a_release_between_the_two_steps_of_a_move_is_not_lost() -> None:
    """What is released while it is moved to the old counts is in neither after that."""
    engine = Engine()
    engine.immediate = False
    worker = Worker(engine, "'default' in a test")
    worker.join()
    admission = worker.admit("work")
    worker.old = Interrupted(lambda: worker.release(admission.number))
    engine.state = ON
    worker.refresh()
    assert worker.counts() == (0, 0, None)
    admission.release()


def test_work_outside_of_tasks_is_nobodys_own() -> None:
    """Without a task there is no telling whose a context is."""
    worker, _ = joined()
    with worker.admit("a"):
        assert own_counts(worker) == 0


def test_what_fails_in_adopting_lets_nobody_in() -> None:
    """The new state holds, although what was to be told of it could not be."""
    worker, engine = joined()
    engine.state = ON
    engine.adopted = _fails  # type: ignore[method-assign]  # as a full disk
    with pytest.raises(RuntimeError, match="no more of them"):
        worker.admit("first")
    assert worker.state.active
    assert worker.counts()[:2] == (0, 0)


def _fails(epoch: int) -> None:
    raise RuntimeError(f"no more of them after {epoch}")


def test_news_while_joining_are_not_missed() -> None:
    """What is published after the store was asked, while it joins, is seen."""
    engine = Engine()
    engine.gate.clear()
    worker = Worker(engine, "'default' in a test")
    asked = engine.state

    def join(patience: float) -> MaintenanceState:
        engine.state = ON
        return asked

    engine.join = join  # type: ignore[method-assign]  # a race
    worker.join()
    assert worker.state is ON


def test_nothing_is_written_to_a_row_that_is_gone() -> None:
    """What ends after its worker has left writes nothing: files may be others' now."""
    worker, engine = joined()
    late, cancelled = Exempt(), worker.admit("cancelled")
    admission = worker.admit(late)
    cancelled.release()
    late.exempt = True
    worker.counts()
    worker.leave()
    engine.told.clear()
    admission.release()
    worker.release_later(99)
    assert engine.told == []


class Exempt:
    """What turns out to be exempt."""

    exempt = False

    def is_exempt(self) -> bool:
        return self.exempt


def test_listener_that_ends_the_process_keeps_no_count() -> None:
    """The count of a request that could not be told of its news is given back."""
    worker, engine = joined()
    worker.listen(lambda _: sys.exit(1))
    engine.state = ON
    with pytest.raises(SystemExit):
        worker.admit("first")
    assert worker.counts()[:2] == (0, 0)


def test_log_handler_that_fails_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is admitted, and listeners are told, whatever happens to the log."""
    worker, engine = joined()
    told: list[MaintenanceState] = []

    def listener(state: MaintenanceState) -> None:
        told.append(state)
        raise ValueError

    def fails(record: logging.LogRecord) -> bool:
        raise OSError(record.getMessage())

    worker.listen(listener)
    engine.state = ON
    logger = logging.getLogger("fastapi_maintenance")
    monkeypatch.setattr(logger, "filters", [fails])
    logger.setLevel(logging.INFO)
    try:
        with worker.admit("first") as admission:
            assert admission.state is ON
    finally:
        logger.setLevel(logging.NOTSET)
    assert told == [ON]
