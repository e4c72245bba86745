"""Signals are noted when they come, and looked at between two steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final, Self, TypeVar

import anyio

T = TypeVar("T")

# Windows has no HUP.
_ENDING: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)
_INTERVAL: Final = 0.02
"""Seconds between two looks at what has come."""


def signal_name(number: int) -> str:
    """Return a signal's name; those for real-time programs have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class InterruptedBySignalError(Exception):
    """A signal asks this process to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal_name(number)}")
        self.number = number


class Signals:
    """Notes INT, TERM and HUP for a block, in which they end nothing by themselves.

    What was ignored from the start, such as HUP under ``nohup``, stays ignored. It
    works in the main thread.

    Attributes:
        received: The signals that have come, in their order.
    """

    def __enter__(self) -> Self:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}  # handlers, as the standard library has them
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        ended = getattr(signal, "SIGCHLD", None)
        if ended is not None:
            # Ignored, it would take the exit code of a child with it.
            self._before[ended] = signal.signal(ended, signal.SIG_DFL)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def check(self) -> None:
        """Raise for a signal that has come.

        Raises:
            InterruptedBySignalError: If there is one.
        """
        if self.received:
            raise InterruptedBySignalError(self.received[0])

    async def watch(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a piece of work until it is done or a signal comes.

        Raises:
            InterruptedBySignalError: If a signal came, however the work ended then.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.Handle
        found: list[T] = []

        def look() -> None:
            nonlocal timer
            if self.received:
                scope.cancel()
            else:
                timer = loop.call_later(_INTERVAL, look)

        with anyio.CancelScope() as scope:
            timer = loop.call_soon(look)
            try:
                found.append(await work())
            finally:
                timer.cancel()
                # Also where the work took the cancellation for a failure.
                self.check()
        return found[0]

    async def follow(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for a process, and pass on to it what comes.

        Returns:
            Its exit code, or the negative number of the signal that ended it.
        """
        passed = 0
        while True:
            code = child.poll()
            if code is not None:
                return code
            for number in self.received[passed:]:
                if not _reaches_both(number, child.pid):
                    with contextlib.suppress(PermissionError):  # Such as sudo.
                        child.send_signal(number)
                passed += 1
            await anyio.sleep(_INTERVAL)


def _reaches_both(number: int, child: int) -> bool:
    """Tell whether the terminal has sent a signal to a child as well.

    Ctrl-C reaches the whole foreground group; passed on as well, it would interrupt the
    child's own clean-up.
    """
    if sys.platform == "win32":
        # A console sends it to all of its processes; and no other can be sent on.
        return number != signal.SIGTERM
    if number != signal.SIGINT or not hasattr(os, "tcgetpgrp"):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp() == os.getpgid(child)
    except OSError:
        return False
    finally:
        os.close(terminal)
