"""Runs parts of a test in a forked child, as another user too."""

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: other users and mounts of its own"
)


def ended() -> int:
    """Return the number of a process that was."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def in_child(work: Callable[[], object], *, user: int = 0) -> bool:
    """Run a function in a forked child, and return whether it returned something true.

    Args:
        work: What is run; an exception counts as false.
        user: Who runs it.

    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) == 0
    failed = True
    try:
        with _as_user(user):
            failed = not work()
    finally:
        traceback.print_exc()  # Nothing else would.
        os._exit(failed)


@contextlib.contextmanager
def living_child(
    work: Callable[[], object], *, user: int = 0
) -> Iterator[Callable[[], None]]:
    """Run a function in a forked child that lives on until it is ended.

    Args:
        work: What is run first; what it returns is kept.
        user: Who runs it.

    Yields:
        What ends the child before the block does. It ends like a killed process: the
        kernel alone releases what it held.

    """
    done, ready = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        try:
            with _as_user(user):
                kept = work()
                os.write(ready, bytes([bool(kept)]))
                os.read(wait, 1)
        finally:
            traceback.print_exc()  # Nothing else would.
            os._exit(1)
    os.close(wait)
    os.close(ready)

    def end() -> None:
        os.close(go)
        os.waitpid(child, 0)

    with contextlib.ExitStack() as stack:
        stack.callback(end)
        assert os.read(done, 1) == b"\1"
        os.close(done)
        yield stack.close


@contextlib.contextmanager
def _as_user(user: int) -> Iterator[None]:
    # With a way back, so that what was measured can be written.
    if user:
        os.setgroups([])
        os.setresgid(user, user, 0)
        os.setresuid(user, user, 0)
    try:
        yield
    finally:
        if user:
            os.setresuid(0, 0, 0)
