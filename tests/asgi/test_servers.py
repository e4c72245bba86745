"""The middleware on real servers: uvicorn with both parsers, hypercorn and granian."""

import asyncio
import contextlib
import http.client
import socket
import sys
from collections.abc import Iterator

import pytest

from fastapi_maintenance import MaintenanceGuard
from tests.servers import free_port, running
from tests.waiting import until

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

SHOP = """
import os
from fastapi import Depends, FastAPI, WebSocket
from fastapi.staticfiles import StaticFiles
from fastapi_maintenance import (
    MaintenanceGuard, MaintenanceModeMiddleware, maintenance_exempt
)

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
app.add_middleware(MaintenanceModeMiddleware, guard=guard)
sub = FastAPI()

@app.get("/health")
@maintenance_exempt
async def health(): ...

@app.post("/posted")
async def posted(item: dict): ...

@sub.post("/posted")
async def posted_below(item: dict): ...

async def echo(socket: WebSocket):
    await socket.accept()
    await socket.send_text("served")
    await socket.close()

app.add_api_websocket_route("/socket", echo)
sub.add_api_websocket_route("/socket", echo)
app.add_api_websocket_route(
    "/open-socket", echo, dependencies=[Depends(maintenance_exempt)]
)
app.mount("/sub", sub)
app.mount("/static", StaticFiles(directory=os.getcwd()))
"""

UVICORN = ["uvicorn", "shop:app", "--log-level", "error", "--port", "{port}", "--http"]
SERVERS = {
    "uvicorn with h11": [*UVICORN, "h11"],
    "uvicorn with httptools": [*UVICORN, "httptools"],
    "hypercorn": ["hypercorn", "shop:app", "--bind", "127.0.0.1:{port}"],
    "granian": [
        *("granian", "--interface", "asgi", "--host", "127.0.0.1"),
        *("--port", "{port}", "shop:app"),
    ],
}
LARGE = 50 << 20


@pytest.fixture(scope="module", params=SERVERS)
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Return the port of a server whose application is under maintenance."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "shop.py").write_text(SHOP)
    store = f"file:{folder}/state"
    found = free_port()
    line = [part.format(port=found) for part in SERVERS[request.param]]
    command = [sys.executable, "-m", *line]
    with running(command, folder, FASTAPI_MAINTENANCE_STORE=store):
        until(lambda: answers(found))
        asyncio.run(MaintenanceGuard(store).enable())
        yield found


def answers(port: int) -> bool:
    """Tell whether the server is there."""
    with contextlib.suppress(OSError):
        return get(port, "/health") == 200
    return False


def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> int:
    """Send a request; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"} if body else {}
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/docs", 200),
        ("/sub/docs", 200),
        ("/static/shop.py", 503),
        ("/static/nothing", 503),
        ("/nothing", 404),
        ("/sub/nothing", 404),
        ("/posted", 405),
        ("/static", 307),
        ("//health", 404),
        ("/static/../health", 503),
        ("/%68ealth", 200),
    ],
)
def test_what_is_closed_is_closed_and_all_else_is_not(
    port: int, path: str, status: int
) -> None:
    """A real server's requests are matched as the application matches them."""
    assert get(port, path) == status


@pytest.mark.parametrize("path", ["/posted", "/sub/posted"])
def test_a_malformed_body_is_refused_and_not_parsed(port: int, path: str) -> None:
    """A body that cannot be parsed gets a 503, not a 422."""
    assert get(port, path, "POST", b'{"a": ') == 503


@pytest.mark.parametrize("path", ["/posted", "/sub/posted"])
@pytest.mark.parametrize("sent", [0, 1 << 20])
def test_a_large_upload_is_answered_at_once(port: int, path: str, sent: int) -> None:
    """The refusal is there before 50 MB have been sent."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: {LARGE}\r\n"
        "Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(head.encode() + bytes(sent))
        answer = b""
        # Hypercorn asks for every body itself, before the application can.
        while b"\r\n\r\n" not in answer:
            answer += client.recv(65536)
            if answer.startswith(b"HTTP/1.1 100"):
                answer = answer.partition(b"\r\n\r\n")[2]
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 60" in answer.lower()


@pytest.mark.parametrize("path", ["/socket", "/sub/socket"])
def test_a_handshake_is_denied_with_the_whole_answer(port: int, path: str) -> None:
    """A WebSocket client reads the same 503, with when to return."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with pytest.raises(InvalidStatus) as denied:
        connect(f"ws://127.0.0.1:{port}{path}")
    assert denied.value.response.status_code == 503
    assert denied.value.response.headers["Retry-After"] == "60"


def test_an_exempt_handshake_is_served(port: int) -> None:
    """The marker opens a WebSocket on every server."""
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/open-socket") as client:
        assert client.recv(timeout=10) == "served"
