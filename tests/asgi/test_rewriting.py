"""What a mounted application may do to a request opens nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_maintenance import MaintenanceModeMiddleware, maintenance_exempt
from tests.asgi.support import PREFLIGHT, RELEASE, Ran, Translates
from tests.calls import call
from tests.guards import opened

pytestmark = pytest.mark.anyio

DELETE: dict[str, Any] = {"headers": [(b"x-method", b"DELETE")], "method": "POST"}
OPTIONS: dict[str, Any] = {"method": "OPTIONS", **PREFLIGHT}
DISGUISED: dict[str, Any] = {
    "method": "OPTIONS",
    "headers": [*PREFLIGHT["headers"], (b"x-method", b"DELETE")],  # type: ignore[misc]  # a list
}


class PublicCORS(CORSMiddleware):
    """A middleware for CORS that leaves some paths alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with or without CORS."""
        public = scope["path"].startswith("/public")
        await (super().__call__ if public else self.app)(scope, receive, send)


class Builds(FastAPI):
    """An application that adds a middleware where it builds them."""

    def build_middleware_stack(self) -> ASGIApp:
        """Build them."""
        return Translates(super().build_middleware_stack())


class HeadRoute(APIRoute):
    """A route that answers HEAD wherever it answers GET."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        await super().handle({**scope, "method": "GET"}, receive, send)


class Replaces(Mount):
    """A mount that serves something else."""

    instead: ASGIApp

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        await self.instead(scope, receive, send)


class Extension:
    """An application that keeps the one around it, as extensions do."""

    def __init__(self, app: FastAPI, served: ASGIApp) -> None:
        self.app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve something of its own."""
        await self._served(scope, receive, send)


def below(ran: Ran) -> ASGIApp:
    """An application in one that rewrites: the rewriting counts there too."""
    app, deep = FastAPI(), FastAPI()
    deep.add_api_route("/target", ran.target)
    deep.add_api_route("/deleted", ran.target, methods=["DELETE"])
    app.mount("/deep", deep)
    app.add_middleware(Translates)
    return app


def grouped(ran: Ran) -> ASGIApp:
    """A group of routes in an application that rewrites."""
    routes = [Mount("/deep", routes=[Route("/target", ran.plain)])]
    return Starlette(routes=routes, middleware=[Middleware(Translates)])


def disguised(ran: Ran) -> ASGIApp:
    """What stands before the middleware for CORS makes no preflight of it."""
    app = FastAPI()
    app.add_api_route("/target", ran.target, methods=["DELETE"])
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(Translates)
    return app


def partly_public(ran: Ran) -> ASGIApp:
    """A middleware for CORS of the application's own may not answer."""
    app = FastAPI()
    app.add_api_route("/target", ran.target, methods=["OPTIONS"])
    app.mount("/box", ran.box)
    app.add_middleware(PublicCORS, allow_origins=["*"])
    return app


def built_by_class(ran: Ran) -> ASGIApp:
    """An application with a way of its own to build middlewares."""
    app = Builds()
    app.add_api_route("/target", ran.target)
    return app


def built_by_object(ran: Ran) -> ASGIApp:
    """One that was given such a way, as tracers do."""
    app = FastAPI()
    app.add_api_route("/target", ran.target)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Translates(build())  # type: ignore[method-assign]
    return app


def head_of_get(ran: Ran) -> ASGIApp:
    """A route class that serves a method which its routes do not have."""
    app = FastAPI()
    app.router.route_class = HeadRoute
    app.add_api_route("/target", ran.target)
    return app


def replaced(ran: Ran) -> ASGIApp:
    """A mount that does not hand on to its application."""
    mount = Replaces("/m", app=FastAPI())
    mount.instead = ran.box
    return Starlette(routes=[mount])


CASES: list[tuple[Callable[[Ran], ASGIApp], str, dict[str, Any]]] = [
    (below, "/deep/en/target", {}),
    (below, "/deep/deleted", DELETE),
    (grouped, "/deep/en/target", {}),
    (disguised, "/target", DISGUISED),
    (partly_public, "/target", OPTIONS),
    (partly_public, "/box/x", OPTIONS),
    (built_by_class, "/en/target", {}),
    (built_by_object, "/en/target", {}),
    (head_of_get, "/target", {"method": "HEAD"}),
    (replaced, "/m/x", {}),
]


@pytest.mark.parametrize("way", ["wrap", "middleware"])
@pytest.mark.parametrize(("make", "path", "asked"), CASES)
async def test_what_is_done_to_a_request_on_its_way_opens_nothing(
    way: str, make: Callable[[Ran], ASGIApp], path: str, asked: dict[str, Any]
) -> None:
    """What is served while it is off is refused while it is on, however it is led."""
    app, ran, guard = FastAPI(), Ran(), opened()
    inner = make(ran)
    app.mount("/v1", guard.wrap(inner) if way == "wrap" else inner)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    assert (await call(app, f"/v1{path}", **asked)).status == 200
    assert len(ran) == 1
    await guard.enable()
    assert (await call(app, f"/v1{path}", **asked)).status == 503
    assert len(ran) == 1


async def test_preflights_of_a_mounted_application_are_answered() -> None:
    """Its own middleware for CORS answers, if nothing unknown stands before it."""
    app, sub, ran, guard = FastAPI(), FastAPI(), Ran(), opened()
    sub.add_api_route("/target", ran.target, methods=["DELETE"])
    sub.add_middleware(Translates)
    sub.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.mount("/v1", sub)
    app.mount("/box", CORSMiddleware(ran.box, allow_origins=["*"]))
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    await guard.enable()
    for path in ("/v1/target", "/box/x"):
        assert (await call(app, path, **OPTIONS)).status == 200
    assert ran == []


async def test_a_preflight_that_nothing_answers_is_refused() -> None:
    """In the outermost application too, only Starlette's own class is believed."""
    app, ran, guard = FastAPI(), Ran(), opened()
    app.add_api_route("/target", ran.target, methods=["OPTIONS"])
    app.add_middleware(PublicCORS, allow_origins=["*"])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    await guard.enable()
    assert (await call(app, "/target", **OPTIONS)).status == 503
    assert ran == []


@pytest.mark.parametrize("way", ["wrap", "middleware"])
@pytest.mark.parametrize("path", ["/ext/health", "/ext/docs", "/ext/x"])
async def test_an_extension_is_not_what_it_keeps(path: str, way: str) -> None:
    """What is open around a mounted object is not open in it."""
    app, ran, guard = FastAPI(), Ran(), opened()
    app.add_api_route("/health", maintenance_exempt(_open))
    extension = Extension(app, ran.box)
    app.mount("/ext", guard.wrap(extension) if way == "wrap" else extension)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    assert (await call(app, path)).status == 200
    await guard.enable()
    assert (await call(app, path)).status == 503
    assert (await call(app, "/health")).status == 200
    assert ran == ["box"]


@pytest.mark.skipif(RELEASE < (0, 139), reason="no frontends that are guarded")
async def test_an_exempt_endpoint_opens_no_frontend_that_it_asks_for(
    tmp_path: Path,
) -> None:
    """The endpoint that sent a request inside is not the one that it reaches."""
    (tmp_path / "index.html").write_text("frontend")
    app, guard = FastAPI(), opened()
    app.frontend("/ui", directory=tmp_path)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    async def batch(request: Request) -> int:
        scope = {**request.scope, "path": "/ui/index.html"}

        async def ask(_: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

        return (await call(ask)).status

    app.add_api_route("/batch", maintenance_exempt(batch))
    assert (await call(app, "/batch")).body == b"200"
    await guard.enable()
    assert (await call(app, "/batch")).body == b"503"


@pytest.mark.skipif(RELEASE < (0, 138), reason="no frontends")
async def test_a_root_path_with_a_slash_makes_no_redirect(tmp_path: Path) -> None:
    """A redirect is foreseen by the path below the root path, as routers do."""
    (tmp_path / "index.html").write_text("frontend")
    app, ran, guard = FastAPI(), Ran(), opened()
    app.add_api_route("/api", ran.target)
    app.frontend("/", directory=tmp_path)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    asked: dict[str, Any] = {"root_path": "/api/"}
    assert (await call(app, "/api/", **asked)).body == b"frontend"
    await guard.enable()
    assert (await call(app, "/api/", **asked)).status == 503


async def _open() -> str:
    return "open"
