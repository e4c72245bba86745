"""What the control router checks in requests, and how it answers errors."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from ..changes import HeldError
from ..exemptions import maintenance_exempt
from ..guard import MaintenanceGuard
from ..log import logger
from ..stores import StoreError, StoreReadOnlyError

BODY_LIMIT: Final = 16 * 1024
"""Bytes of a body. The longest part is a message of 2000 characters."""

Model = TypeVar("Model", bound=BaseModel)


def check_arguments(
    guard: object, dependencies: Sequence[object], prefix: object
) -> None:
    """Refuse a router without authentication, or with arguments that cannot work."""
    # Whether a dependency authenticates cannot be checked.
    if not isinstance(guard, MaintenanceGuard):
        raise TypeError(f"guard must be a MaintenanceGuard, not {guard!r}")
    if not isinstance(prefix, str) or not re.fullmatch(r"(/[^/]+)+", prefix):
        raise ValueError(
            'prefix must be a path such as "/maintenance", without a slash at its end,'
            f" not {prefix!r}"
        )
    if isinstance(dependencies, Depends) or not isinstance(dependencies, Sequence):
        raise TypeError(
            "dependencies must be a list, such as [Depends(operators_only)], not"
            f" {dependencies!r}"
        )
    for entry in dependencies:
        if not isinstance(entry, Depends) or entry.dependency is None:
            raise TypeError(f"write Depends(operators_only), not {entry!r}")
    if all(_is_ours(entry) for entry in dependencies):
        raise ValueError(
            "a control router without authentication is open to everybody; pass"
            " dependencies=[Depends(operators_only)] with your own"
        )


def _is_ours(entry: object) -> bool:
    dependency = getattr(entry, "dependency", None)
    return dependency is maintenance_exempt or isinstance(dependency, MaintenanceGuard)


def body_of(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return a dependency that reads a model from the body of a checked request."""

    # FastAPI reads a declared body before any dependency, whatever its size. Older
    # releases also accept content types that a form on another site can send.
    async def read(request: Request) -> Model:
        check_origin(request)
        content = b""
        try:
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_LIMIT:
                    raise HTTPException(413, f"at most {BODY_LIMIT} bytes")
        except ClientDisconnect:
            # Otherwise, the log would have a traceback.
            raise HTTPException(400, "the body has not arrived") from None
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            raise _invalid(error) from None

    return read


def check_origin(request: Request) -> None:
    """Refuse what a page of another origin can make a browser send."""
    # A form cannot send this type, and a script of another origin needs a preflight
    # for it.
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        # No script can set or remove it. It does not depend on the host's name, which
        # a proxy may change.
        foreign = site != "same-origin"
    else:
        host = request.headers.get("host", "")
        foreign = origin is not None and _netloc(origin) != host.lower()
    if foreign:
        raise HTTPException(403, "not from another origin")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


@asynccontextmanager
async def errors_as_http() -> AsyncIterator[None]:
    """Turn every failure of the switch into an HTTP error that names it, not a 500."""
    try:
        yield
    except (HeldError, StoreReadOnlyError) as error:
        raise HTTPException(409, str(error)) from None
    except StoreError as error:
        raise HTTPException(503, str(error)) from None
    except ValidationError as error:
        raise _invalid(error) from None
    except (ValueError, OverflowError) as error:
        raise HTTPException(400, str(error)) from None
    except Exception as error:
        logger.exception("the maintenance store failed")
        raise HTTPException(
            503, f"the store failed with {type(error).__name__}; see the log"
        ) from None


def _invalid(error: ValidationError) -> RequestValidationError:
    # The input is left out: a token may be part of it.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError(
        [{**item, "loc": ("body", *item["loc"])} for item in found]
    )


def actor_of(request: Request) -> str:
    """Return the actor for the log and ``status``: the client's address."""
    host = request.client.host if request.client else ""
    shown = "".join(character for character in host if "!" <= character <= "~")
    return f"control@{shown[:64]}" if shown else "control"
