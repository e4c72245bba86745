"""What a refused client gets, and who else has a say in it."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    Form,
    HTTPException,
    UploadFile,
    WebSocket,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from fastapi_maintenance import MaintenanceError, MaintenanceGuard
from tests.calls import call, handshake
from tests.guard.support import Ran, both, in_flight, publish
from tests.guards import closed

DETAIL = "Service temporarily unavailable due to maintenance"


def guarded(guard: MaintenanceGuard | None = None, **options: Any) -> FastAPI:
    """Return an application under maintenance with one of each route."""
    app = FastAPI(dependencies=[Depends(guard or closed())], **options)
    both(app, Ran())
    return app


def test_refusal_says_when_to_return_and_is_not_cached() -> None:
    """A refusal is a 503 in FastAPI's own form that no cache keeps."""
    answer = TestClient(guarded()).get("/target")
    assert answer.status_code == 503
    assert answer.json() == {"detail": DETAIL}
    assert answer.headers["Retry-After"] == "60"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "connection" not in answer.headers


def test_message_of_the_state_wins_over_the_detail() -> None:
    """Clients read the operator's message, and the guard's detail without one."""
    guard = closed(detail="closed", retry_after=90)
    client = TestClient(guarded(guard))
    assert client.get("/target").json() == {"detail": "closed"}
    assert client.get("/target").headers["Retry-After"] == "90"
    publish(guard, enabled=True, message="back at ten", retry_after=7)
    assert client.get("/target").json() == {"detail": "back at ten"}
    assert client.get("/target").headers["Retry-After"] == "7"


def test_every_refusal_is_a_new_object() -> None:
    """No refusal shares its exception: it would grow a traceback per request."""
    app, seen = guarded(), []

    @app.exception_handler(MaintenanceError)
    async def keep(_: Request, error: Exception) -> Response:
        seen.append(error)
        return JSONResponse({}, 503)

    client = TestClient(app)
    client.get("/target")
    client.get("/target")
    assert seen[0] is not seen[1]
    assert isinstance(seen[0], HTTPException)


def answering(word: str) -> Any:
    """Return an exception handler that answers with a word."""

    async def handler(_: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"by": word}, error.status_code, error.headers)

    return handler


@pytest.mark.parametrize(
    ("handlers", "winner"),
    [
        ([503, MaintenanceError, HTTPException, StarletteHTTPException], 503),
        ([MaintenanceError, HTTPException, StarletteHTTPException], MaintenanceError),
        ([HTTPException, StarletteHTTPException, Exception], HTTPException),
        ([StarletteHTTPException, 500], StarletteHTTPException),
    ],
)
def test_application_s_own_handlers_win(handlers: list[Any], winner: Any) -> None:
    """The most specific handler of the application answers, headers included."""
    app = guarded()
    for key in handlers:
        app.add_exception_handler(key, answering(str(key)))
    client = TestClient(app)
    answer = client.get("/target")
    assert answer.json() == {"by": str(winner)}
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    with pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect("/socket").__enter__()
    assert denied.value.json() == {"by": str(winner)}


@pytest.mark.parametrize("key", [500, Exception])
def test_handlers_of_failures_are_not_asked(key: Any) -> None:
    """A refusal is no failure: handlers of 500 and Exception do not see it."""
    app = guarded()
    app.add_exception_handler(key, answering("failure"))
    assert TestClient(app).get("/target").json() == {"detail": DETAIL}


def test_refusal_in_a_sub_application_uses_its_handlers() -> None:
    """A mounted application answers with its own handlers, not its parent's."""
    app, sub = FastAPI(), guarded()
    app.mount("/sub", sub)
    app.add_exception_handler(MaintenanceError, answering("parent"))
    sub.add_exception_handler(MaintenanceError, answering("sub"))
    assert TestClient(app).get("/sub/target").json() == {"by": "sub"}


def test_error_carries_its_state() -> None:
    """A handler can show the state that refused."""
    guard = closed()
    app = guarded(guard)
    publish(guard, enabled=True, actor="ada", retry_after=30)
    seen: list[tuple[str | None, int]] = []

    @app.exception_handler(MaintenanceError)
    async def keep(_: Request, error: MaintenanceError) -> Response:
        seen.append((error.state.actor, error.retry_after))
        return Response(status_code=error.status_code)

    assert TestClient(app).get("/target").status_code == 503
    assert seen == [("ada", 30)]


def test_browsers_of_other_origins_can_read_the_refusal() -> None:
    """A refusal passes through CORS, and preflights are answered as always."""
    app = guarded()
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], expose_headers=["Retry-After"]
    )
    client = TestClient(app)
    origin = {"Origin": "https://shop.example"}
    refusal = client.get("/target", headers=origin)
    assert refusal.status_code == 503
    assert refusal.headers["Access-Control-Allow-Origin"] == "*"
    assert refusal.headers["Access-Control-Expose-Headers"] == "Retry-After"
    asked = {**origin, "Access-Control-Request-Method": "GET"}
    assert client.options("/target", headers=asked).status_code == 200


class Item(BaseModel):
    """A declared body."""

    name: str


def with_bodies() -> FastAPI:
    """Return an application that declares every kind of body."""
    app = FastAPI(dependencies=[Depends(closed())])

    @app.post("/json")
    async def json(item: Item) -> None:
        raise AssertionError

    @app.post("/form")
    async def form(name: Annotated[str, Form()]) -> None:
        raise AssertionError

    @app.post("/file")
    async def file(upload: UploadFile) -> None:
        raise AssertionError

    @app.post("/raw")
    async def raw(request: Request) -> None:
        raise AssertionError

    return app


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/json", {"json": {"name": "a"}}, 503),
        ("/json", {"json": {"name": 1}}, 503),
        ("/json", {"json": []}, 503),
        ("/json", {}, 503),
        # FastAPI parses a declared body before any dependency, as documented.
        (
            "/json",
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            422,
        ),
        ("/raw", {"content": b"{"}, 503),
        ("/raw", {"content": b"x" * 1_000_000}, 503),
    ],
)
def test_bodies_do_not_get_a_request_through(
    path: str, sent: dict[str, Any], status: int
) -> None:
    """Whatever the body is, the endpoint does not run."""
    assert TestClient(with_bodies()).post(path, **sent).status_code == status


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/form", {"data": {"name": "a"}}, 503),
        ("/form", {"data": {}}, 503),
        ("/file", {"files": {"upload": b"a"}}, 503),
        (
            "/file",
            {
                "content": b"--x\r\nbroken",
                "headers": {"Content-Type": "multipart/form-data"},
            },
            400,
        ),
    ],
)
def test_forms_do_not_get_a_request_through(
    path: str, sent: dict[str, Any], status: int
) -> None:
    """Whatever the form is, the endpoint does not run."""
    assert TestClient(with_bodies()).post(path, **sent).status_code == status


class Unread:
    """A body that must not be asked for."""

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        raise AssertionError


async def test_body_that_is_not_declared_is_not_read() -> None:
    """A route without a declared body is refused before a byte of it is read."""
    answer = await call(with_bodies(), "/raw", method="POST", body=Unread())
    assert answer.status == 503


def test_earlier_dependencies_are_undone() -> None:
    """What ran before the guard is torn down with the refusal, and drops its extras."""
    ran, app = Ran(), FastAPI()

    async def earlier(response: Response, tasks: BackgroundTasks) -> Any:
        response.headers["X-Early"] = "1"
        tasks.add_task(ran.append, "background")
        try:
            yield
        except MaintenanceError:
            ran.append("refused")
            raise
        finally:
            ran.append("closed")

    app.add_api_route(
        "/target", ran.endpoint, dependencies=[Depends(earlier), Depends(closed())]
    )
    answer = TestClient(app).get("/target")
    assert (answer.status_code, ran) == (503, ["refused", "closed"])
    assert "X-Early" not in answer.headers


def test_earlier_refusal_of_a_login_wins() -> None:
    """A dependency that stands before the guard and raises has the last word."""

    async def login() -> None:
        raise HTTPException(401)

    app = FastAPI(dependencies=[Depends(login), Depends(closed())])
    both(app, Ran())
    assert TestClient(app).get("/target").status_code == 401


DENIAL: dict[str, Any] = {"websocket.http.response": {}}


async def test_handshake_is_denied_with_a_response_where_the_server_can() -> None:
    """A server with the denial extension sends the whole 503."""
    answer = await handshake(guarded(), "/socket", extensions=DENIAL)
    assert [m["type"] for m in answer.messages] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("extensions", [{}, None, "absent"])
async def test_handshake_is_closed_where_the_server_cannot(extensions: Any) -> None:
    """A server without the extension gets a close with 1013, try again later."""
    guard = closed()
    scope = {} if extensions == "absent" else {"extensions": extensions}
    app = guarded(guard)

    async def without(scope: Any, receive: Any, send: Any) -> None:
        if extensions == "absent":
            del scope["extensions"]
        await app(scope, receive, send)

    answer = await handshake(without, "/socket", **scope)
    (message,) = answer.messages
    assert (message["type"], message["code"]) == ("websocket.close", 1013)
    assert message["reason"] == "maintenance"
    assert in_flight(guard) == 0


def test_handshake_without_the_extension_raises_for_a_client() -> None:
    """A client of such a server sees code 1013."""
    app = guarded()

    async def without(scope: Any, receive: Any, send: Any) -> None:
        scope.pop("extensions", None)
        await app(scope, receive, send)

    with pytest.raises(WebSocketDisconnect) as left:
        TestClient(without).websocket_connect("/socket").__enter__()
    assert left.value.code == 1013


def test_open_websockets_are_not_cut() -> None:
    """Switching on denies new handshakes and leaves open WebSockets alone."""
    guard = closed()
    publish(guard, enabled=False)
    app = FastAPI(dependencies=[Depends(guard)])

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.receive_text()

    client = TestClient(app)
    with client.websocket_connect("/echo") as session:
        publish(guard, enabled=True)
        session.send_text("still")
        assert session.receive_text() == "still"
        assert in_flight(guard) == 1
        with pytest.raises(WebSocketDenialResponse):
            client.websocket_connect("/echo").__enter__()
        session.send_text("end")
    assert in_flight(guard) == 0


def test_openapi_documents_the_refusal_everywhere() -> None:
    """guard.responses reaches every operation, with header and schema."""
    guard = closed(detail="closed for now")
    app = FastAPI(dependencies=[Depends(guard)], responses=guard.responses)
    both(app, Ran())
    documented = app.openapi()["paths"]["/target"]["get"]["responses"]["503"]
    assert documented["headers"]["Retry-After"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 86400,
    }
    content = documented["content"]["application/json"]
    assert content["example"] == {"detail": "closed for now"}
    assert content["schema"] == {"$ref": "#/components/schemas/MaintenanceResponse"}
    model = app.openapi()["components"]["schemas"]["MaintenanceResponse"]
    assert model["required"] == ["detail"]


def test_openapi_of_a_route_can_say_more() -> None:
    """A route's own entry for the 503 replaces the guard's."""
    guard = closed()
    app = FastAPI(responses=guard.responses)
    app.add_api_route("/own", Ran().endpoint, responses={503: {"description": "own"}})
    assert app.openapi()["paths"]["/own"]["get"]["responses"]["503"] == {
        "description": "own"
    }
