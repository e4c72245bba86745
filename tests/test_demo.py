"""The demonstration of the README runs, and fails when something did not happen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "demo.py"

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]


def shown(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the demonstration, with modules in a path that stand before all others."""
    places = [str(place) for place in (path, ROOT) if place]
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(places)}
    environment.pop("FASTAPI_MAINTENANCE_STORE", None)
    return subprocess.run(
        [sys.executable, str(DEMO), *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_demo_tells_the_whole_story() -> None:
    """Everything that the demonstration shows happens, in their order."""
    done = shown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    places = [
        done.stdout.index(words)
        for words in (
            "A shop on uvicorn with two workers",
            "$ fastapi-maintenance on ",
            "served to the end: 1 export(s), 1 WebSocket(s), ",
            "$ fastapi-maintenance run -- python examples/shop/migrate.py",
            "migrate: 0 orders half-way",
            "$ fastapi-maintenance off",
            "no customer was served while it was closed",
            "All of it happened.",
        )
    ]
    assert places == sorted(places)
    # The number of requests that are left is that of the requests that are named.
    waits = re.findall(r"(\d+) requests? left;.* still running on (.*)", done.stdout)
    assert waits
    for left, named in waits:
        more = re.findall(r"\(and (\d+) more\)", named)
        assert int(left) == len(named.split("; ")) + sum(map(int, more)), named


@pytest.mark.parametrize(
    "kind",
    [pytest.param("redis", marks=pytest.mark.redis), "sql"],
)
def test_demo_tells_the_story_of_two_groups(kind: str) -> None:
    """Two groups of workers obey one switch in Redis, or in a database."""
    done = shown(f"--{kind}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "two groups of two workers" in done.stdout
    assert "4 workers on" in done.stdout


def test_demo_fails_where_nothing_is_refused(tmp_path: Path) -> None:
    """A guard that counts and never refuses is found out."""
    (tmp_path / "sitecustomize.py").write_text(
        "from fastapi_maintenance.switch import Switch\n"
        "Switch.in_force = lambda self, state: False\n"
    )
    done = shown(path=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  customer            GET /products              200     200" in (
        done.stdout
    )
    assert "FAILED  no customer was served while it was closed" in done.stdout


def test_demo_fails_where_no_server_starts(tmp_path: Path) -> None:
    """A server that does not start ends the story at once."""
    (tmp_path / "uvicorn.py").write_text("raise SystemExit(3)\n")
    done = shown(path=tmp_path)
    assert done.returncode == 1
    assert "FAILED  uvicorn ended with code 3" in done.stdout
