"""Signals that are waited for, so that none comes between two steps."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio

T = TypeVar("T")

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERVAL: Final = 0.05
_PATIENCE: Final = 0.25


def signal_name(number: int) -> str:
    """Return a signal's name; those for real-time programs have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class InterruptedBySignalError(Exception):
    """Somebody wants this process to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal_name(number)}")
        self.number = number


class Signals:
    """Holds INT, TERM and HUP back for a block, to be taken one at a time.

    What was ignored from the start, as HUP under ``nohup``, stays ignored. Threads
    that start in the block hold them back, too; it must begin before they do.

    Attributes:
        held: The signals that are held back.
        before: The signals that were, for a child to go back to.
    """

    def __enter__(self) -> Self:
        self.held: set[signal.Signals] = {
            number
            for number in _ENDING
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        # Ignored, it would take the child's exit code with it.
        self._child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.before: set[int | signal.Signals] = signal.pthread_sigmask(
            signal.SIG_BLOCK, {*self.held, signal.SIGCHLD}
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self.poll() is not None:
            pass  # What came while we were leaving has the same meaning.
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
        signal.signal(signal.SIGCHLD, self._child or signal.SIG_DFL)

    def poll(self) -> int | None:
        """Return a signal that has come, without waiting."""
        found = signal.sigtimedwait(self.held, 0)
        return None if found is None else found.si_signo

    def check(self) -> None:
        """Raise for a signal that has come.

        Raises:
            InterruptedBySignalError: If there is one.
        """
        number = self.poll()
        if number is not None:
            raise InterruptedBySignalError(number)

    async def watch(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a piece of work until it is done or a signal comes.

        Raises:
            InterruptedBySignalError: If a signal came, however the work ended then.
        """
        loop = asyncio.get_running_loop()
        number: int | None = None
        timer: asyncio.Handle
        found: list[T] = []

        def look() -> None:
            nonlocal number, timer
            number = self.poll()
            if number is None:
                timer = loop.call_later(_INTERVAL, look)
            else:
                scope.cancel()

        with anyio.CancelScope() as scope:
            timer = loop.call_soon(look)
            try:
                found.append(await work())
            finally:
                timer.cancel()
                # Also where the work took the cancellation for a failure.
                if number is not None:
                    raise InterruptedBySignalError(number)
        return found[0]

    def wait_for_child(self, pid: int) -> tuple[int, list[int]]:
        """Wait for a process, and hand on to it what comes meanwhile.

        Returns:
            Its exit code, the negative signal where one ended it, and the signals
            that came.
        """
        received: list[int] = []
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), received
            found = signal.sigtimedwait({*self.held, signal.SIGCHLD}, _PATIENCE)
            if found is None or found.si_signo == signal.SIGCHLD:
                continue
            received.append(found.si_signo)
            # A key of the terminal (the kernel is the sender) reaches the whole
            # foreground group; handed on as well, it would interrupt the child's
            # own clean-up.
            if found.si_code <= 0 or os.getpgid(pid) != os.getpgrp():
                os.kill(pid, found.si_signo)
