"""Servers that tests start on the loopback interface."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent


# Each process of pytest-xdist has ports of its own, below those that systems give to
# clients: two servers that start at once must not find the same one free.
_FIRST = 10_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = itertools.cycle(range(_FIRST, _FIRST + 1_000))


def free_port() -> int:
    """Return a free port of the loopback interface."""
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextlib.contextmanager
def running(
    words: Sequence[str], folder: Path, *path: Path, **variables: str
) -> Iterator[Path]:
    """Run a server for the time of a block, with all of its processes.

    Args:
        words: Its command line.
        folder: Its working directory, from which it imports.
        path: Further directories from which it imports.
        variables: Variables of its environment.

    Yields:
        Its log.
    """
    log = folder / f"{free_port()}.log"
    imports = os.pathsep.join(map(str, [ROOT, folder, *path]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": imports, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
