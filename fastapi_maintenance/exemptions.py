"""What stays open under maintenance: the marker, documentation, ready-made handlers."""

import hmac
import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, NoReturn, TypeVar, overload

from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Router

from ._checks import is_a
from ._fastapi import (
    Scope,
    direct_dependencies,
    documentation_paths,
    effective_template,
    serves,
)

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])

_MARK: Final = "__maintenance_exempt__"


class _Nothing:
    """Awaits to None at once; what the marker returns as a dependency."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield

    def __call__(self, *_: object) -> NoReturn:
        raise TypeError("write @maintenance_exempt without parentheses")


class MaintenanceExempt:
    """The type of ``maintenance_exempt``, of which there is one."""

    # As a dependency it declares no parameters.
    __signature__: inspect.Signature = inspect.Signature()

    def __init__(self) -> None:
        # FastAPI looks at ``__call__`` of the instance to decide whether a dependency
        # needs a thread, and calls the one of the class.
        self.__dict__["__call__"] = _asynchronous

    @overload
    def __call__(self, endpoint: None = None, /) -> Awaitable[None]: ...

    @overload
    def __call__(self, endpoint: Endpoint, /) -> Endpoint: ...

    def __call__(self, endpoint: Any = None, /) -> Any:  # both uses, told apart above
        """Mark an endpoint, or stand as a dependency on what it exempts.

        Raises:
            TypeError: If it is put on something that cannot be marked.
        """
        if endpoint is None:
            return _Nothing()
        # Routers, routes and applications are callable, and nobody would look for a
        # marker on them; a class would hand it on to its instances.
        if not callable(endpoint) or isinstance(
            endpoint, type | BaseRoute | Router | Starlette
        ):
            raise TypeError(
                f"@maintenance_exempt marks endpoints, not {endpoint!r}; give routers"
                " dependencies=[Depends(maintenance_exempt)]"
            )
        try:
            setattr(endpoint, _MARK, self)
        except (AttributeError, TypeError):
            raise TypeError(
                f"@maintenance_exempt cannot mark {endpoint!r}; mark the function"
                " itself, or put dependencies=[Depends(maintenance_exempt)] on its"
                " route"
            ) from None
        return endpoint

    def __repr__(self) -> str:
        return "maintenance_exempt"


async def _asynchronous() -> None: ...


maintenance_exempt: Final = MaintenanceExempt()
"""Keeps what it marks open under maintenance, for every guard, and uncounted.

As a decorator, above or below the route decorator, it returns the same function;
``dependencies=[Depends(maintenance_exempt)]`` exempts a route, an ``APIRouter`` or an
``include_router`` with everything below it.

Examples:
    >>> from fastapi import FastAPI
    >>> app = FastAPI()
    >>> @app.get("/livez")
    ... @maintenance_exempt
    ... async def livez() -> dict[str, str]:
    ...     return {"status": "ok"}
"""


def has_mark(endpoint: object) -> bool:
    """Tell whether an endpoint itself carries the marker.

    Only the marker counts, so that a missing endpoint, or an object that answers to
    every attribute, cannot look like a hit.
    """
    return getattr(endpoint, _MARK, None) is maintenance_exempt


def is_marked(endpoint: object, effective: object | None) -> bool:
    """Tell whether an endpoint or its effective route carries the marker."""
    return has_mark(endpoint) or any(
        call is maintenance_exempt for call in direct_dependencies(effective)
    )


def is_documentation(scope: Scope, effective: object | None) -> bool:
    """Tell whether a self-hosted documentation route was matched."""
    app = scope.get("app")
    return (
        scope["type"] == "http"
        and documents(app, effective)
        and serves(app, scope.get("route"), effective)
    )


def documents(app: object, effective: object | None) -> bool:
    """Tell whether a route of an application looks like its documentation.

    The recipe of FastAPI's documentation, and nothing wider: a GET route that the
    schema does not list, at the very template of one of the documentation paths.
    """
    methods = getattr(effective, "methods", None)
    return (
        bool(methods)
        and set(methods or ()) <= {"GET", "HEAD"}
        and getattr(effective, "include_in_schema", True) is False
        and effective_template(effective) in documentation_paths(app)
    )


def with_header(name: str, secret: str) -> Callable[[HTTPConnection], bool]:
    """Return a handler that exempts requests with a secret header.

    Args:
        name: The header, as ``X-Admin-Key``.
        secret: Its value. Compared as bytes, in constant time.

    Raises:
        ValueError: If the name is no header name or the secret is empty or cannot be
            sent: an unset secret would exempt everyone who sends nothing.
    """
    token = "!#$%&'*+-.^_`|~"  # noqa: S105  # RFC 9110 section 5.6.2, no password
    named = is_a(name, str) and name.isascii()
    if not named or not name or not all(c.isalnum() or c in token for c in name):
        raise ValueError(f"not a header name: {name!r}")
    if not is_a(secret, str | None):
        raise TypeError(f"the secret for {name} must be a string")
    if not (secret or "").strip():
        raise ValueError(
            f"the secret for {name} is empty; is the variable that holds it set?"
        )
    if secret != secret.strip() or any(c < " " or c == "\x7f" for c in secret):
        raise ValueError(
            f"the secret for {name} has spaces around it or control characters, which"
            " no header can carry"
        )
    try:
        expected = secret.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the secret for {name} is no valid text") from None
    key = name.lower().encode("ascii")

    def has_secret(connection: HTTPConnection) -> bool:
        given = [
            value for header, value in connection.scope["headers"] if header == key
        ]
        # A header sent twice is somebody's trick, not an operator.
        return len(given) == 1 and hmac.compare_digest(given[0], expected)

    return has_secret


def from_networks(*networks: str) -> Callable[[HTTPConnection], bool]:
    """Return a handler that exempts clients by their address.

    The address is the one the server gives. Behind a proxy that is the proxy's until
    the server is told to trust it (uvicorn: ``--forwarded-allow-ips``); forwarding
    headers are never read here, as any client can write them.

    Args:
        networks: Addresses or networks, as ``"10.0.0.0/8"`` or ``"fd00::/8"``.

    Raises:
        ValueError: If there is none, or one is no network (host bits set, too).
    """
    if not networks:
        raise ValueError('name at least one network, as from_networks("10.0.0.0/8")')
    allowed = [_network(network) for network in networks]

    def is_inside(connection: HTTPConnection) -> bool:
        client = connection.client
        try:
            address = ipaddress.ip_address(client.host if client else "")
        except ValueError:
            return False
        # A dual-stack socket shows IPv4 clients as ::ffff:10.0.0.7.
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in allowed)

    return is_inside


def _network(text: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(text, str):
        raise ValueError(  # noqa: TRY004  # one error for every bad network
            f"not a network: {text!r}; write it as a string"
        )
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise ValueError(f"not a network: {text!r} ({error})") from None
