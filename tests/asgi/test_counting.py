"""What the middleware counts: all that it lets in, once, but nothing exempt."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
    maintenance_exempt,
)
from tests.asgi.support import CopiesScope
from tests.calls import call, handshake
from tests.guard.support import in_flight
from tests.guards import closed, opened
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Holds:
    """Endpoints that wait until they are released."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()

    async def answer_late(self) -> str:
        """Answer when it is released."""
        self.entered.set()
        await self.leave.wait()
        return "late"

    async def stream(self) -> StreamingResponse:
        """Begin to answer at once, and end when it is released."""

        async def parts() -> AsyncIterator[bytes]:
            yield b"begun"
            self.entered.set()
            await self.leave.wait()

        return StreamingResponse(parts())

    async def socket(self, websocket: WebSocket) -> None:
        """Accept, and close when it is released."""
        await websocket.accept()
        self.entered.set()
        await self.leave.wait()
        await websocket.close()

    async def box(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stand for a mounted application."""
        self.entered.set()
        await self.leave.wait()


def counts(guard: MaintenanceGuard) -> tuple[int, int]:
    """Return what the guard's worker counts now, as it is published."""
    worker = guard._switch.worker
    return len(worker.current), len(worker.old)


Made = tuple[FastAPI, MaintenanceGuard, Holds]


def application(way: str, *inside: type, marked: bool) -> Made:
    """Return an application whose endpoints stay."""
    guard = opened()
    holds = Holds()
    guards = [Depends(guard)] if way == "both" else []
    app, sub = FastAPI(dependencies=guards), FastAPI(dependencies=guards)
    add: Callable[[Any], None] = app.add_middleware
    for middleware in inside:
        add(middleware)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    mark = [Depends(maintenance_exempt)] if marked else []
    app.add_api_route("/late", holds.answer_late, dependencies=mark)
    app.add_api_route("/stream", holds.stream, dependencies=mark)
    app.add_api_websocket_route("/socket", holds.socket, dependencies=mark)
    sub.add_api_route("/late", holds.answer_late, dependencies=mark)
    app.mount("/sub", sub)
    app.mount("/box", holds.box)
    return app, guard, holds


@asynccontextmanager
async def running(app: ASGIApp, path: str, holds: Holds) -> AsyncIterator[None]:
    """Run a request until the block ends."""
    visit: Callable[..., Awaitable[object]]
    visit = handshake if path == "/socket" else call
    task = asyncio.ensure_future(visit(app, path))
    try:
        await asyncio.wait_for(holds.entered.wait(), 5)
        yield
        holds.leave.set()
        await task
    finally:
        task.cancel()


LONG = ["/late", "/stream", "/socket", "/sub/late"]


@pytest.mark.parametrize("way", ["middleware", "both"])
@pytest.mark.parametrize("path", [*LONG, "/box/x"])
async def test_a_drain_waits_for_what_the_middleware_admitted(
    path: str, way: str
) -> None:
    """Responses, streams, WebSockets and mounted work hold up a drain, each once."""
    app, guard, holds = application(way, marked=False)
    async with running(app, path, holds):
        assert counts(guard) == (1, 0)
        await guard.enable()
        assert counts(guard) == (0, 1)
        report = await guard.drain(timeout=0.05)
        assert report.outcome == "busy"
    assert (await guard.drain(timeout=5)).drained
    assert counts(guard) == (0, 0)


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    ("way", "inside"),
    [("middleware", ()), ("both", ()), ("both", (CopiesScope,))],
    ids=["the middleware alone", "beside the dependency", "with a copied scope"],
)
async def test_a_drain_does_not_wait_for_what_is_exempt(
    path: str, way: str, inside: tuple[type, ...]
) -> None:
    """Exempt work, long as it may be, holds up no drain and is in no report."""
    app, guard, holds = application(way, *inside, marked=True)
    async with running(app, path, holds):
        assert in_flight(guard) == 0
        await guard.enable()
        assert counts(guard) == (0, 0)
        assert (await guard.drain(timeout=5)).drained


@pytest.mark.parametrize("path", LONG)
async def test_exempt_work_is_sorted_out_when_a_state_is_adopted(path: str) -> None:
    """Before anybody looks at the counts, a new state clears what is exempt."""
    app, guard, holds = application("middleware", marked=True)
    async with running(app, path, holds):
        await guard.enable()
        assert counts(guard) == (0, 0)


async def test_a_hidden_exempt_endpoint_is_waited_for() -> None:
    """Where the endpoint cannot be seen, a drain waits too long, never too short."""
    app, guard, holds = application("middleware", CopiesScope, marked=True)
    async with running(app, "/late", holds):
        await guard.enable()
        assert (await guard.drain(timeout=0.05)).outcome == "busy"
    assert (await guard.drain(timeout=5)).drained


async def test_a_foreseen_route_is_not_believed() -> None:
    """A path that is rewritten behind the middleware to closed work stays counted."""

    class Rewrites:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, "path": "/late"}, receive, send)

    app, guard, holds = application("middleware", Rewrites, marked=False)
    app.add_api_route("/open", maintenance_exempt(_nothing))
    async with running(app, "/open", holds):
        await guard.enable()
        assert (await guard.drain(timeout=0.05)).outcome == "busy"


async def _nothing() -> None: ...


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_a_request_that_sends_others_on_is_counted_by_itself(way: str) -> None:
    """An exempt endpoint that a counted one has called does not end its count."""
    app, guard, holds = application(way, marked=False)
    app.add_api_route("/open", maintenance_exempt(_nothing))

    async def batch(request: Request) -> None:
        scope = {**request.scope, "path": "/open"}
        await call(lambda _, receive, send: app.router(scope, receive, send))
        await holds.answer_late()

    app.add_api_route("/batch", batch)
    async with running(app, "/batch", holds):
        await guard.enable()
        assert counts(guard) == (0, 1)
        assert (await guard.drain(timeout=0.05)).outcome == "busy"
    assert (await guard.drain(timeout=5)).drained


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_an_exempt_request_is_counted_for_what_it_sends_on(way: str) -> None:
    """What an exempt endpoint calls is counted, though it is not itself."""
    app, guard, holds = application(way, marked=False)

    async def batch(request: Request) -> None:
        scope = {**request.scope, "path": "/late"}
        await call(lambda _, receive, send: app(scope, receive, send))

    app.add_api_route("/batch", maintenance_exempt(batch))
    async with running(app, "/batch", holds):
        await guard.enable()
        assert counts(guard) == (0, 1)
    assert (await guard.drain(timeout=5)).drained


@pytest.mark.parametrize(
    "path", ["/marked/late", "/marked/box/x", "/marked/below/late"]
)
async def test_work_of_a_marked_application_is_sorted_out(path: str) -> None:
    """What belongs to a marked application is not counted; what is mounted in it is."""
    guard, holds = opened(), Holds()
    app, marked, below = FastAPI(), FastAPI(), FastAPI()
    marked.add_api_route("/late", holds.answer_late)
    below.add_api_route("/late", holds.answer_late)
    marked.mount("/box", holds.box)
    marked.mount("/below", below)
    app.mount("/marked", maintenance_exempt(marked))
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    async with running(app, path, holds):
        await guard.enable()
        assert counts(guard) == (0, int(path != "/marked/late"))


async def test_a_path_that_is_rewritten_is_known_by_the_dependency() -> None:
    """Behind a rewriting middleware, the dependency tells what is exempt."""

    class Rewrites:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["path"] = "/late"
            await self.app(scope, receive, send)

    for way, counted in (("both", 0), ("middleware", 1)):
        app, guard, holds = application(way, Rewrites, marked=True)
        async with running(app, "/en/late", holds):
            await guard.enable()
            assert counts(guard) == (0, counted)


async def test_a_drain_says_what_it_waits_for() -> None:
    """A counted request is shown by its route, once that is known."""
    app, guard, holds = application("middleware", marked=False)
    async with running(app, "/late", holds):
        report = guard._switch.worker.make_report()
        assert report.current == 1
        assert report.oldest is not None
        assert report.oldest.route == "GET /late"


async def test_what_is_let_in_under_maintenance_is_counted() -> None:
    """A request that a handler exempts is in flight while it runs."""
    guard, holds = closed(exempt_handler=lambda _: True), Holds()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.mount("/box", holds.box)
    async with running(app, "/box/x", holds):
        assert counts(guard) == (1, 0)
    assert counts(guard) == (0, 0)


Connected = tuple[list[Message], asyncio.Future[Any]]


async def connected(app: ASGIApp, holds: Holds) -> Connected:
    """Open a WebSocket that stays; what the client is told is noted."""
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    task: asyncio.Future[Any] = asyncio.ensure_future(
        handshake(app, "/socket", send=send)
    )
    await asyncio.wait_for(holds.entered.wait(), 5)
    return told, task


def closes(told: list[Message]) -> list[int]:
    """Return the codes with which a client was told to close."""
    return [m["code"] for m in told if m["type"] == "websocket.close"]


async def closed_by_a_drain(
    guard: MaintenanceGuard, holds: Holds, open_one: Connected, after: float
) -> None:
    """Wait for a drain that closes a WebSocket with 1012, once."""
    told, task = open_one
    drain = asyncio.ensure_future(guard.drain(timeout=5, close_after=after))
    await eventually(lambda: closes(told) == [1012])
    holds.leave.set()
    with pytest.raises(RuntimeError):
        await task
    assert (await drain).drained
    assert closes(told) == [1012]


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_counted_websockets_are_told_to_close(way: str) -> None:
    """``close_after`` closes what the middleware admitted with 1012."""
    app, guard, holds = application(way, marked=False)
    open_one = await connected(app, holds)
    await guard.enable()
    await closed_by_a_drain(guard, holds, open_one, after=0.01)


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_exempt_websockets_are_told_nothing(way: str) -> None:
    """``close_after`` leaves alone what is exempt."""
    app, guard, holds = application(way, marked=True)
    told, task = await connected(app, holds)
    await guard.enable()
    assert (await guard.drain(timeout=5, close_after=0.01)).drained
    holds.leave.set()
    await task
    assert closes(told) == [1000]


async def test_a_websocket_let_in_under_maintenance_can_be_closed_later() -> None:
    """A WebSocket that a handler exempts is closed by the next drain that says so."""
    guard, holds = closed(exempt_handler=lambda _: True), Holds()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_api_websocket_route("/socket", holds.socket)
    open_one = await connected(app, holds)
    await guard.disable()
    await guard.enable()
    await closed_by_a_drain(guard, holds, open_one, after=0.0)


async def test_a_cancelled_request_gives_its_count_back() -> None:
    """A client that is cut off leaves nothing behind for a drain to wait for."""
    app, guard, holds = application("middleware", marked=False)
    task = asyncio.ensure_future(call(app, "/box/x"))
    await asyncio.wait_for(holds.entered.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await eventually(lambda: in_flight(guard) == 0)


async def test_a_window_that_has_not_begun_refuses_nothing() -> None:
    """A planned state refuses from its start on, by the clock of the worker."""
    guard, holds = MaintenanceGuard(MemoryStore()), Holds()
    holds.leave.set()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_api_route("/late", holds.answer_late)
    start = datetime.now(UTC) + timedelta(hours=1)
    await guard.enable(at=start)
    assert (await call(app, "/late")).status == 200
    guard._switch.clock = lambda: start + timedelta(minutes=1)
    assert (await call(app, "/late")).status == 503
    assert counts(guard) == (0, 0)


async def test_a_request_leaves_no_garbage() -> None:
    """What a request held is free when it ends, without the garbage collector."""

    class Held:
        """Something of an application."""

    async def box(scope: Scope, receive: Receive, send: Send) -> None: ...

    wrapped = opened().wrap(box)
    await call(wrapped)
    held = Held()
    seen = weakref.ref(held)
    gc.disable()
    try:
        await call(wrapped, held=held)
        del held
        assert seen() is None
    finally:
        gc.enable()


async def test_a_thread_of_a_cancelled_request_is_waited_for() -> None:
    """A sync endpoint runs on when its client is gone, and counts under its name."""
    guard, begun, leave = opened(), threading.Event(), threading.Event()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    @app.get("/sync/{number}")
    def sync(number: int) -> None:
        begun.set()
        leave.wait(10)

    waiting = asyncio.ensure_future(call(app, "/sync/1"))
    await eventually(begun.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await guard.enable()
    report = await guard.drain(timeout=0.05)
    assert report.outcome == "busy"
    (worker,) = report.workers
    assert worker.oldest is not None
    assert worker.oldest.route.startswith("GET /sync/{number}")
    leave.set()
    assert (await guard.drain(timeout=5)).drained
