"""Who asks for the body of a request: a middleware, or the application itself.

FastAPI reads a declared body before it runs dependencies. A door that leaves a request
to the guard inside must say no when the *application* asks, where its exception
handlers and all middlewares see the answer, and not when a middleware does. Nothing in
a request tells them apart if a middleware copies the scope; who waits for it does.
Where a release hides that, the body is read, and the guard refuses after it.
"""

import sys
from types import CodeType, FrameType
from typing import Final, NamedTuple

import starlette.middleware.base
from starlette.middleware.exceptions import ExceptionMiddleware

from ._fastapi import Scope

_HANDLING: Final = ExceptionMiddleware.__call__.__code__
_GROUPING: Final = starlette.middleware.base.__file__


class Asker(NamedTuple):
    """The application that asks.

    Attributes:
        scope: The request as it was matched there.
        grouped: Whether a task group of a ``BaseHTTPMiddleware`` is in between. It
            would wrap an exception in an ``ExceptionGroup``, which FastAPI takes for a
            body that cannot be parsed.
    """

    scope: Scope
    grouped: bool


def who_asks(door: CodeType) -> Asker | None:
    """Tell which application waits for a ``receive`` that runs now.

    Args:
        door: The code of the door, which is as far as to look.

    Returns:
        None if a middleware in front of the application asks, for itself.
    """
    grouped = False
    frame: FrameType | None = sys._getframe(1)  # CPython, PyPy  # noqa: SLF001  # the documented way to a frame
    while frame is not None and frame.f_code is not door:
        if frame.f_code is _HANDLING:
            scope = frame.f_locals.get("scope")
            return None if scope is None else Asker(scope, grouped)
        grouped = grouped or frame.f_code.co_filename == _GROUPING
        frame = frame.f_back
    return None
