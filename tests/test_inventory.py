"""What is listed as covered, and what is warned of at start-up."""

import logging
from pathlib import Path
from typing import Any

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
    maintenance_exempt,
)
from fastapi_maintenance.inventory import Entry, survey
from tests.calls import call

RELEASE = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


async def endpoint() -> None:
    """Stand for an endpoint."""


async def socket(websocket: WebSocket) -> None:
    """Stand for a WebSocket."""


def plain(_request: Request) -> PlainTextResponse:
    """Stand for an endpoint of Starlette."""
    return PlainTextResponse()


def auth() -> None:
    """Stand for a dependency."""


def limit() -> None:
    """Stand for another."""


def guard(name: str = "default") -> MaintenanceGuard:
    """Return a guard."""
    return MaintenanceGuard(MemoryStore(), name=name)


def bare(*dependencies: object) -> FastAPI:
    """Return an application without documentation."""
    return FastAPI(
        openapi_url=None,
        dependencies=[Depends(each) for each in dependencies],  # type: ignore[arg-type]  # callables
    )


def coverage(app: object) -> dict[str, str]:
    """Return what is said of each path."""
    return {entry.path: entry.coverage for entry in survey(app)}


def test_each_route_is_listed_with_what_covers_it() -> None:
    """Methods, whole paths, kinds and coverage are what FastAPI makes of them."""
    one = guard()
    app = bare(one)
    inner = APIRouter(prefix="/inner")
    inner.add_api_route("/a", endpoint, methods=["PUT", "GET"])
    inner.add_api_websocket_route("/s", socket)
    outer = APIRouter(prefix="/outer")
    outer.include_router(inner, prefix="/{name}")
    app.include_router(outer, prefix="/v1")
    app.include_router(
        inner, prefix="/open", dependencies=[Depends(maintenance_exempt)]
    )
    app.add_route("/plain", plain)
    assert survey(app) == [
        Entry(
            "HTTP",
            ("GET", "PUT"),
            "/v1/outer/{name}/inner/a",
            "guarded",
            "guard default",
        ),
        Entry("WebSocket", (), "/v1/outer/{name}/inner/s", "guarded", "guard default"),
        Entry("HTTP", ("GET", "PUT"), "/open/inner/a", "exempt"),
        Entry("WebSocket", (), "/open/inner/s", "exempt"),
        Entry("HTTP", ("GET", "HEAD"), "/plain", "not covered"),
    ]


def test_documentation_is_listed_as_such() -> None:
    """FastAPI's own documentation is open, the application's and those below it."""
    app, sub = FastAPI(), FastAPI(docs_url=None)
    sub.add_api_route("/docs", endpoint, include_in_schema=False)
    sub.add_api_route("/redoc/more", endpoint, include_in_schema=False)
    app.mount("/sub", sub)
    below = APIRouter()
    below.add_api_route("/docs", endpoint, include_in_schema=False)
    app.mount("/router", below)
    app.mount(
        "/star", Starlette(routes=[Route("/docs", plain, include_in_schema=False)])
    )
    found = coverage(app)
    assert {path for path, kind in found.items() if kind == "documentation"} == {
        *("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"),
        *("/sub/openapi.json", "/sub/redoc", "/sub/docs"),
    }
    assert found["/sub/redoc/more"] == "not covered"
    assert found["/router/docs"] == "not covered"
    assert found["/star/docs"] == "not covered"


def test_it_says_what_runs_before_the_guard() -> None:
    """A guard that does not come first is listed with those that do."""
    one = guard()
    app = bare()
    app.add_api_route("/a", endpoint, dependencies=[Depends(auth), Depends(one)])
    app.add_api_route(
        "/b", endpoint, dependencies=[Depends(auth), Depends(limit), Depends(one)]
    )
    app.add_api_route("/c", endpoint, dependencies=[Depends(one), Depends(auth)])
    assert [entry.note for entry in survey(app)] == [
        "guard default; Depends(auth) runs before the guard",
        "guard default; Depends(auth), Depends(limit) run before the guard",
        "guard default",
    ]


def test_it_names_every_guard() -> None:
    """Guards of several switches are all named, each where it stands."""
    app = bare(guard())
    app.add_api_route("/pay", endpoint, dependencies=[Depends(guard("payments"))])
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(), name="whole")
    (entry,) = survey(app)
    assert entry.note == "guard default, payments; middleware whole"


def test_marked_applications_are_listed_with_what_is_theirs(tmp_path: Path) -> None:
    """Routes, routers and files of a marked application are exempt, and no other's."""
    app, sub, below = bare(), bare(guard()), bare()
    sub.add_api_route("/a", endpoint)
    sub.mount("/static", StaticFiles(directory=tmp_path))
    sub.mount("/router", Router([Route("/b", plain)]))
    below.add_api_route("/c", endpoint)
    sub.mount("/below", below)
    app.mount("/sub", sub)
    maintenance_exempt(sub)
    assert coverage(app) == {
        "/sub/a": "exempt",
        "/sub/static": "exempt",
        "/sub/router/b": "exempt",
        "/sub/below/c": "not covered",
    }


class Timed(APIRoute):
    """Does something around FastAPI's handler, as its documentation shows."""

    def get_route_handler(self) -> Any:
        """Return FastAPI's handler, in another one."""
        original = super().get_route_handler()

        async def timed(request: Request) -> Any:
            return await original(request)

        return timed

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on."""
        await super().handle(scope, receive, send)


class Wrapped(APIRoute):
    """Has a middleware around its application."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = GZipMiddleware(self.app)


class OwnHandler(APIRoute):
    """Answers by itself."""

    def get_route_handler(self) -> Any:
        """Return a handler that runs no dependency."""

        async def own(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("own")

        return own


class OwnHandle(APIRoute):
    """Answers by itself, in another way."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        await PlainTextResponse("own")(scope, receive, send)


class OwnApp(APIRoute):
    """Answers by itself, in a third way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = PlainTextResponse("own")


@pytest.mark.anyio
@pytest.mark.parametrize("covered", ["dependency", "middleware"])
async def test_routes_that_run_no_dependencies_are_named(
    covered: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A route class that answers by itself is not covered by the dependency."""
    one = guard()
    app = bare(one)
    if covered == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=one)
    runs = (Timed, Wrapped)
    kinds = (*runs, OwnHandler, OwnHandle, OwnApp)
    for kind in kinds:
        app.router.route_class = kind
        app.add_api_route(f"/{kind.__name__}", endpoint)
    with caplog.at_level(logging.WARNING, "fastapi_maintenance"):
        async with one.lifespan(app):
            await one.enable()
            for kind in kinds:
                answer = await call(app, f"/{kind.__name__}")
                reached = covered == "dependency" and kind not in runs
                assert answer.status == (200 if reached else 503)
    found = coverage(app)
    if covered == "middleware":
        assert set(found.values()) == {"guarded"}
        assert caplog.records == []
        return
    assert found == {
        f"/{kind.__name__}": "guarded" if kind in runs else "not covered"
        for kind in kinds
    }
    notes = {entry.path: entry.note for entry in survey(app)}
    assert notes["/OwnApp"] == "OwnApp does not run its dependencies"
    runs_dependencies = {entry.path: entry.runs_dependencies for entry in survey(app)}
    assert runs_dependencies == {f"/{kind.__name__}": kind in runs for kind in kinds}
    (record,) = caplog.records
    assert "the routes at /OwnHandler, /OwnHandle, /OwnApp" in record.getMessage()


def test_a_guard_below_another_dependency_is_not_relied_on() -> None:
    """Only a direct dependency is listed, as only that can be told for sure."""

    def user(_: None = Depends(guard())) -> None: ...

    app = bare(user)
    app.add_api_route("/a", endpoint)
    assert coverage(app) == {"/a": "not covered"}


@pytest.mark.parametrize("given", ["a guard", "a guard by place", "options", "around"])
def test_the_middleware_covers_everything(tmp_path: Path, given: str) -> None:
    """With the middleware, nothing is left uncovered, however it was made."""
    app, one = bare(), guard()
    app.add_middleware(CORSMiddleware)
    app.add_route("/plain", plain)
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.mount("/sub", Starlette(routes=[Mount("/x", routes=[Route("/y", plain)])]))
    app.host("api.shop.example", Router([Route("/z", plain)]))
    listed: object = app
    if given == "a guard":
        app.add_middleware(MaintenanceModeMiddleware, guard=one)
    elif given == "a guard by place":
        app.add_middleware(MaintenanceModeMiddleware, one)
    elif given == "options":
        app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore())
    else:
        listed = one.wrap(app)
    found = survey(listed)
    assert {entry.path for entry in found} == {
        *("/plain", "/static", "/sub/x/y", "api.shop.example/z"),
    }
    assert {entry.coverage for entry in found} == {"guarded"}
    kind = "wrap" if given == "around" else "middleware"
    assert {entry.note for entry in found} == {
        f"{kind} default",
        f"{kind} default; StaticFiles",
    }


def test_wrapped_and_marked_mounts_are_told_apart(tmp_path: Path) -> None:
    """A mount is covered by ``wrap``, exempt by the marker, or not covered."""
    files = StaticFiles(directory=tmp_path)
    app = bare(guard())
    app.mount("/wrapped", guard("files").wrap(files))
    app.mount("/open", files)
    app.mount("/marked", maintenance_exempt(StaticFiles(directory=tmp_path)))
    inside = maintenance_exempt(StaticFiles(directory=tmp_path))
    app.mount("/both", guard().wrap(inside))
    sub = bare()
    sub.add_api_route("/a", endpoint)
    app.mount("/sub", guard().wrap(sub))
    assert survey(app) == [
        Entry("Mount", (), "/wrapped", "guarded", "wrap files; StaticFiles"),
        Entry("Mount", (), "/open", "not covered", "StaticFiles"),
        Entry("Mount", (), "/marked", "exempt", "StaticFiles"),
        Entry("Mount", (), "/both", "exempt", "wrap default; StaticFiles"),
        Entry("HTTP", ("GET",), "/sub/a", "guarded", "wrap default"),
    ]


def test_a_mounted_application_has_dependencies_of_its_own() -> None:
    """The parent's guard does not reach below a mount, and the list does not say so."""
    app, sub = bare(guard()), bare(guard("below"))
    app.add_api_route("/a", endpoint)
    sub.add_api_route("/a", endpoint)
    app.mount("/sub", sub)
    assert [entry.note for entry in survey(app)] == ["guard default", "guard below"]


def test_an_application_mounted_in_itself_is_listed_to_an_end() -> None:
    """A circle ends in a mount."""
    app = bare()
    app.add_api_route("/a", endpoint)
    app.mount("/again", app)
    found = survey(app)
    assert found[-1].kind == "Mount"
    assert len(found) < 100


class Extension:
    """An application that keeps the one around it, as extensions do."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve something of its own."""


def test_an_extension_is_not_listed_as_what_it_keeps() -> None:
    """What is mounted and keeps the application around it has no routes of that."""
    app = bare()
    app.add_api_route("/a", endpoint)
    app.mount("/extension", Extension(app))
    assert coverage(app) == {"/a": "not covered", "/extension": "not covered"}


@pytest.mark.skipif(RELEASE < (0, 138), reason="this FastAPI has no frontends")
def test_frontends_are_listed(tmp_path: Path) -> None:
    """Frontends are listed where they are; before 0.139 nothing guards them."""
    (tmp_path / "index.html").write_text("")
    app, router = bare(guard()), APIRouter(prefix="/r")
    app.frontend("/", directory=tmp_path)
    router.frontend("/ui", directory=tmp_path)
    router.frontend("/", directory=tmp_path)
    app.include_router(router, prefix="/p")
    kind = "guarded" if RELEASE >= (0, 139) else "not covered"
    assert [(entry.kind, entry.path, entry.coverage) for entry in survey(app)] == [
        ("Frontend", "/", kind),
        ("Frontend", "/p/r/ui", kind),
        ("Frontend", "/p/r", kind),
    ]


@pytest.mark.anyio
async def test_a_start_warns_once_of_mounts_that_nothing_covers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is mounted and open is named in one line of the log, with the remedy."""
    one = guard()
    app, sub = bare(one), bare()
    sub.add_api_route("/a", endpoint)
    sub.mount("/deep", StaticFiles(directory=tmp_path))
    app.mount("/sub", sub)
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.mount("/wrapped", one.wrap(StaticFiles(directory=tmp_path)))
    app.mount("/marked", maintenance_exempt(StaticFiles(directory=tmp_path)))
    app.add_route("/plain", plain)
    with caplog.at_level(logging.WARNING, "fastapi_maintenance"):
        async with one.lifespan(app), guard("other").lifespan(app):
            pass
        async with one.lifespan(app):
            pass
    (record,) = caplog.records
    assert "at /sub, /static: dependencies never do" in record.getMessage()
    assert "guard.wrap(...)" in record.getMessage()


@pytest.mark.anyio
async def test_a_start_is_quiet_where_all_is_covered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With everything covered, or without an application, nothing is said."""
    one = guard()
    covered, without = bare(), bare(one)
    covered.add_middleware(MaintenanceModeMiddleware, guard=one)
    covered.mount("/static", StaticFiles(directory=tmp_path))
    without.add_route("/plain", plain)
    with caplog.at_level(logging.WARNING, "fastapi_maintenance"):
        for app in (covered, without, None, Middleware(CORSMiddleware)):
            async with one.lifespan(app):
                pass
    assert caplog.records == []
    assert (await call(without, "/plain")).status == 200
