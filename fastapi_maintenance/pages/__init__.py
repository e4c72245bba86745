"""The answer in the form that a client asks for: a page, problem+json or JSON."""

import inspect
import os
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import Final

from anyio import to_thread
from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..handlers import THREADS, looks_async
from ..limiters import limiter
from ..log import logger
from ..refusal import DEFAULT_DETAIL, MaintenanceError
from .html_file import HtmlFile, filled
from .negotiation import PROBLEM, negotiate

__all__ = ["maintenance_exception_handler"]

PageMaker = Callable[[Request, MaintenanceError], object]
"""Returns a string of HTML or a ``Response``, or an awaitable of one."""

Page = str | os.PathLike[str] | PageMaker | None
Handler = Callable[[Request, Exception], Awaitable[Response]]
Renderer = Callable[[Request, MaintenanceError], Awaitable[Response]]

PLACEHOLDERS: Final = ("message", "until", "retry_after")
"""What a page of your own can show."""

_PAGE: Final = HtmlFile.load(
    __file__,
    "maintenance.html",
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
)


def maintenance_exception_handler(page: Page = None) -> Handler:
    """Return an exception handler that answers in the form a client asks for.

    Browsers get an HTML page, clients that name ``application/problem+json`` get a
    problem (RFC 9457), and all others get the usual JSON. Every answer has status 503
    and the error's headers.

    Args:
        page: What browsers get: None for the page of this package, the path of an HTML
            file, or a callable of the request and the error that returns HTML or a
            ``Response``. In a file, ``{{ message }}``, ``{{ until }}`` and
            ``{{ retry_after }}`` are replaced, escaped. A file is read once, now. If a
            callable fails, the failure is logged, and browsers get the page of this
            package.

    Raises:
        ValueError: If the file cannot be read or is not UTF-8.
        TypeError: If it is neither a path nor callable.

    Examples:
        >>> from fastapi import FastAPI
        >>> from fastapi_maintenance import (
        ...     MaintenanceError,
        ...     maintenance_exception_handler,
        ... )
        >>> app = FastAPI()
        >>> app.add_exception_handler(MaintenanceError, maintenance_exception_handler())
    """
    render = _renderer(page)

    async def handle(request: Request, error: Exception) -> Response:
        if not isinstance(error, MaintenanceError):
            # It was registered for other errors too. They keep their usual form.
            if isinstance(error, HTTPException):
                return await http_exception_handler(request, error)
            raise error
        kind = negotiate(request)
        if kind == "html":
            response = await render(request, error)
        elif kind == "problem":
            response = JSONResponse(_problem(error), media_type=PROBLEM)
        else:
            response = JSONResponse({"detail": error.detail})
        # A template's response says 200, which caches and search engines would keep.
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        response.headers.add_vary_header("Accept")
        return response

    return handle


def _problem(error: MaintenanceError) -> dict[str, object]:
    return {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": error.status_code,
        "detail": error.detail,
        # Browser code on another origin cannot read the header.
        "retry_after": error.retry_after,
    }


def _values(request: Request, error: MaintenanceError) -> dict[str, str]:
    until, left = error.state.until, error.seconds_left
    end = until.astimezone(UTC) if until and left else None
    message = str(error.detail)
    if message == DEFAULT_DETAIL:
        # The heading of the page says so already.
        message = "We are working on it, and will be back as soon as we can."
    repeatable = request.method in {"GET", "HEAD"}
    return {
        "message": message,
        "retry_after": str(error.retry_after),
        "until": f"{end:%Y-%m-%d %H:%M} UTC" if end else "",
        "until_iso": f"{end:%Y-%m-%dT%H:%M:%SZ}" if end else "",
        "seconds_left": str(left),
        # What was sent with a form must not be sent again by a reload.
        "reload": "yes" if repeatable else "no",
        "hide_until": "" if end else "hidden",
        "hide_again": "" if repeatable else "hidden",
        "hide_resend": "hidden" if repeatable else "",
    }


async def _own_page(request: Request, error: MaintenanceError) -> Response:
    return _PAGE.response(_values(request, error))


def _renderer(page: Page) -> Renderer:
    if page is None:
        return _own_page
    if isinstance(page, str | os.PathLike):
        text = _read(page)

        async def from_file(request: Request, error: MaintenanceError) -> Response:
            values = _values(request, error)
            return HTMLResponse(
                filled(text, {name: values[name] for name in PLACEHOLDERS})
            )

        return from_file
    if not callable(page):
        raise TypeError(f"page must be a path, a callable or None, not {page!r}")
    return _from_callable(page)


def _from_callable(page: PageMaker) -> Renderer:
    failing = False

    async def render(request: Request, error: MaintenanceError) -> Response:
        nonlocal failing
        try:
            # Not in a thread of the endpoints: running requests may hold all of them.
            made = (
                page(request, error)
                if looks_async(page)
                else await to_thread.run_sync(
                    page, request, error, limiter=limiter("pages", THREADS)
                )
            )
            # A callable that does not look async may return an awaitable too.
            response = _response(await made if inspect.isawaitable(made) else made)
        except Exception:
            # The page may need the very thing that is under maintenance.
            if not failing:
                logger.exception("the maintenance page %r failed; sending ours", page)
            failing = True
            return await _own_page(request, error)
        failing = False
        return response

    return render


def _response(made: object) -> Response:
    if isinstance(made, str):
        return HTMLResponse(made)
    if isinstance(made, Response):
        return made
    raise TypeError(f"returned {type(made).__name__}, not a str or a Response")


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the maintenance page {os.fspath(path)!r}: {error}; give the"
            " path of an HTML file in UTF-8"
        ) from error
