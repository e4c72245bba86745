"""The end of a process: what becomes of its row, and of its threads."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastapi_maintenance.stores.redis import RedisStore
from tests.stores.redis_workers import NAME, fresh_url

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]

PROGRAM = """
import atexit
atexit.register(lambda: print(worker.joined))  # The first one runs last.
import os
import sys
from fastapi_maintenance.stores import open_store
worker = open_store(sys.argv[1]).worker("default")
if sys.argv[2] == "forked" and os.fork():
    os.wait()
    os._exit(0)
worker.enter()
if sys.argv[2] == "busy":
    admission = worker.admit("GET /slow")
"""


@pytest.mark.parametrize(
    ("how", "joined", "rows"),
    [("idle", False, 0), ("busy", True, 1), ("forked", False, 0)],
)
def test_a_process_leaves_with_its_row(how: str, joined: bool, rows: int) -> None:
    """Where nothing is in flight the row goes, and nobody is admitted any more.

    Threads may work until the interpreter has ended. A row with work in flight stays.
    """
    url = fresh_url()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [str(joined)], done.stderr
    store = RedisStore.from_url(url)
    assert len(store._scripts.look(store._keys(NAME)).rows) == rows
