"""The one logger of the package, which never fails what it reports on."""

from __future__ import annotations

import contextlib
import logging


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs, and drops the record if a filter or a handler of the application raises."""

    def log(  # type: ignore[override]  # only what is used here
        self, level: int, msg: str, *args: object, exc_info: bool = False
    ) -> None:
        """Log one record."""
        with contextlib.suppress(Exception):  # It must not stop a request or a thread.
            # The record names the caller, and not this method.
            super().log(level, msg, *args, exc_info=exc_info, stacklevel=2)


logger: SafeLogger = SafeLogger(logging.getLogger("fastapi_maintenance"))


class LogOnce:
    """Logs a problem when it begins or changes, and when it is over.

    Args:
        title: What has the problem.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._said: dict[str, str] = {}

    def say(self, kind: str, text: str) -> None:
        """Log a problem, unless it was the last one of its kind."""
        if self._said.get(kind) != text:
            self._said[kind] = text
            logger.error("%s: %s", self._title, text)

    def solved(self, kind: str) -> None:
        """Log that a problem is over, if there was one."""
        if self._said.pop(kind, None) is not None:
            logger.info("%s: works again (%s)", self._title, kind)
