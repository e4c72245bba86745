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

    def notify(self, state: MaintenanceState, before: MaintenanceState) -> None:
        """Log a state and call the listeners, if it differs from the one before it."""
        if _content(state) == _content(before):
            return  # A drain publishes the same state again.
        logger.info(
            "maintenance is %s: %s, epoch %d, by %s%s",
            "on" if state.enabled else "off",
            self._title,
            state.epoch,
            state.actor or "an unnamed operator",
            f": {state.message}" if state.message else "",
        )
        if not self._listeners:
            return
        with self._lock:
            self._states.append(state)
            if self._running:
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
