"""What is read of the insides of FastAPI and Starlette, and nowhere else.

None of it is public API. Where a release gives no answer, a route is not exempt, a
handler does not exempt, an application is refused as a whole, and a request is not
counted, which a drain says.
``tests/guard/test_fastapi_insides.py`` fails on the release that breaks one of them.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final, NamedTuple

import fastapi.routing
import starlette._utils
from fastapi import APIRouter, FastAPI
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import (
    BaseRoute,
    Host,
    Match,
    Mount,
    Route,
    Router,
    WebSocketRoute,
)

Scope = MutableMapping[str, Any]  # Starlette's own spelling of an ASGI scope

OUTER_STACK: Final = "fastapi_middleware_astack"
"""Where a scope has the exit stack that a request closes last (0.118 and later).

It closes after the response, the background tasks, the dependencies and the exception
handlers. Absent where a release has no such stack; a request is not counted then.
"""

_INNER_STACKS: Final = ("fastapi_inner_astack", "fastapi_function_astack")
_MISSING: Final = object()
_MAX_MIDDLEWARES: Final = 64

_FRAMEWORK: Final = ("fastapi.routing", "starlette.routing")

MATCHED_BY_PATTERN: Final = frozenset({Route.matches, APIRoute.matches})
"""How routes match that do so only where the pattern of their path does."""

_get_route_path: Callable[[Scope], str] | None = getattr(
    starlette._utils,  # noqa: SLF001  # where it is missing, every route is asked
    "get_route_path",
    None,
)

# Public from 0.137.2 on; before 0.137 included routes are the application's own.
_route_contexts: Callable[[Any], Iterable[Any]] | None = getattr(
    fastapi.routing, "iter_route_contexts", None
)


class ListedRoute(NamedTuple):
    """A route, with what the routers that include it add to it.

    Attributes:
        kind: "HTTP", "WebSocket", "Mount" or "Frontend".
        path: The whole template from the router on, prefixes included.
        effective: What holds the effective dependencies, methods and endpoint.
    """

    kind: str
    path: str
    effective: Any  # a route or a context, of any release


class RouteMatch(NamedTuple):
    """How a request matches a route.

    Attributes:
        match: Whether the path fits, and the method too.
        scope: What the router will note in the scope.
        route: The route; the one inside, where a router was included.
        context: The context of an included route.
    """

    match: Match
    scope: Scope
    route: Any  # of any class and release
    context: Any = None


def effective_route(scope: Scope) -> object | None:
    """Return what holds the effective settings of the matched route.

    The object lives as long as the route, so that it can be the key of a cache. From
    0.137 on an included route is shared, and its *context* differs; before, and for
    WebSockets, the route itself is complete. An ``app.frontend()`` has neither.
    """
    route: object | None = scope.get("route")
    fastapi_scope = scope.get("fastapi")
    if not isinstance(fastapi_scope, Mapping):
        return route
    context: object | None = fastapi_scope.get("effective_route_context")
    if getattr(context, "dependant", None) is not None and (
        route is None or getattr(context, "original_route", None) is route
    ):
        return context
    if route is None and "frontend_path" in fastapi_scope:
        return getattr(scope.get("app"), "router", None)
    return route


def direct_dependencies(effective: object | None) -> list[object]:
    """Return the callables that a route depends on directly, its routers' included."""
    dependant = getattr(effective, "dependant", None)
    if dependant is not None:
        return [node.call for node in getattr(dependant, "dependencies", ())]
    # A frontend has none; its router stands for it.
    listed = getattr(effective, "dependencies", ())
    return [getattr(entry, "dependency", None) for entry in listed or ()]


def effective_template(effective: object | None) -> str:
    """Return the whole path template, prefixes included, or ``""``."""
    path = getattr(effective, "path", "")
    return path if isinstance(path, str) else ""


def is_own_route(app: object, route: object, effective: object | None) -> bool:
    """Tell whether a route is an application's own, not of a router mounted on it.

    FastAPI 0.137.0 and 0.137.1 cannot list included routes, so these are not.
    """
    routes = getattr(app, "routes", [])
    if any(own is route for own in routes):
        return True
    template = effective_template(effective)
    return _route_contexts is not None and any(
        context.original_route is route and effective_template(context) == template
        for context in _route_contexts(routes)
    )


def documentation_paths(app: object) -> set[str]:
    """Return where an application's documentation is, or would be by default."""
    defaults = {
        "docs_url": "/docs",
        "redoc_url": "/redoc",
        "openapi_url": "/openapi.json",
        "swagger_ui_oauth2_redirect_url": "/docs/oauth2-redirect",
    }
    return {getattr(app, name, None) or path for name, path in defaults.items()}


def is_standard(router: Router, *names: str) -> bool:
    """Tell whether a router does these things as FastAPI's or Starlette's own does."""
    known = APIRouter if isinstance(router, APIRouter) else Router
    return all(getattr(type(router), name) == getattr(known, name) for name in names)


def runs_as_usual(app: Starlette) -> bool:
    """Tell whether an application runs its middlewares as FastAPI or Starlette does."""
    build = getattr(app.build_middleware_stack, "__func__", None)
    return any(
        type(app).__call__ == known.__call__ for known in (FastAPI, Starlette)
    ) and any(build == known.build_middleware_stack for known in (FastAPI, Starlette))


def handles_as_usual(route: BaseRoute) -> bool:
    """Tell whether a route hands a request on as FastAPI's or Starlette's own does."""
    # Compared by value: what a tracer has wrapped is another object at each look.
    return any(
        isinstance(route, known) and type(route).handle == known.handle
        for known in (APIRoute, Route, Mount, Host)
    )


def middlewares_of(router: Router) -> list[type]:
    """Return the classes of the middlewares that stand before a router's choice."""
    found: list[type] = []
    layer: Any = getattr(router, "middleware_stack", None)
    while layer is not None and layer != router.app and len(found) < _MAX_MIDDLEWARES:
        found.append(type(layer))
        layer = getattr(layer, "app", None)
    return found


def match_route(route: BaseRoute, scope: Scope) -> RouteMatch:
    """Match a route, and look into an included router (0.137 and later)."""
    inner = getattr(route, "original_router", None)
    if inner is None or not is_standard(inner, "handle", "matches"):
        match, noted = route.matches(scope)
        return RouteMatch(match, noted, route)
    fastapi_scope = {**scope.get("fastapi", {}), "included_router": route}
    included: Any = route
    match, noted, chosen, context = included._match(  # noqa: SLF001  # no public way
        {**scope, "fastapi": fastapi_scope}
    )
    return RouteMatch(match, noted, chosen, context)


def is_included(route: BaseRoute) -> bool:
    """Tell whether a route stands for a whole router (0.137 and later)."""
    return hasattr(route, "original_router")


def route_path(scope: Scope) -> str | None:
    """Return the path below the root path, by which routers choose, if it is known."""
    return None if _get_route_path is None else _get_route_path(scope)


def path_for_patterns(scope: Scope) -> str | None:
    """Return what a router compares with the patterns of its routes, if that is known.

    To match a pattern costs a tenth of what it costs to ask a route.
    """
    if "effective_route_context" in scope.get("fastapi", ()):
        return None
    return route_path(scope)


def match_frontend(router: Router, scope: Scope) -> RouteMatch | None:
    """Match what ``router.frontend()`` serves, which comes after all routes."""
    select = getattr(router, "_match_low_priority", None)
    if select is None:
        return None
    found = RouteMatch(*select(scope))
    return None if found.match is Match.NONE else found


def note_match(scope: Scope, found: RouteMatch) -> None:
    """Note a match in a scope as the router does."""
    noted = found.scope
    added = noted.get("fastapi", {})
    if found.context is not None:
        added = {**added, "effective_route_context": found.context}
    if added:
        noted = {**noted, "fastapi": {**scope.get("fastapi", {}), **added}}
    scope.update(noted)


def effective_of(found: RouteMatch) -> Any:  # a route or a context, of any release
    """Return what holds the effective settings of a route that was matched."""
    if getattr(found.context, "dependant", None) is not None:
        return found.context
    return found.route


def routes_of(router: Router) -> Iterator[ListedRoute]:
    """Yield the effective routes of a router in the order of matching."""
    for route in router.routes:
        for effective, base in _effective_routes(route):
            path: str = getattr(effective, "path", "") or getattr(base, "host", "")
            if isinstance(base, Mount | Host):
                kind = "Mount"
            elif isinstance(base, WebSocketRoute):
                kind = "WebSocket"
            else:
                kind = "HTTP"
            yield ListedRoute(kind, path, effective)
    frontends = getattr(router, "_iter_low_priority_routes", None)
    for candidate in () if frontends is None else frontends():
        group = getattr(candidate, "starlette_route", None) or candidate
        group = getattr(group, "original_route", group)
        prefix = getattr(candidate, "frontend_prefix", "")
        for frontend in getattr(group, "routes", ()):
            path = prefix + ("" if prefix and frontend.path == "/" else frontend.path)
            yield ListedRoute("Frontend", path, candidate)


def _effective_routes(route: BaseRoute) -> Iterator[tuple[Any, BaseRoute]]:
    # Up to 0.136 an included route is a copy, complete in itself. 0.137.0 and 0.137.1
    # share it and have no public way to its contexts.
    contexts_of = getattr(route, "effective_route_contexts", None)
    if contexts_of is None:
        yield route, route
        return
    contexts = contexts_of() if _route_contexts is None else _route_contexts([route])
    for context in contexts:
        # Before 0.144 a context knows nothing of the copies that it makes of WebSocket
        # routes, plain routes and mounts.
        copied = getattr(context, "starlette_route", None)
        yield copied or context, context.original_route


def runs_dependencies(effective: Any) -> bool:  # a route or a context
    """Tell whether FastAPI runs the dependencies of a route, as far as can be seen.

    FastAPI 0.138 lists those of a frontend and does not run them. A subclass of
    ``APIRoute`` that overrides a method runs them if it calls what it overrides.
    """
    if getattr(effective, "dependant", None) is None:
        return False
    route = getattr(effective, "original_route", effective)
    if not isinstance(route, APIRoute):
        return True
    app = getattr(effective, "app", None)  # Some releases make it for each request.
    return (
        _calls_overridden(type(route), "get_route_handler")
        and _calls_overridden(type(route), "handle")
        and (app is None or _was_made_by_framework(app))
    )


def _calls_overridden(kind: type[APIRoute], name: str) -> bool:
    """Tell whether the code of each override of a method has the method's name."""
    subclasses = kind.__mro__[: kind.__mro__.index(APIRoute)]
    overrides = [vars(each)[name] for each in subclasses if name in vars(each)]
    return all(
        name in getattr(getattr(override, "__code__", None), "co_names", ())
        for override in overrides
    )


def _was_made_by_framework(app: object) -> bool:
    """Tell whether FastAPI made a route's application, or one in its middlewares."""
    for _ in range(_MAX_MIDDLEWARES):
        if getattr(app, "__module__", None) in _FRAMEWORK:
            return True
        app = getattr(app, "app", None)
    return False


class LazyDependency:
    """A dependency with dependencies of its own, solved only when it is asked for.

    Overrides apply to it and to all below it, and what it opened is closed before
    the answer is used.

    Args:
        depends: As in ``Depends(is_staff)``.

    Raises:
        ValueError: If nothing is given to depend on, or something below it declares
            a body: that is read by the endpoint, not by a decision.
    """

    def __init__(self, depends: Depends) -> None:
        if depends.dependency is None:
            raise ValueError(
                "an exempt handler must be given to Depends: Depends(is_staff)"
            )
        self.call: Callable[..., Any] = depends.dependency

        def root(answer: object) -> None: ...

        parameter = inspect.Parameter(
            "answer", inspect.Parameter.KEYWORD_ONLY, default=depends
        )
        root.__dict__["__signature__"] = inspect.Signature([parameter])
        self._dependant = get_dependant(path="", call=root)
        for node in _below(self._dependant):
            if getattr(node, "body_params", None):
                raise ValueError(
                    f"{self.call!r} depends on a request body; an exempt handler can"
                    " use headers, cookies, query and path parameters"
                )

    async def __call__(self, connection: HTTPConnection) -> object:
        """Solve it for a connection, within ``preserve_exit_stacks``."""
        async with AsyncExitStack() as stack:
            connection.scope.update(dict.fromkeys(_INNER_STACKS, stack))
            solved = await solve_dependencies(
                request=connection,  # type: ignore[arg-type]  # a Request or WebSocket at run time
                dependant=self._dependant,
                dependency_overrides_provider=connection.scope.get("app"),
                async_exit_stack=stack,
                embed_body_fields=False,
            )
            if solved.errors:
                raise InvalidParametersError(solved.errors)
            return solved.values["answer"]


class InvalidParametersError(ValueError):
    """A client sent no valid parameters for a lazy dependency."""


@contextmanager
def preserve_exit_stacks(scope: Scope) -> Iterator[None]:
    """Restore the request's own exit stacks when a lazy dependency has been left.

    A timeout can leave it while it is still running.
    """
    saved = {name: scope.get(name, _MISSING) for name in _INNER_STACKS}
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is not _MISSING:
                scope[name] = value
            else:
                scope.pop(name, None)


def _below(dependant: Any) -> Iterator[Any]:  # FastAPI's Dependant, whose place moves
    yield dependant
    for node in dependant.dependencies:
        yield from _below(node)
