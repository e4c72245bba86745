"""Long work is asked to end when a drain cannot wait for it, and nothing else is."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
)
from fastapi_maintenance.closing import _task_starter, close_websocket
from fastapi_maintenance.worker import Admission, Worker
from tests.guards import guard_of
from tests.waiting import eventually

both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture
def worker() -> Worker:
    """A worker that has joined, under a state that is off."""
    made = Worker("default", "'default' in a test")
    made.start(MaintenanceState(epoch=1), counted=True)
    return made


def admitted(worker: Worker) -> Admission:
    """Return work in flight."""
    admission = worker.admit("work")
    assert admission is not None
    return admission


def close(worker: Worker, after: float | None = 0, epoch: int = 2) -> None:
    """Adopt a state that asks older work to end, and let the keeper look once."""
    worker.adopt(MaintenanceState(epoch=epoch, enabled=True, close_after=after))
    worker.close_due()


def close_of(guard: MaintenanceGuard) -> None:
    """Do the same for the worker of a guard."""
    close(guard._switch.worker, epoch=guard.state.epoch + 1)


def test_older_work_alone_is_asked_to_end(worker: Worker) -> None:
    """What was admitted since, or has ended, is not meant."""
    told: list[str] = []
    old, ended = admitted(worker), admitted(worker)
    old.on_close(lambda: told.append("old"))
    ended.on_close(lambda: told.append("ended"))
    ended.release()
    worker.adopt(MaintenanceState(epoch=2, enabled=True, close_after=0))
    new = admitted(worker)
    new.on_close(lambda: told.append("new"))
    worker.close_due()
    worker.close_due()
    assert told == ["old"]
    assert (old.closing, ended.closing, new.closing) == (True, False, False)


def test_work_that_asks_late_is_told_at_once(worker: Worker) -> None:
    """What begins to listen after the time has come does not miss it."""
    admission = admitted(worker)
    close(worker)
    told: list[str] = []
    admission.on_close(lambda: told.append("at once"))
    admission.close()
    assert told == ["at once"]


def test_work_that_no_longer_listens_is_not_told(worker: Worker) -> None:
    """Taking a callback back leaves the others, and is harmless twice."""
    admission, told = admitted(worker), []
    take_back = admission.on_close(lambda: told.append("first"))
    admission.on_close(lambda: told.append("second"))
    take_back()
    take_back()
    close(worker)
    assert told == ["second"]


def test_nothing_is_asked_before_its_time(worker: Worker) -> None:
    """The keeper looks at the deadline, and an earlier look does nothing."""
    admission = admitted(worker)
    close(worker, after=3_600)
    assert worker.is_draining
    assert not admission.closing


def test_switching_off_takes_it_back(worker: Worker) -> None:
    """Work from before goes on if the service is open again by then."""
    admission = admitted(worker)
    worker.adopt(MaintenanceState(epoch=2, enabled=True, close_after=0))
    worker.adopt(MaintenanceState(epoch=3, close_after=0))
    worker.close_due()
    assert not admission.closing


def test_work_that_was_decided_again_is_not_older(worker: Worker) -> None:
    """Work that was admitted under the present state goes on."""
    admission = admitted(worker)
    worker.adopt(MaintenanceState(epoch=2, enabled=True, close_after=0))
    assert worker.readmit(admission)
    worker.close_due()
    assert not admission.closing


def test_work_that_cannot_be_told_costs_a_line(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that fails is logged, and the rest is told."""
    told: list[str] = []

    def fails() -> None:
        raise ConnectionError

    admitted(worker).on_close(fails)
    admitted(worker).on_close(lambda: told.append("second"))
    close(worker)
    assert told == ["second"]
    assert "could not be asked to end" in caplog.text


@both
@pytest.mark.anyio
async def test_closing_wakes_the_work_that_waits() -> None:
    """It is told on any event loop, from any thread, and its threads see it too."""
    guard = MaintenanceGuard(MemoryStore())
    with guard.admit():
        assert not guard.closing.is_set()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(guard.closing.wait)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(close_of, guard)
        assert guard.closing.is_set()
        assert await anyio.to_thread.run_sync(guard.closing.is_set)


@both
@pytest.mark.anyio
async def test_work_that_stops_waiting_is_forgotten() -> None:
    """A wait that is cancelled leaves nothing behind that would be called."""
    guard = MaintenanceGuard(MemoryStore())
    with guard.admit():
        with anyio.move_on_after(0.01) as scope:
            await guard.closing.wait()
        assert scope.cancelled_caught
        (admission,) = guard._switch.worker.current
        assert admission._closers == []


@both
@pytest.mark.anyio
async def test_closing_is_never_set_for_what_is_not_counted() -> None:
    """An exempt stream may wait, and is never asked to end."""
    guard = MaintenanceGuard(MemoryStore())
    assert not guard.closing.is_set()
    with anyio.move_on_after(0.02) as scope:
        await guard.closing.wait()
    assert scope.cancelled_caught


def test_closing_of_another_guard_is_not_ours() -> None:
    """Each guard speaks for its own switch."""
    outer, inner = MaintenanceGuard(MemoryStore()), MaintenanceGuard(MemoryStore())
    with outer.admit(), inner.admit():
        close_of(outer)
        assert outer.closing.is_set()
        assert not inner.closing.is_set()


@pytest.mark.anyio
async def test_drain_with_close_after_ends_what_asks() -> None:
    """The deadline travels with the state, and the drain ends when the work has."""
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
        assert report.seconds >= 0.05
        await ended.wait()


@pytest.mark.anyio
async def test_keeper_asks_when_the_time_has_come(tmp_path: Path) -> None:
    """On a shared store, the keeper of each worker watches the deadline."""
    guard = guard_of(FileStore(tmp_path))
    async with guard.lifespan(), anyio.create_task_group() as group:

        async def work() -> None:
            async with guard.admit():
                await guard.closing.wait()

        group.start_soon(work)
        await anyio.wait_all_tasks_blocked()
        await guard.enable()
        assert (await guard.drain(timeout=10, close_after=0.05)).drained


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
        close_of(guard)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == 1012


@both
@pytest.mark.anyio
async def test_websocket_that_has_ended_is_left_alone(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing what is closed already is not an error, and a line for debugging."""
    caplog.set_level("DEBUG", "fastapi_maintenance")

    async def send(_: object) -> None:
        raise OSError("gone")

    websocket = WebSocket({"type": "websocket"}, send, send)  # type: ignore[arg-type]  # it is not read
    with admitted(worker) as admission:
        close_websocket(admission, websocket)
        close(worker)
        await eventually(lambda: "had ended before it was closed" in caplog.text)


@both
def test_loop_that_has_ended_is_left_alone(anyio_backend: str) -> None:
    """Work of an event loop that has ended is not told, and nothing fails."""

    async def begin() -> Callable[[Callable[[], Any]], None]:  # as it is typed there
        return _task_starter()

    start = anyio.run(begin, backend=anyio_backend)
    start(asyncio.Event)


def test_deadline_needs_no_thread(worker: Worker) -> None:
    """However many deadlines are set, no thread waits for them."""
    before = threading.active_count()
    with admitted(worker):
        for epoch in range(2, 50):
            close(worker, after=3_600, epoch=epoch)
    assert threading.active_count() == before
