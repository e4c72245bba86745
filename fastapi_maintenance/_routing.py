"""What FastAPI routes: applications, their layers, routers and effective routes.

What is read here is not public API either. Where a release gives no answer, an
application is one closed box: refused under maintenance, and listed as one mount.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import fastapi.routing
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, Router, WebSocketRoute

DEEPEST: Final = 64
"""How many applications may be inside of each other; one may be mounted in itself."""


class Listed(NamedTuple):
    """A route as its router, and the routers that include it, make it.

    Attributes:
        kind: "HTTP", "WebSocket", "Mount" or "Frontend".
        path: The whole template from the router on, prefixes included.
        effective: What holds the effective dependencies, methods and endpoint.
    """

    kind: str
    path: str
    effective: Any  # a route or a context, of any release


def layers(app: object) -> Iterator[object]:
    """Yield an ASGI application and what it wraps, down to what has routes.

    Middlewares keep what they wrap as ``app``, by convention.
    """
    for _ in range(DEEPEST):
        if app is None:
            return
        yield app
        if isinstance(app, Starlette | Router):
            return
        app = getattr(app, "app", None)


def router_of(app: object) -> Router | None:
    """Return the router of an application, or None for a closed box."""
    if isinstance(app, Starlette):
        return app.router
    return app if isinstance(app, Router) else None


def listed(router: Router) -> Iterator[Listed]:
    """Yield the effective routes of a router in the order of matching."""
    for route in router.routes:
        for effective, base in _contexts(route):
            path: str = getattr(effective, "path", "") or getattr(base, "host", "")
            if isinstance(base, Mount | Host):
                kind = "Mount"
            elif isinstance(base, WebSocketRoute):
                kind = "WebSocket"
            else:
                kind = "HTTP"
            yield Listed(kind, path, effective)
    for candidate in _low_priority(router):
        group = getattr(candidate, "starlette_route", None) or candidate
        group = getattr(group, "original_route", group)
        prefix = getattr(candidate, "frontend_prefix", "")
        for frontend in getattr(group, "routes", ()):
            path = prefix + ("" if prefix and frontend.path == "/" else frontend.path)
            yield Listed("Frontend", path, candidate)


def _contexts(route: BaseRoute) -> Iterator[tuple[Any, BaseRoute]]:
    # Up to 0.136 an included route is a copy, complete in itself. 0.137.0 and 0.137.1
    # share it and have no public way to its contexts.
    public = getattr(fastapi.routing, "iter_route_contexts", None)
    own = getattr(route, "effective_route_contexts", None)
    if own is None:
        yield route, route
        return
    for context in own() if public is None else public([route]):
        # Before 0.144 a context knows nothing of the copies that it makes of WebSocket
        # routes, plain routes and mounts.
        copied = getattr(context, "starlette_route", None)
        yield copied or context, context.original_route


def _low_priority(router: Router) -> Iterator[Any]:
    found = getattr(router, "_iter_low_priority_routes", None)
    return iter(()) if found is None else found()
