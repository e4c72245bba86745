"""Exempt handlers: only True exempts, whatever else happens in them."""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Path, Security, WebSocket
from fastapi.security import APIKeyHeader
from fastapi.testclient import TestClient
from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import MaintenanceGuard
from tests.calls import call
from tests.guard.support import Ran, both, emptied, in_flight, publish
from tests.guards import closed, opened

LOGGER = "fastapi_maintenance"


def guarded(handler: Any, **options: Any) -> tuple[TestClient, MaintenanceGuard, Ran]:
    """Return a client of an application under maintenance with a handler."""
    guard, ran = closed(exempt_handler=handler, **options), Ran()
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, ran)
    return TestClient(app), guard, ran


class Spelled:
    """Every way to write a handler that gives one answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def function(self) -> Callable[..., object]:
        def handler(connection: HTTPConnection) -> object:
            return self.answer

        return handler

    def coroutine(self) -> Callable[..., object]:
        async def handler(connection: HTTPConnection) -> object:
            return self.answer

        return handler

    def partial(self) -> Callable[..., object]:
        return functools.partial(lambda answer, _: answer, self.answer)

    def partial_of_coroutine(self) -> Callable[..., object]:
        async def handler(answer: object, connection: HTTPConnection) -> object:
            return answer

        return functools.partial(handler, self.answer)

    def function_that_returns_a_coroutine(self) -> Callable[..., object]:
        inner = self.coroutine()
        return lambda connection: inner(connection)  # noqa: PLW0108  # the point

    def wrapper_over_a_coroutine(self) -> Callable[..., object]:
        inner = self.coroutine()

        @functools.wraps(inner)
        def handler(connection: HTTPConnection) -> object:
            return inner(connection)

        return handler

    def sync_object(self) -> Callable[..., object]:
        class Handler:
            def __call__(_, connection: HTTPConnection) -> object:  # noqa: N805
                return self.answer

        return Handler()

    def async_object(self) -> Callable[..., object]:
        class Handler:
            async def __call__(_, connection: HTTPConnection) -> object:  # noqa: N805
                return self.answer

        return Handler()

    def partial_of_an_async_object(self) -> Callable[..., object]:
        return functools.partial(self.async_object())

    def bound_method(self) -> Callable[..., object]:
        return self._method

    def _method(self, connection: HTTPConnection) -> object:
        return self.answer

    def bound_coroutine(self) -> Callable[..., object]:
        return self._coroutine

    async def _coroutine(self, connection: HTTPConnection) -> object:
        return self.answer

    def object_that_answers_to_everything(self) -> Callable[..., object]:
        class Mock:
            """What mocking libraries put in a callable's place."""

            def __getattr__(self, name: str) -> object:
                if name.startswith("__"):
                    raise AttributeError(name)
                return Mock()

            async def __call__(_, connection: HTTPConnection) -> object:  # noqa: N805
                return self.answer

        return Mock()

    def future(self) -> Callable[..., object]:
        def handler(connection: HTTPConnection) -> Awaitable[object]:
            return Answering(self.answer)

        return handler


class Answering:
    """An awaitable that is no coroutine."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __await__(self) -> Generator[Any, Any, object]:
        yield from asyncio.sleep(0).__await__()
        return self.answer


SPELLINGS = pytest.mark.parametrize(
    "spelling",
    [
        Spelled.function,
        Spelled.coroutine,
        Spelled.partial,
        Spelled.partial_of_coroutine,
        Spelled.function_that_returns_a_coroutine,
        Spelled.wrapper_over_a_coroutine,
        Spelled.sync_object,
        Spelled.async_object,
        Spelled.partial_of_an_async_object,
        Spelled.bound_method,
        Spelled.bound_coroutine,
        Spelled.object_that_answers_to_everything,
        Spelled.future,
    ],
    ids=lambda spelling: spelling.__name__,
)


@SPELLINGS
def test_true_exempts_in_every_spelling(
    spelling: Callable[[Spelled], Callable[..., object]],
) -> None:
    """A handler that answers True lets HTTP and WebSockets through, counted."""
    client, guard, _ = guarded(spelling(Spelled(True)))
    assert client.get("/target").status_code == 200
    with client.websocket_connect("/socket") as session:
        assert session.receive_text() == "served"
    assert in_flight(guard) == 0


@SPELLINGS
@pytest.mark.parametrize("answer", [False, None])
def test_a_no_refuses_in_every_spelling(
    spelling: Callable[[Spelled], Callable[..., object]],
    answer: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler that answers False, or nothing, refuses without a word in the log."""
    client, guard, ran = guarded(spelling(Spelled(answer)))
    assert client.get("/target").status_code == 503
    with pytest.raises(WebSocketDenialResponse):
        client.websocket_connect("/socket").__enter__()
    assert (ran, in_flight(guard)) == ([], 0)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def generator(connection: HTTPConnection) -> Iterator[bool]:
    raise AssertionError
    yield


async def async_generator(connection: HTTPConnection) -> AsyncIterator[bool]:
    raise AssertionError
    yield


class TakesOne:
    """A class that can be called like a handler."""

    def __init__(self, connection: HTTPConnection) -> None: ...


def raising(error: BaseException) -> Callable[[HTTPConnection], bool]:
    """Return a handler that fails."""

    def handler(connection: HTTPConnection) -> bool:
        raise error

    return handler


def no_arguments() -> bool:
    raise AssertionError


def arity_of_another(connection: HTTPConnection) -> bool:
    return no_arguments(connection)  # type: ignore[call-arg]  # the mistake


FAILING = [
    pytest.param(lambda _: "false", id="a word"),
    pytest.param(lambda _: "true", id="another word"),
    pytest.param(lambda _: 1, id="one"),
    pytest.param(lambda _: [0], id="a list"),
    pytest.param(lambda _: NotImplemented, id="NotImplemented"),
    pytest.param(lambda _: lambda: True, id="a function"),
    pytest.param(generator, id="a generator"),
    pytest.param(async_generator, id="an async generator"),
    pytest.param(TakesOne, id="a class"),
    pytest.param(raising(RuntimeError("secret")), id="RuntimeError"),
    pytest.param(raising(StopIteration()), id="StopIteration"),
    pytest.param(raising(StopAsyncIteration()), id="StopAsyncIteration"),
    pytest.param(raising(TimeoutError()), id="TimeoutError"),
    pytest.param(arity_of_another, id="TypeError"),
]


@pytest.mark.parametrize("handler", FAILING)
def test_failing_handlers_do_not_exempt(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that fails refuses, is logged once, and tells the client nothing."""
    client, guard, ran = guarded(handler)
    for _ in range(3):
        answer = client.get("/target")
        assert answer.status_code == 503
        assert "secret" not in answer.text
    assert (ran, in_flight(guard)) == ([], 0)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.name == LOGGER
    assert record.exc_info


def test_failure_and_recovery_are_logged_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One record says that a handler started to fail, and one that it recovered."""
    caplog.set_level(logging.INFO, LOGGER)
    healthy = True

    def handler(_: HTTPConnection) -> bool:
        if not healthy:
            raise RuntimeError("database away")
        return False

    client, _, _ = guarded(handler)
    for healthy in (True, True, False, False, True, True):  # noqa: B007  # read above
        assert client.get("/target").status_code == 503
    told = [(r.levelname, r.getMessage()) for r in caplog.records if "handler" in r.msg]
    assert [level for level, _ in told] == ["ERROR", "INFO"]
    assert "test_failure_and_recovery" in told[0][1]


@pytest.mark.parametrize("error", [HTTPException(401), WebSocketException(1008)])
def test_a_handler_may_say_no_with_an_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """How a dependency turns anonymous clients away is a no, and no failure."""
    client, _, _ = guarded(raising(error))
    assert client.get("/target").status_code == 503
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def shared_lookup() -> Any:
    """Return a handler that awaits what another task has cancelled."""

    async def handler(_: HTTPConnection) -> bool:
        lookup = asyncio.ensure_future(asyncio.Event().wait())
        lookup.cancel()
        return await lookup

    return handler


@pytest.mark.parametrize(
    "handler",
    [raising(asyncio.CancelledError()), shared_lookup()],
    ids=["raised", "awaited"],
)
async def test_cancelled_handler_does_not_exempt(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler whose work was cancelled fails; the request is answered."""
    client, guard, ran = guarded(handler)
    assert (await call(client.app, "/target")).status == 503
    assert ran == []
    await emptied(guard)
    assert "fails and does not exempt" in caplog.text


async def test_cancelling_a_request_cancels_its_handler() -> None:
    """A handler does not outlive the request that asked it."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(_: HTTPConnection) -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    client, guard, ran = guarded(handler)
    request = asyncio.ensure_future(call(client.app, "/target"))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    async with asyncio.timeout(5):
        await ended.wait()
    assert ran == []
    await emptied(guard)


async def test_failure_of_a_cancelled_handler_disturbs_nothing() -> None:
    """A handler that fails while it is cancelled leaves no loose exception."""
    begun = asyncio.Event()
    loose: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: loose.append(c))

    async def handler(_: HTTPConnection) -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("while cleaning up")

    client, guard, _ = guarded(handler)
    request = asyncio.ensure_future(call(client.app, "/target"))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await emptied(guard)
    await asyncio.sleep(0)
    assert loose == []


async def hanging(_: HTTPConnection) -> bool:
    await asyncio.Event().wait()
    raise AssertionError


async def stubborn(_: HTTPConnection) -> bool:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return True


async def failing_late(_: HTTPConnection) -> bool:
    try:
        await asyncio.Event().wait()
    finally:
        raise RuntimeError("late")


@pytest.mark.parametrize("handler", [hanging, stubborn, failing_late])
def test_async_handler_that_hangs_is_left(handler: Any) -> None:
    """An async handler that does not answer in time does not exempt."""
    client, guard, ran = guarded(handler, handler_timeout=0.05)
    assert client.get("/target").status_code == 503
    assert (ran, in_flight(guard)) == ([], 0)


def test_sync_handler_that_hangs_is_left() -> None:
    """A sync handler that does not answer in time does not exempt."""
    released = threading.Event()

    def handler(_: HTTPConnection) -> bool:
        return released.wait(30)

    client, guard, ran = guarded(handler, handler_timeout=0.05)
    try:
        assert client.get("/target").status_code == 503
        assert (ran, in_flight(guard)) == ([], 0)
    finally:
        released.set()


def test_hanging_sync_handlers_do_not_pile_up_threads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many requests come, a hanging handler holds a few threads."""
    released, running = threading.Event(), []

    def handler(_: HTTPConnection) -> bool:
        running.append(threading.get_ident())
        return released.wait(30)

    client, _, _ = guarded(handler, handler_timeout=0.01)
    with client:
        try:
            for _ in range(25):
                assert client.get("/target").status_code == 503
            assert len(running) == 16
        finally:
            released.set()
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


def test_sync_handlers_leave_the_threads_of_endpoints_alone() -> None:
    """Sync endpoints are served while every thread of the handlers hangs."""
    released = threading.Event()

    def handler(request: HTTPConnection) -> bool:
        return request.url.path == "/sync" or released.wait(30)

    guard = closed(exempt_handler=handler, handler_timeout=0.05)
    app = FastAPI()

    @app.get("/free")
    def free() -> int:
        return threading.active_count()

    app.add_api_route("/target", Ran().endpoint, dependencies=[Depends(guard)])
    with TestClient(app) as client:
        try:
            for _ in range(16):
                assert client.get("/target").status_code == 503
            assert client.get("/free").status_code == 200
        finally:
            released.set()


def test_handlers_are_asked_in_order_until_one_agrees() -> None:
    """The first True decides; handlers behind it are not asked."""
    asked: list[str] = []

    def saying(name: str, answer: bool) -> Callable[[HTTPConnection], bool]:
        def handler(_: HTTPConnection) -> bool:
            asked.append(name)
            return answer

        return handler

    handlers = [saying("a", False), saying("b", True), saying("c", True)]
    client, _, _ = guarded(handlers)
    assert client.get("/target").status_code == 200
    assert asked == ["a", "b"]


def test_handlers_are_asked_only_while_maintenance_is_on() -> None:
    """With maintenance off, or for exempt routes, no handler runs."""
    asked: list[str] = []

    def handler(_: HTTPConnection) -> bool:
        asked.append("asked")
        return False

    guard = opened(exempt_handler=handler)
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, Ran())
    client = TestClient(app)
    assert client.get("/target").status_code == 200
    publish(guard, enabled=True)
    assert client.get("/target").status_code == 503
    assert asked == ["asked"]


def test_handlers_get_the_connection_itself() -> None:
    """A handler gets the Request or WebSocket that the endpoint gets."""
    got: list[object] = []

    async def handler(connection: HTTPConnection) -> bool:
        got.append(connection)
        return True

    app = FastAPI(dependencies=[Depends(closed(exempt_handler=handler))])

    @app.get("/target")
    async def target(request: Request) -> bool:
        return got[-1] is request

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(got[-1] is websocket)

    client = TestClient(app)
    assert client.get("/target").json() is True
    with client.websocket_connect("/socket") as session:
        assert session.receive_json() is True


def test_body_that_a_handler_read_is_there_for_the_endpoint() -> None:
    """Reading the body in a handler does not take it from the endpoint."""

    async def handler(request: Request) -> bool:
        return await request.body() == b"let me in"

    app = FastAPI(dependencies=[Depends(closed(exempt_handler=handler))])

    @app.post("/target")
    async def target(request: Request) -> str:
        return (await request.body()).decode()

    assert TestClient(app).post("/target", content="let me in").json() == "let me in"


def test_decision_is_taken_again_when_the_state_moved_in_between() -> None:
    """A handler that is overtaken by a new state is asked again under that state."""
    answers: list[str] = []

    async def handler(_: HTTPConnection) -> bool:
        answers.append("asked")
        if len(answers) == 1:
            await guard.enable(message="another one")
        return len(answers) > 1

    client, guard, ran = guarded(handler)
    assert client.get("/target").status_code == 200
    assert (answers, ran) == (["asked", "asked"], ["endpoint"])


def test_request_is_served_when_maintenance_ended_in_between() -> None:
    """A handler's no is not used when maintenance ended while it was asked."""

    async def handler(_: HTTPConnection) -> bool:
        await guard.disable()
        return False

    client, guard, ran = guarded(handler)
    assert client.get("/target").status_code == 200
    assert (ran, in_flight(guard)) == (["endpoint"], 0)


# Handlers with FastAPI dependencies of their own.


async def user(x_user: Annotated[str, Header()]) -> str:
    return x_user


async def is_staff(name: Annotated[str, Depends(user)]) -> bool:
    return name == "ada"


STAFF = {"X-User": "ada"}


def test_depends_handler_is_solved() -> None:
    """A handler in Depends gets its own dependencies, for HTTP and WebSockets."""
    client, _, _ = guarded(Depends(is_staff))
    assert client.get("/target", headers=STAFF).status_code == 200
    assert client.get("/target", headers={"X-User": "bob"}).status_code == 503
    with client.websocket_connect("/socket", headers=STAFF) as session:
        assert session.receive_text() == "served"


def test_depends_handler_with_missing_parameters_is_a_no(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client without the parameters is refused with a 503, not a 422 or a log."""
    client, _, _ = guarded(Depends(is_staff))
    assert client.get("/target").status_code == 503
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_depends_handler_leaves_no_trace_while_off() -> None:
    """With maintenance off nothing of the handler is solved, nor in the schema."""
    guard = opened(exempt_handler=Depends(is_staff))
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, Ran())
    assert TestClient(app).get("/target").status_code == 200
    assert "parameters" not in app.openapi()["paths"]["/target"]["get"]


@pytest.mark.parametrize("overridden", [is_staff, user])
def test_overrides_reach_depends_handlers(overridden: Callable[..., object]) -> None:
    """Overrides apply to the handler and to what it depends on."""
    client, _, _ = guarded(Depends(is_staff))
    answer: object = True if overridden is is_staff else "ada"
    assert isinstance(client.app, FastAPI)
    client.app.dependency_overrides[overridden] = lambda: answer
    assert client.get("/target").status_code == 200


def test_yield_dependencies_of_a_handler_are_closed_before_the_endpoint() -> None:
    """What a handler opened is closed by the time the endpoint runs."""
    ran = Ran()

    async def session() -> AsyncIterator[str]:
        ran.append("open")
        try:
            yield "session"
        finally:
            ran.append("close")

    def sync_session() -> Iterator[str]:
        ran.append("open too")
        yield "session"
        ran.append("close too")

    async def handler(
        _: Annotated[str, Depends(session)], __: Annotated[str, Depends(sync_session)]
    ) -> bool:
        ran.append("asked")
        return True

    app = FastAPI(dependencies=[Depends(closed(exempt_handler=Depends(handler)))])
    both(app, ran)
    assert TestClient(app).get("/target").status_code == 200
    assert ran == ["open", "open too", "asked", "close too", "close", "endpoint"]


def test_yield_dependencies_of_the_endpoint_outlive_the_handler() -> None:
    """Solving a handler does not close what the endpoint's dependencies opened."""
    ran = Ran()

    async def session() -> AsyncIterator[None]:
        ran.append("open")
        yield
        ran.append("close")

    guard = closed(exempt_handler=Depends(is_staff))
    app = FastAPI(dependencies=[Depends(session), Depends(guard)])

    @app.get("/target")
    async def target(_: Annotated[None, Depends(session, use_cache=False)]) -> None:
        ran.append("endpoint")

    assert TestClient(app).get("/target", headers=STAFF).status_code == 200
    assert ran == ["open", "open", "endpoint", "close", "close"]


@pytest.mark.parametrize("hangs", ["async", "sync"])
def test_dependency_of_a_handler_that_hangs_is_left(hangs: str) -> None:
    """A handler whose dependency hangs does not exempt, and holds nothing back."""
    released, ran = threading.Event(), Ran()

    async def hanging_async() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # Slow to leave: what follows must not wait, nor be closed with it.
            await asyncio.sleep(0.05)

    hanging_sync = functools.partial(released.wait, 30)
    slow: Any = hanging_async if hangs == "async" else hanging_sync

    async def never(_: Annotated[None, Depends(slow)]) -> bool:
        raise AssertionError

    async def nested() -> AsyncIterator[None]:
        ran.append("open")
        yield
        ran.append("close")

    async def session(_: Annotated[None, Depends(nested)]) -> None: ...

    guard = closed(
        exempt_handler=[Depends(never), lambda _: True], handler_timeout=0.05
    )
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/target")
    async def target(_: Annotated[None, Depends(session)]) -> None:
        await asyncio.sleep(0.1)
        ran.append("endpoint")

    with TestClient(app) as client:
        try:
            assert client.get("/target").status_code == 200
        finally:
            released.set()
    assert ran == ["open", "endpoint", "close"]
    assert in_flight(guard) == 0


def test_failing_dependency_of_a_handler_is_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A dependency that raises makes its handler fail, which is logged once."""

    async def broken() -> None:
        raise RuntimeError("database away")

    async def handler(_: Annotated[None, Depends(broken)]) -> bool:
        raise AssertionError

    client, _, _ = guarded(Depends(handler))
    for _ in range(2):
        assert client.get("/target").status_code == 503
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "handler" in record.getMessage()


def test_security_scheme_of_a_handler_is_a_no_for_the_anonymous() -> None:
    """A security scheme below a handler refuses with the 503, not with its own 401."""
    scheme = APIKeyHeader(name="X-Key")

    async def handler(key: Annotated[str, Security(scheme)]) -> bool:
        return key == "k"

    client, _, _ = guarded(Depends(handler))
    assert client.get("/target").status_code == 503
    assert client.get("/target", headers={"X-Key": "k"}).status_code == 200


def test_path_parameters_reach_a_depends_handler() -> None:
    """A handler in Depends may declare path parameters of the route."""

    async def handler(shop: Annotated[str, Path()]) -> bool:
        return shop == "mine"

    app = FastAPI(dependencies=[Depends(closed(exempt_handler=Depends(handler)))])

    @app.get("/shops/{shop}")
    async def target(shop: str) -> str:
        return shop

    client = TestClient(app)
    assert client.get("/shops/mine").status_code == 200
    assert client.get("/shops/theirs").status_code == 503
