"""One application with everything that can be served, and ways to guard it."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastapi
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    maintenance_exempt,
)
from tests.calls import Answer, call, handshake

RELEASE = tuple(int(part) for part in fastapi.__version__.split(".")[:2])

DENIAL: dict[str, object] = {"websocket.http.response": {}}


class Files(StaticFiles):
    """Static files that turn WebSockets away on every Starlette: 1.6 asserted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve files."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Ran(list[str]):
    """What has run."""

    async def target(self) -> str:
        """Stand for what must not run under maintenance."""
        self.append("target")
        return "served"

    async def posted(self, item: dict[str, int]) -> str:
        """Take a body."""
        self.append("posted")
        return f"served {len(item)}"

    async def socket(self, websocket: WebSocket) -> None:
        """Serve a WebSocket."""
        self.append("socket")
        await websocket.accept()
        await websocket.close()

    async def plain(self, _request: Request) -> PlainTextResponse:
        """Answer as Starlette's own routes do."""
        self.append("plain")
        return PlainTextResponse("served")

    async def box(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an application of another framework does."""
        self.append("box")
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            await PlainTextResponse("served")(scope, receive, send)


@dataclass
class Shop:
    """An application, its guard, and what has run in it."""

    app: FastAPI
    guard: MaintenanceGuard
    ran: Ran = field(default_factory=Ran)

    async def get(
        self, path: str, method: str = "GET", **scope: Any
    ) -> Answer:  # of any test
        """Send a request, or ask for a WebSocket with the method WS."""
        self.ran.clear()
        if method == "WS":
            return await handshake(
                self.app, path, **{"extensions": dict(DENIAL), **scope}
            )
        return await call(self.app, path, method=method, **scope)


def shop(
    way: str,
    folder: Path,
    guard: MaintenanceGuard,
    *inside: type[Any],
    **options: object,
) -> Shop:
    """Build it.

    Args:
        way: "dependency", "middleware" or "both".
        folder: Holds static files.
        guard: The guard.
        inside: Middlewares behind the middleware, the innermost first.
        options: For FastAPI.

    """
    app = FastAPI(
        dependencies=[Depends(guard)] if way != "middleware" else [],
        **options,  # type: ignore[arg-type]  # of any test
    )
    add: Callable[[Any], None] = (
        app.add_middleware
    )  # takes what Starlette's type does not
    for middleware in inside:
        add(middleware)
    if way != "dependency":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    made = Shop(app, guard)
    furnish(made, folder)
    return made


def furnish(made: Shop, folder: Path) -> None:
    """Add every kind of thing that can be served."""
    app, ran = made.app, made.ran
    (folder / "index.html").write_text("<h1>shop</h1>")
    (folder / "a.txt").write_text("static")

    app.add_api_route("/items", ran.target)
    app.add_api_route("/items/{name:path}", ran.target)
    app.add_api_route("/orders/", ran.target)
    app.add_api_route("/posted", ran.posted, methods=["POST"])
    app.add_api_websocket_route("/socket", ran.socket)
    app.add_route("/plain", ran.plain)
    app.router.add_websocket_route("/plain-socket", ran.socket)

    marked = maintenance_exempt(_another(ran))
    app.add_api_route("/open", marked)
    app.add_route("/open-plain", maintenance_exempt(_another_plain(ran)))
    app.add_api_websocket_route("/open-socket", maintenance_exempt(_socket(ran)))
    app.add_api_route(
        "/docs-of-our-own", ran.target, include_in_schema=False
    )  # kept out of the schema, at no documentation path

    inner = APIRouter()
    inner.add_api_route("/target", ran.target)
    inner.add_api_route("/posted", ran.posted, methods=["POST"])
    inner.add_api_websocket_route("/socket", ran.socket)
    inner.add_route("/plain", ran.plain)
    outer = APIRouter(prefix="/nested")
    outer.include_router(inner, prefix="/deep")
    app.include_router(outer, prefix="/v1")
    app.include_router(
        inner, prefix="/open-v1", dependencies=[Depends(maintenance_exempt)]
    )
    files = APIRouter()
    files.mount("/box", ran.box)
    app.include_router(files, prefix="/v1")

    app.mount("/sub", _sub(made, folder))
    app.mount("/static", Files(directory=folder))
    app.mount("/assets", maintenance_exempt(Files(directory=folder)))
    app.mount("/box", ran.box)
    app.mount(
        "/starlette",
        Starlette(
            routes=[
                Route("/plain", ran.plain),
                Route("/docs", ran.plain, include_in_schema=False),
                WebSocketRoute("/socket", ran.socket),
                Mount("/more", routes=[Route("/plain", ran.plain)]),
            ]
        ),
    )
    mounted = APIRouter()
    mounted.add_api_route("/docs", ran.target, include_in_schema=False)
    mounted.add_api_route("/target", ran.target)
    app.mount("/router", mounted)
    app.host("api.shop.example", Starlette(routes=[Route("/plain-host", ran.plain)]))


def _sub(made: Shop, folder: Path) -> FastAPI:
    ran = made.ran
    sub = FastAPI(docs_url=None)
    sub.add_api_route("/target", ran.target)
    sub.add_api_route("/posted", ran.posted, methods=["POST"])
    sub.add_api_route("/open", maintenance_exempt(_another(ran)))
    sub.add_api_websocket_route("/socket", ran.socket)

    @sub.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/sub/openapi.json", title="sub")

    below = FastAPI(dependencies=[Depends(made.guard)])
    below.add_api_route("/guarded", ran.target)
    below.add_api_route("/posted", ran.posted, methods=["POST"])
    sub.mount("/below", below)
    sub.mount("/static", Files(directory=folder))
    return sub


def _another(ran: Ran) -> Callable[..., Any]:
    async def exempt() -> str:
        ran.append("exempt")
        return "open"

    return exempt


def _another_plain(ran: Ran) -> Callable[..., Any]:
    async def exempt(_request: Request) -> PlainTextResponse:
        ran.append("exempt")
        return PlainTextResponse("open")

    return exempt


def _socket(ran: Ran) -> Callable[..., Any]:
    async def exempt(websocket: WebSocket) -> None:
        ran.append("exempt")
        await websocket.accept()
        await websocket.close()

    return exempt


class Translates:
    """What takes a language out of a path, and a method out of a header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is meant."""
        method = dict(scope["headers"]).get(b"x-method", scope["method"].encode())
        path = scope["path"].replace("/en/", "/", 1)
        meant = {**scope, "path": path, "method": method.decode()}
        await self.app(meant, receive, send)


class CopiesScope:
    """A middleware that hands on a copy, as many do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        await self.app(dict(scope), receive, send)


@dataclass
class Body:
    """A body that tells how much of it was taken."""

    chunks: list[bytes]
    taken: int = 0

    def __iter__(self) -> Iterator[dict[str, object]]:
        """Return the messages of the body."""
        return map(self._take, range(1, len(self.chunks) + 1))

    def _take(self, number: int) -> dict[str, object]:
        chunk = self.chunks[number - 1]
        self.taken += len(chunk)
        more = number < len(self.chunks)
        return {"type": "http.request", "body": chunk, "more_body": more}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a request to the shop reaches, and how far a dependency covers it."""

    what: str
    path: str
    method: str = "GET"
    covered: str = "dependency"
    scope: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return how the test is called."""
        return self.what.replace(" ", "-")


HOST: dict[str, object] = {"headers": [(b"host", b"api.shop.example")]}
PREFLIGHT: dict[str, object] = {
    "headers": [
        (b"origin", b"https://web.example"),
        (b"access-control-request-method", b"GET"),
    ]
}

TABLE = [
    Case("a route", "/items"),
    Case("a route with a body", "/posted", "POST"),
    Case("a WebSocket", "/socket", "WS"),
    Case("an included route", "/v1/nested/deep/target"),
    Case("an included route with a body", "/v1/nested/deep/posted", "POST"),
    Case("an included WebSocket", "/v1/nested/deep/socket", "WS"),
    Case("a route out of the schema", "/docs-of-our-own"),
    Case("a guarded application in an application", "/sub/below/guarded"),
    Case("a guarded body far below", "/sub/below/posted", "POST"),
    Case("a plain route", "/plain", covered="middleware"),
    Case("a plain WebSocket", "/plain-socket", "WS", "middleware"),
    Case("a route of a mounted application", "/sub/target", covered="middleware"),
    Case("a body of a mounted application", "/sub/posted", "POST", "middleware"),
    Case("a mounted WebSocket", "/sub/socket", "WS", "middleware"),
    Case("a file", "/static/a.txt", covered="middleware"),
    Case("a file that is not there", "/static/b.txt", covered="middleware"),
    Case("a file below two mounts", "/sub/static/a.txt", covered="middleware"),
    Case("any ASGI application", "/box/x", covered="middleware"),
    Case("a WebSocket of it", "/box/x", "WS", "middleware"),
    Case("a Starlette application", "/starlette/plain", covered="middleware"),
    Case("its route at /docs", "/starlette/docs", covered="middleware"),
    Case("its WebSocket", "/starlette/socket", "WS", "middleware"),
    Case("its mount", "/starlette/more/plain", covered="middleware"),
    Case("a mounted router", "/router/target", covered="middleware"),
    Case("its route at /docs of a router", "/router/docs", covered="middleware"),
    Case("a route by host", "/plain-host", covered="middleware", scope=HOST),
    Case("an exempt route", "/open", covered="open"),
    Case("an exempt plain route", "/open-plain", covered="open"),
    Case("an exempt WebSocket", "/open-socket", "WS", "open"),
    Case("an exempt inclusion", "/open-v1/target", covered="open"),
    Case("an exempt WebSocket inclusion", "/open-v1/socket", "WS", "open"),
    Case("an exempt mounted route", "/sub/open", covered="open"),
    Case("an exempt mount", "/assets/a.txt", covered="open"),
    Case("the documentation", "/docs", covered="open"),
    Case("its other face", "/redoc", covered="open"),
    Case("its schema", "/openapi.json", covered="open"),
    Case("its redirect", "/docs/oauth2-redirect", covered="open"),
    Case("documentation of a mounted application", "/sub/redoc", covered="open"),
    Case("documentation hosted below", "/sub/docs", covered="open"),
    Case("no route", "/nothing", covered="open"),
    Case("no WebSocket", "/nothing", "WS", "open"),
    Case("no route below a mount", "/sub/nothing", covered="open"),
    Case("another method", "/items", "DELETE", "open"),
    Case("another method of an inclusion", "/v1/nested/deep/target", "PUT", "open"),
    Case("another method of a plain route", "/plain", "PUT", "open"),
    Case("a slash too many", "/posted/", "POST", "open"),
    Case("a slash too few", "/orders", covered="open"),
    Case("a mount without its slash", "/sub", covered="open"),
    Case("OPTIONS", "/items", "OPTIONS", "open", PREFLIGHT),
]
# Mounts in included routers answer from 0.137 on, and plain routes under all prefixes.
TABLE += [
    case
    for case in (
        Case("an included mount", "/v1/box/x", covered="middleware"),
        Case("an included plain route", "/v1/nested/deep/plain", covered="middleware"),
    )
    if RELEASE >= (0, 137)
]
