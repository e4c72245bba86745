"""Durations and moments as people type and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Final

_DURATION: Final = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?", re.ASCII
)
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_CLOCK: Final = re.compile(r"[0-9]{2}:[0-9]{2}(?::[0-9]{2})?", re.ASCII)


def parse_duration(text: str, *, bare: bool = False) -> timedelta:
    """Read ``45s``, ``20m``, ``1h30m`` or ``2d``.

    Args:
        text: What was typed.
        bare: Read a number without a unit as seconds.

    Raises:
        ValueError: If it is not a duration, or too long for a calendar.
    """
    word = text.strip().lower()
    if bare and _SECONDS.fullmatch(word):
        word += "s"
    match = _DURATION.fullmatch(word)
    if match is None or not word:
        bare_too = " or a number of seconds" if bare else ""
        raise ValueError(
            f"not a duration: {text!r}; write 45s, 20m, 1h30m or 2d{bare_too}"
        )
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    try:
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ValueError(f"too long: {text!r}; write 45s, 20m, 1h30m or 2d") from None


def parse_moment(text: str, *, after: datetime) -> datetime:
    """Read an ISO 8601 time, or ``HH:MM`` for the next such time.

    Args:
        text: What was typed. Without an offset it means local time.
        after: Where ``HH:MM`` starts to look.

    Returns:
        An aware time in UTC.

    Raises:
        ValueError: If it is not a time, is skipped here when clocks change, or happens
            twice; the message names the remedy.
    """
    word = text.strip()
    try:
        if _CLOCK.fullmatch(word):
            day = after.astimezone().date()
            return _next(datetime.combine(day, time.fromisoformat(word)), after)
        moment = datetime.fromisoformat(word)
    except _LocalTimeError:
        raise
    except ValueError:
        raise ValueError(
            f"not a time: {text!r}; write 2030-01-31T18:00, 2030-01-31T18:00Z or 18:00"
        ) from None
    try:
        return _resolved(moment) if moment.tzinfo is None else moment.astimezone(UTC)
    except _LocalTimeError:
        raise
    except (ValueError, OverflowError):
        raise ValueError(f"outside of the calendar: {text!r}") from None


class _LocalTimeError(ValueError):
    """A local time that does not exist, or that happens twice."""


def _next(today: datetime, after: datetime) -> datetime:
    found = _resolved(today)
    return found if found > after else _resolved(today + timedelta(days=1))


def _resolved(naive: datetime) -> datetime:
    # PEP 495: a time that a clock change skips comes back from UTC as another one. A
    # time that it repeats means two moments, one for each fold.
    both = sorted({naive.replace(fold=fold).astimezone(UTC) for fold in (0, 1)})
    found = [
        moment
        for moment in both
        if moment.astimezone().replace(tzinfo=None, fold=0) == naive
    ]
    shown = naive.isoformat(timespec="minutes")
    if not found:
        moved = both[-1].astimezone()
        raise _LocalTimeError(
            f"{shown} does not exist in local time: clocks are put forward over it;"
            f" did you mean {moved.isoformat(timespec='minutes')}?"
        )
    if len(found) > 1:
        either = " or ".join(
            moment.astimezone().isoformat(timespec="minutes") for moment in found
        )
        raise _LocalTimeError(
            f"{shown} happens twice in local time: clocks are put back; write {either}"
        )
    return found[0]


def show_moment(moment: datetime) -> str:
    """Return a time as local time and UTC, once where these are the same."""
    there = moment.astimezone(UTC)
    here = moment.astimezone()
    if not here.utcoffset():
        return f"{there:%Y-%m-%d} {_clock(there)} UTC"
    day = "" if here.date() == there.date() else f"{there:%Y-%m-%d} "
    return f"{here:%Y-%m-%d} {_clock(here)} {here.tzname()} ({day}{_clock(there)} UTC)"


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}" if moment.second else f"{moment:%H:%M}"


def clock() -> str:
    """Return the local time of day."""
    return f"{datetime.now().astimezone():%H:%M:%S}"
