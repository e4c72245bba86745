"""Orders to close what is long: which counted work they mean, and when."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping

from .._checks import is_finite
from ..state import CLOSE_AFTER

logger = logging.getLogger("fastapi_maintenance")


class CloseOrders:
    """What a worker was told to close, by the numbers of its admissions.

    Long work attaches itself. Nothing is asked of a request that does not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._due: set[int] = set()
        self._excused: set[int] = set()
        self._attached: dict[int, list[Callable[[], object]]] = {}

    def adopt(self, extra: Mapping[str, object], older: Iterable[int]) -> None:
        """Take the order that a state carries, or take back all that came before.

        Args:
            extra: The state's further keys.
            older: The admissions from before the state.
        """
        seconds = _seconds(extra.get(CLOSE_AFTER))
        if seconds is None:
            self.cancel()
            return
        numbers = frozenset(older)
        if numbers:
            timer = threading.Timer(seconds, self._fall_due, (numbers,))
            timer.daemon = True
            with self._lock:
                self._timers.append(timer)
                self._excused -= numbers
            try:
                timer.start()
            except RuntimeError as error:  # No more threads, or the end of the process.
                logger.error("maintenance: long work is not told to end: %s", error)  # noqa: TRY400  # its text says all

    def cancel(self) -> None:
        """Take back every order that has not been carried out."""
        with self._lock:
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
            self._due.clear()
            self._excused.clear()

    def excuse(self, number: int) -> None:
        """Leave out work that was decided again, under the present state."""
        with self._lock:
            if self._timers:
                self._excused.add(number)
            self._due.discard(number)

    def is_due(self, number: int) -> bool:
        """Tell whether this work is to end."""
        return number in self._due

    def attach(self, number: int, callback: Callable[[], object]) -> None:
        """Call a function, from any thread, when this work is to end."""
        with self._lock:
            due = number in self._due
            if not due:
                self._attached.setdefault(number, []).append(callback)
        if due:
            callback()

    def detach(self, number: int, callback: Callable[[], object]) -> None:
        """Forget a function; it may be called already."""
        with self._lock:
            callbacks = self._attached.get(number, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._attached.pop(number, None)

    def _fall_due(self, numbers: frozenset[int]) -> None:
        with self._lock:
            if threading.current_thread() not in self._timers:
                return  # It was taken back while it began.
            due = numbers - self._excused
            self._due |= due
            callbacks = [
                callback
                for number in sorted(due)
                for callback in self._attached.pop(number, ())
            ]
        for callback in callbacks:
            callback()


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not is_finite(value) or value < 0:
        return None
    return min(float(value), threading.TIMEOUT_MAX)
