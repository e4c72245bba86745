"""Each file of `examples/` does what it says, run as it stands."""

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import jwt
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient

from fastapi_maintenance import MaintenanceGuard, MemoryStore
from fastapi_maintenance.testing import check_store
from tests.calls import on_loop
from tests.examples import EXAMPLES, Load, loader
from tests.guard.support import in_flight
from tests.waiting import until


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what imports an example again, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return loader(EXAMPLES, monkeypatch)


@contextmanager
def served(
    app: FastAPI, client: tuple[str, int] = ("testclient", 50000)
) -> Iterator[TestClient]:
    """Run an application with its lifespan."""
    with TestClient(app, client=client) as running:
        yield running


def status(
    client: TestClient, path: str = "/", headers: Mapping[str, str] | None = None
) -> int:
    """Return the status that a GET gets."""
    return client.get(path, headers=dict(headers or {})).status_code


def test_every_example_is_run_here() -> None:
    """No file of `examples/` is there that this module does not load."""
    own = Path(__file__).read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"demo", "stage"}
    assert {name for name in names if f'load("{name}"' not in own} == set()


def test_health_and_admin(load: Load) -> None:
    """The health check and admins get through; its near namesake does not."""
    example = load("health_and_admin", ADMIN_KEY="s3cret-key")
    with served(example.app) as client:
        on_loop(client, example.guard.enable)
        assert status(client, "/health") == 200
        assert status(client, "/healthcare-records") == 503
        admin = {"X-Admin-Key": "s3cret-key"}
        assert status(client, "/healthcare-records", admin) == 200
        wrong = {"X-Admin-Key": "s3cret-kez"}
        assert status(client, "/healthcare-records", wrong) == 503
        on_loop(client, example.guard.disable)
        assert status(client, "/healthcare-records") == 200


def test_health_and_admin_needs_a_key(load: Load) -> None:
    """An unset secret stops the service from starting."""
    with pytest.raises(ValueError, match="the secret for X-Admin-Key is empty"):
        load("health_and_admin", ADMIN_KEY="")


def test_sync_and_async_handlers(load: Load) -> None:
    """Either handler lets its people in; other clients are refused."""
    example = load("sync_and_async_handlers")
    with served(example.app) as client:
        on_loop(client, example.guard.enable)
        assert status(client) == 503
        assert status(client, headers={"X-User": "ada"}) == 200
        assert status(client, headers={"X-Team": "support"}) == 200
        assert status(client, headers={"X-Team": "sales"}) == 503


def test_jwt_role(load: Load) -> None:
    """Only a complete, valid token with the role lets in."""
    key = secrets.token_urlsafe(32)
    example = load("jwt_role", JWT_KEY=key)
    good: dict[str, object] = {
        "aud": "shop",
        "iss": "https://login.example",
        "exp": datetime.now(UTC) + timedelta(minutes=5),
        "role": "operator",
    }

    def bearer(claims: dict[str, object], key: str = key) -> dict[str, str]:
        return {"Authorization": f"Bearer {jwt.encode(claims, key, 'HS256')}"}

    with served(example.app) as client:
        on_loop(client, example.guard.enable)
        assert status(client, headers=bearer(good)) == 200
        for claim in ("aud", "iss", "exp", "role"):
            without = {name: value for name, value in good.items() if name != claim}
            assert status(client, headers=bearer(without)) == 503
        assert status(client, headers=bearer({**good, "exp": 1})) == 503
        other = secrets.token_urlsafe(32)
        assert status(client, headers=bearer(good, other)) == 503
        assert status(client, headers={"Authorization": "Basic YTpi"}) == 503
        assert status(client) == 503


def test_jwt_role_needs_a_long_key(load: Load) -> None:
    """A key that is too short stops the service from starting."""
    with pytest.raises(SystemExit, match="at least 32 bytes"):
        load("jwt_role", JWT_KEY="short")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("fd00::7", 200),
        ("10.evil.example", 503),
        ("192.0.2.7", 503),
    ],
)
def test_internal_networks(load: Load, host: str, expected: int) -> None:
    """Addresses of the networks get through; names that look like one do not."""
    example = load("internal_networks")
    with served(example.app, client=(host, 50000)) as client:
        on_loop(client, example.guard.enable)
        assert status(client) == expected


def test_reads_stay_open(load: Load) -> None:
    """Reads are served and writes refused, with the message."""
    example = load("reads_stay_open")
    with served(example.app) as client:
        on_loop(client, example.freeze)
        assert status(client, "/articles") == 200
        refused = client.post("/articles?title=second")
        assert refused.status_code == 503
        assert refused.json() == {"detail": "Articles are read-only"}
        on_loop(client, example.guard.disable)
        assert client.post("/articles?title=second").status_code == 200


def test_database_user(load: Load) -> None:
    """Staff get through; an unknown token gets a 503 and not a 401."""
    example = load("database_user")
    with served(example.app) as client:
        assert status(client, "/me", {"X-Token": "unknown"}) == 401
        on_loop(client, example.guard.enable)
        assert status(client, "/me", {"X-Token": "t-ada"}) == 200
        assert status(client, "/me", {"X-Token": "t-bob"}) == 503
        assert status(client, "/me", {"X-Token": "unknown"}) == 503
        assert status(client, "/me") == 503


def test_background_job(load: Load) -> None:
    """The job stops where maintenance begins, and goes on afterwards."""
    example = load("background_job")
    assert example.send_invoices(["ada"]) == 1
    anyio.run(example.guard.enable)
    assert example.send_invoices(["grace"]) == 0
    anyio.run(example.guard.disable)
    assert example.send_invoices(["grace"]) == 1
    assert example.sent == ["ada", "grace"]


def test_own_lifespan(load: Load) -> None:
    """What the lifespan opens is there for requests and closed after them."""
    example = load("own_lifespan")
    with served(example.app) as client:
        assert client.get("/").json() == 1
        on_loop(client, example.guard.enable)
        assert status(client) == 503
    assert example.pool == []


def test_own_store(load: Load, tmp_path: Path) -> None:
    """A switch in the table works, and survives the process; a drain cannot tell."""
    example = load("own_store")
    with served(example.app) as client:
        assert status(client) == 200
        on_loop(client, example.guard.enable)
        assert status(client) == 503
        report = on_loop(client, lambda: example.guard.drain(timeout=0.1))
        assert report.outcome == "unknown"
    check_store(lambda: example.TableStore("shop.sqlite"))
    with served(load("own_store").app) as client:
        assert status(client) == 503
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as database:
        query = "SELECT name FROM maintenance WHERE name NOT LIKE 'check-%'"
        rows = database.execute(query).fetchall()
    assert rows == [("default",)]


def test_own_store_with_reports(load: Load) -> None:
    """With reports in the same table, a drain knows the worker and its request."""
    example = load("own_store_with_reports")
    with served(example.app) as client:
        on_loop(client, example.guard.enable)
        assert status(client) == 503
        report = on_loop(client, lambda: example.guard.drain(timeout=20))
        assert report.drained
        assert len(report.workers) == 1


def test_several_switches(load: Load) -> None:
    """One switch closes its router only, the other one everything."""
    example = load("several_switches")
    with served(example.app) as client:
        on_loop(client, example.payments.enable)
        assert status(client, "/products") == 200
        refused = client.post("/payments")
        assert refused.json() == {"detail": "Payments are under maintenance"}
        on_loop(client, example.payments.disable)
        assert client.post("/payments").status_code == 200
        on_loop(client, example.everything.enable)
        assert status(client, "/products") == 503
        assert client.post("/payments").status_code == 503


def test_migration_in_code(load: Load) -> None:
    """The work runs drained and opens again, its own request left out."""
    example = load("migration_in_code", ADMIN_KEY="s3cret-key")
    with served(example.app) as client:
        right, wrong = {"X-Admin-Key": "s3cret-key"}, {"X-Admin-Key": "guess"}
        assert client.post("/admin/reindex", headers=wrong).status_code == 403
        assert example.index == []
        assert client.post("/admin/reindex", headers=right).json() == 1
        assert not example.guard.is_active


def test_migration_in_code_does_not_start_early(load: Load) -> None:
    """While other work is running nothing is rebuilt, and the service opens again."""
    example = load("migration_in_code", ADMIN_KEY="s3cret-key")
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with example.guard.admit():
            begun.set()
            done.wait(20)

    with served(example.app) as client, ThreadPoolExecutor() as threads:
        threads.submit(work)
        assert begun.wait(20)
        try:
            answer = client.post(
                "/admin/reindex?patience=0", headers={"X-Admin-Key": "s3cret-key"}
            )
        finally:
            done.set()
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("not drained (busy): ")
        assert example.index == []
        assert not example.guard.is_active


def test_shop(load: Load) -> None:
    """The shop sells, streams and ticks; the migration waits for no half-way order."""
    load("shop.database", SHOP_DATABASE="shop.sqlite")
    shop = load("shop.app", SHOP_ADMIN_KEY="s3cret-key")
    migrate = load("shop.migrate")
    with served(shop.app) as client:
        assert client.get("/products").json()[0]["price"] == "249.00"
        assert client.post("/orders", json={"product": 1}).json() == {"order": 1}
        assert client.get("/orders.csv").text.endswith("1,1,paid\nend\n")
        with client.websocket_connect("/prices?ticks=1") as socket:
            assert socket.receive_json() == {"product": 1, "price": 249}
        with (
            closing(sqlite3.connect(os.environ["SHOP_DATABASE"])) as database,
            database,
        ):
            database.execute("UPDATE orders SET state = 'half-way'")
        assert migrate.main() == 1
        with (
            closing(sqlite3.connect(os.environ["SHOP_DATABASE"])) as database,
            database,
        ):
            database.execute("UPDATE orders SET state = 'paid'")
        assert migrate.main() == 0
        assert client.get("/products").json()[0]["price_cents"] == 24900
        on_loop(client, shop.guard.enable)
        assert status(client, "/products") == 503
        assert status(client, "/health") == 200
        assert status(client, "/docs") == 200


def test_whole_application(load: Load) -> None:
    """The middleware closes the mount and refuses before a body is looked at."""
    example = load("whole_application")
    with served(example.app) as client:
        assert client.post("/documents", json={"text": "abc"}).json() == 3
        assert status(client, "/reports/today") == 200
        on_loop(client, example.guard.enable)
        assert client.post("/documents", content="no JSON").status_code == 503
        assert status(client, "/reports/today") == 503
        assert status(client, "/reports/health") == 200
        assert status(client, "/nothing") == 404


def test_static_files(load: Load) -> None:
    """The wrapped files are refused, those beside it are not."""
    example = load("static_files")
    with served(example.app) as client:
        assert status(client, "/static/app.py") == 200
        on_loop(client, example.guard.enable)
        assert status(client, "/static/app.py") == 503
        assert status(client, "/open/app.py") == 200


def test_control(load: Load) -> None:
    """Operators close and open over HTTP; other clients cannot."""
    example = load("control", OPERATORS_PASSWORD="s3cret-password")
    with served(example.app) as client:
        state = {"enabled": True, "message": "Back at noon"}
        assert client.put("/maintenance", json=state).status_code == 401
        wrong = client.put("/maintenance", json=state, auth=("ada", "guess"))
        assert wrong.status_code == 401
        client.auth = ("ada", "s3cret-password")
        view = client.put("/maintenance", json=state).json()
        assert view["state"]["enabled"]
        # The console polls it.
        until(lambda: client.get("/maintenance").json()["outcome"] == "drained")
        assert client.get("/").json() == {"detail": "Back at noon"}
        assert status(client, "/maintenance/console") == 200
        assert client.put("/maintenance", json={"enabled": False}).status_code == 200
        assert status(client) == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/problem+json", "application/problem+json"),
        ("*/*", "application/json"),
    ],
)
def test_refusal_page(load: Load, accept: str, expected: str) -> None:
    """Each client gets the form that it asks for, with the same status and header."""
    example = load("refusal_page")
    with served(example.app) as client:
        on_loop(client, example.guard.enable)
        answer = client.get("/", headers={"Accept": accept})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "300"
        assert answer.headers["Content-Type"] == expected


def test_long_streams(load: Load) -> None:
    """A stream that never ends by itself ends when a drain asks it to."""
    example = load("long_streams")

    with served(example.app) as client, ThreadPoolExecutor() as threads:
        stream = threads.submit(client.get, "/ticks")
        until(lambda: in_flight(example.guard))
        report = on_loop(client, lambda: example.close(0))
        assert report.drained
        assert stream.result(20).text.endswith("tick\ncome back later\n")


# What people write first, in their own words. It runs unchanged as an exempt handler;
# what it lets in beside the wanted is why the examples teach another form.


def by_path(request: Request) -> bool:
    """Exempt health checks by the text of the URL."""
    return request.url.path.startswith("/health")


def by_equal_header(request: Request) -> bool:
    """Exempt admins by a plain comparison."""
    return request.headers.get("X-Admin-Key") == "supersecret"


def by_text_of_address(request: Request) -> bool:
    """Exempt the internal network by the text of the address."""
    host = request.client.host if request.client else None
    return host is not None and (host in {"127.0.0.1", "::1"} or host.startswith("10."))


def by_claims(request: Request) -> bool:
    """Exempt a role of a token whose failure is caught whole."""
    token = request.headers.get("Authorization", "").replace("Bearer ", "")
    try:
        claims = jwt.decode(token, "k" * 32, algorithms=["HS256"])
    except Exception:  # noqa: BLE001  # as people write it
        return False
    return "admin" in claims.get("roles", [])


async def by_user(request: Request) -> bool:
    """Exempt admins that a database knows."""
    await anyio.lowlevel.checkpoint()
    return {"7": True, "8": False}.get(request.headers.get("X-User-ID", ""), False)


def by_method(request: Request) -> bool:
    """Keep reads open during a partial maintenance."""
    return request.method in ["GET", "HEAD"]


def by_several(request: Request) -> bool:
    """Combine some of them."""
    if by_path(request):
        return True
    return by_equal_header(request)


TOKEN = jwt.encode({"roles": ["admin"]}, "k" * 32, "HS256")


@pytest.mark.parametrize(
    ("handler", "path", "headers", "host", "expected"),
    [
        (by_path, "/health", {}, "192.0.2.7", 200),
        (by_path, "/healthcare-records", {}, "192.0.2.7", 200),
        (by_path, "/records", {}, "192.0.2.7", 503),
        (by_equal_header, "/records", {"X-Admin-Key": "supersecret"}, "192.0.2.7", 200),
        (by_equal_header, "/records", {"X-Admin-Key": "guess"}, "192.0.2.7", 503),
        (by_text_of_address, "/records", {}, "10.1.2.3", 200),
        (by_text_of_address, "/records", {}, "10.evil.example", 200),
        (by_text_of_address, "/records", {}, "192.0.2.7", 503),
        (by_claims, "/records", {"Authorization": f"Bearer {TOKEN}"}, "192.0.2.7", 200),
        (by_claims, "/records", {"Authorization": "Bearer x"}, "192.0.2.7", 503),
        (by_user, "/records", {"X-User-ID": "7"}, "192.0.2.7", 200),
        (by_user, "/records", {"X-User-ID": "8"}, "192.0.2.7", 503),
        (by_user, "/records", {}, "192.0.2.7", 503),
        (by_method, "/records", {}, "192.0.2.7", 200),
        (by_several, "/health", {}, "192.0.2.7", 200),
        (by_several, "/records", {"X-Admin-Key": "supersecret"}, "192.0.2.7", 200),
        (by_several, "/records", {}, "192.0.2.7", 503),
    ],
)
def test_naive_handlers_run_unchanged(
    handler: Callable[[Request], object],
    path: str,
    headers: dict[str, str],
    host: str,
    expected: int,
) -> None:
    """Handlers as people write them first work as exempt handlers, sync and async."""
    guard = MaintenanceGuard(MemoryStore(enabled=True), exempt_handler=handler)
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/{rest:path}")
    async def anything(rest: str) -> str:
        return rest

    with served(app, client=(host, 50000)) as client:
        assert status(client, path, headers) == expected
