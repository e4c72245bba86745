"""What the faults of Redis and of a database have in common."""

import contextlib
import http.client
import os
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pytest

from tests.chaos.harness import Instance, Operator, Service, until
from tests.stores.redis_proxy import Proxy

SPARES = 1.2
"""Seconds that no request may take; one that waited for the server would take 1.5."""

another_machine = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pid namespaces")


@dataclass
class Watch:
    """Visits every worker without a pause, and notes what it was told and how fast."""

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
        told = self.told if kind is None else []
        assert {status for status, _ in told} <= {200, 503}
        assert max((seconds for _, seconds in told), default=0.0) < SPARES

    def _visit(self, instance: Instance) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=20)
        with contextlib.closing(connection):
            while not self._ended.wait(0.02):
                begun = time.monotonic()
                connection.request("GET", "/fast")
                response = connection.getresponse()
                response.read()
                self.told.append((response.status, time.monotonic() - begun))


def settled(service: Service) -> Operator:
    """Return an operator of a service whose list of workers is no longer new."""
    operator = Operator(service)
    operator.settle(len(service.instances))
    until(lambda: all(one.get("/fast") == 200 for one in service.instances))
    return operator


def closed(service: Service) -> bool:
    """Tell whether every worker refuses."""
    return all(instance.get("/fast") == 503 for instance in service.instances)


def busy(service: Service, instance: Instance, seconds: float) -> None:
    """Let a worker work for a while."""
    instance.begin(f"/slow?seconds={seconds}")
    until(lambda: service.running("slow"))


def through(proxy: Proxy, service: Service) -> dict[str, str]:
    """Return the environment of a worker that reaches its server by a proxy."""
    port = service.url.rpartition("@")[2].partition("/")[0].partition(":")[2]
    url = service.url.replace(f":{port}/", f":{proxy.port}/")
    return {"FASTAPI_MAINTENANCE_STORE": url}
