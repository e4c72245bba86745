"""What a request will reach, found by the real matching and without running it.

It is how FastAPI's and Starlette's routers choose, and no public API. Where a release
gives no answer, the request reaches a closed box.
"""

from typing import Any, Final, NamedTuple

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Match, Mount, Route, Router

from ._fastapi import Scope
from ._routing import DEEPEST, layers, router_of

# Whose middlewares leave the path as it is, but for one that runs users' functions.
_FRAMEWORKS: Final = ("starlette.", "fastapi.", "fastapi_maintenance.")

# They match by a pattern of the path first of all, as far as is known.
_BY_PATTERN: Final = (Route.matches, APIRoute.matches)


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


def look_ahead(app: object, scope: Scope, *, quick: bool = False) -> Ahead | None:
    """Find what a request will reach, by the real matching and without running it.

    What a middleware on the way would do to the path is not seen. Where one of a
    mounted application could make a route of what is none, that is a closed box.

    Args:
        app: The application, or what wraps it.
        scope: The request; it is not changed.
        quick: Ask only those routes whose pattern fits. That is how they are known to
            match, and good enough to refuse by; it is not enough to let in.

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
        return _descend(app, probe, passed, apps, quick=quick)
    except _AnswersItselfError:
        return None
    except Exception:  # noqa: BLE001  # of a route's own matching: no answer, closed
        return Ahead(probe, None, None, passed, apps, home=False)


def _descend(
    app: object,
    probe: Scope,
    passed: list[object],
    apps: list[Starlette],
    *,
    quick: bool,
) -> Ahead:
    for _ in range(DEEPEST):
        boxes = list(layers(app))
        passed += boxes
        box, front = boxes[-1], _front(boxes)
        if _is_preflight(probe) and any(map(_answers_preflights, front)):
            raise _AnswersItselfError
        router = router_of(box)
        if router is None or not _is_plain(router, "__call__", "app"):
            break
        home = _enter(box, router, probe, apps)
        try:
            found = _choose(router, probe, quick=quick)
        except _AnswersItselfError:
            if any(map(_may_rewrite, front)) and not (home and box is router):
                break
            raise
        if found is None:
            # What answers for every other path is an application as any other.
            app = router.default
        elif isinstance(found.route, Mount | Host):
            app = found.route.app
        else:
            endpoint = probe.get("endpoint")
            return Ahead(probe, endpoint, found.effective, passed, apps, home)
    return Ahead(probe, app, None, passed, apps, home=False)


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
        # It was entered before: what looks ahead stands behind its front.
        apps.append(inside)
    return home


class _Found(NamedTuple):
    route: Any  # of any release, and of any class
    effective: Any


def _choose(router: Router, probe: Scope, *, quick: bool) -> _Found | None:
    """Choose as the router will; None if it has a default of its own for the rest."""
    found = _select(router, probe, quick=quick)
    if found is None and router.default == router.not_found:
        raise _AnswersItselfError
    return found


def _select(router: Router, probe: Scope, *, quick: bool) -> _Found | None:
    """Choose as the router will, and note in the scope what it will note."""
    route, child, context = _first_match(router, probe, quick=quick)
    if route is None:
        if _redirects(router, probe):
            raise _AnswersItselfError
        return _select_frontend(router, probe)
    _merge(probe, child)
    while hasattr(route, "original_router"):
        inside = _inside(route, probe)
        if inside is None:
            raise LookupError
        _, route, child, context = inside
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


def _first_match(
    router: Router, probe: Scope, *, quick: bool
) -> tuple[Any, Scope, Any]:
    """Return a route, what to note, and its context if it was asked for already."""
    partial: tuple[Any, Scope, Any] = None, {}, None
    path = _route_path(probe) if quick else None
    for route in router.routes:
        if (
            path is not None
            and type(route).matches in _BY_PATTERN
            and not route.path_regex.match(path)  # type: ignore[attr-defined]  # they have one
        ):
            continue
        inside = _inside(route, probe)
        if inside is not None:
            match, *found = inside
        else:
            match, child = route.matches(probe)
            found = [route, child, None]
        if match is Match.FULL:
            return found[0], found[1], found[2]
        if match is Match.PARTIAL and partial[0] is None:
            partial = found[0], found[1], found[2]
    return partial


def _route_path(probe: Scope) -> str:
    path: str = probe["path"]
    rest = path.removeprefix(probe.get("root_path", ""))
    return rest if not rest or rest.startswith("/") else path


def _inside(route: Any, probe: Scope) -> tuple[Any, Any, Scope, Any] | None:
    """Ask an included router, which is one from 0.137 on, for its own choice.

    Returns:
        How it matches, the route, what to note, and its context. None for another
        kind of route, and for a router with a way of its own to choose.
    """
    inner = getattr(route, "original_router", None)
    if inner is None or not _is_plain(inner, "handle", "matches"):
        return None
    noted = {**probe.get("fastapi", {}), "included_router": route}
    match, child, chosen, context = route._match({**probe, "fastapi": noted})  # noqa: SLF001  # there is no other way
    return match, chosen, child, context


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
    return _first_match(router, other, quick=False)[0] is not None


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


def _front(boxes: list[object]) -> list[object]:
    """Return the classes of the middlewares that stand before a router."""
    found: list[object] = [type(box) for box in boxes[:-1]]
    if isinstance(boxes[-1], Starlette):
        found += [entry.cls for entry in boxes[-1].user_middleware]
    return found


def _answers_preflights(middleware: object) -> bool:
    """Tell whether a middleware is Starlette's for CORS."""
    return isinstance(middleware, type) and issubclass(middleware, CORSMiddleware)


def _may_rewrite(middleware: object) -> bool:
    """Tell whether a middleware could change a path or a method."""
    return (
        not isinstance(middleware, type)
        or not middleware.__module__.startswith(_FRAMEWORKS)
        or issubclass(middleware, BaseHTTPMiddleware)
    )


def _is_plain(router: Router, *names: str) -> bool:
    """Tell whether a router does these things as FastAPI's or Starlette's own does."""
    known = APIRouter if isinstance(router, APIRouter) else Router
    return all(getattr(type(router), name) is getattr(known, name) for name in names)
