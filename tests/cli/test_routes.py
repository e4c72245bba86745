"""``routes``: what the guard covers of an application."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import call, invoke, lines

SHOP = """
from fastapi import Depends, FastAPI, WebSocket
from fastapi.staticfiles import StaticFiles
from fastapi_maintenance import MaintenanceGuard, maintenance_exempt

guard = MaintenanceGuard("memory:")

class Holder:
    app = FastAPI(dependencies=[Depends(guard)])

app = Holder.app
empty = FastAPI(openapi_url=None)

@app.get("/orders")
async def orders(): ...

@app.get("/health")
@maintenance_exempt
async def health(): ...

@app.websocket("/live")
async def live(websocket: WebSocket): ...

app.mount("/static", StaticFiles(directory="."))
"""


@pytest.fixture(autouse=True)
def imports(folder: Path) -> Iterator[None]:
    """Leave no module and no path of a test behind."""
    path = list(sys.path)
    (folder / "shop.py").write_text(SHOP)
    (folder / "broken.py").write_text("raise RuntimeError('no\\nsettings')")
    (folder / "leaving.py").write_text("raise SystemExit(3)")
    yield
    sys.path[:] = path
    for name in ("shop", "broken", "leaving"):
        sys.modules.pop(name, None)


def test_routes_shows_what_is_covered() -> None:
    """Every route, mount and WebSocket has its line, and open mounts a warning."""
    result = invoke("routes", "shop:app")
    assert result.exit_code == 0
    shown = {tuple(line.split()[:4]) for line in result.stdout.splitlines()}
    assert ("guarded", "GET", "/orders", "guard") in shown
    assert ("exempt", "GET", "/health") in shown
    assert ("guarded", "WebSocket", "/live", "guard") in shown
    assert ("documentation", "GET,HEAD", "/docs") in shown
    assert ("not", "covered", "Mount", "/static") in shown
    assert "2 guarded" in result.stdout
    assert "warning: 1 not covered: use guard.wrap()" in result.stderr


def test_routes_as_json_is_one_line() -> None:
    """A script reads kind, methods, path and coverage of each."""
    (line,) = lines(invoke("routes", "shop:Holder.app", "--json"))
    assert line["app"] == "shop:Holder.app"
    assert isinstance(line["routes"], list)
    (orders,) = [entry for entry in line["routes"] if entry["path"] == "/orders"]
    assert orders["kind"] == "HTTP"
    assert orders["methods"] == ["GET"]
    assert orders["coverage"] == "guarded"


def test_routes_of_an_empty_application_are_none() -> None:
    """Nothing to show is said, too."""
    result = invoke("routes", "shop:empty", "--store", "file:x", "--name", "y")
    assert (result.exit_code, result.stdout) == (0, "none\n")


def test_routes_finds_modules_of_the_working_directory(folder: Path) -> None:
    """Like uvicorn, it imports what lies where it is started."""
    result = call("routes", "shop:app", cwd=folder)
    assert result.returncode == 0
    assert "/orders" in result.stdout


@pytest.mark.parametrize(
    ("application", "text"),
    [
        ("shop", "write MODULE:NAME"),
        (":app", "write MODULE:NAME"),
        ("shop:", "write MODULE:NAME"),
        ("shop:nothing", "'shop' has no 'nothing'"),
        ("shop:app.nothing", "has no 'app.nothing'"),
        ("nowhere:app", "cannot import 'nowhere': ModuleNotFoundError"),
        ("broken:app", "cannot import 'broken': RuntimeError: no settings"),
        ("leaving:app", "cannot import 'leaving': SystemExit: 3"),
        ("shop:SHOP", "has no 'SHOP'"),
        ("shop:__name__", "'shop:__name__' is not an application but str"),
        ("shop:Holder", "'shop:Holder' is not an application but type"),
        ("..shop:app", "cannot import '..shop'"),
    ],
)
def test_what_is_no_application_is_one_line(application: str, text: str) -> None:
    """Exit code 2, with the string and what is wrong about it."""
    result = invoke("routes", application)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
