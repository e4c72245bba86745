"""Running exempt handlers: only ``True`` exempts, and no failure reaches a client."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NoReturn, Protocol

import anyio
import anyio.to_thread
from fastapi.params import Depends
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection

from ._fastapi import InvalidParametersError, LazyDependency, preserve_exit_stacks
from .checks import seconds
from .exemptions import ReadyMade
from .limiters import limiter
from .log import logger
from .worker import not_working_for_a_request

ExemptHandler = Callable[..., object]
"""Called with the connection, a ``Request`` or a ``WebSocket``; ``True`` exempts.

It may be sync or async. Users annotate its one parameter as they like, so ``...``.
"""

ExemptHandlers = ExemptHandler | Depends | Sequence[ExemptHandler | Depends] | None

THREADS: Final = 16
"""How many sync handlers run at once; endpoints have a pool of their own."""


def handler_limiter() -> anyio.CapacityLimiter:
    """Return the limiter of the threads in which sync handlers run."""
    return limiter("handlers", THREADS)


NO_BODY: Final = "fastapi_maintenance.no_body"


class NoBody:
    """``receive`` and ``send`` of a connection whose body has not arrived yet.

    It is in the scope as ``NO_BODY``.

    Attributes:
        was_read: Whether the present handler wanted the body, and so does not exempt.
    """

    def __init__(self) -> None:
        self.was_read: bool = False

    async def __call__(self, _message: object = None) -> NoReturn:
        """Refuse to be read."""
        self.was_read = True
        raise RuntimeError(
            "the middleware and wrap decide before the body arrives: exempt handlers"
            " can use headers, cookies, the query and the path"
        )


class HandlerChain:
    """The exempt handlers of a guard: ready-made ones first, then in their order."""

    def __init__(self, handlers: ExemptHandlers, timeout: float) -> None:
        if not seconds(timeout, "handler_timeout"):
            raise ValueError(f"handler_timeout must be positive, not {timeout!r}")
        if handlers is None:
            listed: Sequence[ExemptHandler | Depends] = ()
        elif isinstance(handlers, Depends) or callable(handlers):
            listed = (handlers,)
        else:
            given: object = handlers
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise TypeError(f"exempt_handler must be callable, not {handlers!r}")
            listed = tuple(given)
        # Ready-made ones cost nothing, and must not wait for others that hang.
        ordered = sorted(listed, key=lambda one: not isinstance(one, ReadyMade))
        self._handlers = [_Handler(handler, timeout) for handler in ordered]

    @property
    def has_handlers(self) -> bool:
        """Whether there is any handler to ask."""
        return bool(self._handlers)

    async def exempts(self, connection: HTTPConnection) -> bool:
        """Ask one handler after the other, until one says ``True``."""
        for handler in self._handlers:
            if await handler.exempts(connection):
                return True
        return False


class _Call(Protocol):
    async def __call__(self, connection: HTTPConnection) -> object: ...


class _Handler:
    def __init__(self, handler: ExemptHandler | Depends, timeout: float) -> None:
        self._timeout = timeout
        self._failing = False
        self._call: _Call
        if isinstance(handler, Depends):
            self._call = LazyDependency(handler)
            self._name = callable_name(self._call.call)
        else:
            _check_signature(handler)
            self._name = callable_name(handler)
            self._call = _PlainHandler(handler)

    async def exempts(self, connection: HTTPConnection) -> bool:
        no_body: NoBody | None = connection.scope.get(NO_BODY)
        if no_body is not None:
            no_body.was_read = False
        try:
            # Else a drain would wait for a thread that hangs.
            with preserve_exit_stacks(connection.scope), not_working_for_a_request():
                answer = await _within(self._timeout, self._call(connection))
        except (HTTPException, WebSocketException, InvalidParametersError):
            # This is how a dependency refuses an anonymous client; it is no failure.
            self._note(None)
            return False
        except Exception as error:  # noqa: BLE001  # it does not exempt
            self._note(error)
            return False
        if answer is not None and not isinstance(answer, bool):
            kind = type(answer).__name__
            self._note(TypeError(f"returned {kind}, not a bool; only True exempts"))
            return False
        if no_body is not None and no_body.was_read:
            self._note(RuntimeError("wanted a body that has not arrived yet"))
            return False
        self._note(None)
        return answer is True

    def _note(self, error: Exception | None) -> None:
        failing = error is not None
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            logger.error(
                "exempt handler %s fails and does not exempt",
                self._name,
                exc_info=error,
            )
        else:
            logger.info("exempt handler %s works again", self._name)


class _PlainHandler:
    """Calls a plain handler; a sync one in a thread, with a limit of its own."""

    def __init__(self, handler: ExemptHandler) -> None:
        self._handler = handler
        # This decides only where it is called. What it returns is awaited if it can be.
        self._runs_in_loop = isinstance(handler, ReadyMade) or looks_async(handler)
        self._running = threading.Semaphore(THREADS)

    async def __call__(self, connection: HTTPConnection) -> object:
        if self._runs_in_loop:
            answer = self._handler(connection)
        else:
            (answer,) = await anyio.to_thread.run_sync(
                self._in_thread,
                connection,
                abandon_on_cancel=True,
                limiter=handler_limiter(),
            )
        return await answer if inspect.isawaitable(answer) else answer

    def _in_thread(self, connection: HTTPConnection) -> tuple[object]:
        # An abandoned thread gives its place in the limiter back but goes on. Without
        # this, every request could leave one more hanging.
        if not self._running.acquire(blocking=False):
            raise TimeoutError(f"{THREADS} earlier calls are still running")
        try:
            # Wrapped: Trio takes a coroutine that leaves a thread for a mistake.
            return (self._handler(connection),)
        finally:
            self._running.release()


async def _within(seconds: float, work: Awaitable[object]) -> object:
    try:
        asyncio.get_running_loop()
        on_asyncio = True
    except RuntimeError:
        on_asyncio = False
    if not on_asyncio:
        with anyio.fail_after(seconds):
            return await work
    # A thread that a dependency waits for cannot be cancelled. With a cancel scope in
    # this task, the client would wait for it. So it has a task of its own.
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError(f"no answer within {seconds:g} s")
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_forget)
    if task.cancelled():
        # What it awaited was cancelled; this request was not.
        raise RuntimeError("it was cancelled")
    return task.result()


def _forget(task: "asyncio.Future[object]") -> None:
    if not task.cancelled():
        task.exception()


def looks_async(handler: ExemptHandler) -> bool:
    """Tell whether a callable is called in the event loop."""
    unwrapped: object = handler
    # By type: an object that has every attribute would be unwrapped forever.
    while isinstance(unwrapped, functools.partial):
        unwrapped = unwrapped.func
    return inspect.iscoroutinefunction(unwrapped) or inspect.iscoroutinefunction(
        getattr(unwrapped, "__call__", None)  # noqa: B004  # its kind is asked for
    )


def _check_signature(handler: object) -> None:
    if not callable(handler):
        raise TypeError(f"an exempt handler must be callable, not {handler!r}")
    try:
        signature = inspect.signature(handler)
    except ValueError:
        return  # A builtin without a signature.
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"an exempt handler takes one argument, the connection: {handler!r} has"
            f" {signature}; wrap one with dependencies in Depends(...)"
        ) from None


def callable_name(handler: object) -> str:
    """Return the name of a handler or dependency for people."""
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__
