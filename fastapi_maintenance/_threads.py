"""How many threads of ours may run at once, beside those of endpoints."""

from __future__ import annotations

import anyio
from anyio.lowlevel import RunVar


class ThreadLimit:
    """A limit on threads that each event loop has for itself.

    Args:
        name: What the threads do.
        total: How many may run at once.
    """

    def __init__(self, name: str, total: int) -> None:
        self._total = total
        self._limiters: RunVar[anyio.CapacityLimiter] = RunVar(
            f"fastapi_maintenance {name}"
        )

    def own(self) -> anyio.CapacityLimiter:
        """Return the limiter of the running event loop."""
        try:
            return self._limiters.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(self._total)
            self._limiters.set(limiter)
            return limiter
