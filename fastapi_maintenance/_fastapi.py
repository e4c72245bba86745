"""What FastAPI keeps in a request and solves for it, each with a closed failure.

FastAPI's insides are touched here, in ``_routing.py`` and in ``_ahead.py`` alone: what
is read is not public API. Where a release gives no answer, a route is not exempt, a
handler does not exempt, and a request is not counted, which a drain says.
``tests/guard/test_fastapi_insides.py`` fails on the release that breaks one of them.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import fastapi.routing
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from fastapi.params import Depends
from starlette.requests import HTTPConnection

Scope = MutableMapping[str, Any]  # Starlette's own spelling of an ASGI scope

OUTER_STACK: Final = "fastapi_middleware_astack"
"""Where a scope has the exit stack that a request closes last (0.118 and later).

It closes after the response, the background tasks, the dependencies and the exception
handlers. Absent where a release has no such stack; a request is not counted then.
"""

_INNER: Final = ("fastapi_inner_astack", "fastapi_function_astack")
_MISSING: Final = object()

# Public from 0.137.2 on; before 0.137 included routes are the application's own.
_contexts: Callable[[Any], Iterable[Any]] = getattr(
    fastapi.routing, "iter_route_contexts", lambda _: ()
)


def effective_route(scope: Scope) -> object | None:
    """Return what holds the effective settings of the matched route.

    The object lives as long as the route, so that it can be the key of a cache. From
    0.137 on an included route is shared, and its *context* differs; before, and for
    WebSockets, the route itself is complete. An ``app.frontend()`` has neither.
    """
    route: object | None = scope.get("route")
    own = scope.get("fastapi")
    if not isinstance(own, Mapping):
        return route
    context: object | None = own.get("effective_route_context")
    if getattr(context, "dependant", None) is not None and (
        route is None or getattr(context, "original_route", None) is route
    ):
        return context
    if route is None and "frontend_path" in own:
        return getattr(scope.get("app"), "router", None)
    return route


def matched(scope: Scope) -> tuple[object, object, object]:
    """Return the matched route, its context and its application, each None if absent.

    An included route is shared, and told apart by its context (from 0.137 on).
    """
    own = scope.get("fastapi")
    context = own.get("effective_route_context") if own else None
    return scope.get("route"), context, scope.get("app")


def direct_dependencies(effective: object | None) -> list[object]:
    """Return the callables that a route depends on directly, its routers' included."""
    dependant = getattr(effective, "dependant", None)
    if dependant is not None:
        return [node.call for node in getattr(dependant, "dependencies", ())]
    # A router stands for the frontends on it.
    listed = getattr(effective, "dependencies", ())
    return [getattr(entry, "dependency", None) for entry in listed or ()]


def effective_template(effective: object | None) -> str:
    """Return the whole path template, prefixes included, or ``""``."""
    path = getattr(effective, "path", "")
    return path if isinstance(path, str) else ""


def serves(app: object, route: object, effective: object | None) -> bool:
    """Tell whether a route is an application's own, not of a router mounted on it.

    The template of a mounted route lacks the prefix of the mount. Where a release
    cannot list included routes (0.137.0 and 0.137.1) they are taken for mounted.
    """
    routes = getattr(app, "routes", [])
    if any(own is route for own in routes):
        return True
    template = effective_template(effective)
    return any(
        context.original_route is route and effective_template(context) == template
        for context in _contexts(routes)
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
        root.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]  # a function has one
        self._dependant = get_dependant(path="", call=root)
        for node in _below(self._dependant):
            if getattr(node, "body_params", None):
                raise ValueError(
                    f"{self.call!r} depends on a request body; an exempt handler can"
                    " use headers, cookies, query and path parameters"
                )

    async def __call__(self, connection: HTTPConnection) -> object:
        """Solve it for a connection, within ``stacks_kept``.

        Raises:
            ValueError: If a parameter below it is missing or not valid.
            Exception: What a dependency raises.
        """
        async with AsyncExitStack() as stack:
            connection.scope.update(dict.fromkeys(_INNER, stack))
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
def stacks_kept(scope: Scope) -> Iterator[None]:
    """Put back a request's own exit stacks when a lazy dependency is left.

    It may be left while it still runs, which must not hold back what comes after it.
    """
    saved = {name: scope.get(name, _MISSING) for name in _INNER}
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
