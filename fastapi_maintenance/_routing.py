"""How FastAPI routes: the other half of ``_fastapi``, for those who look ahead.

What is read here is not public API either. Where a release gives no answer, an
application is one closed box: refused under maintenance, and listed as one mount.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import fastapi.routing
from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import (
    BaseRoute,
    Host,
    Match,
    Mount,
    Route,
    Router,
    WebSocketRoute,
)

from ._fastapi import Scope

_DEEPEST: Final = 64


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
    for _ in range(_DEEPEST):
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


class Ahead(NamedTuple):
    """What a request will reach.

    Attributes:
        scope: A copy, as the endpoint will find it.
        endpoint: What will be called; a closed box is its own endpoint.
        effective: What holds its effective dependencies, or None.
        passed: Every application and middleware on the way, the outermost first.
        apps: The FastAPI and Starlette applications among them.
        home: Whether it is a route of the innermost application itself, and not of a
            router that is mounted on it.
    """

    scope: Scope
    endpoint: object
    effective: Any  # a route or a context, of any release
    passed: list[object]
    apps: list[Starlette]
    home: bool


class _AnswersItselfError(Exception):
    """The application answers: there is nothing to run."""


def look_ahead(app: object, scope: Scope) -> Ahead | None:
    """Find what a request will reach, by the real matching and without running it.

    What a middleware on the way would do to the path is not seen.

    Args:
        app: The application, or what wraps it.
        scope: The request; it is not changed.

    Returns:
        None if the application answers by itself: no route, a method that the route
        does not have, a redirect to where the slash is right, a preflight.
    """
    probe = dict(scope)
    own = scope.get("fastapi")
    if own:
        probe["fastapi"] = dict(own)
    passed: list[object] = []
    apps: list[Starlette] = []
    try:
        return _descend(app, probe, passed, apps)
    except _AnswersItselfError:
        return None
    except Exception:  # noqa: BLE001  # of a route's own matching: no answer, closed
        return Ahead(probe, None, None, passed, apps, home=False)


def _descend(
    app: object, probe: Scope, passed: list[object], apps: list[Starlette]
) -> Ahead:
    for _ in range(_DEEPEST):
        boxes = list(layers(app))
        passed += boxes
        box = boxes[-1]
        if _is_preflight(probe) and any(map(_answers_preflights, boxes)):
            raise _AnswersItselfError
        router = router_of(box)
        if router is None or not _is_plain(router, "__call__", "app"):
            break
        if isinstance(box, Starlette):
            apps.append(box)
            probe["app"] = box
            # As FastAPI does when it is called.
            root_path = getattr(box, "root_path", "")
            if root_path:
                probe["root_path"] = root_path
        inside: Any = probe.get("app")
        home = router is getattr(inside, "router", None)
        if home and inside is not box:
            # It was entered before: what looks ahead stands behind its front.
            apps.append(inside)
        found = _select(router, probe)
        if found is None:
            if router.default == router.not_found:
                raise _AnswersItselfError
            # What answers for every other path is an application as any other.
            app = router.default
        elif isinstance(found.route, Mount | Host):
            app = found.route.app
        else:
            endpoint = probe.get("endpoint")
            return Ahead(probe, endpoint, found.effective, passed, apps, home)
    return Ahead(probe, app, None, passed, apps, home=False)


class _Found(NamedTuple):
    route: Any  # of any release, and of any class
    effective: Any


def _select(router: Router, probe: Scope) -> _Found | None:
    """Choose as the router will, and note in the scope what it will note."""
    route, child = _first_match(router, probe)
    if route is None:
        if _redirects(router, probe):
            raise _AnswersItselfError
        return _select_frontend(router, probe)
    _merge(probe, child)
    effective = route
    while hasattr(route, "original_router"):
        # From 0.137 on: an included router, which has to be asked again.
        if not _is_plain(route.original_router, "handle", "matches"):
            raise LookupError
        _merge(probe, {"fastapi": {"included_router": route}})
        _, child, route, context = route._match(probe)  # noqa: SLF001  # see above
        _merge(probe, child)
        effective = route
        if context is not None:
            _merge(probe, {"fastapi": {"effective_route_context": context}})
            if getattr(context, "dependant", None) is not None:
                effective = context
    if isinstance(route, Route):
        methods = getattr(effective, "methods", None)
        if methods and probe["method"] not in methods:
            raise _AnswersItselfError
    probe["route"] = route
    return _Found(route, effective)


def _first_match(router: Router, probe: Scope) -> tuple[Any, Scope]:
    partial: tuple[Any, Scope] = None, {}
    for route in router.routes:
        match, child = route.matches(probe)
        if match is Match.FULL:
            return route, child
        if match is Match.PARTIAL and partial[0] is None:
            partial = route, child
    return partial


def _select_frontend(router: Router, probe: Scope) -> _Found | None:
    select = getattr(router, "_match_low_priority", None)
    if select is None:
        return None
    match, child, route, context = select(probe)
    if match is Match.NONE:
        return None
    if match is Match.PARTIAL:
        raise _AnswersItselfError
    _merge(probe, child)
    if context is not None:
        _merge(probe, {"fastapi": {"effective_route_context": context}})
    return _Found(route, route if context is None else context)


def _redirects(router: Router, probe: Scope) -> bool:
    """Tell whether the path is right but for the slash at its end."""
    path: str = probe["path"]
    top = {"/", probe.get("root_path", "") + "/"}
    if probe["type"] != "http" or not router.redirect_slashes or path in top:
        return False
    other = {**probe, "path": path.rstrip("/") if path.endswith("/") else f"{path}/"}
    return _first_match(router, other)[0] is not None


def _merge(probe: Scope, child: Scope) -> None:
    own = child.get("fastapi")
    if own is not None:
        child = {**child, "fastapi": {**probe.get("fastapi", {}), **own}}
    probe.update(child)


def _is_preflight(probe: Scope) -> bool:
    if probe["type"] != "http" or probe["method"] != "OPTIONS":
        return False
    names = {name for name, _ in probe["headers"]}
    return names >= {b"origin", b"access-control-request-method"}


def _answers_preflights(box: object) -> bool:
    """Tell whether a middleware, or one of an application, is Starlette's for CORS."""
    inside = box.user_middleware if isinstance(box, Starlette) else ()
    return isinstance(box, CORSMiddleware) or any(
        isinstance(entry.cls, type) and issubclass(entry.cls, CORSMiddleware)
        for entry in inside
    )


def _is_plain(router: Router, *names: str) -> bool:
    """Tell whether a router does these things as FastAPI's or Starlette's own does."""
    known = APIRouter if isinstance(router, APIRouter) else Router
    return all(getattr(type(router), name) is getattr(known, name) for name in names)
