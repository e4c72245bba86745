"""The answer in the form that a client asks for: a page, problem+json or JSON."""

import inspect
import logging
import math
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from fastapi.exception_handlers import http_exception_handler
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ._document import Document, filled
from .refusal import DEFAULT_DETAIL, MaintenanceError

logger: logging.Logger = logging.getLogger("fastapi_maintenance")

PageMaker = Callable[[Request, MaintenanceError], object]
"""Returns a string of HTML or a ``Response``, or an awaitable of one."""

Page = str | os.PathLike[str] | PageMaker | None
Handler = Callable[[Request, Exception], Awaitable[Response]]
Kind = Literal["html", "problem", "json"]

LONGEST_ACCEPT: Final = 1_000
"""Characters; a browser sends about 150, and reading more would be work for nothing."""

LARGEST_PAGE: Final = 1 << 20
"""Bytes of a page of your own, which is kept in memory."""

OFFERED: Final = ("message", "until", "retry_after")
"""What a page of your own can show."""

_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_PROBLEM: Final = "application/problem+json"
_ITEM: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_PART: Final = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*")+')
_QUALITY: Final = re.compile(r"0(?:\.[0-9]*)?|1(?:\.0*)?")


def maintenance_exception_handler(page: Page = None) -> Handler:
    """Return an exception handler that answers in the form a client asks for.

    Browsers get an HTML page, clients that name ``application/problem+json`` a problem
    (RFC 9457), all others the usual JSON. All have status 503 and the error's headers.

    Args:
        page: What browsers get: None for the page of this package, the path of an HTML
            file, or a callable of the request and the error that returns HTML or a
            ``Response``. In a file, ``{{ message }}``, ``{{ until }}`` and
            ``{{ retry_after }}`` are replaced, escaped. A file is read now, so that it
            is there when nothing else is; a callable that fails costs no more than a
            line in the log and a visit to the page of this package.

    Raises:
        ValueError: If the file cannot be read, is not UTF-8 or is over 1 MiB.
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
            # Registered for more than ours: the rest keeps its usual form.
            if isinstance(error, HTTPException):
                return await http_exception_handler(request, error)
            raise error
        kind = negotiate(request)
        if kind == "html":
            response = await render(request, error)
        elif kind == "problem":
            response = JSONResponse(_problem(error), media_type=_PROBLEM)
        else:
            response = JSONResponse({"detail": error.detail})
        # A template's response says 200, which would be kept and indexed.
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        response.headers.add_vary_header("Accept")
        return response

    return handle


def negotiate(connection: HTTPConnection) -> Kind:
    """Tell which form a client asks for.

    RFC 9110 section 12.4.1 lets a server disregard the header. So HTML is for those
    who *name* it and prefer it to JSON; ``*/*``, nothing and nonsense mean JSON.
    """
    named = _qualities(", ".join(connection.headers.getlist("accept")))
    html = max((named.get(kind, 0.0) for kind in _HTML), default=0.0)
    json = max((named[kind] for kind in named if _is_json(kind)), default=0.0)
    if html > json and connection.scope["type"] == "http":
        return "html"
    problem = named.get(_PROBLEM, 0.0)
    if problem and problem >= named.get("application/json", 0.0):
        return "problem"
    return "json"


def _qualities(header: str) -> dict[str, float]:
    named: dict[str, float] = {}
    if len(header) > LONGEST_ACCEPT:
        return named
    for item in _ITEM.findall(header):
        if item.lstrip(" \t").startswith(";"):
            continue  # Parameters of nothing.
        kind, *parameters = (part.strip(" \t") for part in _PART.findall(item))
        quality = "1"
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip(" \t").lower() == "q":
                quality = value.strip(" \t")
        # One that is not valid is no wish at all: float("nan") would be larger.
        if _QUALITY.fullmatch(quality):
            named[kind.lower()] = max(named.get(kind.lower(), 0.0), float(quality))
    return named


def _is_json(kind: str) -> bool:
    return kind in {"application/json", "text/json"} or kind.endswith("+json")


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
    until = error.state.until
    now = datetime.now(UTC)
    left = math.ceil((until - now).total_seconds()) if until and until > now else 0
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
        "unless_end": "" if end else "hidden",
        "unless_repeatable": "" if repeatable else "hidden",
        "unless_sent": "hidden" if repeatable else "",
    }


Render = Callable[[Request, MaintenanceError], Awaitable[Response]]


def _renderer(page: Page) -> Render:
    document = Document.of(
        "maintenance.html",
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    )

    async def ours(request: Request, error: MaintenanceError) -> Response:
        return document.response(_values(request, error))

    if page is None:
        return ours
    if isinstance(page, str | os.PathLike):
        text = _read(page)

        async def theirs(request: Request, error: MaintenanceError) -> Response:
            values = _values(request, error)
            offered = {name: values[name] for name in OFFERED}
            return HTMLResponse(filled(text, offered))

        return theirs
    if not callable(page):
        raise TypeError(f"page must be a path, a callable or None, not {page!r}")
    return _guarded(page, ours)


def _guarded(page: PageMaker, otherwise: Render) -> Render:
    failing = False

    async def render(request: Request, error: MaintenanceError) -> Response:
        nonlocal failing
        try:
            # In a thread, as it may read a file; awaited if it is awaitable, however
            # the callable looked.
            made = await run_in_threadpool(page, request, error)
            response = _response(await made if inspect.isawaitable(made) else made)
        except Exception:
            # What maintenance is about may be what the page needs.
            if not failing:
                logger.exception("the maintenance page %r failed; sending ours", page)
            failing = True
            return await otherwise(request, error)
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
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the maintenance page {os.fspath(path)!r}: {error}; give the"
            " path of an HTML file in UTF-8"
        ) from error
    if len(content) > LARGEST_PAGE:
        raise ValueError(
            f"the maintenance page {os.fspath(path)!r} has {len(content)} bytes; keep"
            f" it below {LARGEST_PAGE}"
        )
    return text
