"""Starts services, loads them, operates them, and finds work that ran after *drained*.

The URL of its store is all that a service needs, so that every engine can be tried.
"""

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.fence import DrainReport, Outcome, Roster, Verdict
from fastapi_maintenance.state import MaintenanceState
from fastapi_maintenance.stores import Store, open_store
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.servers import ROOT, free_port
from tests.waiting import until

T = TypeVar("T")

HERE = Path(__file__).parent

ROUTES = (
    *("/fast", "/slow", "/sync", "/stream", "/background", "/commit", "/fails"),
    "/blocks?seconds=0.05",
)


def in_background(work: Callable[[], T]) -> Future[T]:
    """Start work in a thread of its own, and return its future result."""
    pool = ThreadPoolExecutor(1)
    started = pool.submit(work)
    pool.shutdown(wait=False)
    return started


@dataclass
class Instance:
    """One server process on a port of its own."""

    process: subprocess.Popen[bytes]
    port: int
    pid: int = 0

    def get(self, path: str, timeout: float = 15.0) -> int:
        """Send one request and read its answer; return the status."""
        status, _ = self.read(path, timeout)
        return status

    def read(self, path: str, timeout: float = 15.0) -> tuple[int, bytes]:
        """Send one request; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()

    def begin(self, path: str) -> Future[tuple[int, bytes]]:
        """Start one request, and return its future status and body."""
        return in_background(lambda: self.read(path))

    def signal(self, number: int) -> None:
        """Send a signal to the worker itself."""
        os.kill(self.pid, number)


@dataclass
class Service:
    """Workers of the shop with one store, and the spans that they wrote.

    Attributes:
        folder: Where the spans are.
        url: The store.
        instances: The servers.
        windows: From *drained* to before the reopening, in nanoseconds.
        deaths: When a process was killed.
        stores: Those of the operators.
    """

    folder: Path
    url: str
    instances: list[Instance] = field(default_factory=list)
    windows: list[tuple[int, float]] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)

    def __enter__(self) -> Self:
        (self.folder / "spans").mkdir(parents=True)
        (self.folder / "spans").chmod(0o777)
        return self

    def __exit__(self, *error: object) -> None:
        for instance in self.instances:
            for number in (signal.SIGCONT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(instance.process.pid, number)
            instance.process.wait()
        for store in self.stores:
            getattr(store, "close", bool)()  # A directory has nothing to close.

    def start(
        self,
        count: int = 1,
        *,
        command: Sequence[str] = ("uvicorn", "--lifespan", "auto"),
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> list[Instance]:
        """Start servers and wait until they answer.

        Args:
            count: How many.
            command: The server's module and its options, but for the port.
            inside: What it is run by, such as ``unshare``.
            environment: Further variables.
            cwd: The working directory.
        """
        made = []
        for _ in range(count):
            port = free_port()
            if command[0] == "uvicorn":
                line = [*command, "shop:shop", "--port", str(port)]
                line += ["--log-level", "error", "--app-dir", str(HERE)]
            else:
                line = [*command, "--bind", f"127.0.0.1:{port}", "shop:shop"]
            with (self.folder / f"{port}.stderr").open("wb") as errors:
                process = subprocess.Popen(
                    [*inside, sys.executable, "-m", *line],
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
                        "CHAOS_LOG": str(self.folder / "spans"),
                        "FASTAPI_MAINTENANCE_STORE": self.url,
                        **(environment or {}),
                    },
                    cwd=self.folder if cwd is None else cwd,
                    start_new_session=True,
                    stderr=errors,
                )
            made.append(Instance(process, port))
        self.instances += made
        for instance in made:
            until(lambda instance=instance: self._answers(instance))  # type: ignore[misc]  # mypy knows no defaults of lambdas
        return made

    def _answers(self, instance: Instance) -> bool:
        errors = self.folder / f"{instance.port}.stderr"
        assert instance.process.poll() is None, errors.read_text()
        with contextlib.suppress(OSError):
            status, body = instance.read("/health", 1)
            instance.pid = int(body) if status == 200 else 0
        return bool(instance.pid)

    def kill(self, instance: Instance) -> None:
        """End a worker with SIGKILL, and wait until it is gone."""
        # Its work is over from here on. The time at which its end is noticed does not
        # count: a drain may have seen it before.
        self.deaths[instance.pid] = time.monotonic_ns()
        instance.signal(signal.SIGKILL)
        instance.process.wait()
        self.instances.remove(instance)

    def spans(self) -> Iterator[tuple[int, float, str]]:
        """Yield begin, end and name of each span, in nanoseconds."""
        for log in (self.folder / "spans").glob("*.log"):
            begun: dict[str, tuple[int, str]] = {}
            ended: dict[str, float] = {}
            for line in log.read_text().splitlines():
                moment, _, number, edge, what = line.split(" ", 4)
                if edge == "begin":
                    begun[number] = (int(moment), what)
                else:
                    ended[number] = int(moment)
            never = self.deaths.get(int(log.stem), float("inf"))
            for number, (start, what) in begun.items():
                yield start, ended.get(number, never), f"{what} of {log.stem}"

    def running(self, what: str, instance: Instance | None = None) -> bool:
        """Tell whether work of a kind is running, on one worker or on any."""
        of = f" of {instance.pid}" if instance else ""
        return any(
            end == float("inf") and name.startswith(what) and name.endswith(of)
            for _, end, name in self.spans()
        )

    def busy(
        self, instance: Instance, seconds: float, kind: str = "slow"
    ) -> Future[tuple[int, bytes]]:
        """Give a worker work for a while, and wait until it has begun."""
        answer = instance.begin(f"/{kind}?seconds={seconds}")
        until(lambda: self.running(kind, instance))
        return answer

    def closed(self) -> bool:
        """Tell whether every worker refuses."""
        return all(instance.get("/fast") == 503 for instance in self.instances)

    def open(self) -> bool:
        """Tell whether every worker serves."""
        return all(instance.get("/fast") == 200 for instance in self.instances)

    def settled(self) -> "Operator":
        """Drain once, so that the list of workers is complete; return the operator."""
        operator = Operator(self)
        report = operator.drain()
        assert report.outcome == "drained", report
        assert len(report.workers) == len(self.instances), report
        operator.off()
        until(self.open)
        return operator

    def violations(self) -> list[str]:
        """Return all work that ran between *drained* and the reopening."""
        spans = list(self.spans())
        return [
            f"{what} ran {(end - drained) / 1e6:.1f} ms after drained"
            for drained, opened in self.windows
            for begin, end, what in spans
            if begin < opened and end > drained
        ]

    @contextlib.contextmanager
    def load(self, clients: int = 6, *, served: bool = True) -> Iterator[None]:
        """Send requests of every kind for the time of the block.

        Args:
            clients: How many send them at a time.
            served: Whether to wait until some are being served.
        """
        ended = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(_visit(self.instances, clients, ended))
        )
        thread.start()
        try:
            until(lambda: not served or len(list(self.spans())) > 2 * clients)
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def stuttering(self, instance: Instance) -> Iterator[None]:
        """Stop and continue a worker again and again, whatever it is doing."""
        ended = threading.Event()

        def stutter() -> None:
            while not ended.wait(0.15):
                instance.signal(signal.SIGSTOP)
                time.sleep(0.1)
                instance.signal(signal.SIGCONT)

        thread = threading.Thread(target=stutter)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Operator:
    """Operates a service from outside, as the command line does."""

    def __init__(self, service: Service, url: str | None = None) -> None:
        self.service = service
        self.switch = Switch(open_store(url or service.url), "default")
        service.stores.append(self.switch.store)
        self.looks: list[tuple[Roster, Outcome]] = []

    def on(self, message: str = "chaos") -> MaintenanceState:
        """Switch it on."""
        options = EnableOptions(message=message)
        return asyncio.run(self.switch.enable(options)).state

    def off(self) -> MaintenanceState:
        """Switch it off; what runs from now on is allowed."""
        now = time.monotonic_ns()
        for index, (drained, opened) in enumerate(self.service.windows):
            if opened == float("inf"):
                self.service.windows[index] = (drained, now)
        return asyncio.run(self.switch.disable(force=True)).state

    def drain(self, timeout: float = 10.0, **options: object) -> DrainReport:
        """Switch it on and wait; the window begins at the look that said drained."""
        chosen = DrainOptions(timeout=timeout, **options)  # type: ignore[arg-type]  # the options of any test
        enable = EnableOptions(message="chaos")
        stamp = 0

        def progress(roster: Roster, verdict: Verdict) -> None:
            nonlocal stamp
            stamp = time.monotonic_ns()
            self.looks.append((roster, verdict.outcome))

        report = asyncio.run(
            self.switch.drain(chosen, enable=enable, progress=progress)
        )
        if report.drained:
            self.service.windows.append((stamp, float("inf")))
        return report

    def later(self, timeout: float = 10.0, **options: object) -> "Later":
        """Drain in a thread, while the test breaks things."""
        return Later(lambda: self.drain(timeout, **options), self)


class Later:
    """A drain in a thread."""

    def __init__(self, work: Callable[[], DrainReport], operator: Operator) -> None:
        self._operator = operator
        operator.looks.clear()
        self._report = in_background(work)
        until(lambda: operator.looks or self._report.done())

    def looks_again(self, outcome: Outcome | None = None) -> None:
        """Wait for looks that follow what has just happened, or for the end."""
        seen = len(self._operator.looks)
        until(
            lambda: (
                self._report.done()
                or any(
                    outcome in {None, found}
                    for _, found in self._operator.looks[seen + 1 :]
                )
            )
        )

    def result(self) -> DrainReport:
        """Wait for the end."""
        return self._report.result()


def operate(
    service: Service,
    timeout: float,
    *,
    inside: Sequence[str] = (),
    user: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a drain in a process of its own; ``told`` waits for its end.

    Args:
        service: What is drained.
        timeout: Seconds after which it gives up.
        inside: What it is run by, such as ``unshare``.
        user: Whose rights it has, once everything is imported.
    """
    line = [*inside, sys.executable, str(HERE / "operate.py"), service.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if user is not None:
        environment["CHAOS_USER"] = str(user)
    return subprocess.Popen(
        [*line, "--timeout", str(timeout)], env=environment, stdout=subprocess.PIPE
    )


def told(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Wait for the end of such a drain; return what it was told, if anything."""
    output, _ = process.communicate(timeout=60)
    answer: dict[str, str] = json.loads(output or b"{}")
    return answer


async def _visit(
    instances: Sequence[Instance], clients: int, ended: threading.Event
) -> None:
    async def visitor(number: int) -> None:
        choose = random.Random(number)
        while not ended.is_set():
            # Also those that were started later.
            port = choose.choice(instances).port
            with contextlib.suppress(OSError):
                await asyncio.wait_for(_request(port, choose.choice(ROUTES)), 3)
            # Leave time for other tests: they run side by side.
            await asyncio.sleep(0.02)

    await asyncio.gather(*(visitor(number) for number in range(clients)))


async def _request(port: int, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode()
        )
        await reader.read()
    finally:
        writer.close()
