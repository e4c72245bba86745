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

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.stores.redis import RedisStore
from tests.servers import free_port
from tests.stores.redis_server import (
    PASSWORD,
    RedisServer,
    find_program,
    serving,
)
from tests.stores.redis_workers import (
    NAME,
    another,
    joined,
    listed,
    publish,
)
from tests.waiting import eventually, until

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@contextlib.contextmanager
def watching(folder: Path, primary: RedisServer) -> Iterator[Any]:
    """Run a Sentinel that takes a silent primary to be dead after half a second.

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
    """Tell whether there is a replica to promote."""
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
        kept = another(store)
        with joined(kept):
            state = publish(store, enabled=True)
            await eventually(lambda: kept.worker.state == state)
            first.kill()
            await eventually(lambda: is_primary(second), 30, "a new primary")
            assert kept.worker.state == state
            await eventually(lambda: reads(store) == state, 30, "the store follows")
            state = publish(store, enabled=False)
            await eventually(lambda: kept.worker.state == state, 30)
            await eventually(lambda: listed(store, kept.worker.id).seen == state.epoch)
        store.close()


def reads(store: RedisStore) -> MaintenanceState | None:
    """Return what a store reads, or None while it cannot."""
    with contextlib.suppress(StoreError):
        return store.read(NAME)
    return None
