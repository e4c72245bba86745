"""What the control router asks of a request, and how its failures are answered."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from .orders import HeldError
from .stores import StoreError, StoreReadOnlyError
from .waiting import FenceRefusedError

logger = logging.getLogger("fastapi_maintenance")

LARGEST_BODY: Final = 16 * 1024
"""Bytes of a request; a state has at most a message of 2000 characters."""

Model = TypeVar("Model", bound=BaseModel)


def body_of(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return a dependency that reads a model from a request that may change things.

    FastAPI's own body would be read before any dependency, in every content type that a
    form of another site can send (before its releases with a strict one), and a number
    as NaN or a lone surrogate in it would end in a 500.
    """

    async def read(request: Request) -> Model:
        check_origin(request)
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > LARGEST_BODY:
                raise HTTPException(413, f"at most {LARGEST_BODY} bytes")
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            found = error.errors(
                include_url=False, include_context=False, include_input=False
            )
            raise RequestValidationError(
                [{**item, "loc": ("body", *item["loc"])} for item in found]
            ) from None

    return read


def check_origin(request: Request) -> None:
    """Refuse what a page of another origin can make a browser send.

    Raises:
        HTTPException: 415 unless the body is declared as ``application/json``, which
            no form can, and no script without asking by preflight; 403 if the browser
            itself says that another origin sends it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        # No script can set or remove it, and a proxy that renames the host does not
        # disturb it.
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
async def answered() -> AsyncIterator[None]:
    """Turn every failure of the switch into an answer that names it; never a 500.

    Raises:
        HTTPException: Instead of what the block raised.
    """
    try:
        yield
    except (HeldError, StoreReadOnlyError, FenceRefusedError) as error:
        raise HTTPException(409, str(error)) from None
    except StoreError as error:
        raise HTTPException(503, str(error)) from None
    except (ValueError, OverflowError) as error:
        raise HTTPException(400, str(error)) from None
    except Exception as error:
        logger.exception("the maintenance store failed")
        raise HTTPException(
            503, f"the store failed with {type(error).__name__}; see the log"
        ) from None


def actor_of(request: Request) -> str:
    """Return who asks, for the log and ``status``: the address is all that is known."""
    host = request.client.host if request.client else ""
    shown = "".join(character for character in host if "!" <= character <= "~")
    return f"control@{shown[:64]}" if shown else "control"
