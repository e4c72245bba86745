"""The file store's worker and its keeper, who notices what no request would."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from typing import Final

from . import StoreError
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
        # Not at exit, where other threads may still work: the kernel then lets go
        # of the row when the process has really ended.
        weakref.finalize(self, _abandon, link).atexit = False

    def _joins(self) -> None:
        self.link.worker_id = self.id
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
        with self._joining:
            if not self.joined and self._keeper is not None:
                self._keeper.set()
                self._keeper = None

    def tend(self) -> None:
        """Look after the row, and make it anew where it was lost."""
        # Neither joining nor leaving meanwhile: both open and close what is written.
        with self._joining:
            if not self.joined:
                return
            _, _, oldest = self.counts()
            with self._lock:
                stands = self.link.tend(oldest)
            if not stands:
                self._rejoin()
        self.refresh()

    def _rejoin(self) -> None:
        # The writers' lock first: requests do not wait for whoever has it.
        try:
            with self.link.enlisting() as why:
                if why:
                    raise StoreError(why)
                with self._lock:
                    self.link.enlist_again(len(self.current), len(self.old))
                    news = self.link.news()
                    if news is not None:
                        self._adopt(news)
                    else:
                        self.link.adopted(self.state.epoch)
        except (OSError, StoreError) as error:
            self.link.lost_its_row(error)

    def forked(self) -> None:
        self._keeper = None  # The thread stayed in the parent.
        super().forked()


def _keep(reference: weakref.ref[FileWorker], stop: threading.Event) -> None:
    while not stop.wait(KEEPER_INTERVAL):
        worker = reference()
        if worker is None:
            return
        try:
            worker.tend()
        except Exception:
            with contextlib.suppress(Exception):  # A log handler can fail, too.
                logger.exception(
                    "the keeper of a maintenance worker failed; it goes on"
                )
        del worker


def _abandon(link: FileLink) -> None:
    # The last guard is gone, and nothing is in flight: work holds its worker.
    if os.getpid() == link.process:
        link.leave()
