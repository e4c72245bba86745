"""Where a guard can be put, and what it sees there."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Receive, Scope, Send

from fastapi_maintenance import MaintenanceGuard
from tests.guard.support import (
    FRONTENDS,
    NO_FRONTENDS,
    Build,
    Ran,
    both,
    built,
    in_flight,
)
from tests.guards import closed, opened


def on_application(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, ran)
    return app


def on_router(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app, router = FastAPI(), APIRouter(dependencies=[Depends(guard)])
    both(router, ran)
    app.include_router(router)
    return app


def on_include(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app, router = FastAPI(), APIRouter()
    both(router, ran)
    app.include_router(router, dependencies=[Depends(guard)])
    return app


def on_outer_include(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()
    both(inner, ran)
    outer.include_router(inner)
    app.include_router(outer, dependencies=[Depends(guard)])
    return app


def on_application_with_includes(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app = FastAPI(dependencies=[Depends(guard)])
    outer, inner = APIRouter(), APIRouter()
    both(inner, ran)
    outer.include_router(inner)
    app.include_router(outer)
    return app


def on_route(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app = FastAPI()
    app.add_api_route("/target", ran.endpoint, dependencies=[Depends(guard)])
    app.add_api_websocket_route("/socket", ran.socket, dependencies=[Depends(guard)])
    return app


def in_signature(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app = FastAPI()

    @app.get("/target")
    async def target(_: Annotated[None, Depends(guard)]) -> dict[str, str]:
        return await ran.endpoint()

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, _: Annotated[None, Depends(guard)]) -> None:
        await ran.socket(websocket)

    return app


def everywhere(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    depends = [Depends(guard)]
    app = FastAPI(dependencies=depends)
    router = APIRouter(dependencies=depends)
    router.add_api_route("/target", ran.endpoint, dependencies=depends)
    router.add_api_websocket_route("/socket", ran.socket, dependencies=depends)
    app.include_router(router, dependencies=depends)
    return app


def on_mounted_application(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app = FastAPI()
    app.mount("/", on_application(guard, ran))
    return app


def on_mounted_router(guard: MaintenanceGuard, ran: Ran) -> FastAPI:
    app, router = FastAPI(), APIRouter(dependencies=[Depends(guard)])
    both(router, ran)
    app.mount("/", router)
    return app


LEVELS = pytest.mark.parametrize(
    "build",
    [
        on_application,
        on_router,
        on_include,
        on_outer_include,
        on_application_with_includes,
        on_route,
        in_signature,
        everywhere,
        on_mounted_application,
        on_mounted_router,
    ],
)


@LEVELS
def test_guard_refuses_at_every_level(build: Build) -> None:
    """While maintenance is on, the endpoint below a guard does not run."""
    ran = Ran()
    client = TestClient(build(closed(), ran))
    answer = client.get("/target")
    assert (answer.status_code, ran) == (503, [])
    assert answer.headers["Retry-After"] == "60"


@LEVELS
def test_guard_denies_handshakes_at_every_level(build: Build) -> None:
    """While maintenance is on, a WebSocket below a guard is denied with a real 503."""
    ran = Ran()
    client = TestClient(build(closed(), ran))
    with pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect("/socket").__enter__()
    assert (denied.value.status_code, ran) == (503, [])
    assert denied.value.headers["Retry-After"] == "60"


@LEVELS
def test_guard_admits_at_every_level(build: Build) -> None:
    """While maintenance is off, everything below a guard is served."""
    ran = Ran()
    client = TestClient(build(opened(), ran))
    assert client.get("/target").json() == {"status": "served"}
    with client.websocket_connect("/socket") as session:
        assert session.receive_text() == "served"
    assert ran == ["endpoint", "socket"]


@LEVELS
def test_guard_counts_once_at_every_level(build: Build) -> None:
    """A request that several levels guard is one request in flight."""
    counted: list[int] = []
    guard = opened()

    class Watching(Ran):
        async def endpoint(self) -> dict[str, str]:
            counted.append(in_flight(guard))
            return await super().endpoint()

        async def socket(self, websocket: WebSocket) -> None:
            counted.append(in_flight(guard))
            await super().socket(websocket)

    with TestClient(build(guard, Watching())) as client:
        client.get("/target")
        with client.websocket_connect("/socket") as session:
            session.receive_text()
    assert (counted, in_flight(guard)) == ([1, 1], 0)


@LEVELS
def test_override_switches_the_guard_off(build: Build) -> None:
    """Overriding the guard, as tests of applications do, takes it away everywhere."""
    ran, guard = Ran(), closed()
    if build is on_mounted_router:
        # FastAPI looks for the overrides of a mounted router at the router.
        build = on_router
    app = build(guard, ran)
    for sub in (app, *(getattr(route, "app", None) for route in app.routes)):
        if isinstance(sub, FastAPI):
            sub.dependency_overrides[guard] = lambda: None
    client = TestClient(app)
    assert client.get("/target").status_code == 200
    with client.websocket_connect("/socket") as session:
        assert session.receive_text() == "served"


def test_two_guards_both_decide() -> None:
    """Two guards are two switches; each one refuses on its own."""
    ran, general, payments = Ran(), opened(), closed(detail="no payments today")
    app = FastAPI(dependencies=[Depends(general)])
    app.add_api_route("/pay", ran.endpoint, dependencies=[Depends(payments)])
    app.add_api_route("/look", ran.endpoint)
    client = TestClient(app)
    assert client.get("/look").status_code == 200
    assert client.get("/pay").json() == {"detail": "no payments today"}


def test_one_store_holds_several_switches() -> None:
    """Guards of one store with different names do not switch each other."""
    ran, shop = Ran(), opened()
    payments = MaintenanceGuard(shop._switch.store, name="payments")
    app = FastAPI(dependencies=[Depends(shop)])
    app.add_api_route("/pay", ran.endpoint, dependencies=[Depends(payments)])

    @app.post("/close")
    async def close() -> None:
        await payments.enable()

    client = TestClient(app)
    assert client.post("/close").status_code == 200
    assert client.get("/pay").status_code == 503
    assert client.post("/close").status_code == 200


def test_router_that_is_included_twice_is_guarded_where_it_says() -> None:
    """The same router can be guarded in one place and free in another."""
    ran, router, app = Ran(), APIRouter(), FastAPI()
    both(router, ran)
    app.include_router(router, prefix="/closed", dependencies=[Depends(closed())])
    app.include_router(router, prefix="/open")
    client = TestClient(app)
    for _ in range(2):
        assert client.get("/closed/target").status_code == 503
        assert client.get("/open/target").status_code == 200


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
@pytest.mark.parametrize("place", ["application", "router", "include"])
def test_frontends_are_guarded(place: str, tmp_path: Path) -> None:
    """A frontend is refused like a route, a file of it that is missing too."""
    guard = closed()
    depends = [Depends(guard)]
    app = FastAPI(dependencies=depends if place == "application" else [])
    router = APIRouter(dependencies=depends if place == "router" else [])
    (app if place == "application" else router).frontend("/", directory=built(tmp_path))
    app.include_router(router, dependencies=depends if place == "include" else [])
    client = TestClient(app)
    for path in ("/", "/app.js", "/missing.js"):
        assert client.get(path).status_code == 503
    assert client.head("/").status_code == 503
    assert client.post("/").status_code == 405
    assert in_flight(guard) == 0


@pytest.mark.skipif(not FRONTENDS, reason=NO_FRONTENDS)
def test_frontends_are_served_and_counted_while_open(tmp_path: Path) -> None:
    """A frontend below an open guard is served, and gives its count back."""
    guard = opened()
    app = FastAPI(dependencies=[Depends(guard)])
    app.frontend("/", directory=built(tmp_path))
    client = TestClient(app)
    assert client.get("/app.js").text == "1"
    assert client.get("/missing.js").status_code == 404
    assert in_flight(guard) == 0


async def plain(_: Request) -> PlainTextResponse:
    return PlainTextResponse("plain")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("bare")(scope, receive, send)


def add_plain_route(app: FastAPI, _: Path) -> None:
    app.add_route("/outside", plain)


def add_bare_mount(app: FastAPI, _: Path) -> None:
    app.mount("/outside", bare)


def add_starlette(app: FastAPI, _: Path) -> None:
    app.mount("/outside", Starlette(routes=[Route("/", plain)]))


def add_application(app: FastAPI, _: Path) -> None:
    sub = FastAPI()
    sub.add_api_route("/", Ran().endpoint)
    app.mount("/outside", sub)


def add_static_files(app: FastAPI, folder: Path) -> None:
    app.mount("/outside", StaticFiles(directory=built(folder), html=True))


@pytest.mark.parametrize(
    "add",
    [add_plain_route, add_bare_mount, add_starlette, add_application, add_static_files],
)
def test_guard_does_not_reach_what_is_no_api_route(
    add: Callable[[FastAPI, Path], None], tmp_path: Path
) -> None:
    """Mounts and plain Starlette routes run no dependencies, as documented."""
    app = FastAPI(dependencies=[Depends(closed())])
    add(app, tmp_path)
    path = "/outside" if add is add_plain_route else "/outside/"
    assert TestClient(app).get(path).status_code == 200


def test_sub_application_in_an_included_router_obeys_its_own_guard() -> None:
    """A sub-application in an included router is refused by its own guard alone."""
    ran, app, router, sub = Ran(), FastAPI(), APIRouter(), FastAPI()
    guarded = FastAPI(dependencies=[Depends(closed())])
    both(guarded, ran)
    both(sub, ran)
    router.routes.append(Mount("/closed", guarded))
    router.routes.append(Mount("/open", sub))
    app.include_router(router)
    app.router.routes.extend(router.routes)  # FastAPI before 0.137 drops its mounts.
    client = TestClient(app)
    assert client.get("/closed/target").status_code == 503
    assert client.get("/open/target").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/TARGET", 404),
        ("GET", "//target", 404),
        ("POST", "/target", 405),
        ("HEAD", "/target", 405),
        ("OPTIONS", "/target", 405),
        ("GET", "/target/", 307),
        ("GET", "/docs", 200),
        ("GET", "/redoc", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs/oauth2-redirect", 200),
        ("HEAD", "/head", 503),
    ],
)
def test_what_matches_no_route_is_answered_as_always(
    method: str, path: str, status: int
) -> None:
    """Unknown paths, wrong methods, slash redirects and documentation stay."""
    ran = Ran()
    app = FastAPI(dependencies=[Depends(closed())])
    both(app, ran)
    app.add_api_route("/head", ran.endpoint, methods=["HEAD"])
    answer = TestClient(app).request(method, path, follow_redirects=False)
    assert (answer.status_code, ran) == (status, [])


def test_redirect_leads_to_the_refusal() -> None:
    """A slash redirect is followed to a route that is refused."""
    app = FastAPI(dependencies=[Depends(closed())])
    app.add_api_route("/target/", Ran().endpoint)
    assert TestClient(app).get("/target").status_code == 503


def test_guard_is_no_parameter_of_an_operation() -> None:
    """A client can set nothing of a guard: the schema shows no parameter."""
    app = FastAPI(dependencies=[Depends(closed())])
    app.add_api_route("/target", Ran().endpoint)
    operation = app.openapi()["paths"]["/target"]["get"]
    assert "parameters" not in operation
    assert "requestBody" not in operation
    for query in ("?connection=1", "?bypass=1", "?self=1"):
        assert TestClient(app).get(f"/target{query}").status_code == 503


def test_guards_are_equal_only_to_themselves() -> None:
    """FastAPI does not take two guards for one, so that neither is left out."""
    assert closed() != closed()
    assert len({closed(), closed()}) == 2


def test_nothing_runs_before_a_guard_that_is_first() -> None:
    """First among an application's dependencies, a guard refuses before all others."""
    ran = Ran()

    async def other() -> None:
        raise AssertionError

    app = FastAPI(dependencies=[Depends(closed()), Depends(other)])
    router = APIRouter(dependencies=[Depends(other)])
    router.add_api_route("/target", ran.endpoint, dependencies=[Depends(other)])
    app.include_router(router, dependencies=[Depends(other)])
    assert TestClient(app).get("/target").status_code == 503
    assert ran == []


def test_dependencies_before_a_guard_run_first() -> None:
    """What stands before the guard runs before it, and wins by raising."""
    ran = Ran()

    async def earlier() -> None:
        ran.append("earlier")

    app = FastAPI(dependencies=[Depends(earlier)])
    app.add_api_route("/target", ran.endpoint, dependencies=[Depends(closed())])
    assert TestClient(app).get("/target").status_code == 503
    assert ran == ["earlier"]


def test_invalid_parameters_do_not_skip_the_guard() -> None:
    """A request with invalid parameters is refused like any other."""
    app = FastAPI(dependencies=[Depends(closed())])

    @app.get("/items/{number}")
    async def item(number: int, size: int) -> int:
        raise AssertionError

    client = TestClient(app)
    assert client.get("/items/x").status_code == 503


def test_invalid_parameters_of_an_earlier_dependency_do_not_skip_the_guard() -> None:
    """A dependency whose parameters are missing does not get a request past a guard."""
    ran = Ran()

    async def earlier(needed: int) -> int:
        raise AssertionError

    app = FastAPI(dependencies=[Depends(earlier), Depends(closed())])
    app.add_api_route("/target", ran.endpoint)
    assert TestClient(app).get("/target").status_code == 503
    assert ran == []
