"""The one logger of the package, which never fails what it reports on."""

from __future__ import annotations

import contextlib
import logging


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs, and drops the record if a filter or a handler of the application raises."""

    def log(self, level: int, msg: object, *args: object, **kwargs: object) -> None:
        """Log one record."""
        with contextlib.suppress(Exception):  # It must not stop a request or a thread.
            super().log(level, msg, *args, **kwargs)  # type: ignore[arg-type]  # passed on as it came


logger: SafeLogger = SafeLogger(logging.getLogger("fastapi_maintenance"))
