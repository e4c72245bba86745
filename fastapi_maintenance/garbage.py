"""Streams that clients have left open: a garbage collection closes their generators.

Work inside of a generator can be all that is still running, so a worker is not drained
before it has collected garbage. That takes time, so it is done only if the worker has
served since the last time: once for each epoch, and again as older requests end.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import monotonic
from typing import Final

PAUSE: Final = 1.0
"""Seconds between two collections while older requests are in flight."""


class Garbage:
    """When a worker has to collect garbage before it is drained.

    Attributes:
        served: Whether anything was admitted since the last collection.
        wanted: Whether the present epoch waits for a collection.
    """

    def __init__(self) -> None:
        self.served: bool = False
        self.wanted: bool = False
        # The epoch, and how many older requests were in flight.
        self._due: tuple[int, int] | None = None
        self._done: tuple[int, int] = (0, 0)
        self._done_at: float = 0.0

    def adopted(self, *, enabled: bool) -> None:
        """Note that the worker has adopted a state."""
        self.wanted = enabled and self.served

    def is_due(self, epoch: int, older: int) -> bool:
        """Tell whether a report has to wait for a collection.

        Args:
            epoch: The epoch of the report.
            older: How many older requests are in flight.
        """
        now = epoch, older
        self._due = now if self.wanted and now != self._done else None
        return self.is_pending

    @property
    def is_pending(self) -> bool:
        """Whether the last report waits for a collection."""
        return self._due is not None

    def collect(self, is_serving: Callable[[], bool]) -> bool:
        """Collect garbage if a report waits for it.

        Args:
            is_serving: Tells whether any request is in flight.

        Returns:
            Whether that was done.
        """
        due = self._due
        if due is None:
            return False
        epoch, older = due
        recent = monotonic() - self._done_at < PAUSE
        if older and recent and epoch == self._done[0]:
            return False
        # First, as requests are admitted at any moment.
        self.served = False
        serving = is_serving()
        collected = _collect()
        if serving or not collected:
            self.served = True
        if collected:
            self._due, self._done, self._done_at = None, due, monotonic()
        return collected


def _collect() -> bool:
    """Collect garbage; tell whether that was done.

    It is not while another thread does it, and finalizers may be at work there.
    """
    before = gc.get_stats()[-1]["collections"]
    gc.collect()
    return bool(gc.get_stats()[-1]["collections"] > before)
