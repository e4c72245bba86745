"""What the dependency covers, and what the middleware covers, alone and beside it."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket

from tests.asgi.support import TABLE, Case, CopiesScope, Shop, shop
from tests.calls import Answer
from tests.guard.support import in_flight
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio

WAYS = ["dependency", "middleware", "both"]


class Rewraps(BaseHTTPMiddleware):
    """The middleware that most applications have: it runs the rest in a task."""

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        """Pass on."""
        return await call_next(request)


async def reads(connection: HTTPConnection) -> bool:
    """Read the body, and do not exempt."""
    if isinstance(connection, Request):
        await connection.body()
    return False


def frees(_connection: HTTPConnection) -> bool:
    """Do not exempt, from a thread."""
    return False


VARIANTS: dict[str, tuple[tuple[type[Any], ...], dict[str, Any]]] = {
    "plain": ((), {}),
    "a handler that reads the body": ((), {"exempt_handler": reads}),
    "a handler in a thread": ((), {"exempt_handler": frees}),
    "a middleware that copies the scope": ((CopiesScope,), {}),
    "a middleware that runs the rest in a task": ((Rewraps,), {}),
    "both middlewares": ((Rewraps, CopiesScope), {}),
}


def covers(way: str, case: Case) -> bool:
    """Tell what the documentation says of a way and a case."""
    if case.covered == "open":
        return False
    return case.covered == "dependency" or way != "dependency"


def shape(answer: Answer) -> list[tuple[object, ...]]:
    """Return what of an answer does not change from one to the next."""
    return [
        (message["type"], message.get("status"), message.get("code"))
        for message in answer.messages
        # A body comes in as many parts as middlewares please.
        if message["type"] != "http.response.body"
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Shop]:
    """Return shops that are on, or off, made once for all rows."""
    folder = tmp_path_factory.mktemp("static")

    @functools.cache
    def make(way: str, variant: str) -> Shop:
        if variant in {"off", "off and overridden"}:
            found = shop(way, folder, opened())
        else:
            inside, options = VARIANTS.get(variant, ((), {}))
            found = shop(way, folder, closed(**options), *inside)
        if variant.endswith("overridden"):
            found.app.dependency_overrides[found.guard] = lambda: None
        return found

    return make


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_what_is_covered_is_refused_and_all_else_is_as_ever(
    made: Callable[[str, str], Shop], case: Case, way: str, variant: str
) -> None:
    """Under maintenance a case is refused if it is covered, else it is as when off."""
    off = made(way, "off")
    ever = await off.get(case.path, case.method, **case.scope)
    on = made(way, variant)
    answer = await on.get(case.path, case.method, **case.scope)
    if covers(way, case):
        assert answer.status == 503
        assert answer.headers["retry-after"] == "60"
        assert on.ran == []
    else:
        assert shape(answer) == shape(ever)
        assert on.ran == off.ran


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_an_overridden_guard_lets_everything_through(
    made: Callable[[str, str], Shop], case: Case, way: str
) -> None:
    """Where the guard is overridden, the middleware steps aside with the dependency."""
    ever = await made(way, "off").get(case.path, case.method, **case.scope)
    on = made(way, "on and overridden")
    answer = await on.get(case.path, case.method, **case.scope)
    # An application below has overrides of its own.
    if case.path.startswith("/sub/below"):
        assert answer.status == 503
    else:
        assert shape(answer) == shape(ever)


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_overrides_of_a_mounted_application_are_its_own(
    tmp_path: Path, way: str
) -> None:
    """An override in a mounted application opens what is below it, and no more."""
    made = shop(way, tmp_path, closed())
    (sub,) = (r.app for r in made.app.routes if getattr(r, "path", "") == "/sub")  # type: ignore[attr-defined]  # a mount has one
    sub.dependency_overrides[made.guard] = lambda: None
    assert (await made.get("/sub/target")).status == 200
    assert (await made.get("/items")).status == 503


@pytest.mark.parametrize("case", TABLE, ids=str)
async def test_everything_is_served_and_given_back_while_off(
    made: Callable[[str, str], Shop], case: Case
) -> None:
    """While maintenance is off, the middleware and the dependency change no answer."""
    without = made("dependency", "off and overridden")
    ever = await without.get(case.path, case.method, **case.scope)
    off = made("both", "off")
    answer = await off.get(case.path, case.method, **case.scope)
    assert shape(answer) == shape(ever)
    assert off.ran == without.ran
    assert in_flight(off.guard) == 0


async def test_a_websocket_is_closed_where_no_response_can_be_sent(
    tmp_path: Path,
) -> None:
    """Without the extension for it, a refused handshake is closed with 1013."""
    made = shop("middleware", tmp_path, closed())
    for path in ("/socket", "/sub/socket", "/box/x"):
        answer = await made.get(path, "WS", extensions={})
        assert shape(answer) == [("websocket.close", None, 1013)]
    assert made.ran == []


async def test_a_handler_finds_the_same_in_the_middleware_as_in_a_route(
    tmp_path: Path,
) -> None:
    """Handlers are asked with path parameters, endpoint and the innermost app."""
    seen: list[Scope] = []

    async def look(connection: HTTPConnection) -> bool:
        seen.append(connection.scope)
        return True

    made = shop("middleware", tmp_path, closed(exempt_handler=look))
    assert (await made.get("/items/a/b")).status == 200
    assert (await made.get("/sub/target")).status == 200
    assert (await made.get("/sub/socket", "WS")).messages[0]["type"].endswith("accept")
    assert seen[0]["path_params"] == {"name": "a/b"}
    assert seen[0]["endpoint"] == made.ran.target
    assert seen[0]["app"] is made.app
    assert seen[1]["app"] is not made.app
    assert in_flight(made.guard) == 0


@pytest.mark.parametrize("path", ["/posted", "/box/x"])
async def test_wanting_the_body_does_not_exempt(tmp_path: Path, path: str) -> None:
    """A handler that wants the body in the middleware is not believed."""

    async def swallows(request: Request) -> bool:
        with contextlib.suppress(RuntimeError):
            await request.body()
        return True

    made = shop("middleware", tmp_path, closed(exempt_handler=swallows))
    assert (await made.get(path, "POST")).status == 503
    assert made.ran == []


async def test_another_handler_may_still_exempt(tmp_path: Path) -> None:
    """One handler that wants the body does not spoil what another one says."""
    made = shop("middleware", tmp_path, closed(exempt_handler=[reads, lambda _: True]))
    assert (await made.get("/box/x")).status == 200


async def test_a_handler_cannot_answer_a_websocket(tmp_path: Path) -> None:
    """A handler that would close or accept a WebSocket does not exempt."""

    async def closes(websocket: WebSocket) -> bool:
        with contextlib.suppress(RuntimeError):
            await websocket.close()
        return True

    made = shop("middleware", tmp_path, closed(exempt_handler=closes))
    assert (await made.get("/socket", "WS")).status == 503
    assert made.ran == []
