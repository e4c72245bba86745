"""One counted piece of work, for as long as anything works for it."""

from __future__ import annotations

import sys
from asyncio import current_task
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..state import MaintenanceState

if TYPE_CHECKING:
    from ._worker import Worker

_holding: ContextVar[Admission | None] = ContextVar("fastapi_maintenance", default=None)


class Admission:
    """One counted piece of work: in flight until it ends, and its threads too.

    It is a context manager and goes on a request's exit stack. From its making it
    is also the value of a context variable, which every thread that works for the
    request has in its copy of the context: when the request is cancelled, the last
    of those copies to die gives the count back.
    """

    __slots__ = ("_task", "number", "outer", "state", "worker")

    def __init__(self, worker: Worker, number: int, state: MaintenanceState) -> None:
        self.worker: Worker = worker
        self.number: int = number
        self.state: MaintenanceState = state
        outer = _unended(_holding.get())
        if outer is not None:
            # One context may serve for ever, and its admissions overlap: those that
            # have ended are let go.
            outer.outer = _unended(outer.outer)
        self.outer: Admission | None = outer
        self._task = _present_task()
        _holding.set(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        number = self.number
        if not number:
            return
        # A dependency or an exception handler inside may have made an answer of the
        # cancellation: the task still knows of it.
        cancelling = getattr(task, "cancelling", None)  # Trio's tasks have none.
        if (cancelling is not None and cancelling()) or (
            error is not None and _was_cancelled(error)
        ):
            self.worker.cancelled(number)
            # This context goes on, and works for it no more.
            if _holding.get() is self:
                _holding.set(self.outer)
        else:
            # Left in the context, it says that it has ended: a reset would be felt.
            self.number = 0
            self.worker.release(number)

    def is_of_this_task(self) -> bool:
        """Tell whether the very task that runs now holds it up.

        A context alone proves nothing: servers start later requests of a connection
        in that of an earlier one, and tasks outlive the request that started them.
        """
        return self._task is not None and self._task is _present_task()

    def release(self) -> None:
        """Give the count back now. Leaving, too, then does no more than leave."""
        number = self.number
        if number:
            self.number = 0
            self.worker.release(number)

    def __del__(self) -> None:
        # The collector may run this anywhere, inside the worker's lock too.
        if self.number:
            self.worker.release_later(self.number)


def held() -> Iterator[Admission]:
    """Yield the admissions that the calling work runs under, the innermost first."""
    admission = _unended(_holding.get())
    while admission is not None:
        yield admission
        admission = _unended(admission.outer)


def own_counts(worker: Worker) -> int:
    """Return how many of a worker's counts the calling task itself holds."""
    # Not those of a parent from before a fork.
    return sum(
        admission.number in worker.current or admission.number in worker.old
        for admission in held()
        if admission.worker is worker and admission.is_of_this_task()
    )


def _unended(admission: Admission | None) -> Admission | None:
    while admission is not None and not admission.number:
        admission = admission.outer
    return admission


def _present_task() -> object | None:
    try:
        return current_task()
    except RuntimeError:
        pass
    trio = sys.modules.get("trio")
    try:
        return None if trio is None else trio.lowlevel.current_task()
    except RuntimeError:
        return None  # A thread of neither.


def _was_cancelled(error: BaseException) -> bool:
    # Told from the class alone: asyncio's and trio's cancellations, and an
    # interpreter that is going down, are no Exceptions. A timeout that a dependency
    # made of one carries it as its cause or context.
    chain: BaseException | None = error
    for _ in range(20):
        if chain is None:
            return False
        if not isinstance(chain, Exception):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
