"""Runs parts of a test in a forked child, as another user too."""

import os
import traceback
from collections.abc import Callable

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
        if user:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        failed = not work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(failed)
