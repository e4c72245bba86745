"""What is known of a state, and the patience to learn it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from ..state import MaintenanceState, StateFormatError
from ._redis_errors import TemporaryError, UnsettledError

logger = logging.getLogger("fastapi_maintenance")

T = TypeVar("T")

_LONGEST: Final = 2.0


class Known(NamedTuple):
    """A state as it is stored, so that it can be stored again."""

    epoch: int = 0
    tag: str = ""
    doc: bytes = b""
    state: MaintenanceState = MaintenanceState()


class Backoff:
    """Growing pauses with jitter, so that a fleet does not return as one."""

    def __init__(self, start: float = 0.05) -> None:
        self._start = start
        self._pause = start

    def next(self) -> float:
        """Return the seconds until the next attempt; at most two."""
        pause, self._pause = self._pause, min(_LONGEST, self._pause * 2)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret

    def reset(self) -> None:
        """Begin again: it went well."""
        self._pause = self._start


def understand(place: str, epoch: int, tag: str, doc: bytes) -> Known:
    """Return what is stored; what cannot be read is closed."""
    if not epoch and not doc:
        return Known()
    try:
        state = MaintenanceState.from_json(doc).but(epoch=epoch)
    except StateFormatError as error:
        logger.error(  # noqa: TRY400  # the document is at fault, not the code
            "maintenance: the state in %s cannot be read (%s); refusing until it is"
            " published anew",
            place,
            error,
        )
        state = MaintenanceState(epoch=epoch, active=True, begun=True)
    return Known(epoch, tag, doc, state)


def patiently(patience: float, attempt: Callable[[], T]) -> T:
    """Return what an attempt returns, trying again through restarts and failovers.

    Args:
        patience: Seconds after which the last error is raised.
        attempt: What to try; a ``TemporaryError`` of it is worth another attempt.
    """
    ends = time.monotonic() + patience
    backoff = Backoff()
    while True:
        try:
            return attempt()
        except UnsettledError as error:
            # It is over at a known time, and asked once more when patience ends.
            left = ends - time.monotonic()
            if left <= 0:
                raise
            time.sleep(min(error.seconds, left))
        except TemporaryError:
            pause = backoff.next()
            if time.monotonic() + pause >= ends:
                raise
            time.sleep(pause)
