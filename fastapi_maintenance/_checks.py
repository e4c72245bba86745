"""What values must be like before they are taken: refused with a remedy, or passed."""

from __future__ import annotations

import inspect
import math
import sys
import unicodedata
from datetime import datetime, timedelta
from types import UnionType
from typing import Final

_TEXT_LIMIT: Final = 2_000
_SECONDS_LIMIT: Final = 10**9


def is_a(value: object, kind: type | UnionType) -> bool:
    """Tell whether a value is what its annotation says, for callers without one."""
    return isinstance(value, kind)


def check_aware(moment: datetime | None, name: str) -> None:
    """Refuse a time without a zone.

    Raises:
        TypeError: If it is not a ``datetime``.
        ValueError: If it has no zone; the message names the remedy.
    """
    if moment is None:
        return
    if not isinstance(moment, datetime):
        raise TypeError(f"{name} must be a datetime, not {moment!r}")
    if moment.utcoffset() is None:
        raise ValueError(
            f"{name} has no time zone: {moment.isoformat()}; use datetime.now(UTC) or"
            " add tzinfo"
        )


def check_text(text: str | None, name: str) -> None:
    """Refuse a text that cannot be one line of a log, a terminal and JSON.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty, over 2000 characters, or has a control
            character, a line break or a lone surrogate.
    """
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {text!r}")
    if not text.strip() or len(text) > _TEXT_LIMIT:
        raise ValueError(
            f"{name} must have 1 to {_TEXT_LIMIT} characters, not {len(text)}"
        )
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
            raise ValueError(
                f"{name} must be one line of valid text without {character!r}:"
                f" {text[:80]!r}"
            )


def is_finite(value: float) -> bool:
    """Tell whether a number is one that a float can hold: integers can be too long."""
    return bool(abs(value) <= sys.float_info.max)


def check_listener(listener: object, name: str) -> None:
    """Refuse what cannot be called with a change, from any thread.

    Raises:
        TypeError: If it is not callable, or a coroutine function.
    """
    if not callable(listener):
        raise TypeError(f"{name} must be callable, not {listener!r}")
    if inspect.iscoroutinefunction(listener):
        raise TypeError(
            f"{name} must be a plain function: it is called in whichever thread"
            f" noticed the change, and nothing awaits {listener!r}"
        )


def whole_seconds(value: float | timedelta, name: str) -> int:
    """Return a duration as whole seconds, rounded up.

    Raises:
        TypeError: If it is neither a number nor a ``timedelta``.
        ValueError: If it is negative, not finite, or beyond all reason.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {value!r}")
    # Not a number compares as false, too.
    if not 0 <= value <= _SECONDS_LIMIT:
        raise ValueError(
            f"{name} must be 0 to {_SECONDS_LIMIT} seconds, not {str(value)[:20]}"
        )
    return math.ceil(value)
