"""The application under attack: slow work of every kind, each in a span of its own.

Spans are written where the work is done, and around the whole application: they see
what the guard does not. One line for each edge, on the machine's monotonic clock.
"""

import asyncio
import ctypes
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse, StreamingResponse

from fastapi_maintenance import MaintenanceGuard, maintenance_exempt

Message = MutableMapping[str, Any]  # as Starlette spells it
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FOLDER = Path(os.environ["CHAOS_LOG"])
SKEW = timedelta(seconds=float(os.environ.get("CHAOS_SKEW", "0")))
_numbers = itertools.count(1)


def note(number: int, edge: str, what: str) -> None:
    """Write one edge of a span: a whole line, even if the process is killed."""
    pid = os.getpid()
    line = f"{time.monotonic_ns()} {pid} {number} {edge} {what}\n"
    descriptor = os.open(FOLDER / f"{pid}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@contextmanager
def span(what: str) -> Iterator[None]:
    """Record a span of counted work."""
    number = next(_numbers)
    note(number, "begin", what)
    try:
        yield
    finally:
        note(number, "end", what)


class ShopError(Exception):
    """An error that an exception handler answers slowly."""


guard = MaintenanceGuard()
guard._switch.clock = lambda: datetime.now(UTC) + SKEW


async def session(connection: HTTPConnection) -> AsyncIterator[None]:
    """Commit after the response, like a dependency that is listed before the guard."""
    yield
    if connection.scope.get("commits"):
        with span("commit"):
            await asyncio.sleep(0.1)


app = FastAPI(
    dependencies=[Depends(session), Depends(guard)],
    lifespan=None if os.environ.get("CHAOS_LIFESPAN") == "0" else guard.lifespan,
)


@app.exception_handler(ShopError)
async def answer(_: Request, __: ShopError) -> JSONResponse:
    """Answer slowly."""
    with span("handler"):
        await asyncio.sleep(0.1)
    return JSONResponse({"failed": True}, status_code=418)


@app.get("/health")
@maintenance_exempt
async def health() -> int:
    """Return the id of the process."""
    return os.getpid()


@app.get("/fast")
async def fast() -> None:
    """Do nothing, in a span."""
    with span("fast"):
        pass


@app.get("/slow")
async def slow(seconds: float = 0.3) -> None:
    """Wait in the event loop."""
    with span("slow"):
        await asyncio.sleep(seconds)


@app.get("/sync")
def sync(seconds: float = 0.2) -> None:
    """Work in a thread."""
    with span("sync"):
        time.sleep(seconds)


@app.get("/stream")
async def stream(chunks: int = 8) -> StreamingResponse:
    """Send slowly."""

    async def content() -> AsyncIterator[bytes]:
        with span("stream"):
            for _ in range(chunks):
                yield b"x" * 100
                await asyncio.sleep(0.05)

    return StreamingResponse(content())


@app.get("/events")
async def events() -> StreamingResponse:
    """Send until the drain closes long-lived connections."""

    async def content() -> AsyncIterator[bytes]:
        with span("events"):
            yield b"first,"
            await guard.closing.wait()
            yield b"last" if guard.closing.is_set() else b"strange"

    return StreamingResponse(content())


@app.get("/background")
async def background(tasks: BackgroundTasks) -> None:
    """Work after the response, in the loop and in a thread."""

    async def first() -> None:
        with span("task"):
            await asyncio.sleep(0.1)

    def second() -> None:
        with span("thread task"):
            time.sleep(0.1)

    tasks.add_task(first)
    tasks.add_task(second)


@app.get("/commit")
async def commit(request: Request) -> None:
    """Have the dependency commit after the response."""
    request.scope["commits"] = True


@app.get("/fails")
async def fails() -> None:
    """Have an exception handler answer."""
    raise ShopError


@app.get("/blocks")
async def blocks(seconds: float = 0.2) -> None:
    """Block the event loop."""
    with span("blocks"):
        time.sleep(seconds)  # noqa: ASYNC251  # what must not be done is done


@app.get("/interpreter")
async def interpreter(seconds: float = 5) -> None:
    """Hold the interpreter's lock: no other thread runs."""
    with span("interpreter"):
        ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


@app.get("/cancelled")
def cancelled(seconds: float = 1.5) -> None:
    """Keep working in a thread after the request was cancelled from outside."""
    with span("cancelled"):
        time.sleep(seconds)


@app.get("/child")
@maintenance_exempt
def child() -> int:
    """Leave behind a child process that outlives this one."""
    pid = os.fork()
    if not pid:
        time.sleep(20)
        os._exit(0)
    return pid


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    """Echo for as long as the client stays."""
    await websocket.accept()
    with span("socket"):
        async for text in websocket.iter_text():
            await websocket.send_text(text)


class Bracket:
    """Wraps the application, and records a span for each admitted request."""

    def __init__(self, inner: App) -> None:
        self.inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Record each response that is not a refusal, until its last byte is sent."""
        if scope["type"] != "http" or scope["path"] in {"/health", "/child"}:
            await self.inner(scope, receive, send)
            return
        number = next(_numbers)
        admitted = False

        async def sending(message: Message) -> None:
            nonlocal admitted
            if message["type"] == "http.response.start":
                admitted = message["status"] != 503
                if admitted:
                    note(number, "begin", f"response {scope['path']}")
            elif admitted:
                note(number, "end", f"response {scope['path']}")
            await send(message)

        if scope["path"] == "/cancelled":
            await asyncio.wait_for(self.inner(scope, receive, sending), 0.3)
        else:
            await self.inner(scope, receive, sending)


shop = Bracket(app)

if "CHAOS_USER" in os.environ:
    # After all imports: that user may not be able to read the files.
    "shop".encode("idna")
    os.setgroups([])
    os.setgid(int(os.environ["CHAOS_USER"]))
    os.setuid(int(os.environ["CHAOS_USER"]))
