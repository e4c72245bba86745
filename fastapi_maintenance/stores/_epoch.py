"""The epoch of one switch: one word that every request reads with one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..state import EPOCH_LIMIT
from ._barrier import pass_barrier
from ._descriptors import drop, keep
from ._disk import same_file, write_atomic

WORD: Final = 8
"""Bytes that one ``pread`` or ``pwrite`` moves as a whole."""

_MAGIC: Final = b"FMEPOCH1"
_SIZE: Final = 40


class DamagedEpochError(OSError):
    """The file is no epoch file, or not a whole one."""


def is_epoch(found: bytes) -> bool:
    """Tell whether what was read is a whole word, and can be an epoch."""
    return len(found) == WORD and int.from_bytes(found, "little") < EPOCH_LIMIT


def word(value: int) -> bytes:
    """Return a number as the bytes of one word."""
    return value.to_bytes(WORD, "little")


class EpochFile:
    """The newest epoch of one switch, read by every request with one call.

    Attributes:
        generation: Changes when the file is made anew.
        whole: False when it replaced one that was lost, so that workers may be
            missing from the roster.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OSError: If it cannot be opened.
            DamagedEpochError: If it is truncated or another program's.
        """
        self.path = path
        self.descriptor: int = keep(lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            head = os.pread(self.descriptor, _SIZE, 0)
            if len(head) < _SIZE or head[8:16] != _MAGIC or not is_epoch(head[:WORD]):
                raise DamagedEpochError(f"{path} is no epoch file")
        except BaseException:
            drop(self.descriptor)
            raise
        self.generation: str = head[16:32].hex()
        self.whole: bool = head[32] == 1

    @staticmethod
    def create(path: Path, epoch: int, *, whole: bool) -> None:
        """Make the file anew; it appears whole or not at all."""
        flag = word(1 if whole else 0)
        content = word(epoch) + _MAGIC + os.urandom(16) + flag
        write_atomic(path, content, 0o600)

    @property
    def number(self) -> int:
        """The epoch; 0 when the file cannot tell it."""
        found = self.read()
        return int.from_bytes(found, "little") if is_epoch(found) else 0

    def read(self) -> bytes:
        """Return what the file has in the epoch's place; ``is_epoch`` judges it."""
        try:
            return os.pread(self.descriptor, WORD, 0)
        except OSError:
            return b""

    def publish(self, epoch: int) -> None:
        """Store the epoch. From here on, every admission sees it.

        Raises:
            OSError: If it cannot be stored.
        """
        os.pwrite(self.descriptor, word(epoch), 0)
        pass_barrier()

    def set_whole(self, whole: bool) -> None:  # a setter
        """Store whether the roster is known to be complete."""
        os.pwrite(self.descriptor, word(int(whole)), 32)
        self.whole = whole

    def stands(self) -> bool:
        """Tell whether the path still leads to this very file, and that is whole."""
        return is_epoch(self.read()) and same_file(self.path, self.descriptor)

    def close(self) -> None:
        """Close it."""
        drop(self.descriptor)
