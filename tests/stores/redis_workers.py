"""Workers of a Redis store beside this process's one, as other processes are."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.changes import with_new_epoch
from fastapi_maintenance.fence import WorkerReport
from fastapi_maintenance.keeper import Follower, Keeper
from fastapi_maintenance.processes import ProcessIdentity
from fastapi_maintenance.stores.redis import RedisStore
from tests.stores.redis_server import RedisServer, shared_server

NAME = "default"
ON = MaintenanceState(enabled=True, message="upgrade")

on = with_new_epoch(lambda _: ON)
off = with_new_epoch(lambda _: MaintenanceState())


def publish(store: RedisStore, *, enabled: bool, name: str = NAME) -> MaintenanceState:
    """Publish on or off under a new tag."""
    state = MaintenanceState(enabled=enabled, message="upgrade")
    return store.publish(name, with_new_epoch(lambda _: state))


def fresh_url(server: RedisServer | None = None, *, user: str = "") -> str:
    """Return a URL with a prefix that no other test has used."""
    server = server or shared_server()
    return server.url(f"prefix=t{secrets.token_hex(6)}", user=user)


def twin(store: RedisStore) -> RedisStore:
    """Return another store of the same place, as another process has it."""
    return RedisStore(store._client, prefix=store.prefix)


def another(store: RedisStore, name: str = NAME) -> Follower:
    """Return a worker with a report, a thread and connections of its own."""
    return Keeper(twin(store)).follower(name)


@contextlib.contextmanager
def joined(*workers: Follower) -> Iterator[None]:
    """Let workers be joined for the time of a block."""
    with contextlib.ExitStack() as stack:
        for worker in workers:
            worker.add_user()
            worker.join()
            stack.callback(worker.leave)
        yield


def report(worker: str = "1-a", **fields: object) -> WorkerReport:
    """Return a report of this process under another id."""
    values = {"host": "web-1", "pid": 1, **fields}
    return WorkerReport.model_validate({"id": worker, **values})


def own_process() -> str:
    """Return the identity of this process."""
    return str(ProcessIdentity.own())


def listed(store: RedisStore, worker: str, name: str = NAME) -> WorkerReport:
    """Return a worker's report as the store lists it."""
    (found,) = [each for each in store.roster(name).workers if each.id == worker]
    return found
