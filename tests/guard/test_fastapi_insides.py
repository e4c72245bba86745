"""What is read of FastAPI's insides: each test fails on the release that breaks it."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from fastapi_maintenance._fastapi import (
    MATCHED_BY_PATTERN,
    OUTER_STACK,
    LazyDependency,
    direct_dependencies,
    documentation_paths,
    effective_route,
    effective_template,
    is_own_route,
    path_for_patterns,
    preserve_exit_stacks,
)
from tests.guard.support import FRONTENDS, NO_FRONTENDS, RELEASE, Ran, both, built


async def outer() -> None: ...


async def inner() -> None: ...


class Seen(list[Any]):
    """The scopes that a dependency has seen."""

    async def __call__(self, connection: HTTPConnection) -> None:
        """Keep a scope."""
        self.append(connection.scope)

    def __hash__(self) -> int:  # type: ignore[override]  # a list that is a dependency
        """Be told apart by identity, as FastAPI's cache needs it."""
        return id(self)


def nested(seen: Seen) -> FastAPI:
    """Return an application with a router in a router, both with a dependency."""
    app = FastAPI(dependencies=[Depends(seen)])
    upper, lower = APIRouter(prefix="/upper"), APIRouter(prefix="/lower")
    both(lower, Ran())
    upper.include_router(lower, dependencies=[Depends(inner)])
    app.include_router(upper, prefix="/top", dependencies=[Depends(outer)])
    both(app, Ran())
    return app


@pytest.mark.parametrize("path", ["/target", "/top/upper/lower/target"])
def test_outer_stack_is_there_and_closes_after_the_response(path: str) -> None:
    """FastAPI has a stack that ends after response, tasks and dependencies."""
    order: list[str] = []

    async def hooked(connection: HTTPConnection) -> Any:
        stack = connection.scope[OUTER_STACK]
        assert isinstance(stack, AsyncExitStack)
        stack.callback(order.append, "stack")
        yield
        order.append("dependency")

    app = FastAPI(dependencies=[Depends(hooked)])
    both(app, Ran())
    sub = FastAPI(dependencies=[Depends(hooked)])
    both(sub, Ran())
    app.mount("/top/upper/lower", sub)
    assert TestClient(app).get(path).status_code == 200
    assert order == ["dependency", "stack"]


def of_http(app: FastAPI, path: str, seen: Seen) -> Any:
    """Return the scope that a dependency sees of a request."""
    assert TestClient(app).get(path).status_code == 200
    return seen[-1]


def of_websocket(app: FastAPI, path: str, seen: Seen) -> Any:
    """Return the scope that a dependency sees of a WebSocket."""
    with TestClient(app).websocket_connect(path) as session:
        session.receive_text()
    return seen[-1]


def test_effective_dependencies_and_template_of_a_route() -> None:
    """A route of the application has its own dependencies and template."""
    seen = Seen()
    scope = of_http(nested(seen), "/target", seen)
    effective = effective_route(scope)
    assert direct_dependencies(effective) == [seen]
    assert effective_template(effective) == "/target"


def test_effective_dependencies_and_template_of_an_included_route() -> None:
    """An included route has the dependencies and prefixes of all its routers."""
    seen = Seen()
    scope = of_http(nested(seen), "/top/upper/lower/target", seen)
    effective = effective_route(scope)
    assert {seen, outer, inner} <= set(direct_dependencies(effective))
    assert effective_template(effective) == "/top/upper/lower/target"


def test_effective_dependencies_and_template_of_a_websocket() -> None:
    """A WebSocket in an included router has all of them, too."""
    seen = Seen()
    scope = of_websocket(nested(seen), "/top/upper/lower/socket", seen)
    effective = effective_route(scope)
    assert {seen, outer, inner} <= set(direct_dependencies(effective))
    assert effective_template(effective) == "/top/upper/lower/socket"


def test_places_of_one_route_are_told_apart() -> None:
    """A router that is included twice has two effective routes, the same each time."""
    seen = Seen()
    app, router = FastAPI(dependencies=[Depends(seen)]), APIRouter()
    both(router, Ran())
    app.include_router(router, prefix="/a", dependencies=[Depends(outer)])
    app.include_router(router, prefix="/b")
    a, b, again = (
        effective_route(of_http(app, f"/{place}/target", seen)) for place in "aba"
    )
    assert a is again
    assert a is not b
    assert outer in direct_dependencies(a)
    assert outer not in direct_dependencies(b)


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
@pytest.mark.parametrize("place", ["application", "router"])
def test_effective_dependencies_of_a_frontend(place: str, tmp_path: Path) -> None:
    """A frontend has no route; its dependencies are found all the same."""
    seen = Seen()
    app = FastAPI(dependencies=[Depends(seen)])
    router = APIRouter(dependencies=[Depends(inner)])
    target = app if place == "application" else router
    target.frontend("/shop", directory=built(tmp_path))
    app.include_router(router, dependencies=[Depends(outer)])
    scope = of_http(app, "/shop/app.js", seen)
    assert scope.get("route") is None
    found = direct_dependencies(effective_route(scope))
    assert seen in found
    assert (outer in found, inner in found) == (place == "router",) * 2


def test_context_of_an_enclosing_mount_is_not_taken_for_the_route() -> None:
    """In a sub-application of an included router, its own route counts."""
    seen = Seen()
    sub = FastAPI(dependencies=[Depends(seen)])
    both(sub, Ran())
    app, router = FastAPI(), APIRouter()
    router.mount("/sub", sub)
    app.include_router(router, dependencies=[Depends(outer)])
    app.mount("/sub", sub)  # FastAPI before 0.137 drops mounts of routers.
    scope = of_http(app, "/sub/target", seen)
    effective = effective_route(scope)
    assert direct_dependencies(effective) == [seen]
    assert is_own_route(scope["app"], scope["route"], effective)


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"fastapi": None},
        {"fastapi": {}},
        {"fastapi": "another form"},
        {"fastapi": {"effective_route_context": object()}},
        {"fastapi": {"frontend_path": "/x"}},
        {"fastapi": {"frontend_path": "/x"}, "app": object()},
    ],
)
def test_unknown_forms_are_nothing(scope: dict[str, Any]) -> None:
    """Where FastAPI gives no answer, there are no dependencies and no template."""
    effective = effective_route(scope)
    assert direct_dependencies(effective) == []
    assert effective_template(effective) == ""
    assert not is_own_route(scope.get("app"), scope.get("route"), effective)


class Stale:
    """A context that was left in a scope by something around the matched route."""

    dependant = object()
    original_route = object()


def test_context_of_another_route_is_not_taken() -> None:
    """A context counts only for the route that it was made of."""
    route = object()
    stale = {"effective_route_context": Stale()}
    assert effective_route({"route": route, "fastapi": stale}) is route
    stale["effective_route_context"].original_route = route
    assert effective_route({"route": route, "fastapi": stale}) is not route


def test_documentation_paths_are_the_settings_of_the_application() -> None:
    """The four settings have their names; None stands for FastAPI's default."""
    default = {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
    assert documentation_paths(FastAPI()) == default
    assert documentation_paths(FastAPI(docs_url=None, openapi_url=None)) == default
    assert documentation_paths(object()) == default
    moved = FastAPI(docs_url="/help", redoc_url="/read", openapi_url="/schema")
    moved.swagger_ui_oauth2_redirect_url = "/back"
    assert documentation_paths(moved) == {"/help", "/read", "/schema", "/back"}


def test_lazy_dependency_needs_something_to_depend_on() -> None:
    """Depends() without a callable is refused at once."""
    with pytest.raises(ValueError, match=r"Depends\(is_staff\)"):
        LazyDependency(Depends())


@pytest.mark.parametrize("nested_in", [False, True])
def test_lazy_dependency_with_a_body_is_refused(nested_in: bool) -> None:
    """A body is the endpoint's: a handler that declares one is refused at once."""

    async def reading(body: Annotated[dict[str, str], Body()]) -> bool:
        raise AssertionError

    async def above(_: Annotated[bool, Depends(reading)]) -> bool:
        raise AssertionError

    with pytest.raises(ValueError, match="request body"):
        LazyDependency(Depends(above if nested_in else reading))


def test_lazy_dependency_leaves_the_exit_stacks_of_the_request() -> None:
    """What is solved lazily is closed with itself; the request's stacks stay."""
    closed: list[str] = []

    async def session() -> Any:
        yield "session"
        closed.append("session")

    async def is_staff(
        word: Annotated[str, Depends(session)], name: Annotated[str, Query()] = ""
    ) -> str:
        return f"{word} {name}"

    lazy = LazyDependency(Depends(is_staff))
    app = FastAPI()

    @app.get("/target")
    async def target(request: Request) -> Any:
        names = [name for name in request.scope if name.endswith("astack")]
        before = {name: request.scope[name] for name in names}
        with preserve_exit_stacks(request.scope):
            answer = await lazy(request)
        after = {name: request.scope[name] for name in before}
        assert all(isinstance(stack, AsyncExitStack) for stack in before.values())
        assert [name for name in request.scope if name.endswith("astack")] == names
        return [answer, closed, before == after, len(before)]

    answer, gone, kept, stacks = TestClient(app).get("/target?name=ada").json()
    assert (answer, gone, kept) == ("session ada", ["session"], True)
    assert stacks == (3 if RELEASE >= (0, 121) else 2)


def test_path_that_patterns_are_compared_with() -> None:
    """The routes of a mount see the path below it; a stale context hides that."""
    scope = {"path": "/sub/items", "root_path": "/sub"}
    assert path_for_patterns(scope) == "/items"
    scope["fastapi"] = {"effective_route_context": object()}  # type: ignore[assignment]  # of any kind
    assert path_for_patterns(scope) is None
    assert APIRoute.matches in MATCHED_BY_PATTERN
