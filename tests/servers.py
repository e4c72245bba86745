"""Servers that tests start on the loopback interface."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
