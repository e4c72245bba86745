"""A real Sentinel decides which Redis is the primary."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from fastapi_maintenance.stores.redis import RedisStore
from tests.stores.redis_server import (
    PASSWORD,
    RedisServer,
    find_program,
    free_port,
    serving,
    until,
)
from tests.stores.redis_workers import NAME, another, eventually, joined, off, on

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@contextlib.contextmanager
def watching(folder: Path, primary: RedisServer) -> Iterator[Any]:
    """Run a Sentinel that takes a silent primary for dead after half a second.

    Yields:
        Its client, for which redis-py has no types.
    """
    folder.mkdir()
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\n"
        "bind 127.0.0.1\n"
        f"dir {folder}\n"
        "logfile sentinel.log\n"
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
        f"sentinel auth-pass main {PASSWORD}\n"
        "sentinel down-after-milliseconds main 500\n"
    )
    program = subprocess.Popen([find_program(), str(settings), "--sentinel"])
    kind: Any = Sentinel
    client = kind([("127.0.0.1", port)], password=PASSWORD)
    try:
        until(lambda: knows_a_replica(client), 20, "the Sentinel knows the replica")
        yield client
    finally:
        program.kill()
        program.wait()


def knows_a_replica(client: Any) -> bool:  # a Sentinel's
    """Tell whether there is somebody to promote."""
    found = 0
    with contextlib.suppress(redis.ConnectionError):
        found = client.sentinels[0].sentinel_master("main")["num-slaves"]
    return found > 0


def is_primary(server: RedisServer) -> bool:
    """Tell whether a server takes writes; a promoted one drops its clients first."""
    role = ""
    with contextlib.suppress(redis.ConnectionError), server.client() as client:
        role = client.info("replication")["role"]
    return role == "master"


async def test_workers_follow_the_primary_that_a_sentinel_names(tmp_path: Path) -> None:
    """After the primary's death the state stands, and changes reach every worker."""
    with (
        serving(tmp_path / "first") as first,
        serving(
            tmp_path / "second", "--replicaof", "127.0.0.1", str(first.port)
        ) as second,
        watching(tmp_path / "sentinel", first) as sentinel,
    ):
        store = RedisStore(sentinel.master_for("main"), prefix="shop")
        worker = another(store)
        async with joined(worker):
            await store.publish(NAME, on)
            await eventually(lambda: worker.look().active)
            first.kill()
            await eventually(lambda: is_primary(second), 30, "a new primary")
            assert worker.look().active
            assert (await store.read(NAME)).message == "upgrade"
            await store.publish(NAME, off)
            await eventually(lambda: not worker.look().active, 30)
