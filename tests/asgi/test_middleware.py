"""Wrap and middleware: mistakes, their life, and applications of odd shapes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MaintenanceState,
    MemoryStore,
    StoreError,
    maintenance_exempt,
)
from tests.asgi.support import DENIAL, RELEASE, Ran, Translates
from tests.calls import call, handshake
from tests.guard.support import in_flight, publish
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio


async def test_the_seed_s_lines_work_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application, a handler, one line: that is all it takes."""
    monkeypatch.chdir(tmp_path)
    await MaintenanceGuard().enable()

    def is_exempt(request: Request) -> bool:
        return request.headers.get("x-admin-key") == "a secret of ours"

    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, exempt_handler=is_exempt)

    @app.get("/")
    async def root() -> str:
        return "served"

    assert (await call(app)).status == 503
    known = [(b"host", b"shop.example"), (b"x-admin-key", b"a secret of ours")]
    assert (await call(app, headers=known)).status == 200


async def test_the_seed_s_asynchronous_handler_works() -> None:
    """A handler may be async, and a store may be given with it."""

    async def is_exempt(request: HTTPConnection) -> bool:
        return request.url.path == "/b"

    app, ran = FastAPI(), Ran()
    store = MemoryStore(enabled=True)
    app.add_middleware(MaintenanceModeMiddleware, store=store, exempt_handler=is_exempt)
    app.add_api_route("/a", ran.target)
    app.add_api_route("/b", ran.target)
    assert (await call(app, "/a")).status == 503
    assert (await call(app, "/b")).status == 200


def inner(scope: Scope, receive: Receive, send: Send) -> Any:  # never called
    """Stand for an application."""


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"guard": "memory:"}, TypeError, "must be a MaintenanceGuard, not 'memory:'"),
        ({"guard": opened(), "name": "x"}, TypeError, "name: pass options to"),
        ({"nmae": "x"}, TypeError, "nmae"),
        ({"name": "No Good"}, ValueError, "No Good"),
    ],
)
def test_a_middleware_that_cannot_work_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Mistakes in its options are told at once, with the value and the remedy."""
    with pytest.raises(error, match=text):
        MaintenanceModeMiddleware(inner, **options)


@pytest.mark.parametrize(
    "thing", [None, "/static", StaticFiles, Mount("/a", inner), Route("/a", inner)]
)
def test_only_an_application_can_be_wrapped(thing: Any) -> None:  # not one
    """What is no ASGI application is refused where it is wrapped."""
    with pytest.raises(TypeError, match=r"guard\.wrap\(StaticFiles"):
        opened().wrap(thing)


async def test_names_below_a_wrapped_mount_are_found() -> None:
    """``url_for`` reaches into a wrapped application as into any other."""
    guard = opened()
    sub = Starlette(routes=[Route("/files/{name}", Ran().plain, name="file")])
    app = FastAPI()
    app.mount("/sub", guard.wrap(sub), name="sub")
    app.mount("/box", guard.wrap(Ran().box), name="box")
    assert app.url_path_for("sub:file", name="a") == "/sub/files/a"
    assert app.url_path_for("box", path="/a") == "/box/a"


async def live(
    app: ASGIApp, look: Callable[[], object] = lambda: None
) -> list[Message]:
    """Start and stop an application; return what it said, and look each time."""
    said: list[Message] = []
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        said.append({**message, "seen": look()})

    running = app({"type": "lifespan", "state": {}}, receive, send)
    (error,) = await asyncio.gather(running, return_exceptions=True)
    assert error is None or isinstance(error, StoreError)
    return said


async def test_it_joins_at_the_start_and_leaves_at_the_end(tmp_path: Path) -> None:
    """A worker is known from before the application starts until it has ended."""
    store = FileStore(tmp_path / "state")
    workers: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        workers["started"] = len(store.roster("default").workers)
        yield
        workers["ended"] = len(store.roster("default").workers)

    guard = MaintenanceGuard(store)
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    said = await live(app, lambda: guard._switch.worker.joined)
    # A server may end the process when it hears the last of these.
    assert [(message["type"], message["seen"]) for message in said] == [
        ("lifespan.startup.complete", True),
        ("lifespan.shutdown.complete", False),
    ]
    assert workers == {"started": 1, "ended": 1}
    assert store.roster("default").workers == ()


async def test_it_may_live_beside_the_guard_s_own_lifespan() -> None:
    """A guard that is attached twice is one worker, until both have left."""
    guard = opened()
    app = FastAPI(lifespan=guard.lifespan)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    said = await live(app)
    assert said[-1]["type"] == "lifespan.shutdown.complete"
    assert not guard._switch.worker.joined


class Broken:
    """A store of a user's own that cannot be reached."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, name: str) -> MaintenanceState:
        """Fail.

        Raises:
            StoreError: Always.

        """
        self.reads += 1
        raise StoreError(f"{name} is out of reach")

    def publish(self, name: str, change: object) -> MaintenanceState: ...  # type: ignore[empty-body]  # never called


async def test_a_start_without_its_store_fails_as_servers_expect() -> None:
    """A store that cannot be reached stops a roll-out, with the reason."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, store=Broken())
    (failed,) = await live(app)
    assert failed["type"] == "lifespan.startup.failed"
    assert "default is out of reach" in failed["message"]


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_nothing_is_let_in_while_the_state_is_not_known(way: str) -> None:
    """A worker that cannot read its store refuses, but not what is exempt."""
    store = Broken()
    guard, ran = MaintenanceGuard(store), Ran()
    app = FastAPI(dependencies=[Depends(guard)] if way == "both" else [])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_api_route("/target", ran.target)
    app.add_api_route("/posted", ran.posted, methods=["POST"])
    app.add_api_route("/open", maintenance_exempt(_open))
    app.mount("/box", ran.box)
    assert (await call(app, "/open")).status == 200
    assert (await call(app, "/nothing")).status == 404
    for method, path in (("GET", "/target"), ("GET", "/box/x"), ("POST", "/posted")):
        store.reads = 0
        answer = await call(app, path, method=method)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "60"
        # Each attempt may take seconds.
        assert store.reads <= 1
    assert ran == []


async def _open() -> None: ...


class Small:
    """A store of a user's own."""

    def __init__(self, *, enabled: bool) -> None:
        self.state = MaintenanceState(enabled=enabled)

    def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        return self.state

    def publish(self, name: str, change: object) -> MaintenanceState: ...  # type: ignore[empty-body]  # never called


@pytest.mark.parametrize("enabled", [False, True])
async def test_a_store_of_a_user_s_own_will_do(*, enabled: bool) -> None:
    """A store that is read from time to time serves the middleware as well."""
    app, ran = FastAPI(), Ran()
    app.add_middleware(MaintenanceModeMiddleware, store=Small(enabled=enabled))
    app.mount("/box", ran.box)
    assert (await call(app, "/box/x")).status == (503 if enabled else 200)


async def test_one_guard_decides_once() -> None:
    """A wrapped mount behind the middleware asks no second time."""
    asked: list[str] = []

    async def lets_in(connection: HTTPConnection) -> bool:
        asked.append(connection.scope["path"])
        return True

    guard, ran = closed(exempt_handler=lets_in), Ran()
    app, sub = FastAPI(), FastAPI(dependencies=[Depends(guard)])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.mount("/box", guard.wrap(ran.box))
    sub.add_api_route("/target", ran.target)
    app.mount("/sub", guard.wrap(sub))
    assert (await call(app, "/box/x")).status == 200
    assert (await call(app, "/sub/target")).status == 200
    assert asked == ["/box/x", "/sub/target"]


async def test_two_guards_decide_for_themselves() -> None:
    """A closed part of an open application is closed, and counts for both."""
    whole, part, ran = opened(), closed(name="part"), Ran()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=whole)
    app.mount("/box", part.wrap(ran.box))
    app.mount("/other", ran.box)
    assert (await call(app, "/box/x")).status == 503
    assert (await call(app, "/other/x")).status == 200


class Hides:
    """A middleware that does not show what it wraps."""

    def __init__(self, app: ASGIApp) -> None:
        self._next = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        await self._next(scope, receive, send)


async def test_a_middleware_that_hides_what_it_wraps_hides_no_route() -> None:
    """The middleware of an application finds its routes behind any middleware."""
    app, ran = FastAPI(), Ran()
    app.add_middleware(Hides)
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(enabled=True))
    app.add_api_route("/target", ran.target)
    app.add_api_route("/open", maintenance_exempt(_open))
    assert (await call(app, "/target")).status == 503
    assert (await call(app, "/open")).status == 200
    assert (await call(app, "/nothing")).status == 404


async def test_what_a_mount_hides_is_a_closed_box() -> None:
    """Around a mount, the routes of the application are not mistaken for its own."""
    app, ran = FastAPI(), Ran()
    app.add_api_route("/open", maintenance_exempt(_open))
    inside = MaintenanceModeMiddleware(Hides(ran.box), closed())
    app.mount("/box", inside)
    assert (await call(app, "/box/open")).status == 503
    assert ran == []


@pytest.mark.parametrize("way", ["wrap", "middleware"])
@pytest.mark.parametrize("form", ["added", "around", "function"])
async def test_what_a_mounted_application_makes_of_a_path_opens_nothing(
    way: str, form: str
) -> None:
    """Where its middleware could give a path a route, everything is closed."""
    app, sub, ran = FastAPI(), FastAPI(), Ran()
    sub.add_api_route("/target", ran.target, methods=["DELETE"])
    sub.add_api_route("/open", maintenance_exempt(_open))
    inner: ASGIApp = sub
    if form == "added":
        sub.add_middleware(Translates)
    elif form == "around":
        inner = Translates(sub)
    else:
        inner = BaseHTTPMiddleware(sub, _translated)
    guard = opened()
    app.mount("/v1", guard.wrap(inner) if way == "wrap" else inner)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    asked: dict[str, Any] = {"headers": [(b"x-method", b"DELETE")], "method": "POST"}
    for path in ("/v1/en/target", "/v1/target"):
        assert (await call(app, path, **asked)).status == 200
    assert ran == ["target", "target"]
    await guard.enable()
    for path in ("/v1/en/target", "/v1/target"):
        assert (await call(app, path, **asked)).status == 503
    assert ran == ["target", "target"]
    assert (await call(app, "/v1/open")).status == 200
    assert (await call(app, "/nothing")).status == 404


@pytest.mark.parametrize("way", ["wrap", "middleware"])
async def test_what_a_mounted_router_makes_of_a_path_opens_nothing(way: str) -> None:
    """The middlewares of a plain router are not trusted either, shown or hidden."""
    ran, guard = Ran(), opened()
    routers = {
        "/seen": Router(
            [Route("/target", ran.plain)], middleware=[Middleware(Translates)]
        ),
        "/hidden": Router(
            [Route("/target", ran.plain)],
            middleware=[Middleware(GZipMiddleware), Middleware(Hides)],
        ),
        "/known": Router(
            [Route("/target", ran.plain)], middleware=[Middleware(GZipMiddleware)]
        ),
    }
    app = FastAPI()
    for path, router in routers.items():
        app.mount(path, guard.wrap(router) if way == "wrap" else router)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    assert (await call(app, "/seen/en/target")).status == 200
    await guard.enable()
    for path in ("/seen/en/target", "/seen/target", "/hidden/nothing", "/known/target"):
        assert (await call(app, path)).status == 503
    assert (await call(app, "/known/nothing")).status == 404
    assert ran == ["plain"]


class Rewriting(FastAPI):
    """An application that rewrites a path before its middlewares see it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is meant."""
        path = scope["path"].replace("/en/", "/", 1)
        await super().__call__({**scope, "path": path}, receive, send)


async def test_an_application_that_rewrites_paths_itself_is_a_closed_box() -> None:
    """A subclass with a ``__call__`` of its own is not trusted where it is mounted."""
    ran, guard, app, sub = Ran(), opened(), FastAPI(), Rewriting()
    sub.add_api_route("/target", ran.target)
    app.mount("/sub", sub)
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    assert (await call(app, "/sub/en/target")).status == 200
    await guard.enable()
    assert (await call(app, "/sub/en/target")).status == 503
    assert ran == ["target"]


async def _translated(request: Request, proceed: Any) -> Any:
    scope = request.scope
    scope["path"] = scope["path"].replace("/en/", "/", 1)
    scope["method"] = request.headers.get("x-method", scope["method"])
    return await proceed(request)


def _as_is(app: ASGIApp, scope: Scope) -> ASGIApp:
    async def ask(_: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return ask


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_a_request_inside_a_request_is_decided_for_itself(way: str) -> None:
    """What an endpoint sends into its own application is no part of its request."""
    guard, ran = opened(), Ran()
    app = FastAPI(dependencies=[Depends(guard)] if way == "both" else [])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_api_route("/target", ran.target)

    async def batch(request: Request) -> int:
        await guard.enable()
        inside = await call(_as_is(app, {**request.scope, "path": "/target"}))
        return inside.status

    app.add_api_route("/batch", maintenance_exempt(batch))
    assert (await call(app, "/batch")).body == b"503"
    assert ran == []


async def test_a_default_application_is_closed() -> None:
    """What a router falls back on is an application like any other."""
    app, ran = FastAPI(), Ran()
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(enabled=True))
    app.router.default = ran.box
    assert (await call(app, "/anything")).status == 503
    app.router.default = maintenance_exempt(_box)
    assert (await call(app, "/anything")).status == 200


async def _box(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("open")(scope, receive, send)


class Odd(APIRouter):
    """A router that chooses in a way of its own."""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Picky(APIRouter):
    """A router that does so where it is included."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None: ...


async def test_a_router_that_chooses_by_itself_is_a_closed_box() -> None:
    """Where the middleware cannot foresee a choice, nothing is exempt."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(enabled=True))
    odd, picky = Odd(), Picky()
    odd.add_api_route("/open", maintenance_exempt(_open))
    picky.add_api_route("/open", maintenance_exempt(_open))
    app.mount("/odd", odd)
    app.include_router(odd, prefix="/included")
    app.include_router(picky, prefix="/picky")
    assert (await call(app, "/odd/open")).status == 503
    assert (await call(app, "/odd/nothing")).status == 503
    # Nothing calls an included router's ``app``, nor before 0.137 its ``handle``.
    assert (await call(app, "/included/open")).status == 200
    closed_box = 503 if RELEASE >= (0, 137) else 200
    assert (await call(app, "/picky/open")).status == closed_box


class Chosen(BaseRoute):
    """A route of a user's own."""

    def __init__(self, match: Match | None) -> None:
        self.match = match
        self.ran = False

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Answer as it was told, or fail."""
        if self.match is None:
            raise ValueError(scope["path"])
        return self.match, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        self.ran = True


@pytest.mark.parametrize("match", [Match.FULL, Match.PARTIAL, None])
async def test_a_route_of_a_user_s_own_is_closed(match: Match | None) -> None:
    """A route without an endpoint, half a match and a failing one are not exempt."""
    guard, route = closed(), Chosen(match)
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.router.routes.append(route)
    assert (await call(app, "/anything")).status == 503
    assert not route.ran
    await guard.disable()
    route.match = Match.FULL
    await call(app, "/anything")
    assert route.ran


class Everywhere(APIRoute):
    """A route that does not match by its pattern, as one for versions in headers."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match everything."""
        return Match.FULL, {"endpoint": self.endpoint, "route": self}


@pytest.mark.parametrize("handlers", [None, lambda _: False])
async def test_routes_that_match_by_themselves_are_asked(handlers: Any) -> None:
    """A route class of a user's own is foreseen as it matches, not by its path."""
    app, ran = FastAPI(), Ran()
    store = MemoryStore(enabled=True)
    app.add_middleware(MaintenanceModeMiddleware, store=store, exempt_handler=handlers)
    app.router.routes.append(Everywhere("/v1", maintenance_exempt(_open)))
    app.add_api_route("/target", ran.target)
    assert (await call(app, "/target")).status == 200
    assert ran == []


class Opens(Chosen):
    """A route in whose matching maintenance ends."""

    def __init__(self, guard: MaintenanceGuard) -> None:
        super().__init__(Match.FULL)
        self.guard = guard

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match, and open."""
        publish(self.guard, enabled=False)
        return super().matches(scope)


async def test_the_newest_state_decides() -> None:
    """A state that changes while the middleware looks ahead is heeded at once."""
    guard = closed()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    route = Opens(guard)
    app.router.routes.append(route)
    await call(app, "/anything")
    assert route.ran
    assert in_flight(guard) == 0


async def test_a_window_that_begins_while_a_request_enters_refuses_it() -> None:
    """The state is judged again when the request has been counted."""
    guard, ran = opened(), Ran()
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.mount("/box", ran.box)
    start = datetime.now(UTC) + timedelta(hours=1)
    await guard.enable(at=start)
    await guard._switch.join()
    later = [start, start, start, start - timedelta(seconds=1)]
    guard._switch.clock = lambda: later.pop() if len(later) > 1 else start
    assert (await call(app, "/box/x")).status == 503
    assert ran == []
    assert in_flight(guard) == 0


async def test_a_wrapped_application_lives_as_ever() -> None:
    """What is no request is passed on, such as the start of an application."""
    said = await live(opened().wrap(FastAPI()))
    assert said[-1]["type"] == "lifespan.shutdown.complete"


@pytest.mark.skipif(RELEASE < (0, 137), reason="mounts in routers were not reached")
async def test_a_wrapped_mount_in_an_included_router_knows_its_routes() -> None:
    """What FastAPI noted on the way to a mount does not mislead the guard around it."""
    guard, ran = closed(), Ran()
    app, sub, router = FastAPI(), FastAPI(), APIRouter()
    sub.add_api_route("/target", ran.target)
    sub.add_api_route("/open", maintenance_exempt(_open))
    router.mount("/sub", guard.wrap(sub))
    app.include_router(router, prefix="/v1")
    assert (await call(app, "/v1/sub/target")).status == 503
    assert (await call(app, "/v1/sub/open")).status == 200
    assert (await call(app, "/v1/sub/docs")).status == 200
    assert (await call(app, "/v1/sub/nothing")).status == 404


async def test_a_middleware_that_wraps_itself_is_a_closed_box() -> None:
    """A circle of applications is looked at to an end."""
    box = Ran().box
    ring = Hides(box)
    ring.app = ring  # type: ignore[attr-defined]  # what middlewares call what they wrap
    app = FastAPI()
    app.mount("/ring", closed().wrap(ring))
    assert (await call(app, "/ring/x")).status == 503


async def test_an_application_mounted_in_itself_ends_somewhere() -> None:
    """However deep a path leads, the middleware finds an end, and it is closed."""
    app, ran = FastAPI(), Ran()
    app.add_middleware(MaintenanceModeMiddleware, store=MemoryStore(enabled=True))
    app.add_api_route("/target", ran.target)
    app.mount("/again", app.router)
    assert (await call(app, "/again" * 3 + "/target")).status == 503
    assert (await call(app, "/again" * 100 + "/target")).status == 503
    assert ran == []


async def test_a_starlette_application_can_be_guarded_too() -> None:
    """The middleware does not need FastAPI around it."""
    ran = Ran()
    store = MemoryStore(enabled=True)
    app = Starlette(
        routes=[
            Route("/plain", ran.plain),
            Route("/docs", ran.plain, include_in_schema=False),
            Route("/open", maintenance_exempt(_plain)),
            Mount("/router", Router([Route("/plain", ran.plain)])),
        ],
        middleware=[Middleware(MaintenanceModeMiddleware, store=store)],
    )
    for path in ("/plain", "/docs", "/router/plain"):
        assert (await call(app, path)).status == 503
    assert (await call(app, "/open")).status == 200
    assert (await call(app, "/router/nothing")).status == 404
    refused = await handshake(app, "/nothing", extensions=DENIAL)
    assert refused.messages[0]["type"] == "websocket.close"
    assert ran == []


async def _plain(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("open")
