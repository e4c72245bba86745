"""Redis and PostgreSQL with their faults, and clients that watch a service."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.chaos.harness import Instance, Service
from tests.stores import redis_server, redis_workers, sql_server
from tests.stores.redis_proxy import Proxy

LIMIT = 1.2
"""Every request is faster; one that waited for the server would take 1.5 seconds."""

another_machine = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass
class Redis:
    """A Redis, which is empty after a crash."""

    server: redis_server.RedisServer
    durable: ClassVar = False

    @classmethod
    def shared(cls) -> Self:
        """Return the server that no test breaks."""
        return cls(redis_server.shared_server())

    @classmethod
    @contextlib.contextmanager
    def serving(cls, folder: Path) -> Iterator[Self]:
        """Run another server for the time of a block."""
        with redis_server.serving(folder) as server:
            yield cls(server)

    def url(self) -> str:
        """Return the URL of a store that was never used."""
        return redis_workers.fresh_url(self.server)

    def stop(self) -> None:
        """Shut it down in order."""
        self.server.run("SAVE")
        self.server.kill()

    def lose(self, url: str, what: str) -> None:
        """Lose a part of a store: its reports, its members, or everything."""
        parts = ["state", "members", "reports"] if what == "everything" else [what]
        self.server.run("DEL", *keys(url, *parts))


@dataclass
class PostgreSQL:
    """A PostgreSQL, which loses nothing in a crash."""

    server: sql_server.SQLServer
    durable: ClassVar = True

    @classmethod
    def shared(cls) -> Self:
        """Return the server that no test breaks."""
        return cls(sql_server.shared_server())

    @classmethod
    @contextlib.contextmanager
    def serving(cls, folder: Path) -> Iterator[Self]:  # it has its own
        """Run another server for the time of a block."""
        with sql_server.serving() as server:
            yield cls(server)

    def url(self) -> str:
        """Return the URL of a store that was never used."""
        return sql_server.fresh_url(self.server)

    def stop(self) -> None:
        """Shut it down in order."""
        self.server.stop()

    def lose(self, url: str, what: str) -> None:
        """Lose a part of a store: its reports, its members, or everything."""
        prefix = prefix_of(url)
        statements = {
            "reports": f"TRUNCATE {prefix}_reports",
            "members": f"UPDATE {prefix}_switches SET members = NULL",
            "everything": f"TRUNCATE {prefix}_switches, {prefix}_reports",
        }
        self.server.run(statements[what])


Engine = Redis | PostgreSQL


def prefix_of(url: str) -> str:
    """Return the prefix of a store."""
    return url.rpartition("prefix=")[2]


def keys(url: str, *parts: str) -> list[str]:
    """Return the keys of parts of a store on Redis."""
    return [f"{{{prefix_of(url)}}}:{redis_workers.NAME}:{part}" for part in parts]


def through(proxy: Proxy, service: Service) -> dict[str, str]:
    """Return the environment of a worker that reaches its server by a proxy."""
    port = service.url.rpartition("@")[2].partition("/")[0].partition(":")[2]
    url = service.url.replace(f":{port}/", f":{proxy.port}/")
    return {"FASTAPI_MAINTENANCE_STORE": url}


@dataclass
class Watch:
    """Sends requests to every worker, and notes each status and how long it took."""

    instances: list[Instance]
    told: list[tuple[int, float]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(instance,))
            for instance in self.instances
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            assert self.statuses() <= {200, 503}
            assert max(seconds for _, seconds in self.told) < LIMIT

    def statuses(self) -> set[int]:
        """Return the statuses of all answers so far."""
        return {status for status, _ in self.told}

    def _visit(self, instance: Instance) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=20)
        with contextlib.closing(connection):
            while not self._ended.wait(0.02):
                begun = time.monotonic()
                connection.request("GET", "/fast")
                response = connection.getresponse()
                response.read()
                self.told.append((response.status, time.monotonic() - begun))
