"""The end of long connections: WebSockets are closed, streams can ask and wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
from starlette.websockets import WebSocket

from .stores._admission import Admission, held
from .stores._worker import Worker

logger: logging.Logger = logging.getLogger("fastapi_maintenance")

SERVICE_RESTART: Final = 1012
"""The code that tells a client of a WebSocket to connect again later."""


class Closing:
    """Whether the calling work is to end, as ``drain(close_after=...)`` asked.

    It speaks for the request, stream, WebSocket or ``guard.admit()`` block that asks,
    from any of its tasks and threads. It is never set for what is not counted, nor
    for what was let in under maintenance.

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
        admission = self._mine()
        return admission is not None and self._worker.orders.is_due(admission.number)

    async def wait(self) -> None:
        """Wait until the calling work is to end; for ever where it never is."""
        admission = self._mine()
        # No admission has the number 0: what is not counted waits for ever.
        number = 0 if admission is None else admission.number
        event = anyio.Event()
        spawn = _spawner()

        async def wake() -> None:  # Events are not for threads.
            event.set()

        def tell() -> None:
            spawn(wake)

        orders = self._worker.orders
        orders.attach(number, tell)
        try:
            await event.wait()
        finally:
            orders.detach(number, tell)

    def _mine(self) -> Admission | None:
        return next((a for a in held() if a.worker is self._worker), None)


def close_in_time(
    worker: Worker, number: int, websocket: WebSocket
) -> Callable[[], None]:
    """Close a counted WebSocket with 1012 when it is told to.

    Returns:
        What lets go of it; call it when the connection has ended.
    """
    spawn = _spawner()

    async def close() -> None:
        # It may be closing, closed or gone: then it has what it needs.
        try:
            await websocket.close(SERVICE_RESTART, "maintenance")
        except (RuntimeError, OSError) as error:
            logger.debug("a WebSocket had ended before it was closed: %s", error)

    def tell() -> None:
        spawn(close)

    worker.orders.attach(number, tell)
    return lambda: worker.orders.detach(number, tell)


def _spawner() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Return what starts a task of the running event loop from any thread."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_spawner()
    tasks: set[asyncio.Task[None]] = set()  # The loop itself holds none of them.

    def spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def start() -> None:
            task = loop.create_task(work())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        with contextlib.suppress(RuntimeError):  # The loop is closed: all has ended.
            loop.call_soon_threadsafe(start)

    return spawn


def _trio_spawner() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    import trio  # noqa: PLC0415  # who runs on it has it

    token = trio.lowlevel.current_trio_token()

    def spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.spawn_system_task, work)

    return spawn
