"""The file store's worker and its keeper, who notices what no request would."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import Final

from ._member import FileLink
from ._worker import Worker

logger = logging.getLogger("fastapi_maintenance")

KEEPER_INTERVAL: Final = 0.4
"""Seconds between two looks: a hand edit is seen within one second."""


class FileWorker(Worker):
    """A worker with a keeper: a thread that notices what requests do not."""

    link: FileLink

    def __init__(self, link: FileLink, title: str) -> None:
        super().__init__(link, title)
        self._keeper: threading.Event | None = None
        weakref.finalize(self, _abandon, link, os.getpid())

    def join(self, patience: float = 2.0) -> None:
        self.link.worker_id = self.id
        super().join(patience)
        if self._keeper is None:
            self._keeper = threading.Event()
            threading.Thread(
                target=_keep,
                args=(weakref.ref(self), self._keeper),
                name="fastapi-maintenance keeper",
                daemon=True,
            ).start()

    def leave(self) -> None:
        super().leave()
        if not self.joined and self._keeper is not None:
            self._keeper.set()
            self._keeper = None

    def rejoin(self) -> None:
        """Make the row anew, with everything that is in flight."""
        with self._lock:
            if self.joined:
                self.link.enlist_again(len(self.current), len(self.old))

    def _forked(self) -> None:
        self._keeper = None  # The thread stayed in the parent.
        super()._forked()


def _keep(reference: weakref.ref[FileWorker], stop: threading.Event) -> None:
    while not stop.wait(KEEPER_INTERVAL):
        worker = reference()
        if worker is None:
            return
        try:
            _, _, oldest = worker.counts()
            if not worker.link.tend(oldest):
                worker.rejoin()
            worker.refresh()
        except Exception:
            logger.exception("the keeper of a maintenance worker failed; it goes on")
        del worker


def _abandon(link: FileLink, pid: int) -> None:
    # At exit, or when the last guard is gone. A row with work in flight stays: the
    # kernel will tell when the process has really ended.
    if os.getpid() == pid and link.counts == (0, 0):
        link.leave()
