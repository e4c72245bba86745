"""A worker of a file store: its row, and its view of the state file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..state import MaintenanceState
from . import StoreError
from ._descriptors import drop, keep
from ._disk import same_file, try_lock
from ._epoch import EpochFile, is_epoch
from ._presence import UNCOUNTED, announce
from ._process import ProcessIdentity
from ._slots import Slot, slot_path
from ._view import Complaints, Held, StateView

if TYPE_CHECKING:
    from .file import FileStore


class FileLink:
    """Counts in a slot, reads the epoch word, and the state file when it moved.

    Without a usable directory it is *uncounted*: it reads the state file alone.
    """

    immediate = True

    def __init__(self, store: FileStore, name: str) -> None:
        self._store = store
        self._name = name
        self._complaints = Complaints()
        self._view = StateView(store.run.state_path(name), self._complaints)
        self._slot: Slot | None = None
        self._epoch: EpochFile | None = None
        self._word = b""
        self._look = False
        self._told = self._view.state
        self._place = Held(store.path)
        self._presence: int | None = None
        self._announced: int | None = None
        self.worker_id = ""
        self.process: int = os.getpid()
        self.counts: tuple[int, int] = (0, 0)

    def join(self, patience: float) -> MaintenanceState:
        self.process = os.getpid()
        try:
            with self.enlisting() as why:
                if not why:
                    self._enlist(lost=False)
        except (OSError, StoreError) as error:
            why = str(error)
        if why:
            self.stand_aside(why)
        self._place.hold()
        self._view.begin()
        self._read()
        self._told = self._view.state
        return self._told

    def leave(self) -> None:
        # The name before the row: a name without one is a worker that lost it.
        if self._announced is not None:
            drop(self._announced)
        if self._slot is not None:
            self._slot.remove()
        if self._epoch is not None:
            self._epoch.close()
        if self._presence is not None:
            drop(self._presence)
        self._place.let_go()
        self._view.end()
        self.forked()

    def count(self, current: int, old: int) -> None:
        self.counts = (current, old)
        slot = self._slot
        if slot is not None:
            try:
                slot.count(current, old)
            except OSError as error:
                # A count that cannot be written must not look like none: from
                # here on a drain answers *unknown*.
                self.stand_aside(f"cannot write its row: {error}")

    def news(self) -> MaintenanceState | None:
        view = self._view
        if self._epoch is None:
            if self._look or view.changed():
                self._read()
        else:
            found = self._epoch.read()
            if found != self._word:
                self._look = True  # Until it has been read, whatever fails.
                self._word = found if is_epoch(found) else self._word
            if self._look:
                self._read()
        self._look = False
        if view.state is self._told:
            return None
        self._told = view.state
        return view.state

    def adopted(self, epoch: int) -> None:
        if self._slot is not None:
            with contextlib.suppress(OSError):
                self._slot.seen(epoch)

    def forked(self) -> None:
        # In a child, their descriptors are closed: they belong to the parent alone.
        self._slot = self._epoch = None
        self._presence = self._announced = None
        self._place.forked()
        self._view.forked()
        self._word = b""
        self.counts = (0, 0)

    def tend(self, oldest: tuple[str, float] | None) -> bool:
        """Do what no request would: show the oldest request, see a hand edit.

        Returns:
            Whether the row still stands where coordinators look for it.

        """
        self._look = self._view.tend() or self._look
        if self._slot is None or self._epoch is None:
            self._hold_presence()
            return True
        if not (self._place.stands() and self._slot.stands() and self._epoch.stands()):
            return False
        with contextlib.suppress(OSError):
            self._slot.oldest(oldest)
        return True

    @contextlib.contextmanager
    def enlisting(self) -> Iterator[str]:
        """Hold the writers' lock of a directory that is made if it is missing.

        Yields:
            Why workers cannot be counted there, or ``""``.

        Raises:
            OSError: If it cannot be made or locked.

        """
        run = self._store.run
        why = run.prepare()
        with contextlib.nullcontext() if why else run.writing():
            yield why

    def enlist_again(self, current: int, old: int) -> None:
        """Join a roster that was made anew, with what is in flight.

        Called with the writers' lock and the worker's own held, so that no count
        changes meanwhile.

        Raises:
            OSError: If the row cannot be made; the one before is kept.

        """
        self.counts = (current, old)
        view = self._view
        if self._epoch is not None and self._epoch.number > view.state.epoch:
            # What was published last was lost before this worker had read it.
            view.close(self._epoch.number, f"{view.path} was lost")
        self._enlist(lost=True)
        self._place.hold()
        self._look = True
        self._complaints.mended(self._store.run_dir)

    def lost_its_row(self, error: Exception) -> None:
        """Say that a row is gone and cannot be made anew."""
        run_dir = self._store.run_dir
        self._complaints.say(
            run_dir,
            f"maintenance: lost the row in {run_dir} and cannot make it anew: {error}",
        )

    def _enlist(self, *, lost: bool) -> None:
        store, view, before = self._store, self._view, (self._slot, self._epoch)
        epoch = store.run.open_epoch(self._name, view.state.epoch, lost=lost)
        try:
            if lost:
                view.write_back()
                if self._epoch is None or epoch.generation != self._epoch.generation:
                    # Others of the old roster may not have come back yet.
                    epoch.set_whole(False)
            if epoch.number < view.state.epoch:
                # What this worker has seen must not pass for what is yet to come.
                epoch.publish(view.state.epoch)
            if self._announced is None:
                self._announced = announce(
                    store.path, self._name, self.worker_id, store.run.digest
                )
            self._slot = Slot(
                slot_path(store.run_dir, self._name, self.worker_id),
                ProcessIdentity.own(),
                generation=epoch.generation,
                current=self.counts[0],
                old=self.counts[1],
            )
        except BaseException:
            epoch.close()
            raise
        self._epoch = epoch
        self._word = epoch.read()
        for part in before:
            if part is not None:
                drop(part.descriptor)

    def stand_aside(self, why: str) -> None:
        # Seen as uncounted before it is no longer seen as counted.
        held = self._hold_presence()
        slot, self._slot = self._slot, None
        if slot is not None:
            if held:
                slot.remove()
            else:
                slot.spoil()
        if self._epoch is not None:
            # From now on the state file itself is looked at: nobody would notice
            # when the epoch file is another.
            self._epoch.close()
            self._epoch = None
        self._view.doubt()
        path = self._store.path
        self._complaints.say(
            path,
            "maintenance: this worker is not counted, so that no drain can vouch for"
            f" it{'' if held else ' or even see it'}: {why}; make {path} writable for"
            " this user, or set FASTAPI_MAINTENANCE_STORE to another place, and"
            " restart",
        )

    def _hold_presence(self) -> bool:
        """Hold a lock and a name that say: here is one who cannot be counted."""
        path = self._store.path
        name = announce(path, self._name, self.worker_id, UNCOUNTED)
        if name is not None:
            if self._announced is not None:
                drop(self._announced)
            self._announced = name
        before = self._presence
        if before is not None and same_file(path, before):
            return True
        try:
            descriptor = keep(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        for _ in range(50):
            with contextlib.suppress(OSError):
                # A coordinator's own probe holds the lock for microseconds.
                if try_lock(descriptor, shared=True):
                    self._presence = descriptor
                    if before is not None:
                        drop(before)
                    return True
            time.sleep(0.001)
        drop(descriptor)
        return False

    def _read(self) -> None:
        published = int.from_bytes(self._word, "little") if self._epoch else None
        self._view.read(published)
