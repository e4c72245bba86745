"""What one worker knows of a state file, and when it does not know enough."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from ..state import MaintenanceState, StateFormatError
from ._descriptors import drop, keep
from ._disk import UntrustedFileError, read_small, same_file, write_atomic

logger = logging.getLogger("fastapi_maintenance")

Signature = tuple[int, int, int]

# It needs no right to read, and pins the directory all the same.
_PATH_ONLY: Final = getattr(os, "O_PATH", os.O_RDONLY)

_UNREAD: Final = (-1, -1, -1)

_GONE: Final = 2
"""Looks of a keeper after which a missing file is taken for *off*."""


class Complaints:
    """Says each trouble once, and once when it is over."""

    def __init__(self) -> None:
        self._said: dict[Path, str] = {}

    def say(self, about: Path, text: str) -> None:
        """Log an error, unless it was the last one about this path."""
        if text != self._said.get(about):
            logger.error("%s", text)
        self._said[about] = text

    def mended(self, about: Path) -> None:
        """Log that a path can be used again, if there was trouble with it."""
        if self._said.pop(about, ""):
            logger.warning("maintenance: %s can be used again", about)


class Held:
    """A directory that is told from every later one at its path.

    It is held open: the number of one that is not may be given to the next, which
    would then pass for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def hold(self) -> None:
        """Take the directory that is there now, if one is."""
        self.let_go()
        with contextlib.suppress(OSError):
            self._descriptor = keep(lambda: os.open(self._path, _PATH_ONLY))

    def stands(self) -> bool:
        """Tell whether the path leads to the same one; to none, where none was."""
        if self._descriptor is None:
            return not os.path.exists(self._path)  # noqa: PTH110  # never raises
        return same_file(self._path, self._descriptor)

    def let_go(self) -> None:
        """Hold none."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            drop(descriptor)

    def forked(self) -> None:
        """Forget what was closed in a child."""
        self._descriptor = None


class StateView:
    """The last state that could be read, and what is refused where it cannot be.

    Args:
        path: The state file.
        complaints: Where trouble is said.

    Attributes:
        state: The last state that is known, or a closed one.

    """

    def __init__(self, path: Path, complaints: Complaints) -> None:
        self.path = path
        self.state = MaintenanceState()
        self._complaints = complaints
        self._known = False
        self._sure = True
        self._signature: Signature | None = _UNREAD
        self._home = Held(path.parent)
        self._missing = 0

    def begin(self) -> None:
        """Start from the file, as a worker that joins does."""
        self._known = False
        self._signature = _UNREAD
        self._home.hold()

    def end(self) -> None:
        """Let go of the directory."""
        self._home.let_go()

    def forked(self) -> None:
        """Forget what was closed in a child."""
        self._home.forked()

    def doubt(self) -> None:
        """Read the file at the next look, whatever it looks like."""
        self._signature = _UNREAD

    def changed(self) -> bool:
        """Tell whether the file looks different from when it was read."""
        return _signature(self.path) != self._signature

    def tend(self) -> bool:
        """Look at the file, as a keeper does; tell whether it must be read."""
        self._missing = 0 if os.path.lexists(self.path) else self._missing + 1
        return self._missing == _GONE or self.changed()

    def read(self, published: int | None) -> None:
        """Read the file.

        Args:
            published: The published epoch, None for a worker that cannot see it. A
                counted worker takes its number from there alone: one in the file may
                be written by hand, and larger than those to come.

        """
        newest = published or 0
        self._signature = _signature(self.path)
        try:
            found = read_small(self.path)
            if found is not None:
                state = MaintenanceState.from_json(found[0])
            elif self._known and self._is_vanishing():
                if newest > self.state.epoch:
                    self.close(newest, f"{self.path} was lost")
                return
            else:
                state = MaintenanceState()
        except (OSError, StateFormatError) as error:
            self._unreadable(error, newest)
            return
        self._complaints.mended(self.path)
        written = state.epoch if published is None else 0
        state = state.but(epoch=max(newest, self.state.epoch, written))
        if state != self.state:
            self.state = state
        if not self._home.stands():
            self._home.hold()
        self._known = self._sure = True

    def close(self, published: int, reason: str) -> None:
        """Refuse: something was published that this worker does not know."""
        self.state = MaintenanceState(
            epoch=max(published, self.state.epoch), active=True, begun=True
        )
        self._sure = False
        self._complaints.say(
            self.path, f"maintenance: {reason}; refusing until it can be read"
        )

    def write_back(self) -> None:
        """Put what is known into a directory that was made anew and knows less.

        Raises:
            OSError: If it cannot be written.

        """
        if self._sure and not self._home.stands() and self._is_later():
            write_atomic(self.path, self.state.to_json().encode(), 0o644)
            self._home.hold()

    def _is_later(self) -> bool:
        known = self.state
        try:
            found = read_small(self.path)
            if found is None:
                return known.active or known.epoch > 0
            # Without an epoch it was written by hand, and counts. What opens never
            # replaces what closes: clocks, which epochs begin by, may have gone back.
            epoch = MaintenanceState.from_json(found[0]).epoch
            return known.active and 0 < epoch < known.epoch
        except (OSError, StateFormatError):
            return False

    def _is_vanishing(self) -> bool:
        """Tell whether a missing file means less than *off*.

        The directory is gone or another, or about to go: what deletes a directory
        deletes its files first. Only where it stands at a second look was the file
        alone removed, by somebody who means *off*.
        """
        return self._missing < _GONE or not self._home.stands()

    def _unreadable(self, error: Exception, published: int) -> None:
        corrupt = isinstance(error, UntrustedFileError | StateFormatError)
        if not corrupt:
            # It may be readable at the next look, without having changed.
            self._signature = _UNREAD
        reason = f"cannot read {self.path} ({error})"
        if (corrupt and not self._known) or published > self.state.epoch:
            self.close(published, reason)
        else:
            then = "keeping the last state" if self._known else "maintenance is off"
            self._complaints.say(self.path, f"maintenance: {reason}; {then}")
        self._known = self._known or corrupt


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
