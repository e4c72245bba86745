"""Laws of requests: nothing that a client sends reaches an unmarked endpoint."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi import Path as PathParameter
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocket

from fastapi_maintenance import MaintenanceGuard, MemoryStore, maintenance_exempt
from fastapi_maintenance.exemptions import from_networks, with_header
from tests.calls import Answer, call, handshake
from tests.guard.support import in_flight

pytestmark = pytest.mark.property

SECRET = "open-sesame-open-sesame"

words = st.sampled_from(
    [
        *("", "health", "healthz", "HEALTH", "docs", "redoc", "openapi.json", "admin"),
        *(
            "secret",
            "api",
            "..",
            ".",
            "%2e%2e",
            "%2F",
            "a b",
            "\x00",
            "é",
            "\U0001f6a7",
        ),
        *("oauth2-redirect", "?", "#", ";", "\\", "\r\n", "socket", "shop", "app.js"),
    ]
)
# Most of what is put together leads nowhere.
served = st.sampled_from(
    [
        *("/health", "/secret", "/docs", "/socket", "/shop/x", "/anything"),
        *("/admin/health", "/api/docs", "/docs/socket", "/admin/socket"),
    ]
)
paths = served | st.lists(words | st.text(max_size=8), max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)
names = st.sampled_from(
    [
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"forwarded",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-http-method-override",
        b"x-maintenance-bypass",
        b"cookie",
        b"authorization",
        b"x-admin-key",
        b"content-type",
        b"content-length",
        b"accept",
        b"origin",
        b"user-agent",
        b"transfer-encoding",
    ]
)
values = st.binary(max_size=40) | st.sampled_from(
    [
        b"x/docs?",
        b"x/health#",
        b"127.0.0.1",
        b"10.0.0.7",
        b"/health",
        b"maintenance_bypass=1",
        b"maintenance_bypass=",
        b'maintenance_bypass="\\303"',
        b"application/json",
        SECRET.encode()[:-1],
    ]
)
scopes = st.fixed_dictionaries(
    {
        "path": paths,
        "root_path": st.just("")
        | st.sampled_from(["/", "/api", "/health", "/docs"])
        | paths,
        "headers": st.lists(st.tuples(names, values), max_size=6),
        # Servers refuse other bytes, and Starlette's redirects cannot carry them.
        "query_string": st.text(st.characters(codec="ascii"), max_size=20).map(
            str.encode
        ),
        "client": st.none()
        | st.tuples(
            st.sampled_from(
                ["testclient", "10.evil.example", "fe80::1%eth0", "::1", "", "\x00"]
            )
            | st.text(max_size=10),
            st.integers(0, 65535),
        ),
        "server": st.none() | st.just(("shop.example", None)),
    }
)
methods = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", ""]
) | st.text(max_size=6)


class Reached(Exception):  # noqa: N818  # no error of anybody's
    """An endpoint that must not run has run."""


def built() -> FastAPI:
    """Return an application under maintenance with every kind of route."""
    guard = MaintenanceGuard(
        MemoryStore(enabled=True),
        exempt_handler=[
            with_header("X-Admin-Key", SECRET),
            from_networks("10.0.0.0/8"),
        ],
    )

    async def reached(path: str = "") -> None:
        raise Reached(path)

    async def socket(websocket: WebSocket) -> None:
        raise Reached(websocket.url.path)

    @maintenance_exempt
    async def healthy() -> str:
        return "ok"

    app = FastAPI(dependencies=[Depends(guard)], docs_url=None)
    app.add_api_route("/health", healthy)
    app.add_api_route("/secret", reached)
    app.add_api_route("/secret", reached, methods=["POST"])
    app.add_api_route("/docs", reached)
    for prefix in ("/admin", "/api", "/docs"):
        router = APIRouter()
        router.add_api_route("/health", reached)
        router.add_api_route("/docs", reached, include_in_schema=False)
        router.add_api_websocket_route("/socket", socket)
        app.include_router(router, prefix=prefix)
    sub = FastAPI(dependencies=[Depends(guard)])
    sub.add_api_route("/{path:path}", reached, include_in_schema=False)
    app.mount("/shop", sub)
    app.add_api_websocket_route("/socket", socket)

    @app.api_route("/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def rest(path: str = PathParameter()) -> None:
        raise Reached(path)

    return app


APPLICATION = built()


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Run one request on a loop of its own."""
    return asyncio.run(coroutine)


@example(scope={"path": "/health"}, method="GET")
@given(scope=scopes, method=methods)
def test_unmarked_endpoint_never_runs(scope: dict[str, Any], method: str) -> None:
    """Whatever an HTTP request looks like, only what is exempt is served."""
    answer = run(call(APPLICATION, method=method, **scope))
    assert answer.status in {200, 307, 404, 405, 503}
    if answer.status == 200:
        sent = b"".join(message.get("body", b"") for message in answer.messages)
        # The health check, or documentation that FastAPI made.
        assert sent == b'"ok"' or b"openapi" in sent or b"oauth2" in sent
    if answer.status == 503:
        assert answer.headers["retry-after"] == "60"


@given(scope=scopes, denial=st.booleans())
def test_unmarked_websocket_never_runs(scope: dict[str, Any], denial: bool) -> None:
    """Whatever a handshake looks like, it is denied."""
    extensions: dict[str, Any] = {"websocket.http.response": {}} if denial else {}
    answer = run(handshake(APPLICATION, extensions=extensions, **scope))
    kinds = {message["type"] for message in answer.messages}
    assert "websocket.accept" not in kinds
    assert answer.status in {0, 503}


# What a request does in the mixture below.
DEEDS = [
    "answer",
    "stream",
    "background",
    "refuse",
    "http error",
    "error",
    "base error",
    "stream error",
    "late error",
    "disconnect",
    "cannot send",
    "cancelled",
    "invalid",
    "not found",
]


def mixed(guard: MaintenanceGuard) -> FastAPI:
    """Return an application whose endpoint does what it is told."""
    app = FastAPI(dependencies=[Depends(guard)])

    async def session(deed: str) -> AsyncIterator[None]:
        yield
        if deed == "late error":
            raise ValueError(deed)

    @app.get("/{deed}")
    async def endpoint(
        deed: str,
        tasks: BackgroundTasks,
        _: Annotated[None, Depends(session)],
        number: int = 0,
    ) -> Any:
        await asyncio.sleep(0)
        if deed == "http error":
            raise HTTPException(418)
        if deed == "error":
            raise ValueError(deed)
        if deed == "base error":
            raise StarletteHTTPException(418)
        if deed == "refuse":
            await guard.enable()
            await guard.disable()
        if deed == "background":
            tasks.add_task(asyncio.sleep, 0)
        if deed in {"stream", "stream error", "disconnect"}:
            return StreamingResponse(stream(deed))
        if deed == "cancelled":
            await asyncio.Event().wait()
        return deed

    return app


async def stream(deed: str) -> AsyncIterator[str]:
    """Yield a little, or fail, or go on for ever."""
    yield deed
    while deed == "disconnect":
        yield deed
        await asyncio.sleep(0)
    if deed == "stream error":
        raise ValueError(deed)


async def failing(_: object) -> None:
    """Stand for a connection that was lost."""
    raise OSError("connection lost")


async def mixture(deeds: list[str]) -> None:
    """Run requests beside each other, and cancel those that never end."""
    guard = MaintenanceGuard(MemoryStore())
    app = mixed(guard)
    running = [
        asyncio.ensure_future(
            call(
                app,
                "/a/b" if deed == "not found" else f"/{deed}",
                query_string=b"number=x" if deed == "invalid" else b"",
                leaves=deed == "disconnect",
                send=failing if deed == "cannot send" else None,
            )
        )
        for deed in deeds
    ]
    for _ in range(30):
        await asyncio.sleep(0)
    for deed, task in zip(deeds, running, strict=True):
        if deed == "cancelled":
            task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    del running, ended, task
    assert in_flight(guard) == 0


@given(deeds=st.lists(st.sampled_from(DEEDS), min_size=1, max_size=8))
def test_counts_are_back_at_zero_after_any_mixture(deeds: list[str]) -> None:
    """However requests end, beside each other, nothing stays in flight."""
    asyncio.run(mixture(deeds))
