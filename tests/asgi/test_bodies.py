"""No byte of a body is read for a request that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Security
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_maintenance import MaintenanceGuard, MaintenanceModeMiddleware
from tests.asgi.support import Body, CopiesScope, Shop, shop
from tests.asgi.test_coverage import Rewraps
from tests.calls import Answer
from tests.guard.support import in_flight
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio

JSON: list[tuple[bytes, bytes]] = [
    (b"host", b"shop.example"),
    (b"content-type", b"application/json"),
]
UPLOAD = [bytes(1 << 20)] * 50
MALFORMED = [b'{"items": [1, 2,', b"]"]
INSIDE: dict[str, tuple[type[Any], ...]] = {
    "nothing inside": (),
    "a copied scope": (CopiesScope,),
    "a task group": (Rewraps,),
    "both": (Rewraps, CopiesScope),
    "both in turn": (CopiesScope, Rewraps),
}


class Reads:
    """A middleware that needs the body, as one that checks signatures does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read it, and pass it on."""
        body = await Request(scope, receive).body()
        messages = iter([{"type": "http.request", "body": body}])

        async def again() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        await self.app(scope, again, send)


async def post(
    made: Shop, path: str, body: Body, **scope: Any
) -> Answer:  # of any test
    """Send a body of JSON."""
    return await made.get(path, "POST", body=body, **{"headers": JSON, **scope})


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("chunks", [UPLOAD, MALFORMED], ids=["50 MB", "malformed"])
@pytest.mark.parametrize("way", ["middleware", "both"])
@pytest.mark.parametrize(
    "path",
    ["/posted", "/v1/nested/deep/posted", "/sub/posted", "/sub/below/posted", "/box/x"],
)
async def test_a_refusal_comes_before_the_first_byte(
    tmp_path: Path, path: str, way: str, chunks: list[bytes], inside: str
) -> None:
    """An upload and a body that cannot be parsed get a 503, and none of it is read."""
    made = shop(way, tmp_path, closed(), *INSIDE[inside])
    body = Body(chunks)
    answer = await post(made, path, body)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "60"
    assert body.taken == 0
    assert made.ran == []


async def test_a_dependency_alone_comes_after_the_body(tmp_path: Path) -> None:
    """Why there is a middleware: without it FastAPI reads and parses the body first."""
    made = shop("dependency", tmp_path, closed())
    body = Body(MALFORMED)
    assert (await post(made, "/posted", body)).status == 422
    assert body.taken == len(b"".join(MALFORMED))


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("way", ["middleware", "both"])
@pytest.mark.parametrize("guard", [opened, closed], ids=["off", "let in"])
async def test_a_body_that_is_admitted_arrives_whole(
    tmp_path: Path, guard: Callable[..., MaintenanceGuard], way: str, inside: str
) -> None:
    """The body of a request that is let in is as the client sent it."""
    asked: list[HTTPConnection] = []

    async def lets_in(connection: HTTPConnection) -> bool:
        asked.append(connection)
        return True

    made = shop(way, tmp_path, guard(exempt_handler=lets_in), *INSIDE[inside])
    text = json.dumps(dict.fromkeys("abc", 1)).encode()
    answer = await post(made, "/posted", Body([text[:5], text[5:]]))
    assert answer.status == 200
    assert b"served 3" in answer.messages[1]["body"]
    # Once: by the middleware, or by the dependency.
    assert len(asked) == (guard is closed)
    assert in_flight(made.guard) == 0


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_a_middleware_inside_does_not_read_a_refused_body(
    tmp_path: Path, way: str
) -> None:
    """The outermost decides: what stands inside does not see what is refused."""
    guard = opened()
    made = shop(way, tmp_path, guard, Reads)
    assert (await post(made, "/posted", Body([b'{"a": 1}']))).status == 200
    await guard.enable()
    body = Body(MALFORMED)
    assert (await post(made, "/sub/below/posted", body)).status == 503
    assert body.taken == 0
    assert made.ran == []


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_an_admission_is_final(tmp_path: Path, way: str) -> None:
    """A request that was let in is served, though maintenance begins on its way."""
    guard = opened()

    class Closes:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await guard.enable()
            await self.app(scope, receive, send)

    made = shop(way, tmp_path, guard, Closes)
    answer = await post(made, "/posted", Body([b'{"a": 1}']))
    assert answer.status == 200
    assert made.ran == ["posted"]


@pytest.mark.parametrize("inside", INSIDE)
async def test_the_application_may_read_on_after_a_refusal(inside: str) -> None:
    """An exception handler that reads the body of what was refused does not hang."""
    guard = closed()
    app = FastAPI(dependencies=[Depends(guard)])
    add: Any = app.add_middleware
    for middleware in INSIDE[inside]:
        add(middleware)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    made = Shop(app, guard)
    app.add_api_route("/posted", made.ran.posted, methods=["POST"])

    @app.exception_handler(503)
    async def echo(request: Request, _error: Exception) -> Any:  # a response
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(await request.body(), status_code=503)

    body = Body([b'{"a": 1}'])
    answer = await post(made, "/posted", body)
    assert answer.status == 503
    assert made.ran == []


async def test_a_refusal_comes_before_what_precedes_the_dependency() -> None:
    """Beside a dependency, the middleware decides before other dependencies run."""

    async def auth() -> None:
        raise HTTPException(401)

    guard = closed()
    app = FastAPI(dependencies=[Depends(auth), Depends(guard)])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    made = Shop(app, guard)
    app.add_api_route("/items", made.ran.target)
    assert (await made.get("/items")).status == 503
    await guard.disable()
    assert (await made.get("/items")).status == 401


async def test_a_guard_below_another_dependency_is_not_waited_for() -> None:
    """Where the guard is not a direct dependency, the middleware decides for itself."""
    guard = closed()

    def user(_: None = Depends(guard)) -> None: ...

    app = FastAPI(dependencies=[Depends(user)])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    made = Shop(app, guard)
    app.add_api_route("/posted", made.ran.posted, methods=["POST"])
    body = Body(MALFORMED)
    assert (await post(made, "/posted", body)).status == 503
    assert body.taken == 0


async def test_the_middleware_and_the_dependency_count_once(tmp_path: Path) -> None:
    """A request that came through both is one request in flight."""
    seen: list[int] = []
    guard: MaintenanceGuard = opened()
    made = shop("both", tmp_path, guard)

    @made.app.get("/count", dependencies=[Security(guard, scopes=["twice"])])
    async def count() -> None:
        seen.append(in_flight(guard))

    assert (await made.get("/count")).status == 200
    assert seen == [1]
