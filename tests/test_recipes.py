"""The recipes of the documentation, as they stand there, with the real packages."""

import configparser
import http.server
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from anyio.from_thread import start_blocking_portal
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from fastapi_maintenance import MaintenanceGuard
from tests.calls import on_loop
from tests.examples import EXAMPLES, Load, loader
from tests.servers import ROOT, free_port, running
from tests.stores.redis_server import RedisServer
from tests.waiting import until

pytestmark = pytest.mark.packages

RECIPES = EXAMPLES / "recipes"
HOW_TO = ROOT / "docs" / "how-to"
PROGRAMS = Path(sys.executable).parent
COMMAND = [sys.executable, "-m", "fastapi_maintenance"]

MAIN = """
from fastapi import Depends, FastAPI, WebSocket
from fastapi_maintenance import MaintenanceGuard, maintenance_exempt

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/livez")
@maintenance_exempt
async def livez() -> str:
    return "ok"


@app.get("/prices")
async def prices() -> int:
    return 249


@app.websocket("/ticks")
async def ticks(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what imports a recipe, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return loader(RECIPES, monkeypatch)


@contextmanager
def closed(recipe: ModuleType) -> Iterator[TestClient]:
    """Run a recipe's application, with maintenance on."""
    with TestClient(recipe.app, raise_server_exceptions=False) as client:
        on_loop(client, recipe.guard.enable)
        yield client


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page in one language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    text = (HOW_TO / page).read_text()
    return re.findall(pattern, text, re.MULTILINE | re.DOTALL)


def test_every_recipe_is_tried() -> None:
    """No file of `examples/recipes/` is there that this module does not load."""
    loads = r'\bload\("(\w+)"|RECIPES / "(\w+)\.py"'
    own = re.findall(loads, Path(__file__).read_text())
    names = {path.stem for path in RECIPES.glob("*.py")}
    assert {inside or alone for inside, alone in own} == names


# In a process of its own: Sentry changes other packages for good where it starts.
SENTRY = """
import runpy
import sys

import sentry_sdk
from fastapi.testclient import TestClient


class Collector(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            print(event["exception"]["values"][-1]["type"])


recipe = runpy.run_path(sys.argv[1])
sentry = sentry_sdk.get_client()
sentry.transport = Collector(sentry.options)
with TestClient(recipe["app"], raise_server_exceptions=False) as client:
    assert client.get("/reports/0").status_code == 500
    client.portal.call(recipe["guard"].enable)
    assert client.get("/reports/0").status_code == 503
"""


def test_sentry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the application are sent, refusals are not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    monkeypatch.setenv("SENTRY_DSN", "http://key@127.0.0.1/1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "child.py").write_text(SENTRY)
    recipe = RECIPES / "sentry.py"
    sent = command(sys.executable, "child.py", str(recipe))
    assert [line for line in sent.splitlines() if line.endswith("Error")] == [
        "ZeroDivisionError"
    ]


def test_spans(load: Load) -> None:
    """The span of a refused request says under which epoch, and is an error."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    recipe = load("spans")
    with closed(recipe) as client:
        assert client.get("/prices").headers["Retry-After"] == "60"
        epoch = recipe.guard.state.epoch
    (span,) = [s for s in exporter.get_finished_spans() if s.kind.name == "SERVER"]
    assert span.attributes["maintenance.epoch"] == epoch
    assert span.status.status_code.name == "ERROR"
    assert span.events == ()


def test_metrics(load: Load) -> None:
    """`/metrics` answers, and has counted the refusal."""
    with closed(load("metrics")) as client:
        assert client.get("/prices").status_code == 503
        shown = client.get("/metrics")
    assert shown.status_code == 200
    assert 'handler="/prices",method="GET",status="5xx"} 1.0' in shown.text


def test_sqladmin(load: Load) -> None:
    """The admin is open while the application is closed."""
    with closed(load("sqladmin_open")) as client:
        assert client.get("/prices").status_code == 503
        assert client.get("/admin/").status_code == 200


def test_starlette_admin(load: Load) -> None:
    """The admin is open while the application is closed."""
    with closed(load("starlette_admin_open", ADMIN_SECRET="s" * 32)) as client:
        assert client.get("/prices").status_code == 503
        assert client.get("/admin/").status_code == 200


def test_database_fence(load: Load) -> None:
    """A running transaction is waited for; from then on, new ones get a 503."""
    from tests.stores.sql_server import serving

    with serving() as server:
        server.run("CREATE TABLE orders (id SERIAL PRIMARY KEY)")
        recipe = load("database_fence", SHOP_DATABASE_URL=server.url())
        migration = create_engine(server.url())
        done = threading.Event()

        def migrate() -> None:
            with migration.begin() as connection:
                recipe.exclude(connection)
                connection.exec_driver_sql("ALTER TABLE orders ADD COLUMN note TEXT")
                done.set()
                assert going_on.wait(20)

        going_on = threading.Event()
        thread = threading.Thread(target=migrate)
        with TestClient(recipe.app) as client:
            assert client.post("/orders").json() == 1
            with recipe.engine.begin():
                thread.start()
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                until(lambda: server.run(waiting) == [(1,)])
                assert client.post("/orders").status_code == 503
                assert not done.is_set()
            assert done.wait(20)
            refused = client.post("/orders")
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "60"
            going_on.set()
            thread.join()
            assert client.post("/orders").json() == 2
        recipe.engine.dispose()
        migration.dispose()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a directory with a service that has joined, and an Alembic project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["alembic", "init", "alembic"], check=True, capture_output=True)
    settings = tmp_path / "alembic.ini"
    text = re.sub(
        "^sqlalchemy.url = .*$",
        "sqlalchemy.url = sqlite:///shop.sqlite",
        settings.read_text(),
        flags=re.MULTILINE,
    )
    settings.write_text(text)
    revise("op.create_table('orders', sa.Column('id', sa.Integer, primary_key=True))")
    guard = MaintenanceGuard()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(guard.lifespan()),
    ):
        yield tmp_path


def revise(statement: str) -> None:
    """Add a revision that runs a statement."""
    subprocess.run(["alembic", "revision", "-m", "x"], check=True, capture_output=True)
    newest = max(Path("alembic/versions").glob("*.py"), key=lambda p: p.stat().st_ctime)
    text = newest.read_text()
    head, upgrade = "def upgrade() -> None:\n", f"    {statement}\n"
    start = text.index(head) + len(head)
    newest.write_text(text[:start] + upgrade + text[start:])


def command(*words: str, code: int = 0) -> str:
    """Run one command line to its exit code; return what it said."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.usefixtures("service")
def test_alembic() -> None:
    """`run` opens after revisions that succeed, and keeps closed what failed."""
    (line, *_) = [
        line.removeprefix("$ ")
        for block in blocks("migrations.md", "text")
        for line in block.splitlines()
        if "alembic upgrade" in line
    ]
    command(*shlex.split(line))
    command(*COMMAND, "status", "--check")
    with closing(sqlite3.connect("shop.sqlite")) as shop:
        assert shop.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    revise("raise RuntimeError('the disk is full')")
    assert "the disk is full" in command(*shlex.split(line), code=1)
    command(*COMMAND, "status", "--check", code=3)
    command(*COMMAND, "off")


def steps() -> list[str]:
    """Return the commands of the job, in their order."""
    import yaml

    (block,) = blocks("migrations.md", "yaml")
    (job,) = yaml.safe_load(block)["jobs"].values()
    assert job["defaults"]["run"]["shell"] == "bash"
    return [step["run"] for step in job["steps"] if "run" in step]


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


@pytest.mark.skipif(not shutil.which("jq"), reason="the job needs jq")
def test_github_actions(service: Path) -> None:
    """Each step of the job succeeds, and the summary says how the drain went."""
    deploy = service / "deploy.sh"
    deploy.write_text("#!/bin/sh\n")
    deploy.chmod(0o755)
    summary = service / "summary"
    for step in steps():
        done = shell(step, GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "::error" not in done.stdout
    assert re.fullmatch(r"drained after [\d.]+ s, 1 workers\n", summary.read_text())
    command(*COMMAND, "status", "--check")


@pytest.mark.skipif(not shutil.which("jq"), reason="the job needs jq")
def test_github_actions_that_fail(service: Path) -> None:
    """A drain that does not succeed fails its step, and the last one says why."""
    close, *_, tell = steps()
    first = shell(close.replace("--wait", "--wait --workers 3 --timeout 1"))
    assert first.returncode == 13
    last = shell(tell, GITHUB_STEP_SUMMARY=str(service / "summary"))
    assert last.returncode == 0
    assert "::error title=Not drained::not drained after" in last.stdout
    assert "1 of 3 workers have joined" in last.stdout


def status_of(port: int, path: str) -> int:
    """Return the status of a GET; 0 where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    except OSError:
        return 0


def test_gunicorn_under_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is one that systemd takes; its service joins with four workers."""
    (unit,) = [b for b in blocks("migrations.md", "text") if "[Service]" in b]
    local = unit.replace("/srv/shop/.venv/bin", str(PROGRAMS)).replace(
        "/srv/shop", str(tmp_path)
    )
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are
    parser.read_string(local)
    service = parser["Service"]
    store = service["Environment"].partition("=")[2]
    assert f"{service['Environment']} /srv" in (HOW_TO / "migrations.md").read_text()
    if shutil.which("systemd-analyze"):
        file = tmp_path / "shop.service"
        # The user is not on this machine.
        file.write_text(local.replace("User=shop\n", ""))
        verified = command("systemd-analyze", "verify", "--man=no", str(file))
        assert "shop.service" not in verified
    (tmp_path / "main.py").write_text(MAIN)
    store = f"file:{tmp_path / 'maintenance'}"
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", store)
    port = free_port()
    words = shlex.split(service["ExecStart"])
    words[words.index("--bind") + 1] = f"127.0.0.1:{port}"
    with running(words, tmp_path):
        until(lambda: status_of(port, "/prices") == 200, 30)
        closed = command(*COMMAND, "on", "--wait", "--workers", "4")
        assert "acknowledged by 4 of 4 workers" in closed
        assert status_of(port, "/prices") == 503
        assert status_of(port, "/livez") == 200
        command(*COMMAND, "off")


def test_compose_with_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas and one Redis obey the commands of the page."""
    import yaml

    compose, _, _ = map(yaml.safe_load, blocks("containers.md", "yaml"))
    web = compose["services"]["web"]
    assert web["deploy"]["replicas"] == 2
    redis = RedisServer(tmp_path / "redis").start()
    (tmp_path / "main.py").write_text(MAIN)
    store = web["environment"]["FASTAPI_MAINTENANCE_STORE"]
    address = redis.url("").removesuffix("/0?").removeprefix("redis://")
    store = store.replace("redis:6379", address)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", store)
    ports = [free_port(), free_port()]
    lines = [
        line.removeprefix("$ docker compose exec web fastapi-maintenance ")
        for line in "".join(blocks("containers.md", "text")).splitlines()
        if line.startswith("$ docker compose exec ")
    ]
    assert [line.split()[0] for line in lines] == ["on", "status", "off"]
    servers = []
    for port in ports:
        words = shlex.split(web["command"].replace("--port 8000", f"--port {port}"))
        words[0] = str(PROGRAMS / words[0])
        servers.append(words)
    try:
        with running(servers[0], tmp_path), running(servers[1], tmp_path):
            until(lambda: {status_of(port, "/prices") for port in ports} == {200}, 30)
            on, status, off = lines
            assert "2 of 2 workers" in command(*COMMAND, *shlex.split(on))
            assert {status_of(port, "/prices") for port in ports} == {503}
            assert "Upgrading the database" in command(*COMMAND, *shlex.split(status))
            assert "2 of 2 workers" in command(*COMMAND, *shlex.split(off))
            assert {status_of(port, "/prices") for port in ports} == {200}
    finally:
        redis.kill()


def test_uvicorn_s_line_about_handshakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ERROR that the page quotes is there by default, and not with wsproto."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    (line,) = re.findall(
        r"uvicorn logs `(.*?)` at ERROR", (HOW_TO / "observability.md").read_text()
    )
    (tmp_path / "main.py").write_text(MAIN)
    store = f"file:{tmp_path / 'maintenance'}"
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", store)
    command(*COMMAND, "on", "--init")
    for kind, logged in (("auto", True), ("wsproto", False)):
        port = free_port()
        words = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
        with running([*words, "--ws", kind], tmp_path) as log:
            until(lambda port=port: status_of(port, "/livez") == 200, 30)  # type: ignore[misc]  # a default of a lambda
            with pytest.raises(InvalidStatus, match="503"):
                connect(f"ws://127.0.0.1:{port}/ticks")
        assert (f"ERROR:    {line}" in log.read_text()) is logged


def test_urllib3_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it sleeps for `Retry-After` three times; as the page says, not."""
    import urllib3

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "60")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    slept: list[float] = []
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            with urllib3.PoolManager() as pool:
                assert pool.request("GET", url).status == 503
                assert slept == [60, 60, 60]
                slept.clear()
                quick = urllib3.Retry(3, respect_retry_after_header=False)
                assert pool.request("GET", url, retries=quick).status == 503
                assert slept == []
        finally:
            server.shutdown()
            thread.join()
