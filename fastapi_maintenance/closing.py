"""The end of long connections: WebSockets are closed, streams can ask and wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from .log import logger
from .worker import Admission, Worker

SERVICE_RESTART: Final = 1012
"""The code that tells a client of a WebSocket to connect again later."""


class Closing:
    """Whether the calling work is to end, as ``drain(close_after=...)`` asks.

    Any task or thread of a request, stream, WebSocket or ``guard.admit()`` block can
    ask. It is never set for work that is not counted, nor for work that was let in
    under maintenance.

    Examples:
        >>> async def ticks(guard):
        ...     while not guard.closing.is_set():
        ...         yield "tick"
        ...         with anyio.move_on_after(1):
        ...             await guard.closing.wait()
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def is_set(self) -> bool:
        """Tell whether the calling work is to end."""
        admission = self._own()
        return admission is not None and admission.closing

    async def wait(self) -> None:
        """Wait until the calling work is to end; forever if it never is."""
        admission = self._own()
        if admission is None:
            await anyio.sleep_forever()
        else:
            await _wait_for_close(admission)

    def _own(self) -> Admission | None:
        return self._worker.own_admission()


async def _wait_for_close(admission: Admission) -> None:
    event = anyio.Event()
    start = _task_starter()

    async def wake() -> None:  # anyio.Event is not thread-safe.
        event.set()

    stop_listening = admission.on_close(lambda: start(wake))
    try:
        await event.wait()
    finally:
        stop_listening()


def close_websocket(admission: Admission, websocket: WebSocket) -> None:
    """Close a counted WebSocket with 1012 when it is asked to end."""
    start = _task_starter()

    async def close() -> None:
        try:
            await websocket.close(SERVICE_RESTART, "maintenance")
        except (RuntimeError, OSError, WebSocketDisconnect) as error:
            logger.debug("a WebSocket had ended before it was closed: %s", error)

    admission.on_close(lambda: start(close))


def _task_starter() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Return a function that starts a task in this event loop, from any thread."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_task_starter()
    tasks: set[asyncio.Task[None]] = set()  # The loop holds no references to tasks.

    def create_task(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = loop.create_task(work())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def start(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(create_task, work)

    return start


def _trio_task_starter() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    import trio  # noqa: PLC0415  # its loop is running, so it is installed

    token = trio.lowlevel.current_trio_token()

    def start(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.spawn_system_task, work)

    return start
