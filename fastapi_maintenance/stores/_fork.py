"""What a forked child must renew: it has none of its parent's threads and locks."""

from __future__ import annotations

import weakref
from typing import Final, Protocol

from ._descriptors import at_fork


class Forked(Protocol):
    """What holds something of one process."""

    def forked(self) -> None:
        """Begin anew: this process is a child."""


_everything: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()


def renew_in_children(thing: Forked) -> None:
    """Call ``forked`` of an object, while it lives, in every child of this process."""
    _everything.add(thing)


def _after_fork() -> None:
    for thing in list(_everything):
        thing.forked()


at_fork(after_in_child=_after_fork)
