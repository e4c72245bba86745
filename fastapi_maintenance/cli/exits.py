"""How a command ends: its exit code, and the line that says why."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..fence import Outcome


class ExitCode(IntEnum):
    """What every command ends with; ``docs/cli.md`` has the same table."""

    DONE = 0
    USAGE = 2
    IN_FORCE = 3
    BUSY = 10
    LOST = 11
    SUPERSEDED = 12
    TOO_FEW = 13
    UNREACHABLE = 14
    UNKNOWN = 15
    NOT_STARTED = 125
    NO_COMMAND = 127

    @classmethod
    def of(cls, outcome: Outcome) -> ExitCode:
        """Return the code for the outcome of a drain."""
        return _OUTCOMES[outcome]

    @staticmethod
    def of_signal(number: int) -> int:
        """Return the code of what a signal has ended."""
        return 128 + number


_OUTCOMES: Final[dict[Outcome, ExitCode]] = {
    "drained": ExitCode.DONE,
    "busy": ExitCode.BUSY,
    "lost": ExitCode.LOST,
    "superseded": ExitCode.SUPERSEDED,
    "too_few": ExitCode.TOO_FEW,
    "unknown": ExitCode.UNKNOWN,
}


class FailureError(Exception):
    """A command ends here, with an exit code and one line.

    Attributes:
        code: The exit code.
        run_as: The user who may run this command; the line then shows how.
    """

    def __init__(self, code: int, text: str, *, run_as: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.run_as = run_as
