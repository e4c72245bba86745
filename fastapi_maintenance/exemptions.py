"""What stays open under maintenance: the marker, documentation, ready-made handlers."""

import hmac
import inspect
import ipaddress
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from types import MethodType
from typing import Any, Final, NoReturn, TypeVar, overload

from fastapi import APIRouter
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Router
from starlette.staticfiles import StaticFiles

from ._fastapi import (
    Scope,
    direct_dependencies,
    documentation_paths,
    effective_template,
    is_own_route,
)

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])

_MARK: Final = "__maintenance_exempt__"
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")

# RFC 9110 section 5.6.2: letters, digits and these.
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class _CompletedAwaitable:
    """What the marker returns as a dependency; awaiting it gives None at once."""

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
        # needs a thread, and then calls the one of the class.
        self.__dict__["__call__"] = _async_call

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
            return _CompletedAwaitable()
        # Routes and routers are callable too. Included ones are never called, so a
        # marker on them would not be seen.
        if not callable(endpoint) or isinstance(endpoint, BaseRoute | APIRouter):
            raise TypeError(
                "@maintenance_exempt marks endpoints and applications, not"
                f" {endpoint!r}; give routers and routes"
                " dependencies=[Depends(maintenance_exempt)]"
            )
        with suppress(AttributeError, TypeError):
            setattr(endpoint, _MARK, self)
        if not has_mark(endpoint):
            raise TypeError(
                f"@maintenance_exempt cannot mark {endpoint!r}; mark the function"
                " itself, or put dependencies=[Depends(maintenance_exempt)] on its"
                " route"
            )
        return endpoint

    def __repr__(self) -> str:
        return "maintenance_exempt"


async def _async_call() -> None: ...


maintenance_exempt: Final = MaintenanceExempt()
"""Keeps what it marks open under maintenance, for every guard, and uncounted.

As a decorator, above or below the route decorator, it returns the same function. It
also marks a class as an endpoint, and an ASGI application, before or after it is
mounted. A marked Starlette or FastAPI application is open with its routes and files; an
application that is mounted inside of it needs its own mark. As a dependency,
``dependencies=[Depends(maintenance_exempt)]``, it exempts a route, an ``APIRouter`` or
an ``include_router`` with everything below it.

Examples:
    >>> from fastapi import FastAPI
    >>> app = FastAPI()
    >>> @app.get("/livez")
    ... @maintenance_exempt
    ... async def livez() -> dict[str, str]:
    ...     return {"status": "ok"}
"""


def has_mark(endpoint: object) -> bool:
    """Tell whether an endpoint or application itself carries the marker.

    Only its own ``__dict__`` counts. A marked class does not mark its instances, and an
    object that answers to every attribute name is not taken for a marked one.
    """
    own = endpoint.__func__ if isinstance(endpoint, MethodType) else endpoint
    return getattr(own, "__dict__", {}).get(_MARK) is maintenance_exempt


def inherits_mark(app: object) -> bool:
    """Tell whether something mounted in a marked application is marked with it."""
    return isinstance(app, Router | StaticFiles)


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
        and looks_like_documentation(app, effective)
        and is_own_route(app, scope.get("route"), effective)
    )


def looks_like_documentation(app: object, effective: object | None) -> bool:
    """Tell whether a route of an application looks like its documentation.

    That is what FastAPI's own documentation describes, and nothing more: a GET route
    that the schema does not list, with one of the documentation paths as its template.
    """
    methods = getattr(effective, "methods", None)
    return (
        bool(methods)
        and set(methods or ()) <= {"GET", "HEAD"}
        and getattr(effective, "include_in_schema", True) is False
        and effective_template(effective) in documentation_paths(app)
    )


class ReadyMade:
    """A handler that needs only the scope; it is asked first, and without a thread."""

    def __init__(self, name: str, matches: Callable[[HTTPConnection], bool]) -> None:
        self.__qualname__ = name
        self._matches = matches

    def __call__(self, connection: HTTPConnection) -> bool:
        """Tell whether a connection is exempt."""
        return self._matches(connection)


def with_header(name: str, secret: str) -> Callable[[HTTPConnection], bool]:
    """Return a handler that exempts requests with a secret header.

    Args:
        name: The header, such as ``X-Admin-Key``.
        secret: Its value. Compared as bytes, in constant time.

    Raises:
        ValueError: If the name is not a header name, or the secret is empty or cannot
            be sent. An unset secret would exempt everyone who sends nothing.
    """
    given: object = name
    if not isinstance(given, str) or not _HEADER_NAME.fullmatch(given):
        raise ValueError(f"not a header name: {name!r}")
    if not isinstance(secret, str | None):
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
        raise ValueError(f"the secret for {name} is not valid text") from None
    key = name.lower().encode("ascii")

    def has_secret(connection: HTTPConnection) -> bool:
        sent = [value for header, value in connection.scope["headers"] if header == key]
        # If there are two, a proxy may have set one and the client the other.
        return len(sent) == 1 and hmac.compare_digest(sent[0], expected)

    return ReadyMade("with_header", has_secret)


def from_networks(*networks: str) -> Callable[[HTTPConnection], bool]:
    """Return a handler that exempts clients by their address.

    The address is the one the server gives. Behind a proxy that is the proxy's until
    the server is told to trust it (uvicorn: ``--forwarded-allow-ips``); forwarding
    headers are never read here, as any client can write them.

    Args:
        networks: Addresses or networks, such as ``"10.0.0.0/8"`` or ``"fd00::/8"``. An
            IPv4 network matches clients of a dual-stack socket too.

    Raises:
        ValueError: If there is none, or one is not a network, or has host bits set.
    """
    if not networks:
        raise ValueError('name at least one network: from_networks("10.0.0.0/8")')
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

    return ReadyMade("from_networks", is_inside)


def _network(text: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(text, str):
        raise ValueError(  # noqa: TRY004  # one error for every bad network
            f"not a network: {text!r}; write it as a string"
        )
    try:
        network = ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise ValueError(f"not a network: {text!r} ({error})") from None
    # IPv4 clients are compared as IPv4, so a mapped network must be IPv4 too.
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        start = network.network_address.ipv4_mapped
        return ipaddress.ip_network((start or 0, network.prefixlen - 96))
    return network
