"""The guard beside real packages of others: admins, users, GraphQL, telemetry, streams.

Their newest versions are installed by the nox session `packages`.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, NamedTuple

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.exception_handlers import http_exception_handler
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, pool
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
    maintenance_exempt,
)
from tests.calls import call, on_loop

pytestmark = [pytest.mark.packages, pytest.mark.anyio]


class Ask(NamedTuple):
    """A request, and what it is answered without a guard."""

    method: str
    path: str
    status: int = 200
    more: Mapping[str, Any] = MappingProxyType({})  # what a client takes


@dataclass(frozen=True)
class Package:
    """A package as its own documentation says to use it.

    Attributes:
        install: Adds it to an application, exempt if asked to.
        asks: What its routes are asked, in this order.
        ways: How a guard reaches it: a dependency does not reach what is mounted.
    """

    install: Callable[[FastAPI, bool], object]
    asks: list[Ask]
    ways: tuple[str, ...] = ("dependency", "middleware", "both", "wrap")


class Base(DeclarativeBase):
    """The tables of the tests."""


class Article(Base):
    """What an admin lists."""

    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


def database() -> Any:  # an Engine
    """Return a database in memory with an article."""
    engine = create_engine(
        "sqlite://",
        poolclass=pool.StaticPool,
        connect_args={"check_same_thread": False},
    )
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'first')")
    return engine


def sqladmin(app: FastAPI, exempt: bool) -> None:
    """An admin that answers errors with a template, which looks for its own routes."""
    from sqladmin import Admin, ModelView
    from sqladmin.authentication import AuthenticationBackend

    class Login(AuthenticationBackend):
        async def login(self, request: Request) -> bool:
            request.session["user"] = "ada"
            return True

        async def authenticate(self, request: Request) -> bool:
            return request.session.get("user") == "ada"

    class Articles(ModelView, model=Article):  # type: ignore[call-arg]  # of its own class
        column_list = "__all__"

    admin = Admin(app, database(), authentication_backend=Login(secret_key="s" * 32))
    admin.add_view(Articles)
    if exempt:
        maintenance_exempt(admin.admin)


def starlette_admin(app: FastAPI, exempt: bool) -> None:
    """An admin whose error page needs its session and its flash messages."""
    from starlette.middleware.sessions import SessionMiddleware
    from starlette_admin.contrib.sqla import Admin, ModelView

    admin = Admin(
        database(),
        secret_key="s" * 32,
        middlewares=[Middleware(SessionMiddleware, secret_key="s" * 32)],
    )
    admin.add_view(ModelView(Article))
    admin.mount_to(app)
    if exempt:
        maintenance_exempt(admin.app)


def fastapi_users(app: FastAPI, exempt: bool) -> Any:  # the dependency of a user
    """Users with a table, a registration, a login and a profile."""
    from fastapi_users import BaseUserManager, FastAPIUsers, IntegerIDMixin, schemas
    from fastapi_users.authentication import (
        AuthenticationBackend,
        BearerTransport,
        JWTStrategy,
    )
    from fastapi_users.db import SQLAlchemyBaseUserTable, SQLAlchemyUserDatabase
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    class Tables(DeclarativeBase): ...

    class User(SQLAlchemyBaseUserTable[int], Tables):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Users(IntegerIDMixin, BaseUserManager[User, int]):
        async def on_after_register(
            self, user: Any, request: Request | None = None
        ) -> None:
            await self.user_db.update(user, {"is_superuser": user.email[0] == "a"})

    class Read(schemas.BaseUser[int]): ...

    class Create(schemas.BaseUserCreate): ...

    engine = create_async_engine("sqlite+aiosqlite://", poolclass=pool.StaticPool)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def manager() -> AsyncIterator[Users]:
        async with engine.begin() as connection:
            await connection.run_sync(Tables.metadata.create_all)
        async with sessions() as session:
            yield Users(SQLAlchemyUserDatabase(session, User))

    backend = AuthenticationBackend(
        name="jwt",
        transport=BearerTransport(tokenUrl="auth/login"),
        get_strategy=lambda: JWTStrategy(secret="s" * 32, lifetime_seconds=60),
    )
    users = FastAPIUsers[User, int](manager, [backend])
    marks: Any = {"dependencies": [Depends(maintenance_exempt)] * exempt}
    login, register = users.get_auth_router(backend), users.get_register_router
    app.include_router(login, prefix="/auth", **marks)
    app.include_router(register(Read, Create), prefix="/auth", **marks)
    app.include_router(users.get_users_router(Read, Create), prefix="/users", **marks)
    # Connections end with the event loop that made them.
    app.state.engine = engine
    return users.current_user(optional=True)


def strawberry(app: FastAPI, exempt: bool) -> None:
    """GraphQL with queries and subscriptions."""
    import strawberry as graphql
    from strawberry.fastapi import GraphQLRouter

    class Query:
        @graphql.field
        def price(self) -> int:
            return 249

    class Subscription:
        @graphql.subscription
        async def ticks(self) -> AsyncIterator[int]:
            yield 1

    query, subscription = graphql.type(Query), graphql.type(Subscription)
    schema = graphql.Schema(query, subscription=subscription)
    marks: Any = {"dependencies": [Depends(maintenance_exempt)] * exempt}
    app.include_router(GraphQLRouter(schema), prefix="/graphql", **marks)


def prometheus(app: FastAPI, exempt: bool) -> None:
    """Metrics of every request, and a route that shows them."""
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    marks: Any = {"dependencies": [Depends(maintenance_exempt)] * exempt}
    metrics = Instrumentator(registry=CollectorRegistry())
    metrics.instrument(app).expose(app, **marks)


def slowapi(app: FastAPI, exempt: bool) -> None:
    """A limit for each client."""
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.middleware import SlowAPIMiddleware
    from slowapi.util import get_remote_address

    app.state.limiter = limiter = Limiter(get_remote_address)
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIMiddleware)

    @app.get("/limited", dependencies=[Depends(maintenance_exempt)] * exempt)
    @limiter.limit("2/minute")
    async def limited(request: Request) -> str:
        return "served"


def sse_starlette(app: FastAPI, exempt: bool) -> None:
    """A stream of events."""
    from sse_starlette import EventSourceResponse

    @app.get("/events", dependencies=[Depends(maintenance_exempt)] * exempt)
    async def events() -> Response:
        async def lines() -> AsyncIterator[dict[str, str]]:
            yield {"data": "tick"}

        stream: Response = EventSourceResponse(lines())
        return stream


CREDENTIALS = {"password": "s3cret-password"}
REGISTER = Ask(
    "POST",
    "/auth/register",
    201,
    {"json": {"email": "ada@shop.example", **CREDENTIALS}},
)
LOGIN = Ask(
    "POST",
    "/auth/login",
    200,
    {"data": {"username": "ada@shop.example", **CREDENTIALS}},
)
MOUNTED = ("middleware", "both", "wrap")

PACKAGES = {
    "sqladmin": Package(
        sqladmin,
        [
            Ask("GET", "/admin/article/list", 302),
            Ask("POST", "/admin/login", 302),
            Ask("GET", "/admin/"),
            Ask("GET", "/admin/article/list"),
            Ask("GET", "/admin/article/details/7", 404),
            Ask("GET", "/admin/statics/css/main.css"),
        ],
        MOUNTED,
    ),
    "starlette-admin": Package(
        starlette_admin,
        [
            Ask("GET", "/admin/"),
            Ask("GET", "/admin/article/list"),
            Ask("GET", "/admin/article/detail/7", 404),
            Ask("GET", "/admin/statics/css/main.css", 404),
        ],
        MOUNTED,
    ),
    "fastapi-users": Package(
        fastapi_users, [REGISTER, LOGIN, Ask("GET", "/users/me", 401)]
    ),
    "strawberry": Package(
        strawberry,
        [
            Ask("GET", "/graphql", 200, {"headers": {"Accept": "text/html"}}),
            Ask("POST", "/graphql", 200, {"json": {"query": "{ price }"}}),
            Ask("WS", "/graphql", 101, {"subprotocols": ["graphql-transport-ws"]}),
        ],
    ),
    "prometheus": Package(prometheus, [Ask("GET", "/metrics")]),
    "slowapi": Package(
        slowapi,
        [
            Ask("GET", "/limited"),
            Ask("GET", "/limited"),
            Ask("GET", "/limited", 429),
        ],
    ),
    "sse-starlette": Package(sse_starlette, [Ask("GET", "/events")]),
}
CASES = [(name, way) for name, it in PACKAGES.items() for way in it.ways]


def served(
    name: str, way: str, *, exempt: bool = False, **options: Any
) -> tuple[FastAPI, MaintenanceGuard]:
    """Return an application with a package, behind a guard in one way, or in none."""
    guard = MaintenanceGuard(MemoryStore(), **options)
    depends = [Depends(guard)] if way in {"dependency", "both", "wrap"} else []
    app = FastAPI(dependencies=depends, lifespan=guard.lifespan)
    if way == "wrap":
        inside = FastAPI()
        PACKAGES[name].install(inside, exempt)
        app.mount("/inside", guard.wrap(inside))
    else:
        PACKAGES[name].install(app, exempt)
    if way in {"middleware", "both"}:
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    return app, guard


@contextmanager
def client_of(app: Any) -> Iterator[TestClient]:  # any ASGI application
    """Run an application with its lifespan; an error in it is an answer 500."""
    with TestClient(
        app, raise_server_exceptions=False, follow_redirects=False
    ) as client:
        yield client
        for inside in (app, *(getattr(r, "app", None) for r in app.routes)):
            engine = getattr(getattr(inside, "state", None), "engine", None)
            if engine is not None:
                on_loop(client, engine.dispose)


def send(client: TestClient, ask: Ask, prefix: str = "") -> Any:  # httpx's or a denial
    """Send a request, or ask for a WebSocket."""
    if ask.method != "WS":
        return client.request(ask.method, prefix + ask.path, **ask.more)
    try:
        with client.websocket_connect(prefix + ask.path, **ask.more):
            return SimpleNamespace(status_code=101, headers={})
    except WebSocketDenialResponse as denied:
        return denied


def answers(app: FastAPI, name: str, prefix: str = "") -> list[tuple[int, list[str]]]:
    """Return the status of each answer, and which headers it has."""
    with client_of(app) as client:
        found = [send(client, ask, prefix) for ask in PACKAGES[name].asks]
        return [(answer.status_code, sorted(answer.headers)) for answer in found]


def refused(answer: Any) -> None:  # httpx's, or a denial
    """Check the honest 503."""
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "60"
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_off_is_as_without(
    name: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While maintenance is off, each package answers as it does without a guard."""
    bare = FastAPI()
    PACKAGES[name].install(bare, False)
    expected = answers(bare, name)
    assert [status for status, _ in expected] == [a.status for a in PACKAGES[name].asks]
    app, _ = served(name, way)
    assert answers(app, name, "/inside" * (way == "wrap")) == expected
    assert warnings(caplog) == []


@pytest.mark.parametrize(("name", "way"), CASES)
def test_on_refuses(name: str, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """While it is on, each gets a 503 that says when to return, and docs stay open."""
    app, guard = served(name, way)
    with client_of(app) as client:
        on_loop(client, guard.enable)
        for ask in PACKAGES[name].asks:
            refused(send(client, ask, "/inside" * (way == "wrap")))
        assert client.get("/docs").status_code == 200
        assert client.get("/openapi.json").status_code == 200
        assert client.get("/nothing").status_code == 404
    assert warnings(caplog) == []


@pytest.mark.parametrize(("name", "way"), CASES)
def test_marked_stays_open(
    name: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line keeps a package open while maintenance is on."""
    app, guard = served(name, way, exempt=True)
    prefix = "/inside" * (way == "wrap")
    with client_of(app) as client:
        on_loop(client, guard.enable)
        for ask in PACKAGES[name].asks:
            assert send(client, ask, prefix).status_code == ask.status
    assert warnings(caplog) == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the package has warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("fastapi_maintenance") and record.levelname != "INFO"
    ]


@pytest.mark.parametrize("name", ["sqladmin", "starlette-admin"])
def test_sockets_below_an_admin_are_refused(name: str) -> None:
    """A handshake for what an admin has mounted gets the same 503."""
    app, guard = served(name, "middleware")
    with client_of(app) as client:
        on_loop(client, guard.enable)
        refused(send(client, Ask("WS", "/admin/statics/x")))


@pytest.mark.parametrize("name", ["sqladmin", "starlette-admin"])
def test_an_admin_that_is_all_there_is(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own handlers cannot answer from outside of it; clients get their 503."""
    host = FastAPI()
    PACKAGES[name].install(host, False)
    (mount,) = [route for route in host.routes if route.path == "/admin"]  # type: ignore[attr-defined]  # a mount
    guard = MaintenanceGuard(MemoryStore(enabled=True))
    alone = guard.wrap(mount.app)  # type: ignore[attr-defined]  # the same
    client = TestClient(alone, raise_server_exceptions=False)
    for _ in range(2):
        refused(client.get("/article/list"))
    assert len(warnings(caplog)) <= 1


@pytest.mark.parametrize("way", ["dependency", "both"])
def test_only_the_right_users_are_let_in(way: str) -> None:
    """An exempt handler has the users of fastapi-users as a dependency of its own."""
    host = FastAPI()
    user = fastapi_users(host, False)

    async def is_superuser(found: Annotated[Any, Depends(user)]) -> bool:
        return found is not None and found.is_superuser

    guard = MaintenanceGuard(MemoryStore(), exempt_handler=Depends(is_superuser))
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    app.state.engine = host.state.engine
    app.include_router(host.router)
    if way == "both":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    with client_of(app) as client:
        tokens = []
        for name in ("ada", "bob"):
            account = {"email": f"{name}@shop.example", **CREDENTIALS}
            assert client.post("/auth/register", json=account).status_code == 201
            form = {"username": account["email"], **CREDENTIALS}
            answer = client.post("/auth/login", data=form)
            tokens.append({"Authorization": f"Bearer {answer.json()['access_token']}"})
        on_loop(client, guard.enable)
        assert client.get("/users/me", headers=tokens[0]).status_code == 200
        refused(client.get("/users/me", headers=tokens[1]))
        refused(client.get("/users/me"))


@pytest.mark.parametrize("way", ["dependency", "inside", "outside"])
def test_metrics_count_refusals(way: str) -> None:
    """Prometheus counts them, unless the middleware stands outside of its own."""
    guard = MaintenanceGuard(MemoryStore())
    depends = [Depends(guard)] if way == "dependency" else []
    app = FastAPI(dependencies=depends, lifespan=guard.lifespan)
    if way == "inside":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    prometheus(app, exempt=True)
    if way == "outside":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    @app.get("/prices")
    async def prices() -> int:
        return 249

    with client_of(app) as client:
        assert client.get("/prices").status_code == 200
        on_loop(client, guard.enable)
        refused(client.get("/prices"))
        shown = client.get("/metrics").text
    line = 'http_requests_total{handler="/prices",method="GET",status="5xx"} 1.0'
    assert (line in shown) is (way != "outside")


def test_refused_requests_use_up_no_limit() -> None:
    """Those who come back after maintenance have their whole limit."""
    app, guard = served("slowapi", "dependency")
    with client_of(app) as client:
        on_loop(client, guard.enable)
        for _ in range(5):
            refused(client.get("/limited"))
        on_loop(client, guard.disable)
        assert client.get("/limited").status_code == 200


async def test_a_drain_waits_for_events() -> None:
    """A stream of sse-starlette is counted to its end, and ends when asked to."""
    from sse_starlette import EventSourceResponse

    guard = MaintenanceGuard(MemoryStore())
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    started, got = anyio.Event(), []

    @app.get("/events")
    async def events() -> Response:
        async def lines() -> AsyncIterator[dict[str, str]]:
            yield {"data": "tick"}
            started.set()
            await guard.closing.wait()
            yield {"data": "come back later"}

        stream: Response = EventSourceResponse(lines())
        return stream

    async def ask() -> None:
        got.append(await call(app, "/events"))

    async with guard.lifespan(), anyio.create_task_group() as group:
        group.start_soon(ask)
        await started.wait()
        await guard.enable()
        assert (await guard.drain(timeout=0.1)).outcome == "busy"
        assert (await guard.drain(close_after=0)).drained
    assert b"come back later" in got[0].body


@pytest.fixture
def sentry() -> Iterator[Callable[..., list[str]]]:
    """Yield what starts Sentry; it returns the errors that would be sent."""
    import sentry_sdk
    from sentry_sdk.integrations.fastapi import FastApiIntegration
    from sentry_sdk.integrations.starlette import StarletteIntegration

    sent: list[str] = []

    class Collector(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            event = envelope.get_event()
            if event is not None:
                sent.append(event["exception"]["values"][-1]["type"])

    def start(**options: Any) -> list[str]:
        sentry_sdk.init(
            "http://key@127.0.0.1/1",
            transport=Collector,
            # Those for other packages would change them for all tests.
            auto_enabling_integrations=False,
            integrations=[StarletteIntegration(), FastApiIntegration()],
            **options,
        )
        return sent

    yield start
    sentry_sdk.init()


@pytest.mark.parametrize(
    ("way", "ignored"),
    [("dependency", False), ("dependency", True), ("middleware", True), ("both", True)],
)
def test_sentry(sentry: Callable[..., list[str]], way: str, ignored: bool) -> None:
    """Refusals are no events where they are ignored; errors of the application are."""
    sent = sentry(ignore_errors=[MaintenanceError] if ignored else [])
    guard = MaintenanceGuard(MemoryStore())
    depends = [Depends(guard)] if way != "middleware" else []
    app = FastAPI(dependencies=depends, lifespan=guard.lifespan)
    if way != "dependency":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    @app.get("/broken")
    async def broken() -> float:
        return 1 / 0

    with client_of(app) as client:
        assert client.get("/broken").status_code == 500
        on_loop(client, guard.enable)
        refused(client.get("/broken"))
    assert sent == ["ZeroDivisionError", *["MaintenanceError"] * (not ignored)]


@pytest.mark.parametrize("way", ["dependency", "middleware"])
def test_opentelemetry(way: str) -> None:
    """A refusal is a span with its status, and says that it is one where asked to."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    guard = MaintenanceGuard(MemoryStore())
    depends = [Depends(guard)] if way == "dependency" else []
    app = FastAPI(dependencies=depends, lifespan=guard.lifespan)
    if way == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    @app.get("/prices")
    async def prices() -> int:
        return 249

    @app.exception_handler(MaintenanceError)
    async def refusal(request: Request, error: MaintenanceError) -> Response:
        span = trace.get_current_span()
        span.set_attribute("maintenance.epoch", error.state.epoch)
        return await http_exception_handler(request, error)

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    try:
        with client_of(app) as client:
            assert client.get("/prices").status_code == 200
            on_loop(client, guard.enable)
            refused(client.get("/prices"))
            epoch = guard.state.epoch
    finally:
        FastAPIInstrumentor.uninstrument_app(app)
    spans = [s for s in exporter.get_finished_spans() if s.kind.name == "SERVER"]
    assert [s.status.status_code.name for s in spans] == ["UNSET", "ERROR"]
    assert [s.attributes.get("maintenance.epoch") for s in spans] == [None, epoch]
    assert spans[1].events == ()
