"""Who shapes a refusal: the application's handlers, and its middlewares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
)
from tests.asgi.support import DENIAL, Ran, Shop, shop
from tests.calls import Answer, call, handshake
from tests.guard.support import in_flight
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio

ORIGIN = [(b"host", b"shop.example"), (b"origin", b"https://web.example")]


def body(answer: Answer) -> bytes:
    """Return the body of an answer."""
    return b"".join(message.get("body", b"") for message in answer.messages)


async def as_teapot(_request: Request, error: Exception) -> JSONResponse:
    """Answer in a way of one's own."""
    assert isinstance(error, MaintenanceError)
    return JSONResponse({"own": error.detail}, 503, {"Retry-After": "7"})


@pytest.mark.parametrize("kind", [MaintenanceError, 503, HTTPException])
@pytest.mark.parametrize("way", ["middleware", "both"])
@pytest.mark.parametrize("path", ["/items", "/plain", "/static/a.txt", "/box/x"])
async def test_the_application_s_own_handlers_answer(
    tmp_path: Path, path: str, way: str, kind: int | type[Exception]
) -> None:
    """A handler for the error, its status or its base class shapes every refusal."""
    made = shop(way, tmp_path, closed(detail="back soon"))
    made.app.add_exception_handler(kind, as_teapot)
    answer = await made.get(path)
    assert answer.status == 503
    assert body(answer) == b'{"own":"back soon"}'
    assert answer.headers["retry-after"] == "7"


async def test_handlers_for_what_goes_wrong_do_not_see_a_refusal(
    tmp_path: Path,
) -> None:
    """A handler for any exception answers errors, and a refusal is not one."""
    made = shop("middleware", tmp_path, closed())
    made.app.add_exception_handler(Exception, as_teapot)
    answer = await made.get("/box/x")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "60"


async def test_the_outer_application_answers_for_what_is_mounted() -> None:
    """Handlers of a mounted application are not asked: their scope is not there yet."""
    guard = closed()
    app, sub, ran = FastAPI(), FastAPI(), Ran()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_exception_handler(503, as_teapot)
    sub.add_exception_handler(503, fails)
    sub.add_api_route("/target", ran.target)
    app.mount("/sub", sub)
    assert (await call(app, "/sub/target")).headers["retry-after"] == "7"
    assert ran == []


async def fails(_request: Request, _error: Exception) -> JSONResponse:
    """Fail, as a handler does that needs what a middleware would have given."""
    raise AssertionError("SessionMiddleware must be installed")


async def says_nothing(_request: Request, _error: Exception) -> None:
    """Answer nothing."""


@pytest.mark.parametrize("handler", [fails, says_nothing])
@pytest.mark.parametrize("around", ["wrap", "middleware", "both"])
@pytest.mark.parametrize("method", ["GET", "WS"])
async def test_a_handler_that_fails_does_not_cost_the_client_a_503(
    handler: Any, around: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain answer takes its place, and the log says so once."""
    guard, ran = closed(), Ran()
    app = FastAPI(dependencies=[Depends(guard)] if around == "both" else [])
    app.add_exception_handler(MaintenanceError, handler)
    app.mount("/box", guard.wrap(ran.box) if around == "wrap" else ran.box)
    if around != "wrap":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    made = Shop(app, guard, ran)
    for _ in range(2):
        answer = await made.get("/box/x", method)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "60"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.body.startswith(b'{"detail":"Service')
    assert len(caplog.records) == (handler is fails)
    assert ran == []


async def test_a_handler_that_fails_closes_a_handshake_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where a server cannot send a response, the code 1013 takes its place."""
    app, ran = FastAPI(), Ran()
    app.add_exception_handler(WebSocketException, fails)
    app.add_middleware(MaintenanceModeMiddleware, guard=closed())
    app.mount("/box", ran.box)
    refused = await handshake(app, "/box/x", extensions={})
    assert refused.messages == [
        {"type": "websocket.close", "code": 1013, "reason": "maintenance"}
    ]
    assert len(caplog.records) == 1


async def test_a_handler_that_fails_in_the_middle_is_not_hidden() -> None:
    """What has begun cannot be answered a second time."""

    class Breaks(PlainTextResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            raise OSError("gone")

    async def breaks(_request: Request, _error: Exception) -> PlainTextResponse:
        return Breaks()

    app, ran = FastAPI(), Ran()
    app.add_exception_handler(MaintenanceError, breaks)
    app.mount("/box", closed().wrap(ran.box))
    with pytest.raises(OSError, match="gone"):
        await call(app, "/box/x")


@pytest.mark.parametrize("method", ["GET", "WS"])
async def test_headers_that_a_handler_drops_are_put_back(method: str) -> None:
    """A handler as in FastAPI's documentation does not lose what clients need."""

    async def as_text(_request: Request, error: Any) -> PlainTextResponse:
        return PlainTextResponse(str(error.detail), status_code=error.status_code)

    app, ran = FastAPI(), Ran()
    app.add_exception_handler(HTTPException, as_text)
    app.add_middleware(MaintenanceModeMiddleware, guard=closed(detail="back soon"))
    app.mount("/box", ran.box)
    answer = await Shop(app, closed(), ran).get("/box/x", method)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body == b"back soon"


async def test_handlers_know_the_application_that_answers() -> None:
    """Outside of everything too, a handler can make URLs of its own application."""

    async def linking(request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"see": str(request.url_for("status"))}, 503)

    app, ran = FastAPI(), Ran()
    app.add_api_route("/status", ran.target, name="status")
    app.add_exception_handler(MaintenanceError, linking)
    app.mount("/box", ran.box)
    answer = await call(closed().wrap(app), "/box/x")
    assert answer.body == b'{"see":"http://shop.example/status"}'


async def test_a_websocket_is_answered_by_a_handler_too() -> None:
    """A handler's response denies a handshake, where the server can send one."""
    guard = closed()
    app, ran = FastAPI(), Ran()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_exception_handler(MaintenanceError, as_teapot)
    app.router.add_websocket_route("/socket", ran.socket)
    answer = await handshake(app, "/socket", extensions=DENIAL)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"


def with_guard_inside(app: FastAPI, guard: MaintenanceGuard) -> None:
    """Add the middleware first, so that it is the innermost."""
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://web.example"],
        expose_headers=["Retry-After"],
    )


def with_guard_outside(app: FastAPI, guard: MaintenanceGuard) -> None:
    """Add the middleware last, so that it is the outermost."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://web.example"],
        expose_headers=["Retry-After"],
    )
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)


@pytest.mark.parametrize("path", ["/items", "/posted", "/plain", "/static/a.txt"])
@pytest.mark.parametrize("add", [with_guard_inside, with_guard_outside])
@pytest.mark.parametrize("way", ["dependency", "middleware"])
async def test_cors_headers_are_on_every_refusal_that_a_browser_reads(
    tmp_path: Path,
    add: Callable[[FastAPI, MaintenanceGuard], None],
    path: str,
    way: str,
) -> None:
    """In any order, a browser can read the answer of the middleware, once."""
    made = shop("dependency", tmp_path, closed())
    add(made.app, made.guard)
    if way == "middleware":
        made.app.add_exception_handler(MaintenanceError, as_teapot)
    method = "POST" if path == "/posted" else "GET"
    answer = await made.get(path, method, headers=ORIGIN)
    assert answer.status == 503
    assert answer.headers["access-control-allow-origin"] == "https://web.example"
    assert answer.headers["access-control-expose-headers"] == "Retry-After"
    names = [name for name, _ in answer.messages[0]["headers"]]
    assert names.count(b"access-control-allow-origin") == 1
    # Without an origin, as with another one, nothing is allowed.
    for headers in ([], [(b"origin", b"https://evil.example")]):
        other = await made.get(path, method, headers=headers)
        assert other.status == 503
        assert "access-control-allow-origin" not in other.headers


async def test_cors_headers_are_on_the_answer_around_a_whole_application() -> None:
    """Outside of everything, the application's own CORS middleware stands inside."""
    guard, ran = closed(), Ran()
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(GZipMiddleware)
    app.mount("/box", ran.box)
    for outside in (guard.wrap(app), MaintenanceModeMiddleware(app, guard)):
        answer = await call(outside, "/box/x", headers=ORIGIN)
        assert answer.status == 503
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_two_guards_answer_with_cors_each_where_it_stands() -> None:
    """A middleware finds its own place among those of the application."""
    one, other, ran = opened(), closed(name="other"), Ran()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=other)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(MaintenanceModeMiddleware, guard=one)
    app.mount("/box", ran.box)
    for _ in range(2):
        answer = await call(app, "/box/x", headers=ORIGIN)
        assert answer.status == 503
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers.get("vary", "").lower().count("origin") <= 1
        await one.enable()


@pytest.mark.parametrize("add", [with_guard_inside, with_guard_outside])
@pytest.mark.parametrize("path", ["/items", "/static/a.txt"])
async def test_a_preflight_is_answered_under_maintenance(
    tmp_path: Path, path: str, add: Callable[[FastAPI, MaintenanceGuard], None]
) -> None:
    """Browsers may ask, and then read why they must wait."""
    made = shop("dependency", tmp_path, closed())
    add(made.app, made.guard)
    asking = [*ORIGIN, (b"access-control-request-method", b"GET")]
    answer = await made.get(path, "OPTIONS", headers=asking)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://web.example"


@pytest.mark.parametrize("path", ["/static/a.txt", "/sub/target"])
async def test_a_wrapped_mount_is_inside_the_application(
    tmp_path: Path, path: str
) -> None:
    """What ``wrap`` refuses is answered by handlers, and gets CORS headers."""
    (tmp_path / "a.txt").write_text("static")
    guard, ran = closed(), Ran()
    app, sub = FastAPI(), FastAPI()
    sub.add_api_route("/target", ran.target)
    sub.add_exception_handler(503, fails)
    app.mount("/sub", guard.wrap(sub))
    app.mount("/static", guard.wrap(StaticFiles(directory=tmp_path)), name="static")
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_exception_handler(MaintenanceError, as_teapot)
    answer = await call(app, path, headers=ORIGIN)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert ran == []
    await guard.disable()
    assert (await call(app, path)).status == 200
    assert in_flight(guard) == 0


@pytest.mark.parametrize("around", ["guard.wrap", "the middleware"])
async def test_a_guard_can_stand_around_everything(around: str) -> None:
    """Around everything, a refusal is answered as FastAPI would, with its handlers."""
    guard, ran = closed(), Ran()

    def put(app: ASGIApp) -> Any:  # a guarded application
        if around == "guard.wrap":
            return guard.wrap(app)
        return MaintenanceModeMiddleware(app, guard)

    app = FastAPI()
    app.add_api_route("/target", ran.target)
    assert body(await call(put(app), "/target")).startswith(b'{"detail":"Service')
    assert (await call(put(app), "/docs")).status == 200
    assert (await call(put(app), "/nothing")).status == 404
    app.add_exception_handler(503, as_teapot)
    assert (await call(put(app), "/target")).headers["retry-after"] == "7"
    plain = Starlette(routes=[Mount("/a", routes=[Route("/plain", ran.plain)])])
    answer = await call(put(plain), "/a/plain")
    assert body(answer).startswith(b'{"detail":"Service')
    boxed = await call(put(ran.box), "/a/plain")
    assert boxed.headers["cache-control"] == "no-store"
    refused = await handshake(put(ran.box), "/", extensions={})
    assert refused.messages == [
        {"type": "websocket.close", "code": 1013, "reason": "maintenance"}
    ]
    assert ran == []


async def test_a_refusal_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Each refusal is a new object with the state that refused."""
    seen: list[Exception] = []

    async def keep(_request: Request, error: Exception) -> JSONResponse:
        seen.append(error)
        return JSONResponse({}, 503)

    made: Shop = shop("middleware", tmp_path, opened())
    made.app.add_exception_handler(MaintenanceError, keep)
    await made.guard.enable(message="later")
    await made.get("/box/x")
    await made.get("/box/x")
    assert seen[0] is not seen[1]
    assert isinstance(seen[0], MaintenanceError)
    assert seen[0].detail == "later"
    assert seen[0].state.epoch == made.guard.state.epoch
