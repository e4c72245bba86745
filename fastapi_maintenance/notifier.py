"""Telling listeners of changes, in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .log import logger
from .state import MaintenanceState

Listener = Callable[[MaintenanceState], object]


class ChangeNotifier:
    """Tells listeners of each change once and in order, in a thread of its own.

    Args:
        title: The switch and its place, for the log.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._listeners: list[Listener] = []
        self._states: deque[MaintenanceState] = deque()
        self._lock = threading.Lock()
        self._running = False

    def listen(self, listener: Listener) -> None:
        """Call a function with each change."""
        self._listeners.append(listener)

    def note(self, state: MaintenanceState, before: MaintenanceState) -> bool:
        """Note a state for the listeners, in the order of the calls.

        Returns:
            Whether it differs from the one before it, and ``tell`` is to follow.
        """
        if _content(state) == _content(before):
            return False  # A drain publishes the same state again.
        if self._listeners:
            self._states.append(state)
        return True

    def tell(self, state: MaintenanceState) -> None:
        """Log a state, and have the listeners called with what was noted."""
        logger.info(
            "maintenance is %s: %s, epoch %d, by %s%s",
            _in_words(state),
            self._title,
            state.epoch,
            state.actor or "an unnamed operator",
            f": {state.message}" if state.message else "",
        )
        with self._lock:
            if self._running or not self._states:
                return
            self._running = True
        try:
            threading.Thread(
                target=self._run, name="fastapi-maintenance changes", daemon=True
            ).start()
        except RuntimeError:  # No more threads, or the end of the process.
            self._running = False
            logger.exception("maintenance: listeners are not told of a change")

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._states:
                    self._running = False
                    return
                state = self._states.popleft()
            for listener in tuple(self._listeners):
                try:
                    listener(state)
                except Exception:
                    logger.exception("on_change failed for epoch %d", state.epoch)

    def reset(self) -> None:
        """Begin again after a fork, in which no thread lives on."""
        self._lock = threading.Lock()
        self._running = False
        self._states.clear()


def _content(state: MaintenanceState) -> MaintenanceState:
    return state.model_copy(update={"epoch": 0, "tag": "", "close_after": None})


def _in_words(state: MaintenanceState) -> str:
    if not state.enabled:
        return "off"
    if state.starts_at is None:
        return "on"
    return f"planned from {state.starts_at.isoformat()}"
