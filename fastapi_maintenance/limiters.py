"""Limits of the threads that this package uses, apart from those of endpoints."""

from typing import Final

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

_limiters: Final[RunVar[dict[str, CapacityLimiter]]] = RunVar("fastapi_maintenance")


def limiter(name: str, size: int) -> CapacityLimiter:
    """Return the limiter of that name in this event loop; the first call makes it."""
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    if name not in limiters:
        limiters[name] = CapacityLimiter(size)
    return limiters[name]
