"""The order of decisions, and faults that must not change it."""

import functools
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import decision, maintenance_exempt
from fastapi_maintenance._fastapi import OUTER_STACK
from fastapi_maintenance.exemptions import from_networks, with_header
from tests.calls import call, handshake
from tests.guard.support import Ran, both, in_flight, publish
from tests.guards import closed, opened

SECRET = "open-sesame"


def built() -> FastAPI:
    """Return an application under maintenance with names that look alike."""
    handlers = [with_header("X-Key", SECRET), from_networks("10.0.0.0/8")]
    app = FastAPI(dependencies=[Depends(closed(exempt_handler=handlers))])

    @app.get("/health")
    @maintenance_exempt
    async def health() -> str:
        return "ok"

    for path in ("/secret", "/healthz-admin", "/health/{rest:path}", "/doc"):
        app.add_api_route(path, Ran().endpoint)
    router = APIRouter()
    both(router, Ran())
    router.add_api_route("/health", Ran().endpoint)
    app.include_router(router, prefix="/admin")
    app.add_api_websocket_route("/socket", Ran().socket)
    return app


KEY = (b"x-key", SECRET.encode())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/healthz-admin", 503),
        ("/health/", 503),
        ("/health/../secret", 503),
        ("/health/%2e%2e/secret", 503),
        ("/admin/health", 503),
        ("/secret", 503),
        ("//health", 404),
        ("/HEALTH", 404),
        ("/health ", 404),
        ("/health\x00", 404),
        ("/secret\x00", 404),
        ("health", 404),
        ("/docs/", 307),
        ("/docs/x", 404),
        ("", 404),
        ("*", 404),
        ("http://evil.example/health", 404),
    ],
)
async def test_paths_are_compared_by_the_router_alone(path: str, status: int) -> None:
    """Only the endpoint that was matched is exempt, not what its path looks like."""
    assert (await call(built(), path)).status == status


@pytest.mark.parametrize(
    "host",
    [
        b"x/docs?",
        b"x/health#",
        b"x/health?",
        b"a/health/..;/",
        b"health",
        b"",
        b"\xff\xfe",
        b"[",
        b"x:99999999",
        b"a b",
    ],
)
@pytest.mark.parametrize(
    "more", [(), ((b"x-original-url", b"/health"),), ((b"x-rewrite-url", b"/docs"),)]
)
async def test_no_header_stands_for_a_path(
    host: bytes, more: tuple[tuple[bytes, bytes], ...]
) -> None:
    """A poisoned Host, or a header that rewrites URLs elsewhere, changes nothing."""
    answer = await call(built(), "/secret", headers=[(b"host", host), *more])
    assert answer.status == 503


@pytest.mark.parametrize("root", ["", "/", "/health", "/docs", "/api", "/secret"])
@pytest.mark.parametrize("path", ["/secret", "/health", "/docs/secret", "/api/secret"])
async def test_root_path_opens_nothing(root: str, path: str) -> None:
    """Where an application is mounted by its server does not matter to the guard."""
    answer = await call(built(), path, root_path=root)
    body = b"".join(message.get("body", b"") for message in answer.messages)
    assert answer.status in {503, 404, 405} or body == b'"ok"'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([KEY], 200),
        ([KEY, KEY], 503),
        ([(b"x-key", b"\xe9")], 503),
        ([(b"x-key", b"")], 503),
        ([(b"x-key", b"x" * 9_000)], 503),
        ([(b"x-http-method-override", b"HEAD")], 503),
        ([(b"x-forwarded-for", b"10.0.0.7")], 503),
        ([(b"forwarded", b"for=10.0.0.7")], 503),
    ],
)
async def test_secret_headers_are_bytes(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    """Whatever stands in a header, the answer is a decision and never an error."""
    assert (await call(built(), "/secret", headers=headers)).status == status
    answer = await handshake(built(), "/socket", headers=headers)
    kinds = [message["type"] for message in answer.messages]
    assert ("websocket.accept" in kinds) == (status == 200)


@pytest.mark.parametrize(
    ("client", "status"),
    [
        (None, 503),
        (("testclient", 1), 503),
        (("10.evil.example", 1), 503),
        (("fe80::1%eth0", 1), 503),
        (("", 0), 503),
        (("10.0.0.7", 1), 200),
        (("::ffff:10.0.0.7", 1), 200),
    ],
)
async def test_clients_are_addresses(client: Any, status: int) -> None:
    """A client without an address, or with a name for one, is in no network."""
    assert (await call(built(), "/secret", client=client)).status == status


def test_read_only_lets_reads_through() -> None:
    """A read-only state admits and counts safe methods, and refuses the others."""
    guard, counted = closed(), []
    publish(guard, enabled=True, read_only=True)
    app = FastAPI(dependencies=[Depends(guard)])

    @app.api_route("/target", methods=["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
    async def target() -> None:
        counted.append(in_flight(guard))

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        raise AssertionError

    client = TestClient(app)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert client.request(method, "/target").status_code == 200
    for method in ("POST", "DELETE"):
        assert client.request(method, "/target").status_code == 503
    with pytest.raises(WebSocketDenialResponse):
        client.websocket_connect("/socket").__enter__()
    # A server might name the method of the handshake.
    denied = anyio.run(functools.partial(handshake, app, "/socket", method="GET"))
    assert [message["type"] for message in denied.messages] == ["websocket.close"]
    assert (counted, in_flight(guard)) == ([1, 1, 1], 0)


async def test_release_without_a_stack_serves_and_cannot_be_drained() -> None:
    """Where FastAPI has no outer stack, requests are decided and never vouched for."""
    guard, ran = opened(exempt_handler=with_header("X-Key", SECRET)), Ran()

    async def of_another_release(request: Request) -> None:
        del request.scope[OUTER_STACK]

    app = FastAPI(dependencies=[Depends(of_another_release), Depends(guard)])
    app.add_api_route("/target", ran.endpoint)

    assert (await call(app, "/target")).status == 200
    assert in_flight(guard) == 0
    await guard.enable()
    assert (await call(app, "/target")).status == 503
    assert (await call(app, "/target", headers=[KEY])).status == 200
    assert in_flight(guard) == 0
    assert (await guard.drain(timeout=0)).outcome == "unknown"
    assert ran == ["endpoint", "endpoint"]


def test_what_is_known_of_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that makes routes as it goes does not fill the memory."""
    monkeypatch.setattr(decision, "_CACHED_ROUTES", 3)
    guard = closed()
    app = FastAPI(dependencies=[Depends(guard)])
    for number in range(8):
        app.add_api_route(f"/{number}", Ran().endpoint)
        app.add_api_route(
            f"/open/{number}",
            Ran().endpoint,
            dependencies=[Depends(maintenance_exempt)],
        )
    client = TestClient(app)
    for _ in range(2):
        for number in range(8):
            assert client.get(f"/{number}").status_code == 503
            assert client.get(f"/open/{number}").status_code == 200
    assert len(guard._decision._coverage) <= 3


@pytest.mark.parametrize("path", ["/target", "/nowhere"])
async def test_label_of_what_has_no_route_is_short(path: str) -> None:
    """A guard that is asked outside any route shows method and path, cut short."""
    scope = {"type": "http", "method": "GET", "path": path + "x" * 500}
    label = decision.label_of(scope, None)
    assert label.startswith(f"GET {path}")
    assert len(label) <= 200
    assert decision.label_of(scope, object()) == "frontend"
