"""Which route a request will reach, found by the real matching and without running it.

Where nothing can be said, the request reaches a *closed box*: an application that is
refused as a whole.
"""

from collections.abc import Collection, Iterator
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


class Level(NamedTuple):
    """One application on the way to a route.

    Attributes:
        layers: The middlewares around it, the outermost first, and the application.
        router: Its router; None for a closed box.
        app: The innermost Starlette or FastAPI application so far.
        marked: Whether it is exempt by its marker.
    """

    layers: tuple[object, ...] = ()
    router: Router | None = None
    app: object = None
    marked: bool = False

    @property
    def inner(self) -> object:
        """The application without its middlewares."""
        return self.layers[-1]

    @property
    def is_apps_own_router(self) -> bool:
        """Whether its router is that of ``app``, and not one that is mounted there."""
        router = getattr(self.app, "router", None)
        return router is not None and router is self.router

    @property
    def is_trusted(self) -> bool:
        """Whether the guard stands inside of this application.

        Its middlewares are trusted to leave paths and methods alone.
        """
        return self.is_apps_own_router and self.inner is self.router

    def documents(self, effective: object) -> bool:
        """Tell whether a route is documentation of this application."""
        return (
            self.is_apps_own_router
            and isinstance(self.app, FastAPI)
            and looks_like_documentation(self.app, effective)
        )

    def enter(self, app: object, around: Collection[object]) -> "Level":
        """Return the level of an application that this level passes requests on to.

        Args:
            app: The application, with its middlewares.
            around: The applications that are known to be around it.
        """
        found = tuple(layers(app, around))
        inner = found[-1]
        return Level(
            found,
            router_of(inner),
            inner if isinstance(inner, Starlette) else self.app,
            any(map(has_mark, found)) or (self.marked and inherits_mark(inner)),
        )


def layers(app: object, around: Collection[object] = ()) -> Iterator[object]:
    """Yield an ASGI application and what it wraps, down to what has routes.

    Middlewares keep what they wrap as ``app``, by convention. Extensions keep the
    application around them under the same name, and pass nothing on to it.
    """
    for _ in range(DEEPEST):
        yield app
        if isinstance(app, Starlette | Router):
            return
        app = getattr(app, "app", None)
        if app is None or any(app is known for known in around):
            return


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
    scope_copy = dict(scope)
    # An endpoint may send another request into its application with its own scope.
    scope_copy.pop("endpoint", None)
    fastapi_scope = scope.get("fastapi")
    if fastapi_scope:
        scope_copy["fastapi"] = dict(fastapi_scope)
    apps: list[Starlette] = []
    try:
        return _descend(app, scope_copy, apps)
    except Exception:  # noqa: BLE001  # a route's own matching failed: closed
        return ResolvedRoute(scope_copy, None, apps, exempt=False)


def _descend(
    app: object, scope_copy: Scope, apps: list[Starlette]
) -> ResolvedRoute | None:
    """Go from one application to the next, noting in the scope what each would note."""
    outer = scope_copy.get("app")
    level = Level(app=outer)
    rewritten = False
    for _ in range(DEEPEST):
        level = level.enter(app, (outer, *apps))
        _note_app(level, scope_copy, apps)
        if not rewritten and _answers_preflight(level, scope_copy):
            return None
        rewritten = rewritten or _may_rewrite(level)
        router = level.router
        if router is None or not is_standard(router, "__call__", "app"):
            break
        found = _choose(router, scope_copy)
        if found is _ANSWERS_ITSELF:
            if rewritten:
                break
            return None
        if found is None:
            # What answers for every other path is an application like any other.
            app = router.default
        elif not isinstance(found.route, Mount | Host):
            effective = effective_of(found)
            exempt = (
                level.marked
                or is_marked(scope_copy.get("endpoint"), effective)
                or (scope_copy["type"] == "http" and level.documents(effective))
            )
            return ResolvedRoute(scope_copy, effective, apps, exempt)
        elif handles_as_usual(found.route):
            app = found.route.app
        else:
            return ResolvedRoute(scope_copy, None, apps, exempt=False)
    return ResolvedRoute(scope_copy, None, apps, level.marked)


def _note_app(level: Level, scope_copy: Scope, apps: list[Starlette]) -> None:
    """Note an application in the scope, as it does itself when it is called."""
    if isinstance(level.inner, Starlette):
        scope_copy["app"] = level.inner
        root_path = getattr(level.inner, "root_path", "")
        if root_path:
            scope_copy["root_path"] = root_path
    if level.is_apps_own_router and isinstance(level.app, Starlette):
        apps.append(level.app)


_ANSWERS_ITSELF: Final = RouteMatch(Match.NONE, {}, None)
"""There is nothing to run: the router answers 404 or 405, or redirects."""


def _choose(router: Router, scope_copy: Scope) -> RouteMatch | None:
    """Choose a route as the router will, and note it in the scope as that does.

    Returns:
        ``_ANSWERS_ITSELF`` if there is nothing to run; None if the router's own
        ``default`` answers.
    """
    found = _first_match(router, scope_copy)
    if found is None:
        return _choose_last(router, scope_copy)
    note_match(scope_copy, found)
    while is_included(found.route):
        inside = match_route(found.route, scope_copy)
        if inside.route is found.route:
            raise LookupError("the router chooses in a way of its own")
        found = inside
        note_match(scope_copy, found)
    if isinstance(found.route, Route) and handles_as_usual(found.route):
        methods = getattr(effective_of(found), "methods", None)
        if methods and scope_copy["method"] not in methods:
            return _ANSWERS_ITSELF
    scope_copy["route"] = found.route
    return found


def _choose_last(router: Router, scope_copy: Scope) -> RouteMatch | None:
    """Choose what comes after all routes, and return it as ``_choose`` does."""
    if _redirects(router, scope_copy):
        return _ANSWERS_ITSELF
    frontend = match_frontend(router, scope_copy)
    if frontend is None:
        return _ANSWERS_ITSELF if router.default == router.not_found else None
    if frontend.match is Match.PARTIAL:
        return _ANSWERS_ITSELF
    note_match(scope_copy, frontend)
    return frontend


def _first_match(router: Router, scope: Scope) -> RouteMatch | None:
    partial: RouteMatch | None = None
    path = path_for_patterns(scope)
    for route in router.routes:
        if (
            path is not None
            and type(route).matches in MATCHED_BY_PATTERN
            and not route.path_regex.match(path)  # type: ignore[attr-defined]  # it has one
        ):
            continue
        found = match_route(route, scope)
        if found.match is Match.FULL:
            return found
        if found.match is Match.PARTIAL and partial is None:
            partial = found
    return partial


def _redirects(router: Router, scope: Scope) -> bool:
    """Tell whether the router redirects to the path with or without a last slash."""
    path: str = scope["path"]
    routed = route_path(scope)
    if scope["type"] != "http" or not router.redirect_slashes or routed in {None, "/"}:
        return False
    other = {**scope, "path": path.rstrip("/") if routed.endswith("/") else f"{path}/"}
    return _first_match(router, other) is not None


def _middlewares(level: Level) -> Iterator[object]:
    """Yield the classes of what a request passes before the router chooses.

    An application that builds its middlewares in a way of its own is yielded itself.
    """
    *around, inner = level.layers
    yield from map(type, around)
    if isinstance(inner, Starlette):
        if not runs_as_usual(inner):
            yield inner
        yield from (entry.cls for entry in inner.user_middleware)
    if level.router is not None:
        yield from middlewares_of(level.router)


def _answers_preflight(level: Level, scope: Scope) -> bool:
    """Tell whether a request is a preflight that a middleware answers."""
    if not _is_preflight(scope):
        return False
    for middleware in _middlewares(level):
        if _is_cors(middleware):
            return True
        if not level.is_trusted and _is_unknown(middleware):
            return False
    return False


def _may_rewrite(level: Level) -> bool:
    """Tell whether the path or the method may be another one behind middlewares."""
    return not level.is_trusted and any(map(_is_unknown, _middlewares(level)))


def _is_preflight(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return names >= {b"origin", b"access-control-request-method"}


def _is_cors(middleware: object) -> bool:
    return (
        isinstance(middleware, type)
        and issubclass(middleware, CORSMiddleware)
        and middleware.__call__ == CORSMiddleware.__call__
    )


def _is_unknown(middleware: object) -> bool:
    """Tell whether a middleware could change a path or a method."""
    return (
        not isinstance(middleware, type)
        or not middleware.__module__.startswith(_FRAMEWORKS)
        or issubclass(middleware, BaseHTTPMiddleware)
    )
