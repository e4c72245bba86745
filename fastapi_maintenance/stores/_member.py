"""A worker of a file store: its row, and its view of the state file."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from ..state import MaintenanceState, StateFormatError
from . import StoreError
from ._disk import HAS_LOCKS, UntrustedFileError, read_small, try_lock
from ._process import ProcessIdentity
from ._slots import WORD, EpochFile, Slot, slot_path

if TYPE_CHECKING:
    from .file import FileStore

logger = logging.getLogger("fastapi_maintenance")

Signature = tuple[int, int, int]


class FileLink:
    """Counts in a slot, reads the epoch word, and the state file when it moved.

    Without a usable directory it is *uncounted*: it reads the state file alone.
    """

    immediate = True

    def __init__(self, store: FileStore, name: str) -> None:
        self._store = store
        self._name = name
        self._path = store.run.state_path(name)
        self._slot: Slot | None = None
        self._epoch: EpochFile | None = None
        self._word = b""
        self._state = MaintenanceState()
        self._known = False
        self._signature: Signature | None = None
        self._home: tuple[int, int] | None = None
        self._look = False
        self._presence: int | None = None
        self._complaint = ""
        self.worker_id = ""
        self.counts = (0, 0)

    @property
    def counted(self) -> bool:
        """Whether coordinators can see this worker."""
        return self._slot is not None

    def join(self, patience: float) -> MaintenanceState:
        try:
            why = self._store.run.prepare()
            if not why:
                self._enlist(lost=False)
        except (OSError, StoreError) as error:
            why = str(error)
        if why:
            self.stand_aside(why)
        self._known = False
        self._home = _place(self._store.path)
        self._read()
        return self._state

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            if self._slot is not None:
                self._slot.remove()
        self._slot = None
        self._drop()

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
        before = self._state
        if self._epoch is None:
            if self._changed():
                self._read()
        else:
            found = self._epoch.read()
            if found != self._word or self._look:
                self._word = found if len(found) == WORD else self._word
                self._read()
        self._look = False
        return self._state if self._state is not before else None

    def adopted(self, epoch: int) -> None:
        if self._slot is not None:
            with contextlib.suppress(OSError):
                self._slot.seen(epoch)

    def forked(self) -> None:
        # The lock belongs to the open file, which the child shares: kept open
        # here, it would keep a dead parent alive.
        for part in (self._slot, self._epoch):
            if part is not None:
                os.close(part.descriptor)
        self._slot = self._epoch = None
        self._drop()

    def tend(self, oldest: tuple[str, float] | None) -> bool:
        """Do what no request would: show the oldest request, see a hand edit.

        Returns:
            Whether the row still stands where coordinators look for it.

        """
        if self._slot is None or self._epoch is None:
            return True
        with contextlib.suppress(OSError):
            self._slot.oldest(oldest)
        self._look = self._look or self._changed()
        whole = len(self._epoch.read()) == WORD
        return whole and self._slot.stands() and self._epoch.stands()

    def enlist_again(self, current: int, old: int) -> None:
        """Join a roster that was made anew, with what is in flight.

        Called with the worker's lock held, so that no count changes meanwhile.
        """
        self.counts = (current, old)
        before, self._slot = self._slot, None
        try:
            self._store.run.prepare()
            self._enlist(lost=True)
            if self._home != _place(self._store.path):
                self._store.restore(self._name, self._state)
                self._home = _place(self._store.path)
        except (OSError, StoreError) as error:
            self._slot = before
            self._say(
                f"lost its row in {self._store.run_dir} and cannot make it anew: {error}"
            )
            return
        if before is not None:
            os.close(before.descriptor)
        self._look = True

    def _enlist(self, *, lost: bool) -> None:
        store = self._store
        with store.run.writing():
            epoch = store.run.open_epoch(self._name, self._state.epoch, lost=lost)
            if lost and (
                self._epoch is None or epoch.generation != self._epoch.generation
            ):
                # Others of the old roster may not have come back yet.
                epoch.set_whole(False)
            self._slot = Slot(
                slot_path(store.run_dir, self._name, self.worker_id),
                ProcessIdentity.own(),
                generation=epoch.generation,
                current=self.counts[0],
                old=self.counts[1],
                seen=self._state.epoch if lost else 0,
            )
        if self._epoch is not None:
            self._epoch.close()
        self._epoch = epoch
        self._word = epoch.read()

    def stand_aside(self, why: str) -> None:
        # Seen as uncounted before it is no longer seen as counted.
        held = self._hold_presence()
        slot, self._slot = self._slot, None
        if slot is not None and held:
            with contextlib.suppress(OSError):
                slot.remove()
        remedy = (
            f"make {self._store.path} writable for this user, or set"
            " FASTAPI_MAINTENANCE_STORE to another place, and restart"
        )
        self._say(
            f"maintenance: this worker is not counted, so that no drain can vouch for"
            f" it{'' if held else ' or even see it'}: {why}; {remedy}"
        )

    def _hold_presence(self) -> bool:
        if self._presence is not None or not HAS_LOCKS:
            return self._presence is not None
        try:
            descriptor = os.open(self._store.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        for _ in range(50):
            # A coordinator's own probe holds the lock for microseconds.
            if try_lock(descriptor, shared=True):
                self._presence = descriptor
                return True
            time.sleep(0.001)
        os.close(descriptor)
        return False

    def _changed(self) -> bool:
        return _signature(self._path) != self._signature

    def _read(self) -> None:
        published = int.from_bytes(self._word, "little") if self._epoch else 0
        newest = max(published, self._state.epoch)
        self._signature = _signature(self._path)
        try:
            found = read_small(self._path)
            if found is not None:
                state = MaintenanceState.from_json(found[0])
            elif self._known and _place(self._store.path) != self._home:
                return  # The directory vanished, or is another: the last state holds.
            else:
                state = MaintenanceState()
        except (OSError, StateFormatError) as error:
            self._unreadable(error, published)
            return
        if self._complaint:
            logger.warning("maintenance: %s can be read again", self._path)
        self._complaint = ""
        state = state.but(epoch=max(newest, state.epoch))
        if state != self._state:
            self._state = state
        self._home = _place(self._store.path)
        self._known = True

    def _unreadable(self, error: Exception, published: int) -> None:
        corrupt = isinstance(error, UntrustedFileError | StateFormatError)
        newer = published > self._state.epoch
        if (corrupt and not self._known) or newer:
            # Something was published that this worker does not know: closed.
            self._state = MaintenanceState(
                epoch=max(published, self._state.epoch), active=True, begun=True
            )
            then = "refusing until it can be read"
        else:
            then = "keeping the last state" if self._known else "maintenance is off"
        self._known = self._known or corrupt
        self._say(f"maintenance: cannot read {self._path} ({error}); {then}")

    def _say(self, text: str) -> None:
        if text != self._complaint:
            logger.error("%s", text)
        self._complaint = text

    def _drop(self) -> None:
        if self._epoch is not None:
            self._epoch.close()
        if self._presence is not None:
            os.close(self._presence)
        self._epoch = self._presence = None
        self._word = b""
        self._signature = None


def _place(path: os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _signature(path: os.PathLike[str]) -> Signature | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
