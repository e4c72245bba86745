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
    is_included,
    is_standard,
    match_frontend,
    match_route,
    middlewares_of,
    note_match,
    path_for_patterns,
)
from ..exemptions import documents, has_mark, inherits_mark, is_marked

DEEPEST: Final = 64
"""How many applications may be inside of each other; one may be mounted in itself."""

# Their middlewares leave the path as it is, but for one that runs users' functions.
_FRAMEWORKS: Final = ("starlette.", "fastapi.", "fastapi_maintenance.")

_STANDARD_CALLS: Final = (FastAPI.__call__, Starlette.__call__)


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
    """Find what a request will reach, without running it.

    What a middleware on the way would do to the path is not seen. Behind one of a
    mounted application or router that could lead to a route after all, everything
    that has no route is a closed box.

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
    apps: list[Starlette] = []
    try:
        return _descend(app, probe, apps)
    except _AnswersItselfError:
        return None
    except Exception:  # noqa: BLE001  # of a route's own matching: no answer, closed
        return ResolvedRoute(probe, None, apps, exempt=False)


def _descend(app: object, probe: Scope, apps: list[Starlette]) -> ResolvedRoute:
    marked = False
    for _ in range(DEEPEST):
        boxes = list(layers(app))
        box = boxes[-1]
        marked = any(map(has_mark, boxes)) or (marked and inherits_mark(box))
        router = router_of(box)
        middlewares = list(_middlewares(boxes, router))
        if _is_preflight(probe) and any(map(_answers_preflights, middlewares)):
            raise _AnswersItselfError
        if router is None or not is_standard(router, "__call__", "app"):
            break
        home = _enter(box, router, probe, apps)
        try:
            found = _choose(router, probe)
        except _AnswersItselfError:
            # The middlewares of the application around everything are trusted.
            trusted = home and box is router
            if not trusted and any(map(_may_rewrite, middlewares)):
                break
            raise
        if found is None:
            # What answers for every other path is an application like any other.
            app = router.default
        elif isinstance(found.route, Mount | Host):
            app = found.route.app
        else:
            effective = effective_of(found)
            exempt = (
                marked
                or is_marked(probe.get("endpoint"), effective)
                or (home and _is_documentation(apps[-1], probe, effective))
            )
            return ResolvedRoute(probe, effective, apps, exempt)
    return ResolvedRoute(probe, None, apps, marked)


def _enter(box: object, router: Router, probe: Scope, apps: list[Starlette]) -> bool:
    """Note an application as it does when it is called.

    Returns:
        Whether the router is that of the innermost application itself.
    """
    if isinstance(box, Starlette):
        apps.append(box)
        probe["app"] = box
        root_path = getattr(box, "root_path", "")
        if root_path:
            probe["root_path"] = root_path
    inside: Any = probe.get("app")
    home = router is getattr(inside, "router", None)
    if home and inside is not box:
        # It was entered before: the middleware stands inside of it.
        apps.append(inside)
    return home


def _is_documentation(app: object, probe: Scope, effective: object) -> bool:
    return (
        isinstance(app, FastAPI)
        and probe["type"] == "http"
        and documents(app, effective)
    )


def _choose(router: Router, probe: Scope) -> RouteMatch | None:
    """Choose as the router will, and note in the scope what it will note.

    Returns:
        None where the router has a default of its own for the rest.
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
    if isinstance(found.route, Route):
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
    """Tell whether the path is right but for the slash at its end."""
    path: str = probe["path"]
    top = {"/", probe.get("root_path", "") + "/"}
    if probe["type"] != "http" or not router.redirect_slashes or path in top:
        return False
    other = {**probe, "path": path.rstrip("/") if path.endswith("/") else f"{path}/"}
    return _first_match(router, other) is not None


def _middlewares(boxes: list[object], router: Router | None) -> Iterator[object]:
    """Yield the classes of what a request passes before the router chooses."""
    yield from map(type, boxes[:-1])
    box = boxes[-1]
    if isinstance(box, Starlette):
        yield from (entry.cls for entry in box.user_middleware)
        if type(box).__call__ not in _STANDARD_CALLS:
            yield type(box)
    if router is not None:
        yield from middlewares_of(router)


def _is_preflight(probe: Scope) -> bool:
    if probe["type"] != "http" or probe["method"] != "OPTIONS":
        return False
    names = {name for name, _ in probe["headers"]}
    return names >= {b"origin", b"access-control-request-method"}


def _answers_preflights(middleware: object) -> bool:
    return isinstance(middleware, type) and issubclass(middleware, CORSMiddleware)


def _may_rewrite(middleware: object) -> bool:
    """Tell whether a middleware could change a path or a method."""
    return (
        not isinstance(middleware, type)
        or not middleware.__module__.startswith(_FRAMEWORKS)
        or issubclass(middleware, BaseHTTPMiddleware)
    )
