"""What is in flight, and until when."""

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_maintenance import MaintenanceGuard
from tests.calls import Message, call
from tests.guard.support import Ran, both, emptied, in_flight
from tests.guards import opened
from tests.waiting import PATIENCE, Work


class Counted(list[tuple[str, int]]):
    """What was in flight at places of a request."""

    def __init__(self, guard: MaintenanceGuard) -> None:
        super().__init__()
        self.guard = guard

    def note(self, place: str) -> None:
        """Note what is in flight now."""
        self.append((place, in_flight(self.guard)))


def counting() -> tuple[FastAPI, MaintenanceGuard, Counted]:
    """Return an open application and what notes its counts."""
    guard = opened()
    return FastAPI(dependencies=[Depends(guard)]), guard, Counted(guard)


def test_request_is_in_flight_until_its_background_tasks_end() -> None:
    """Response, stream and background tasks, sync ones too, belong to the request."""
    app, guard, counted = counting()

    @app.get("/target")
    async def target(tasks: BackgroundTasks) -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            counted.note("stream")
            yield "a"
            counted.note("stream")
            yield "b"

        async def later() -> None:
            counted.note("background")

        def later_in_a_thread() -> None:
            counted.note("background thread")

        tasks.add_task(later)
        tasks.add_task(later_in_a_thread)
        counted.note("endpoint")
        return StreamingResponse(stream(), background=tasks)

    assert TestClient(app).get("/target").text == "ab"
    assert counted == [
        ("endpoint", 1),
        ("stream", 1),
        ("stream", 1),
        ("background", 1),
        ("background thread", 1),
    ]
    assert in_flight(guard) == 0


def test_request_is_in_flight_until_earlier_dependencies_commit() -> None:
    """Dependencies that were opened before the guard end within the count."""
    guard = opened()
    counted = Counted(guard)

    async def session() -> AsyncIterator[None]:
        counted.note("open")
        yield
        counted.note("commit")

    def sync_session() -> Iterator[None]:
        yield
        counted.note("sync commit")

    app = FastAPI(
        dependencies=[Depends(session), Depends(sync_session), Depends(guard)]
    )
    both(app, Ran())
    assert TestClient(app).get("/target").status_code == 200
    assert counted == [("open", 0), ("sync commit", 1), ("commit", 1)]
    assert in_flight(guard) == 0


@pytest.mark.parametrize("error", [HTTPException(418), ValueError("own")])
def test_request_is_in_flight_until_its_exception_handler_ends(
    error: Exception,
) -> None:
    """An exception handler of the application runs within the count."""
    app, guard, counted = counting()

    @app.get("/target")
    async def target() -> None:
        raise error

    async def handler(_: Request, error: Exception) -> Response:
        counted.note("handler")
        return JSONResponse({}, 418)

    app.add_exception_handler(type(error), handler)
    assert TestClient(app).get("/target").status_code == 418
    assert counted == [("handler", 1)]
    assert in_flight(guard) == 0


def test_websocket_is_in_flight_until_it_ends() -> None:
    """A WebSocket is one request for as long as it is open."""
    app, guard, counted = counting()

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        counted.note("message")
        await websocket.close()

    with TestClient(app).websocket_connect("/socket") as session:
        assert in_flight(guard) == 1
        session.send_text("go")
        assert session.receive()["type"] == "websocket.close"
    assert (counted, in_flight(guard)) == ([("message", 1)], 0)


def endpoint_raises(app: FastAPI) -> None:
    @app.get("/target")
    async def target() -> None:
        raise ValueError("broken")


def dependency_raises(app: FastAPI) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(broken)])


def dependency_raises_while_closing(app: FastAPI) -> None:
    async def broken() -> AsyncIterator[None]:
        yield
        raise ValueError("broken")

    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(broken)])


def stream_raises(app: FastAPI) -> None:
    @app.get("/target")
    async def target() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            yield "a"
            raise ValueError("broken")

        return StreamingResponse(stream())


def background_task_raises(app: FastAPI) -> None:
    @app.get("/target")
    async def target(tasks: BackgroundTasks) -> None:
        def broken() -> None:
            raise ValueError("broken")

        tasks.add_task(broken)


def response_is_invalid(app: FastAPI) -> None:
    @app.get("/target", response_model=int)
    async def target() -> str:
        return "no number"


def parameters_are_invalid(app: FastAPI) -> None:
    @app.get("/target")
    async def target(needed: int) -> int:
        raise AssertionError


@pytest.mark.parametrize(
    "add",
    [
        endpoint_raises,
        dependency_raises,
        dependency_raises_while_closing,
        stream_raises,
        background_task_raises,
        response_is_invalid,
        parameters_are_invalid,
    ],
)
def test_failures_give_the_count_back(add: Callable[[FastAPI], None]) -> None:
    """However a request fails, its count is given back at once."""
    app, guard, _ = counting()
    add(app)
    client = TestClient(app, raise_server_exceptions=False)
    gc.disable()
    try:
        client.get("/target")
        assert in_flight(guard) == 0
    finally:
        gc.enable()


async def test_client_that_leaves_a_stream_gives_the_count_back() -> None:
    """A stream whose client has gone ends, and is not in flight then."""
    app, guard, counted = counting()

    @app.get("/target")
    async def target() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            while True:
                counted.note("stream")
                yield "x"
                await asyncio.sleep(0.001)

        return StreamingResponse(stream())

    await call(app, "/target", leaves=True)
    await emptied(guard)
    assert {count for _, count in counted} <= {1}


async def test_client_that_cannot_be_written_to_gives_the_count_back() -> None:
    """A server that fails to send ends the request, and its count."""
    app, guard, _ = counting()
    both(app, Ran())

    async def broken(_: Message) -> None:
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        await call(app, "/target", send=broken)
    assert in_flight(guard) == 0


class Limit:
    """A middleware that ends requests the way asyncio does, after an event."""

    def __init__(self, app: ASGIApp, begun: threading.Event) -> None:
        self.app = app
        self.begun = begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self.app(scope, receive, send))
        while not self.begun.is_set() and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Retrieved, as a server does.


async def test_cancelled_async_request_gives_the_count_back() -> None:
    """An async request that is cancelled is not in flight any more."""
    app, guard, counted = counting()
    begun = threading.Event()

    @app.get("/target")
    async def target() -> None:
        counted.note("endpoint")
        begun.set()
        await asyncio.Event().wait()

    app.add_middleware(Limit, begun=begun)
    gc.disable()
    try:
        await call(app, "/target")
        await guard.enable()
        assert counted == [("endpoint", 1)]
        await emptied(guard)
    finally:
        gc.enable()


def in_endpoint(app: FastAPI, work: Work) -> None:
    @app.get("/target")
    def target() -> None:
        work.run()


def in_dependency(app: FastAPI, work: Work) -> None:
    def dependency() -> None:
        work.run()

    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(dependency)])


def in_leaving_a_dependency(app: FastAPI, work: Work) -> None:
    def dependency() -> Iterator[None]:
        yield
        work.run()

    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(dependency)])


def in_background_task(app: FastAPI, work: Work) -> None:
    @app.get("/target")
    async def target(tasks: BackgroundTasks) -> None:
        tasks.add_task(work.run)


def in_thread_of_asyncio(app: FastAPI, work: Work) -> None:
    @app.get("/target")
    async def target() -> None:
        await asyncio.to_thread(work.run)


def in_thread_of_anyio(app: FastAPI, work: Work) -> None:
    @app.get("/target")
    async def target() -> None:
        await anyio.to_thread.run_sync(work.run, abandon_on_cancel=True)


def in_thread_of_starlette(app: FastAPI, work: Work) -> None:
    @app.get("/target")
    async def target() -> None:
        await run_in_threadpool(work.run)


THREADS = pytest.mark.parametrize(
    "add",
    [
        in_endpoint,
        in_dependency,
        in_leaving_a_dependency,
        in_background_task,
        in_thread_of_asyncio,
        in_thread_of_anyio,
        in_thread_of_starlette,
    ],
)


@THREADS
@pytest.mark.parametrize("translated", [False, True])
async def test_cancelled_request_is_in_flight_until_its_threads_end(
    add: Callable[[FastAPI, Work], None], translated: bool
) -> None:
    """A request that was cancelled natively counts while a thread works for it."""
    app, guard, _ = counting()
    work = Work()
    if translated:
        # A middleware or dependency may turn the cancellation into its own error.
        app = FastAPI(dependencies=[Depends(translating), Depends(guard)])
    add(app, work)
    app.add_middleware(Limit, begun=work.begun)
    gc.disable()
    try:
        await call(app, "/target")
        await guard.enable()
        report = await guard.drain(timeout=0.05)
        assert report.outcome == "busy"
        assert report.workers[0].old == 1
        work.released.set()
        assert (await guard.drain(timeout=PATIENCE)).drained
        assert work.ended.is_set()
    finally:
        work.released.set()
        gc.enable()


async def translating() -> AsyncIterator[None]:
    """Turn a cancellation into an answer, as time limits in dependencies do."""
    try:
        yield
    except asyncio.CancelledError as error:
        raise HTTPException(504) from error


async def test_time_limit_inside_a_request_is_no_cancellation_of_it() -> None:
    """A request that answers after a time limit of its own is over with its answer."""
    app, guard, counted = counting()

    @app.get("/target")
    async def target() -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError as error:
            counted.note("late")
            raise HTTPException(504) from error

    # A task of its own: what is thrown into this one, coverage loses.
    answer = await call(app, "/target")
    assert (answer.status, counted) == (504, [("late", 1)])
    await emptied(guard)


async def test_cancel_scopes_of_middlewares_wait_for_threads() -> None:
    """BaseHTTPMiddleware, which runs requests in tasks of its own, changes nothing."""
    app, guard, counted = counting()

    @app.get("/target")
    def target() -> str:
        counted.note("endpoint")
        return "served"

    async def passing(
        request: Request, following: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await following(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    answer = await call(app, "/target")
    assert (answer.status, counted) == (200, [("endpoint", 1)])
    await emptied(guard)


async def test_parallel_requests_are_counted_each() -> None:
    """As many requests are in flight as are running."""
    app, guard, _ = counting()
    gate, arrived = asyncio.Event(), asyncio.Semaphore(0)

    @app.get("/target")
    async def target() -> None:
        arrived.release()
        await gate.wait()

    requests = [asyncio.ensure_future(call(app, "/target")) for _ in range(20)]
    for _ in requests:
        await arrived.acquire()
    assert in_flight(guard) == 20
    gate.set()
    answers = await asyncio.gather(*requests)
    assert {answer.status for answer in answers} == {200}
    assert in_flight(guard) == 0


async def test_requests_of_an_older_epoch_are_told_apart() -> None:
    """Requests that were admitted before a switch are counted as old after it."""
    app, guard, _ = counting()
    gate, arrived = asyncio.Event(), asyncio.Event()

    @app.get("/target")
    async def target() -> None:
        arrived.set()
        await gate.wait()

    request = asyncio.ensure_future(call(app, "/target"))
    await arrived.wait()
    await guard.enable()
    worker = guard._switch.worker
    assert (len(worker.current), len(worker.old)) == (0, 1)
    assert (await call(app, "/target")).status == 503
    assert (len(worker.current), len(worker.old)) == (0, 1)
    gate.set()
    assert (await request).status == 200
    assert in_flight(guard) == 0


async def test_drain_waits_for_a_request_whose_context_it_has() -> None:
    """A later request or a task in the context of a request is not that request.

    Servers start pipelined requests in the context of the one before.
    """
    guard = opened()
    app = FastAPI(dependencies=[Depends(guard)])
    contexts: list[contextvars.Context] = []
    begun, leave = asyncio.Event(), asyncio.Event()

    @app.get("/long")
    async def long() -> None:
        contexts.append(contextvars.copy_context())
        begun.set()
        await leave.wait()

    @app.get("/own")
    async def own() -> bool:
        await guard.enable()
        return (await guard.drain(timeout=0)).drained

    first = asyncio.ensure_future(call(app, "/long"))
    await begun.wait()
    await guard.enable()
    drain = asyncio.create_task(guard.drain(timeout=0), context=contexts[0])
    assert (await drain).outcome == "busy"
    leave.set()
    await first
    await guard.disable()
    assert (await call(app, "/own")).body == b"true"


async def test_work_in_a_generator_ends_with_it() -> None:
    """A generator that is closed from elsewhere gives its count back."""
    guard = opened()

    async def jobs() -> AsyncIterator[int]:
        with guard.admit():
            yield 1

    generator = jobs()
    assert await anext(generator) == 1
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]  # it is a generator
    assert in_flight(guard) == 0


async def test_drain_shows_the_oldest_route() -> None:
    """A drain names the route template of what it waits for, not a client's text."""
    app, guard, _ = counting()
    gate, arrived = asyncio.Event(), asyncio.Event()

    @app.get("/shops/{shop}")
    async def target(shop: str) -> None:
        arrived.set()
        await gate.wait()

    request = asyncio.ensure_future(call(app, "/shops/x"))
    await arrived.wait()
    await guard.enable()
    report = await guard.drain(timeout=0)
    (worker,) = report.workers
    assert report.outcome == "busy"
    assert worker.oldest is not None
    assert worker.oldest.route == "GET /shops/{shop}"
    gate.set()
    await request
    assert (await guard.drain(timeout=5)).drained


async def test_drain_inside_a_counted_request_leaves_it_out() -> None:
    """A request that drains does not wait for itself."""
    app, guard, _ = counting()
    outcomes: list[str] = []

    @app.post("/migrate")
    async def migrate() -> None:
        async with guard.maintenance(drain_timeout=5) as report:
            outcomes.append(report.outcome)

    answer = await call(app, "/migrate", method="POST")
    assert (answer.status, outcomes) == (200, ["drained"])
    assert not guard.is_active
    assert in_flight(guard) == 0


def test_sync_endpoint_is_in_flight_in_its_thread() -> None:
    """A sync endpoint is counted while it runs, and may look at the count."""
    app, guard, counted = counting()

    @app.get("/target")
    def target() -> None:
        counted.note("endpoint")

    TestClient(app).get("/target")
    assert (counted, in_flight(guard)) == ([("endpoint", 1)], 0)
