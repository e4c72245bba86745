"""Runs parts of a test in a forked child, as another user too."""

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: other users and mounts of its own"
)


def in_child(work: Callable[[], object], *, user: int = 0) -> object:
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
        _become(user)
        failed = not work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(failed)


@contextlib.contextmanager
def living_child(work: Callable[[], object], *, user: int = 0) -> Iterator[int]:
    """Run a function in a forked child that lives on until it is killed.

    Args:
        work: What is run first; what it returns is kept.
        user: Who runs it.

    Yields:
        Its number, when the function has returned.

    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            _become(user)
            kept = work()
            os.write(writer, b"x")
            while kept:
                signal.pause()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def end(child: int) -> None:
    """Kill a living child, and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _become(user: int) -> None:
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
