"""Telling of each change that a worker adopts: one log record, one call."""

from __future__ import annotations

import contextlib
import logging
from collections import deque

from ..state import MaintenanceState
from ._link import Listener

logger = logging.getLogger("fastapi_maintenance")


class News:
    """Changes that are still to be told, each once, outside of any lock.

    Args:
        title: The switch and its place, for the log.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._states: deque[MaintenanceState] = deque()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call a function with each change."""
        self._listeners.append(listener)

    def note(self, state: MaintenanceState, before: MaintenanceState) -> None:
        """Keep a state to be told of, if it differs from the one before."""
        # A fence publishes the same state again: no change worth telling.
        if state.but(epoch=0) != before.but(epoch=0):
            self._states.append(state)

    def tell(self) -> None:
        """Tell of what was noted; a listener that fails stops nobody."""
        while True:
            try:  # Another thread may tell it, too.
                state = self._states.popleft()
            except IndexError:
                return
            # A log handler that fails is no reason to fail a request, or a thread.
            with contextlib.suppress(Exception):
                logger.info(
                    "maintenance is %s: %s, epoch %d, by %s%s",
                    "on" if state.active else "off",
                    self._title,
                    state.epoch,
                    state.actor or "somebody",
                    f": {state.message}" if state.message else "",
                )
            for listener in tuple(self._listeners):
                try:
                    listener(state)
                except Exception:
                    with contextlib.suppress(Exception):
                        logger.exception("on_change failed for epoch %d", state.epoch)
