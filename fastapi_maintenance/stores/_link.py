"""What a worker asks of an engine, and what it is told about its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..state import MaintenanceState

Listener = Callable[[MaintenanceState], object]


class Label(Protocol):
    """What a piece of work is called that is counted before its route is known."""

    def is_exempt(self) -> bool:
        """Tell whether it has turned out to be what is never counted."""
        ...

    def __str__(self) -> str: ...


class Link(Protocol):
    """What an engine adds to the counting of a worker.

    Every method but ``join`` and ``leave`` is called with the worker's lock held
    and must not wait for a network.
    """

    def join(self, patience: float) -> MaintenanceState:
        """Make a row that holds the worker's counts, *then* read the state."""
        ...

    def leave(self) -> None:
        """Remove the row."""
        ...

    @property
    def immediate(self) -> bool:
        """Whether counts must be visible, and news looked for, at every admission.

        Otherwise the engine calls ``refresh`` when there is news, and asks the worker
        for its counts.
        """
        ...

    def count(self, current: int, old: int) -> None:
        """Make the counts visible to coordinators."""
        ...

    def news(self) -> MaintenanceState | None:
        """Return the state if it is newer than the one adopted, else None."""
        ...

    def adopted(self, epoch: int) -> None:
        """Make visible that an epoch was adopted; the counts were, before."""
        ...

    def forked(self) -> None:
        """Let go of what belongs to the parent; in the child, after a fork."""
        ...

    def stand_aside(self, why: str) -> None:
        """Be seen as a worker that cannot be counted."""
        ...
