"""Workers of a Redis store beside this process's one, as other processes are."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable

import anyio.to_thread

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.fence import Roster, WorkerRow
from fastapi_maintenance.stores._redis_link import RedisLink, RedisWorker
from fastapi_maintenance.stores._redis_thread import Hub
from fastapi_maintenance.stores.redis import RedisStore
from tests.stores.redis_server import RedisServer, shared_server, until

NAME = "default"
ON = MaintenanceState(active=True, begun=True, message="upgrade")


def fresh_url(server: RedisServer | None = None, *, user: str = "") -> str:
    """Return a URL with a prefix that nobody has used before."""
    server = server or shared_server()
    return server.url(f"prefix=t{secrets.token_hex(6)}", user=user)


def on(before: MaintenanceState) -> MaintenanceState:
    """Switch on."""
    return ON.but(holders=before.holders, extra=before.extra)


def off(_: MaintenanceState) -> MaintenanceState:
    """Switch off."""
    return MaintenanceState()


def vouched_url() -> str:
    """Return the URL of a store whose list of workers a person has called complete."""
    url = fresh_url()
    store = RedisStore.from_url(url)
    keys = store._keys(NAME)
    store._scripts.begin(keys, "the first")
    store._vouch(NAME, store._roster(NAME).generation)
    return url


def another(store: RedisStore, name: str = NAME) -> RedisWorker:
    """Return a worker with a row, a thread and connections of its own."""
    connector = RedisStore(store._connector.client, prefix=store.prefix)._connector
    scripts = type(store._scripts)(connector, store.prefix)
    link = RedisLink(scripts, store._keys(name), Hub(connector, store.prefix))
    return RedisWorker(link, f"{name!r} elsewhere")


@contextlib.asynccontextmanager
async def joined(*workers: RedisWorker) -> AsyncIterator[None]:
    """Let workers be joined for the time of a block."""
    for worker in workers:
        await anyio.to_thread.run_sync(worker.enter)
    try:
        yield
    finally:
        for worker in workers:
            await anyio.to_thread.run_sync(worker.leave)


async def eventually(
    condition: Callable[[], object], seconds: float = 10.0, what: str = ""
) -> None:
    """Wait until a condition holds, while the loop runs; fail when it never does."""
    await anyio.to_thread.run_sync(until, condition, seconds, what)


async def row_of(store: RedisStore, worker: RedisWorker, name: str = NAME) -> WorkerRow:
    """Return a worker's row."""
    return find(await store.roster(name), worker.id)


def find(roster: Roster, worker: str) -> WorkerRow:
    """Return the row of an id."""
    (row,) = [row for row in roster.rows if row.id == worker]
    return row
