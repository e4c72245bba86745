"""The exempt marker: what it opens, what it does not, and that it costs nothing."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Receive, Scope, Send

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
    maintenance_exempt,
)
from fastapi_maintenance.exemptions import has_mark
from tests.calls import call, handshake
from tests.guard.support import FRONTENDS, NO_FRONTENDS, Ran, both, built, in_flight
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio

EXEMPT = [Depends(maintenance_exempt)]


def served(app: FastAPI, path: str = "/target") -> bool:
    """Tell whether a path is served; a refusal is the only other answer."""
    status = TestClient(app).get(path).status_code
    assert status in {200, 503}
    return status == 200


def guarded() -> FastAPI:
    """Return an application under maintenance."""
    return FastAPI(dependencies=[Depends(closed())])


def below_route_decorator(app: FastAPI) -> None:
    @app.get("/target")
    @maintenance_exempt
    async def target() -> None: ...

    @app.websocket("/socket")
    @maintenance_exempt
    async def socket(websocket: WebSocket) -> None:
        await Ran().socket(websocket)


def above_route_decorator(app: FastAPI) -> None:
    @maintenance_exempt
    @app.get("/target")
    async def target() -> None: ...

    @maintenance_exempt
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await Ran().socket(websocket)


def by_dependency_of_route(app: FastAPI) -> None:
    app.add_api_route("/target", Ran().endpoint, dependencies=EXEMPT)
    app.add_api_websocket_route("/socket", Ran().socket, dependencies=EXEMPT)


def by_signature(app: FastAPI) -> None:
    @app.get("/target")
    async def target(_: Annotated[None, Depends(maintenance_exempt)]) -> None: ...

    @app.websocket("/socket")
    async def socket(
        websocket: WebSocket, _: Annotated[None, Depends(maintenance_exempt)]
    ) -> None:
        await Ran().socket(websocket)


def by_router(app: FastAPI) -> None:
    router = APIRouter(dependencies=EXEMPT)
    both(router, Ran())
    app.include_router(router)


def by_include(app: FastAPI) -> None:
    router = APIRouter()
    both(router, Ran())
    app.include_router(router, dependencies=EXEMPT)


def by_outer_include(app: FastAPI) -> None:
    outer, inner = APIRouter(), APIRouter()
    both(inner, Ran())
    outer.include_router(inner)
    app.include_router(outer, dependencies=EXEMPT)


def by_include_between(app: FastAPI) -> None:
    outer, inner = APIRouter(), APIRouter()
    both(inner, Ran())
    outer.include_router(inner, dependencies=EXEMPT)
    app.include_router(outer)


def by_a_wraps_copy(app: FastAPI) -> None:
    @maintenance_exempt
    async def inner() -> None: ...

    @app.get("/target")
    @functools.wraps(inner)
    async def outer() -> None:
        await inner()

    by_bound_method(app, "/elsewhere")


class Health:
    """Endpoints of an object."""

    @maintenance_exempt
    async def check(self) -> None: ...

    @maintenance_exempt
    async def socket(self, websocket: WebSocket) -> None:
        await Ran().socket(websocket)


def by_bound_method(app: FastAPI, path: str = "/target") -> None:
    app.get(path)(Health().check)
    app.websocket("/socket")(Health().socket)


WAYS = pytest.mark.parametrize(
    "mark",
    [
        below_route_decorator,
        above_route_decorator,
        by_dependency_of_route,
        by_signature,
        by_router,
        by_include,
        by_outer_include,
        by_include_between,
        by_a_wraps_copy,
        by_bound_method,
    ],
)


@WAYS
@pytest.mark.parametrize("guards", ["application", "twice"])
def test_marked_routes_stay_open(mark: Callable[[FastAPI], None], guards: str) -> None:
    """What carries the marker, in any spelling, is open for every guard."""
    app = guarded()
    if guards == "twice":
        app = FastAPI(dependencies=[Depends(closed()), Depends(closed())])
    mark(app)
    assert served(app)
    with TestClient(app).websocket_connect("/socket") as session:
        assert session.receive_text() == "served"


@WAYS
def test_neighbours_of_marked_routes_are_refused(
    mark: Callable[[FastAPI], None],
) -> None:
    """The marker opens what carries it, and nothing beside it."""
    app = guarded()
    mark(app)
    app.add_api_route("/target/beside", Ran().endpoint)
    app.add_api_route("/targets", Ran().endpoint)
    assert not served(app, "/target/beside")
    assert not served(app, "/targets")


def counting(guard: MaintenanceGuard, counted: list[int]) -> Callable[[], None]:
    """Return a dependency that notes what a guard counts."""

    def look() -> None:
        counted.append(in_flight(guard))

    return look


@WAYS
def test_marked_routes_are_never_counted(mark: Callable[[FastAPI], None]) -> None:
    """An exempt request is not in flight, with maintenance on and off."""
    for guard in (closed(), opened()):
        counted: list[int] = []
        app = FastAPI(dependencies=[Depends(guard), Depends(counting(guard, counted))])
        mark(app)
        assert served(app)
        assert counted == [0]


def test_router_included_twice_is_exempt_in_one_place() -> None:
    """One router can be exempt below one prefix and refused below another."""
    app, router = guarded(), APIRouter()
    both(router, Ran())
    app.include_router(router, prefix="/open", dependencies=EXEMPT)
    app.include_router(router, prefix="/shut")
    for _ in range(2):
        assert served(app, "/open/target")
        assert not served(app, "/shut/target")
    client = TestClient(app)
    with client.websocket_connect("/open/socket") as session:
        assert session.receive_text() == "served"
    with pytest.raises(WebSocketDenialResponse):
        client.websocket_connect("/shut/socket").__enter__()


def test_routes_that_are_added_later_are_not_taken_for_earlier_ones() -> None:
    """A route that is added while requests run is judged by its own marker."""
    app, router = guarded(), APIRouter()
    both(router, Ran())
    app.include_router(router, prefix="/open", dependencies=EXEMPT)
    assert served(app, "/open/target")
    router.add_api_route("/later", Ran().endpoint)
    app.add_api_route("/later", Ran().endpoint)
    assert served(app, "/open/target")
    assert not served(app, "/later")


def test_marked_sub_applications_obey_their_own_marker() -> None:
    """In a sub-application the marker is looked for on the route below the mount."""
    app = FastAPI()
    sub = guarded()
    by_include(sub)
    sub.add_api_route("/shut", Ran().endpoint)
    app.mount("/sub", sub)
    assert served(app, "/sub/target")
    assert not served(app, "/sub/shut")


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
def test_marked_frontends_stay_open(tmp_path: Path) -> None:
    """A frontend on a marked router is open; a frontend beside it is refused."""
    app = guarded()
    marked, other = APIRouter(dependencies=EXEMPT), APIRouter()
    marked.frontend("/open", directory=built(tmp_path))
    other.frontend("/shut", directory=tmp_path)
    other.frontend("/also", directory=tmp_path)
    app.include_router(marked)
    app.include_router(other, dependencies=[])
    for _ in range(2):
        assert served(app, "/open/app.js")
        assert not served(app, "/shut/app.js")
        assert not served(app, "/also/app.js")


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
def test_marked_include_opens_frontends(tmp_path: Path) -> None:
    """Including a router as exempt opens its frontends there, and only there."""
    app, router = guarded(), APIRouter()
    router.frontend("/shop", directory=built(tmp_path))
    app.include_router(router, prefix="/open", dependencies=EXEMPT)
    app.include_router(router, prefix="/shut")
    assert served(app, "/open/shop/app.js")
    assert not served(app, "/shut/shop/app.js")


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
def test_marked_application_opens_its_frontends(tmp_path: Path) -> None:
    """An application that is exempt as a whole serves its frontends."""
    app = FastAPI(dependencies=[Depends(closed()), *EXEMPT])
    app.frontend("/", directory=built(tmp_path))
    assert served(app, "/app.js")


def test_marker_below_another_dependency_does_not_count() -> None:
    """Only a direct dependency of the route exempts, not what happens to use it."""

    async def helper(_: Annotated[None, Depends(maintenance_exempt)]) -> None: ...

    app = guarded()
    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(helper)])
    assert not served(app)


def test_overriding_the_marker_changes_nothing() -> None:
    """An override of the marker neither opens nor shuts a route."""
    app = guarded()
    by_dependency_of_route(app)
    app.add_api_route("/shut", Ran().endpoint)
    app.dependency_overrides[maintenance_exempt] = lambda: None
    assert served(app)
    assert not served(app, "/shut")


def test_partial_of_a_marked_function_is_not_exempt() -> None:
    """A partial is another callable; it has to be marked itself."""

    @maintenance_exempt
    async def inner(word: str) -> None: ...

    app = guarded()
    app.get("/shut")(functools.partial(inner, "word"))
    app.get("/open")(maintenance_exempt(functools.partial(inner, "word")))
    assert not served(app, "/shut")
    assert served(app, "/open")


def test_wrapper_without_wraps_is_not_exempt() -> None:
    """A decorator that hides the marked function hides its marker."""

    @maintenance_exempt
    async def inner() -> None: ...

    async def outer() -> None:
        raise AssertionError

    app = guarded()
    app.get("/target")(outer)
    assert not served(app)


def test_objects_that_answer_to_everything_are_not_exempt() -> None:
    """An endpoint that has every attribute does not have the marker."""

    class Anything:
        def __getattr__(self, name: str) -> object:
            if name.startswith("__") and "exempt" not in name:
                raise AttributeError(name)
            return True

        def __call__(self) -> None: ...

    app = guarded()
    app.add_api_route("/target", Anything(), name="anything")
    assert not served(app)


@pytest.mark.parametrize("above", [True, False])
def test_decorator_returns_the_same_function(above: bool) -> None:
    """The decorator changes nothing that a caller could see."""
    app = guarded()

    async def target() -> None: ...

    given = app.get("/a")(target) if above else target
    assert maintenance_exempt(given) is target


def test_dependency_runs_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker as a dependency never costs an exempt request a thread."""

    async def no_thread(*_: object, **__: object) -> object:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", no_thread)
    app = guarded()
    by_dependency_of_route(app)
    by_include(app)
    assert served(app)
    with TestClient(app).websocket_connect("/socket") as session:
        assert session.receive_text() == "served"


def test_marker_leaves_no_trace_in_the_schema() -> None:
    """OpenAPI is the same with and without the marker, in both uses."""

    def schema(dependencies: list[Any], mark: Callable[[Any], Any]) -> dict[str, Any]:
        app = FastAPI()

        async def target() -> None: ...

        app.add_api_route("/target", mark(target), dependencies=dependencies)
        return app.openapi()

    assert schema(EXEMPT, maintenance_exempt) == schema([], lambda endpoint: endpoint)


@pytest.mark.parametrize(
    "wrong",
    [
        1,
        "health",
        len,
        Ran().endpoint,
        object(),
        type(None),
        APIRouter(),
        Mount("/", Starlette()),
    ],
    ids=lambda wrong: getattr(wrong, "__name__", repr(type(wrong))),
)
def test_what_cannot_be_marked_is_refused_with_the_remedy(wrong: Any) -> None:
    """Marking what cannot carry a marker fails at once, and says what to do."""
    with pytest.raises(
        TypeError, match=r"dependencies=\[Depends\(maintenance_exempt\)"
    ):
        maintenance_exempt(wrong)


def test_decorator_with_parentheses_is_refused() -> None:
    """Writing @maintenance_exempt() fails when the module is loaded."""
    with pytest.raises(TypeError, match="without parentheses"):

        @maintenance_exempt()  # type: ignore[operator]  # the mistake
        async def target() -> None: ...


def test_marker_shows_its_name() -> None:
    """The marker shows itself as it is written."""
    assert repr(maintenance_exempt) == "maintenance_exempt"


def test_exempt_request_needs_no_store() -> None:
    """Health checks are served although nothing of the store can be read."""

    class Broken:
        def read(self, name: str) -> Any:
            raise OSError("down")

        def publish(self, name: str, change: Any) -> Any: ...

    guard = MaintenanceGuard(Broken())
    app = FastAPI(dependencies=[Depends(guard)])
    by_dependency_of_route(app)
    app.add_api_route("/shut", Ran().endpoint)
    assert served(app)
    assert not served(app, "/shut")
    assert in_flight(guard) == 0


def admin() -> FastAPI:
    """Return an application of another author, with all that it may have."""
    made = FastAPI()
    both(made, Ran())
    made.add_route("/plain", _plain)
    made.mount("/router", Router([Route("/plain", _plain)]))
    return made


async def _plain(_request: Request) -> Response:
    return Response("open")


WAYS = pytest.mark.parametrize("way", ["wrap", "middleware", "dependency", "both"])
WHEN = pytest.mark.parametrize("when", ["before", "after"])


@WAYS
@WHEN
async def test_marked_application_is_open_wherever_it_is_mounted(
    way: str, when: str
) -> None:
    """FastAPI and Starlette applications are marked before or after mounting."""
    guard, made = closed(), admin()
    if way in {"dependency", "both"}:
        made = FastAPI(dependencies=[Depends(guard)])
        both(made, Ran())
    if when == "before":
        assert maintenance_exempt(made) is made
    app = FastAPI()
    app.mount("/admin", guard.wrap(made) if way == "wrap" else made)
    if way in {"middleware", "both"}:
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    if when == "after":
        maintenance_exempt(made)
    assert (await call(app, "/admin/target")).status == 200
    assert (await handshake(app, "/admin/socket")).messages[0]["type"] == (
        "websocket.accept"
    )
    if way in {"wrap", "middleware"}:
        assert (await call(app, "/admin/plain")).status == 200
        assert (await call(app, "/admin/router/plain")).status == 200
    assert in_flight(guard) == 0


@pytest.mark.parametrize("way", ["wrap", "middleware"])
async def test_mark_does_not_reach_applications_mounted_inside(way: str) -> None:
    """An application that is mounted in a marked one needs its own mark."""
    guard, made, inner, ran = closed(), admin(), FastAPI(), Ran()
    inner.add_api_route("/target", ran.endpoint)
    made.mount("/inner", inner)
    made.mount("/box", _box)
    maintenance_exempt(made)
    app = FastAPI()
    app.mount("/admin", guard.wrap(made) if way == "wrap" else made)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    assert (await call(app, "/admin/target")).status == 200
    assert (await call(app, "/admin/inner/target")).status == 503
    assert (await call(app, "/admin/box/x")).status == 503
    maintenance_exempt(inner)
    assert (await call(app, "/admin/inner/target")).status == 200


async def _box(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError


@maintenance_exempt
class Page(HTTPEndpoint):
    """An endpoint of Starlette that is a class."""

    async def get(self, _request: Request) -> Response:
        """Answer."""
        return Response("open")


@maintenance_exempt
class Box:
    """An application that is an object of a marked class."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve nobody: it is not exempt."""
        raise AssertionError


class OtherPage(Page):
    """A class below a marked one."""


async def test_marked_class_marks_itself() -> None:
    """What is made of a marked class, and what is derived from it, is not exempt."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(enabled=True))
    app.router.routes += [Route("/page", Page), Route("/other", OtherPage)]
    app.mount("/box", Box())
    assert (await call(app, "/page")).status == 200
    assert (await call(app, "/other")).status == 503
    assert (await call(app, "/box/x")).status == 503
    assert not has_mark(Box())
