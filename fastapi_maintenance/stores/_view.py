"""What one worker knows of a state file, and when it does not know enough."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from ..state import MaintenanceState, StateFormatError
from ._disk import UntrustedFileError, read_small, write_atomic

logger = logging.getLogger("fastapi_maintenance")

Signature = tuple[int, int, int]
Place = tuple[int, int]

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
        self._home: Place | None = None
        self._missing = 0

    def begin(self) -> None:
        """Start from the file, as a worker that joins does."""
        self._known = False
        self._signature = _UNREAD
        self._home = place_of(self.path.parent)

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
        self._home = place_of(self.path.parent)
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
        place = place_of(self.path.parent)
        if place != self._home and self._sure and self._is_later():
            write_atomic(self.path, self.state.to_json().encode(), 0o644)
            self._home = place

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
        return self._missing < _GONE or place_of(self.path.parent) != self._home

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


def place_of(path: Path) -> Place | None:
    """Return what tells a directory from another one at the same path."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
