"""Frontends, which FastAPI serves from 0.138 on, and guards from 0.139 on."""

from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI

from fastapi_maintenance import MaintenanceModeMiddleware, maintenance_exempt
from tests.asgi.support import RELEASE
from tests.calls import call
from tests.guards import closed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(RELEASE < (0, 138), reason="this FastAPI has no frontends"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return what a frontend build leaves behind."""
    (tmp_path / "index.html").write_text("<h1>shop</h1>")
    (tmp_path / "app.js").write_text("1")
    return tmp_path


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_frontends_are_refused(folder: Path, way: str) -> None:
    """Pages, files and what is missing are refused; other methods are unchanged."""
    guard = closed()
    app = FastAPI(dependencies=[Depends(guard)] if way == "both" else [])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_api_route("/orders/", folder.exists)
    app.frontend("/", directory=folder)
    for path in ("/", "/app.js", "/nothing"):
        assert (await call(app, path)).status == 503
        assert (await call(app, path, method="HEAD")).status == 503
        assert (await call(app, path, method="POST")).status in {404, 405}
    # A redirect comes before a frontend.
    assert (await call(app, "/orders")).status == 307


@pytest.mark.parametrize("way", ["middleware", "both"])
async def test_frontends_of_an_included_router_can_be_exempt(
    folder: Path, way: str
) -> None:
    """The marker on an inclusion opens the frontends in it, and no others."""
    guard = closed()
    app = FastAPI(dependencies=[Depends(guard)] if way == "both" else [])
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    shown, hidden = APIRouter(), APIRouter()
    shown.frontend("/shown", directory=folder)
    hidden.frontend("/hidden", directory=folder)
    app.include_router(shown, prefix="/in", dependencies=[Depends(maintenance_exempt)])
    app.include_router(hidden, prefix="/in")
    # 0.138 does not run dependencies there, and has no say in what is exempt.
    status = 200 if RELEASE >= (0, 139) else 503
    paths = ("/in/hidden/app.js", "/in/shown/app.js")
    assert [(await call(app, path)).status for path in paths] == [503, status]
