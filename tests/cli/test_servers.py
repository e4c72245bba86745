"""The command line against a real server with two workers."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.support import call, program, run_dir, started
from tests.servers import free_port, running
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.servers

SHOP = """
import asyncio, pathlib
from fastapi import Depends, FastAPI
from fastapi_maintenance import MaintenanceGuard, maintenance_exempt

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)

@app.get("/orders")
async def orders(): ...

@app.get("/slow")
async def slow():
    pathlib.Path("running").touch()
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    pathlib.Path("finished").touch()

@app.get("/health")
@maintenance_exempt
async def health(): ...
"""


@pytest.fixture
def shop(folder: Path) -> Iterator[str]:
    """The address of an application with two workers."""
    (folder / "shop.py").write_text(SHOP)
    port = free_port()
    words = f"-m uvicorn shop:app --workers 2 --port {port} --log-level warning"
    with running([sys.executable, *words.split()], folder):
        reports = run_dir(folder)
        until(lambda: len(list(reports.glob("*.lock"))) == 2)
        until(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"


def answers(url: str) -> int:
    """Return the status of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def test_a_real_service_is_drained_and_migrated(folder: Path, shop: str) -> None:
    """``on --wait`` outlasts the slow request; ``run`` works where nothing else is."""
    words = program("on", "--wait", "--workers", "2", "--json", "--timeout", "20")
    with ThreadPoolExecutor() as clients:
        slow = clients.submit(answers, f"{shop}/slow")
        until((folder / "running").exists)
        with started(words, folder) as wait:
            assert wait.stdout is not None
            wait.stdout.readline()
            busy = json.loads(wait.stdout.readline())
            assert busy["outcome"] == "busy"
            assert answers(f"{shop}/orders") == 503
            assert answers(f"{shop}/health") == 200
            assert not (folder / "finished").exists()
            (folder / "go").touch()
            out, errors = wait.communicate(timeout=PATIENCE)
        assert (wait.returncode, errors) == (0, "")
        assert (folder / "finished").exists()
        assert slow.result() == 200
    assert len(json.loads(out.splitlines()[-1])["workers"]) == 2
    assert call("off", cwd=folder).returncode == 0
    assert answers(f"{shop}/orders") == 200
    ask = f"import urllib.request as r; r.urlopen({shop + '/orders'!r})"
    result = call("run", sys.executable, "-c", ask, cwd=folder)
    assert result.returncode == 1
    assert "HTTP Error 503" in result.stderr
    assert answers(f"{shop}/orders") == 503
    assert call("off", cwd=folder).returncode == 0
