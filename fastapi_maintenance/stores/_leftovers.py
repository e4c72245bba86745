"""Work that ends by itself: cancelled requests whose threads go on, and late news."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Final

COLLECT_INTERVAL: Final = 2.0
"""Seconds between two collections of garbage for the sake of cancelled requests."""


class Leftovers:
    """The numbers of admissions that no exit stack gives back.

    The garbage collector does, at any moment and in any thread: ``late`` takes what
    it reports without a lock, and ``settled`` yields it once.
    """

    def __init__(self) -> None:
        self.late: deque[int] = deque()
        self._cancelled: set[int] = set()
        self._collected = -COLLECT_INTERVAL

    def expect(self, number: int) -> None:
        """Note work that was cancelled, and is counted until its threads have ended."""
        self._cancelled.add(number)

    def settled(self) -> Iterator[int]:
        """Yield what has ended since it was asked last."""
        while self.late:
            number = self.late.popleft()
            self._cancelled.discard(number)
            yield number

    def clear(self) -> None:
        """Forget everything: a child has none of its parent's work."""
        self.late.clear()
        self._cancelled.clear()

    def collect(self) -> None:
        """Collect garbage if cancelled work may be hidden in it, now and then.

        The traceback of a cancellation and its frames refer to each other, and to a
        context that holds the count. An idle process would keep them, and with them up
        whoever waits, until it happens to collect its garbage.
        """
        if self._cancelled:
            now = monotonic()
            if now - self._collected >= COLLECT_INTERVAL:
                self._collected = now
                gc.collect()
