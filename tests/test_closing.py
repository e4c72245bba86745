"""Long work is told to end when a drain cannot wait for it, and nothing else is."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import anyio
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fastapi_maintenance import MaintenanceGuard, MemoryStore
from fastapi_maintenance.closing import _spawner, close_in_time
from fastapi_maintenance.stores._closing import CloseOrders

both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture
def orders() -> Iterator[CloseOrders]:
    """Orders of which none is left behind."""
    made = CloseOrders()
    yield made
    made.cancel()


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, condition
        time.sleep(0.001)


def test_order_falls_due_for_older_work_alone(orders: CloseOrders) -> None:
    """What was admitted since is not meant."""
    told: list[int] = []
    for number in (1, 2, 3):
        orders.attach(number, lambda number=number: told.append(number))  # type: ignore[misc]  # mypy knows no defaults of lambdas
    orders.adopt({"close_after": 0}, [1, 2])
    until(lambda: len(told) == 2)
    assert told == [1, 2]
    assert [orders.is_due(number) for number in (1, 2, 3)] == [True, True, False]


def test_order_falls_due_for_who_asks_late(orders: CloseOrders) -> None:
    """Whoever attaches after the end is told at once."""
    orders.adopt({"close_after": 0.0}, [1])
    until(lambda: orders.is_due(1))
    told: list[int] = []
    orders.attach(1, lambda: told.append(1))
    assert told == [1]


def test_order_is_taken_back_by_a_state_without_one(orders: CloseOrders) -> None:
    """It belongs to one drain, and ends with it."""
    told: list[int] = []
    orders.attach(1, lambda: told.append(1))
    orders.adopt({"close_after": 3600}, [1])
    (timer,) = orders._timers
    orders.adopt({}, [1])
    timer.join()
    orders._fall_due(frozenset({1}))  # As a timer that had begun already.
    assert not orders.is_due(1)
    assert told == []


def test_order_does_not_mean_what_was_decided_again(orders: CloseOrders) -> None:
    """Work that was let in under the present state is not older than it."""
    orders.excuse(1)
    orders.adopt({"close_after": 0.01}, [1, 2])
    orders.excuse(1)
    until(lambda: orders.is_due(2))
    assert not orders.is_due(1)
    orders.excuse(2)
    assert not orders.is_due(2)


def test_order_for_nothing_starts_nothing(orders: CloseOrders) -> None:
    """Without older work there is nobody to close."""
    orders.adopt({"close_after": 1}, [])
    assert orders._timers == []


@pytest.mark.parametrize(
    "value", [None, True, "1", -1, float("nan"), float("inf"), 10**400]
)
def test_order_that_makes_no_sense_is_none(orders: CloseOrders, value: object) -> None:
    """A state that was written by hand closes nothing by mistake."""
    orders.adopt({"close_after": value}, [1])
    assert orders._timers == []


def test_order_far_ahead_is_capped(orders: CloseOrders) -> None:
    """No number of seconds breaks a timer."""
    orders.adopt({"close_after": 1e300}, [1])
    (timer,) = orders._timers
    assert timer.interval == threading.TIMEOUT_MAX


def test_detached_work_is_not_told(orders: CloseOrders) -> None:
    """Work that has ended is left alone; detaching twice does no harm."""
    told: list[str] = []

    first, second = partial(told.append, "first"), partial(told.append, "second")
    orders.attach(1, first)
    orders.attach(1, second)
    orders.detach(1, first)
    orders.detach(1, first)
    orders.detach(2, first)
    orders.adopt({"close_after": 0}, [1])
    until(lambda: told)
    assert told == ["second"]


@both
@pytest.mark.anyio
async def test_closing_wakes_the_work_that_waits() -> None:
    """From any thread, on any event loop."""
    guard = MaintenanceGuard(MemoryStore())
    with guard.admit():
        assert not guard.closing.is_set()
        await guard.enable()
        orders = guard._switch.worker.orders
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(guard.closing.wait)
                await anyio.wait_all_tasks_blocked()
                orders.adopt({"close_after": 0.01}, guard._switch.worker.old)
        assert guard.closing.is_set()
        assert await anyio.to_thread.run_sync(guard.closing.is_set)


@both
@pytest.mark.anyio
async def test_closing_is_never_set_for_what_is_not_counted() -> None:
    """An exempt stream may wait; nobody ends it."""
    guard = MaintenanceGuard(MemoryStore())
    assert not guard.closing.is_set()
    with anyio.move_on_after(0.02) as scope:
        await guard.closing.wait()
    assert scope.cancelled_caught
    assert guard._switch.worker.orders._attached == {}


@both
@pytest.mark.anyio
async def test_closing_of_another_guard_is_not_ours() -> None:
    """Each guard speaks for its own switch."""
    outer, inner = MaintenanceGuard(MemoryStore()), MaintenanceGuard(MemoryStore())
    with outer.admit(), inner.admit():
        outer._switch.worker.orders.adopt(
            {"close_after": 0}, outer._switch.worker.current
        )
        until(outer.closing.is_set)
        assert not inner.closing.is_set()


@pytest.mark.anyio
async def test_drain_with_close_after_ends_what_asks() -> None:
    """The order travels with the state, and belongs to one drain."""
    guard = MaintenanceGuard(MemoryStore())
    ended = anyio.Event()

    async def work() -> None:
        with guard.admit():
            await guard.closing.wait()
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await anyio.wait_all_tasks_blocked()
        await guard.enable()
        report = await guard.drain(timeout=10, close_after=0.05)
        assert report.drained
        await ended.wait()


def test_websocket_is_closed_with_1012() -> None:
    """A client is told to connect again later."""
    guard = MaintenanceGuard(MemoryStore())
    app = FastAPI(dependencies=[Depends(guard)])

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.receive_text()

    with TestClient(app) as client, client.websocket_connect("/socket") as session:
        assert session.receive_text() == "hello"
        worker = guard._switch.worker
        worker.orders.adopt({"close_after": 0}, worker.current)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == 1012


@pytest.mark.anyio
async def test_websocket_that_has_ended_is_left_alone() -> None:
    """Closing what is closed already is no error of anybody's."""
    worker = MaintenanceGuard(MemoryStore())._switch.worker
    tried = anyio.Event()

    async def send(_: object) -> None:
        tried.set()
        raise OSError("gone")

    websocket = WebSocket({"type": "websocket"}, send, send)  # type: ignore[arg-type]  # it is not read
    let_go = close_in_time(worker, 1, websocket)
    worker.orders.adopt({"close_after": 0}, [1])
    with anyio.fail_after(10):
        await tried.wait()
    let_go()
    assert worker.orders._attached == {}


@both
def test_loop_that_has_ended_is_left_alone(anyio_backend: str) -> None:
    """Whoever is told too late has ended already."""

    async def begin() -> Callable[[Callable[[], object]], None]:
        return _spawner()  # type: ignore[return-value]  # it is not called

    spawn = anyio.run(begin, backend=anyio_backend)
    spawn(asyncio.Event)


def test_order_without_a_thread_is_logged(
    orders: CloseOrders,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the system gives no more threads, nothing is closed and nothing fails."""

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError(f"can't start {thread.name}")

    monkeypatch.setattr(threading.Thread, "start", fails)
    orders.adopt({"close_after": 0}, [1])
    assert "long work is not told to end: can't start" in caplog.text
