"""Counts return to zero on every server, however clients leave."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastapi_maintenance.fence import WorkerReport
from fastapi_maintenance.stores.file import FileStore
from tests.servers import ROOT, free_port, running
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.servers]

REQUESTS = 10_000 if os.environ.get("TEST_BUDGET") == "long" else 3_000
CLIENTS = 24

# Slow enough to be left in the middle, and quick enough for ten thousand.
ROUTES = ("/fast", "/slow?seconds=0.01", "/sync?seconds=0.002", "/stream?chunks=2")

SERVERS = {
    "uvicorn": ["uvicorn", "shop:app", "--log-level", "critical", "--port", "{port}"],
    "hypercorn": ["hypercorn", "shop:app", "--bind", "127.0.0.1:{port}"],
    "granian": [
        *("granian", "--interface", "asgi", "--no-log", "--host", "127.0.0.1"),
        *("--port", "{port}", "shop:app"),
    ],
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """One worker of each server, and its port."""
    port = free_port()
    (tmp_path / "spans").mkdir()
    line = [part.format(port=port) for part in SERVERS[request.param]]
    with running(
        [sys.executable, "-m", *line],
        tmp_path,
        ROOT / "tests" / "chaos",
        CHAOS_LOG=str(tmp_path / "spans"),
        FASTAPI_MAINTENANCE_STORE=f"file:{tmp_path}/state",
    ):
        yield port


@pytest.mark.timeout(300)
def test_counts_return_to_zero(server: int, tmp_path: Path) -> None:
    """After thousands of requests, of which many were left, nothing is in flight."""
    store = FileStore(tmp_path / "state")

    def workers() -> tuple[WorkerReport, ...]:
        return store.roster("default").workers

    until(workers, 30)
    answered = asyncio.run(visit(server))
    assert answered > REQUESTS // 3
    until(lambda: [worker.in_flight for worker in workers()] == [0], 15)


async def visit(port: int) -> int:
    """Send all requests; return how many were answered whole."""
    left = iter(range(REQUESTS))
    answered = 0

    async def client(number: int) -> None:
        nonlocal answered
        choose = random.Random(number)
        for _ in left:
            with contextlib.suppress(OSError):
                whole = await request(port, choose)
                answered += whole

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return answered


async def request(port: int, choose: random.Random) -> bool:
    """Send one request, and leave every third one at a moment of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET {choose.choice(ROUTES)} HTTP/1.1\r\nHost: shop\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    leaves = choose.random() < 0.33
    try:
        async with asyncio.timeout(choose.random() * 0.02 if leaves else 10):
            return bool(await reader.read())
    except TimeoutError:
        return False
    finally:
        # No farewell: where it is not at its end, the connection is reset.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
