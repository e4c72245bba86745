"""Checks of values that Pydantic does not see: each error names the remedy."""

from __future__ import annotations

import inspect
import math
import unicodedata
from datetime import timedelta
from typing import Final

_TEXT_LIMIT: Final = 2_000
_SECONDS_LIMIT: Final = 10**9


def check_text(text: object, name: str = "") -> None:
    """Refuse a text that cannot be one line of a log, a terminal and JSON.

    Args:
        text: What is checked.
        name: What it is called; the validator of a field leaves that to ``state.py``.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {text!r}".lstrip())
    if not text.strip():
        raise ValueError(f"{name} must not be blank".lstrip())
    if len(text) > _TEXT_LIMIT:
        raise ValueError(
            f"{name} must have 1 to {_TEXT_LIMIT} characters, not {len(text)}".lstrip()
        )
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
            raise ValueError(
                f"{name} must be one line of valid text without {character!r}:"
                f" {text[:80]!r}".lstrip()
            )


def check_listener(listener: object, name: str) -> None:
    """Refuse what cannot be called with a change, from any thread."""
    if not callable(listener):
        raise TypeError(f"{name} must be callable, not {listener!r}")
    if inspect.iscoroutinefunction(listener):
        raise TypeError(
            f"{name} must be a plain function: it is called in a thread, and nothing"
            f" awaits {listener!r}"
        )


def seconds(value: object, name: str = "") -> float:
    """Return a number of seconds, from 0 to 10**9."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}".lstrip())
    # Not a number compares as false, too.
    if not 0 <= value <= _SECONDS_LIMIT:
        shown = str(value)[:20]
        raise ValueError(
            f"{name} must be 0 to {_SECONDS_LIMIT} seconds, not {shown}".lstrip()
        )
    return float(value)


def fraction(value: float, name: str) -> float:
    """Return a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number from 0 to 1, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, such as 0.1, not {value!r}")
    return float(value)


def seconds_or_none(value: float | None) -> float | None:
    """Return a number of seconds, or None."""
    return None if value is None else seconds(value)


def whole_seconds(value: float | timedelta, name: str = "") -> int:
    """Return a duration as whole seconds, rounded up."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return math.ceil(seconds(value, name))
