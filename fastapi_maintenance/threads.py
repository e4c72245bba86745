"""Which threads still work for a request, even if that request has ended.

Cancelling a request does not stop the thread that it waits for. AnyIO and
``asyncio.to_thread`` run such threads in a copy of the request's context. The frames of
a thread show that copy, and the copy holds the request's admission.

This reads the insides of AnyIO and CPython. Where they hide what is needed,
``are_visible`` is False, and a worker says that it cannot be counted.
``tests/test_threads.py`` fails on the release that changes them.
"""

from __future__ import annotations

import concurrent.futures.thread
import queue
import sys
import threading
from collections.abc import Iterator
from contextvars import Context
from functools import partial
from itertools import islice
from types import BuiltinMethodType, CellType, CodeType, FrameType, FunctionType
from typing import Any, Final


def _anyio_code() -> CodeType | None:
    try:
        from anyio._backends._asyncio import WorkerThread  # noqa: PLC0415  # it may be missing

        return WorkerThread.run.__code__
    except (ImportError, AttributeError):
        return None


def _executor_code() -> CodeType | None:
    item = getattr(concurrent.futures.thread, "_WorkItem", None)
    return getattr(getattr(item, "run", None), "__code__", None)


_ANYIO: Final = _anyio_code()
_EXECUTOR: Final = _executor_code()
_WAITING: Final = queue.Queue.get.__code__
_MAX_PARTS: Final = 200
"""How much of what an executor runs is looked through."""


def are_visible() -> bool:
    """Tell whether this AnyIO and this Python show what their threads work for."""
    return (
        _ANYIO is not None
        and "context" in _ANYIO.co_varnames
        and _EXECUTOR is not None
        and "self" in _EXECUTOR.co_varnames
    )


def contexts_at_work() -> Iterator[Context]:
    """Yield the contexts in which other threads are running."""
    own = threading.get_ident()
    for thread, frame in sys._current_frames().items():  # noqa: SLF001  # documented
        if thread != own:
            context = _context_of(frame)
            if context is not None:
                yield context


def _context_of(frame: FrameType | None) -> Context | None:
    above = None
    while frame is not None:
        if frame.f_code is _ANYIO or frame.f_code is _EXECUTOR:
            local = frame.f_locals
            try:
                if frame.f_code is _EXECUTOR:
                    return _bound_context(local.get("self"))
                if _is_idle(local.get("self"), above):
                    return None
                found = local.get("context")
                return found if isinstance(found, Context) else None
            finally:
                # Python 3.11 keeps this copy, and with it the arguments of a call that
                # has ended.
                if isinstance(local, dict):
                    local.clear()
        above, frame = frame, frame.f_back
    return None


def _is_idle(thread: object, above: FrameType | None) -> bool:
    """Tell whether a thread of AnyIO waits for work, in its own queue."""
    # Before AnyIO 4.9, such a thread still has the context of its last work.
    if above is None or above.f_code is not _WAITING:
        return False
    waiting = above.f_locals
    try:
        return waiting.get("self") is getattr(thread, "queue", None)
    finally:
        if isinstance(waiting, dict):
            waiting.clear()


def _bound_context(item: object) -> Context | None:
    """Return the context that an item of an executor will run in, or runs in.

    ``asyncio.to_thread`` submits ``functools.partial(context.run, function)``. Sentry,
    OpenTelemetry and others put that into functions of their own, as arguments or in
    their closures.
    """
    # Python 3.14 has ``task`` in place of ``fn`` and ``args``.
    names = ("fn", "args", "task")
    parts: list[Any] = [getattr(item, name, None) for name in names]  # of any type
    for part in islice(parts, _MAX_PARTS):  # The loop appends to parts.
        # By type: ``isinstance`` would run code of lazy proxies.
        kind: type = type(part)
        if kind is Context:
            found: Context = part
            return found
        if issubclass(kind, tuple):
            parts.extend(islice(tuple.__iter__(part), _MAX_PARTS))
        elif issubclass(kind, partial):
            parts.extend((part.func, part.args))
        elif kind is BuiltinMethodType:
            parts.append(part.__self__)
        elif kind is FunctionType:
            parts.extend(map(_cell_content, part.__closure__ or ()))
    return None


def _cell_content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty.
        return None
