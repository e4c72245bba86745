"""Waiting for what another thread, process or server does."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio.to_thread

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which what a test waits for counts as missing."""


def until(
    condition: Callable[[], object], seconds: float = PATIENCE, what: object = ""
) -> None:
    """Wait until a condition holds; fail with its name when it never does."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s: {what or condition}"
        time.sleep(0.005)


async def eventually(
    condition: Callable[[], object], seconds: float = PATIENCE, what: object = ""
) -> None:
    """Wait for a condition that may block, while the event loop runs."""
    await anyio.to_thread.run_sync(until, condition, seconds, what)


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Await work in a task of its own, as servers do with requests.

    Up to Python 3.11, what a task does after an exception from a thread is not traced.
    """
    return await asyncio.create_task(work)


class Work:
    """What a thread does: it begins, waits to be released, and ends."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()

    def run(self) -> str:
        """Work until released."""
        self.begun.set()
        assert self.released.wait(60)
        self.ended.set()
        return "done"
