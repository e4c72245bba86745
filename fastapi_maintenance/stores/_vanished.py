"""Rows that were lost: what became of their workers."""

from __future__ import annotations

from ..fence import WorkerRow
from ._process import ProcessIdentity


class Vanished:
    """Remembers one coordinator's rows, to tell what became of those that are lost.

    Only a proof of death lets a drain stop waiting for a row that somebody deleted,
    or that Redis lost.
    """

    def __init__(self) -> None:
        self._seen: dict[str, ProcessIdentity] = {}

    def dead(
        self, present: dict[str, ProcessIdentity], observer: ProcessIdentity
    ) -> list[WorkerRow]:
        """Return a row, once, for each that is gone from here and from its machine.

        Args:
            present: Whose rows are there now; they are remembered.
            observer: Who looks; death is proven in its own process table.
        """
        rows = []
        for worker, identity in list(self._seen.items()):
            if worker not in present and identity.gone(observer):
                self._seen.pop(worker, None)  # Another wait may have said it.
                rows.append(
                    WorkerRow(
                        id=worker,
                        host=identity.host,
                        pid=identity.pid,
                        seen=0,
                        liveness="dead",
                    )
                )
        self._seen.update(present)
        return rows

    def forget(self, worker: str) -> None:
        """Wait no longer for what becomes of one."""
        self._seen.pop(worker, None)
