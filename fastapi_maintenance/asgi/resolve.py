"""Which route a request will reach, found by the real matching and without running it.

Where nothing can be said, the request reaches a *closed box*: an application that is
refused as a whole.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Match, Mount, Route, Router

from .._fastapi import (
    MATCHED_BY_PATTERN,
    RouteMatch,
    Scope,
    effective_of,
    handles_as_usual,
    is_included,
    is_standard,
    match_frontend,
    match_route,
    middlewares_of,
    note_match,
    path_for_patterns,
    route_path,
    runs_as_usual,
)
from ..exemptions import (
    has_mark,
    inherits_mark,
    is_marked,
    looks_like_documentation,
)

DEEPEST: Final = 64
"""How many applications may be inside of each other; one may be mounted in itself."""

# Their middlewares do not change the path, except ``BaseHTTPMiddleware``, which runs
# users' functions.
_FRAMEWORKS: Final = ("starlette.", "fastapi.", "fastapi_maintenance.")


class ResolvedRoute(NamedTuple):
    """What a request will reach.

    Attributes:
        scope: A copy of the scope, as the endpoint will find it.
        effective: What holds its effective settings; None for a closed box.
        apps: The FastAPI and Starlette applications on the way, the outermost first.
        exempt: Whether it is open under maintenance, by a marker or as documentation.
    """

    scope: Scope
    effective: Any  # a route or a context, of any release
    apps: list[Starlette]
    exempt: bool


class _AnswersItselfError(Exception):
    """The application answers: there is nothing to run."""


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


def resolve(app: object, scope: Scope) -> ResolvedRoute | None:
    """Find what a request will reach, without running it or changing its scope.

    What a middleware would do to the path is not seen. Behind one of a mounted
    application, however deep, that may rewrite it, a path without a route is a closed
    box.

    Returns:
        None if the application answers by itself: no route, a method that the route
        does not have, a redirect to where the slash is right, a preflight.
    """
    probe = dict(scope)
    # An endpoint may send another request into its application with its own scope.
    probe.pop("endpoint", None)
    fastapi_scope = scope.get("fastapi")
    if fastapi_scope:
        probe["fastapi"] = dict(fastapi_scope)
    apps: list[Starlette] = []
    try:
        return _descend(app, probe, apps)
    except _AnswersItselfError:
        return None
    except Exception:  # noqa: BLE001  # a route's own matching failed: closed
        return ResolvedRoute(probe, None, apps, exempt=False)


def _descend(app: object, probe: Scope, apps: list[Starlette]) -> ResolvedRoute:
    marked = rewritten = False
    for _ in range(DEEPEST):
        chain = list(layers(app))
        inner = chain[-1]
        marked = any(map(has_mark, chain)) or (marked and inherits_mark(inner))
        router = router_of(inner)
        if any(inner is around for around in apps):
            # It keeps the application around it, and passes nothing on to that.
            break
        of_app = router is not None and _enter(inner, router, probe, apps)
        # The middlewares of the outermost application are trusted.
        trusted = of_app and inner is router
        middlewares = _middlewares(chain, router)
        rewritten = _pass_middlewares(middlewares, probe, rewritten, trusted=trusted)
        if router is None or not is_standard(router, "__call__", "app"):
            break
        try:
            found = _choose(router, probe)
        except _AnswersItselfError:
            if rewritten:
                break
            raise
        if found is None:
            # What answers for every other path is an application like any other.
            app = router.default
        elif isinstance(found.route, Mount | Host):
            if not handles_as_usual(found.route):
                return ResolvedRoute(probe, None, apps, exempt=False)
            app = found.route.app
        else:
            effective = effective_of(found)
            exempt = (
                marked
                or is_marked(probe.get("endpoint"), effective)
                or (of_app and _is_documentation(apps[-1], probe, effective))
            )
            return ResolvedRoute(probe, effective, apps, exempt)
    return ResolvedRoute(probe, None, apps, marked)


def _enter(inner: object, router: Router, probe: Scope, apps: list[Starlette]) -> bool:
    """Note an application in the scope, as it does itself when it is called.

    Returns:
        Whether the router is an application's own, and not mounted in one.
    """
    if isinstance(inner, Starlette):
        apps.append(inner)
        probe["app"] = inner
        root_path = getattr(inner, "root_path", "")
        if root_path:
            probe["root_path"] = root_path
    app: Any = probe.get("app")
    of_app = router is getattr(app, "router", None)
    if of_app and app is not inner:
        # The middleware stands inside of this application.
        apps.append(app)
    return of_app


def _is_documentation(app: object, probe: Scope, effective: object) -> bool:
    return (
        isinstance(app, FastAPI)
        and probe["type"] == "http"
        and looks_like_documentation(app, effective)
    )


def _choose(router: Router, probe: Scope) -> RouteMatch | None:
    """Choose a route, and note it in the scope, as the router will.

    Returns:
        None if the router's own ``default`` answers.
    """
    found = _first_match(router, probe)
    if found is None:
        if _redirects(router, probe):
            raise _AnswersItselfError
        found = match_frontend(router, probe)
        if found is None:
            if router.default == router.not_found:
                raise _AnswersItselfError
            return None
        if found.match is Match.PARTIAL:
            raise _AnswersItselfError
        note_match(probe, found)
        return found
    note_match(probe, found)
    while is_included(found.route):
        inside = match_route(found.route, probe)
        if inside.route is found.route:
            raise LookupError("the router chooses in a way of its own")
        found = inside
        note_match(probe, found)
    if isinstance(found.route, Route) and handles_as_usual(found.route):
        methods = getattr(effective_of(found), "methods", None)
        if methods and probe["method"] not in methods:
            raise _AnswersItselfError
    probe["route"] = found.route
    return found


def _first_match(router: Router, probe: Scope) -> RouteMatch | None:
    partial: RouteMatch | None = None
    path = path_for_patterns(probe)
    for route in router.routes:
        if (
            path is not None
            and type(route).matches in MATCHED_BY_PATTERN
            and not route.path_regex.match(path)  # type: ignore[attr-defined]  # it has one
        ):
            continue
        found = match_route(route, probe)
        if found.match is Match.FULL:
            return found
        if found.match is Match.PARTIAL and partial is None:
            partial = found
    return partial


def _redirects(router: Router, probe: Scope) -> bool:
    """Tell whether the router redirects to the path with or without a last slash."""
    path: str = probe["path"]
    routed = route_path(probe)
    if probe["type"] != "http" or not router.redirect_slashes or routed in {None, "/"}:
        return False
    other = {**probe, "path": path.rstrip("/") if routed.endswith("/") else f"{path}/"}
    return _first_match(router, other) is not None


def _middlewares(chain: list[object], router: Router | None) -> Iterator[object]:
    """Yield the classes of what a request passes before the router chooses.

    An application that builds its middlewares in a way of its own is yielded itself.
    """
    *around, inner = chain
    yield from map(type, around)
    if isinstance(inner, Starlette):
        if not runs_as_usual(inner):
            yield inner
        yield from (entry.cls for entry in inner.user_middleware)
    if router is not None:
        yield from middlewares_of(router)


def _pass_middlewares(
    middlewares: Iterator[object], probe: Scope, rewritten: bool, *, trusted: bool
) -> bool:
    """Tell whether the path or the method may be another one behind middlewares.

    Args:
        middlewares: The classes, the outermost first.
        probe: The request.
        rewritten: Whether they may be so already.
        trusted: Whether these leave them as they are.

    Raises:
        _AnswersItselfError: If one of them answers a preflight.
    """
    preflight = _is_preflight(probe)
    for middleware in middlewares:
        if preflight and not rewritten and _answers_preflights(middleware):
            raise _AnswersItselfError
        rewritten = rewritten or (not trusted and _may_rewrite(middleware))
    return rewritten


def _is_preflight(probe: Scope) -> bool:
    if probe["type"] != "http" or probe["method"] != "OPTIONS":
        return False
    names = {name for name, _ in probe["headers"]}
    return names >= {b"origin", b"access-control-request-method"}


def _answers_preflights(middleware: object) -> bool:
    return (
        isinstance(middleware, type)
        and issubclass(middleware, CORSMiddleware)
        and middleware.__call__ == CORSMiddleware.__call__
    )


def _may_rewrite(middleware: object) -> bool:
    """Tell whether a middleware could change a path or a method."""
    return (
        not isinstance(middleware, type)
        or not middleware.__module__.startswith(_FRAMEWORKS)
        or issubclass(middleware, BaseHTTPMiddleware)
    )
