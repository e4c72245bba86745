"""What an operator has set: an immutable value, its JSON form and its arithmetic."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal, NoReturn

from ._checks import check_aware, check_text, is_a

Phase = Literal["off", "scheduled", "in force", "ending", "ended"]

VERSION: Final = 1
"""The version of the JSON form that this release writes and fully understands."""

EPOCH_LIMIT: Final = 1 << 53
"""Epochs stay below this: JSON readers and Lua hold numbers as doubles."""

LONGEST_WAIT: Final = 86_400
"""The largest ``Retry-After`` in seconds; clients really sleep that long."""

OPERATOR: Final = "operator"
"""The holder's name of a person's own ``on`` beside the holds of programs."""

CLOSE_AFTER: Final = "close_after"
"""The key in ``extra`` of an order to close what is long: seconds, for one drain."""

_SIZE_LIMIT: Final = 64 * 1024


class StateFormatError(ValueError):
    """A document is not a maintenance state."""


@dataclass(frozen=True, kw_only=True)
class MaintenanceState:
    """What an operator has set: on or off, since when, until when, and why.

    Attributes:
        epoch: The number of this publication; grows with each one.
        active: Whether maintenance is on, now or in the announced window.
        since: When it begins or began.
        begun: Published as in force at once, so that no worker's clock has a
            say in it. Without it, ``since`` is the start of a planned window.
        until: The announced end. It feeds ``Retry-After``; it opens only
            with ``auto_off``.
        auto_off: Open by the clock when ``until`` has passed.
        message: What refused clients read; one line.
        retry_after: Seconds for ``Retry-After`` while no end is ahead.
        read_only: Let GET, HEAD and OPTIONS through.
        actor: Who published it.
        holders: Who keeps maintenance on; it opens when the last one leaves.
        bypass: ``sha256:`` and the digest of the operators' token, never the
            token itself.
        version: The version of the JSON form it was read from. One that this
            release does not know blocks everything guarded while ``active``.
        extra: Keys that this release does not know, kept for those that do.

    Raises:
        ValueError: If a time has no zone, the end is not after the start,
            ``auto_off`` has no end, a number is negative or beyond its limit, or a
            text cannot be shown on one line.
        TypeError: If a field has another type than documented.
    """

    epoch: int = 0
    active: bool = False
    since: datetime | None = None
    begun: bool = False
    until: datetime | None = None
    auto_off: bool = False
    message: str | None = None
    retry_after: int | None = None
    read_only: bool = False
    actor: str | None = None
    holders: tuple[str, ...] = ()
    bypass: str | None = None
    version: int = VERSION
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:  # noqa: C901  # a list of checks
        # The value is shared between threads; what it was made from may change.
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))
        for name in ("active", "begun", "auto_off", "read_only"):
            if type(getattr(self, name)) is not bool:
                raise TypeError(
                    f"{name} must be True or False, not {getattr(self, name)!r}"
                )
        if type(self.epoch) is not int:
            raise TypeError(f"epoch must be an integer, not {self.epoch!r}")
        if not 0 <= self.epoch < EPOCH_LIMIT:
            raise ValueError(f"epoch must be from 0 to 2**53 - 1, not {self.epoch!r}")
        if self.retry_after is not None and type(self.retry_after) is not int:
            raise TypeError(
                f"retry_after must be whole seconds, not {self.retry_after!r}"
            )
        if self.retry_after is not None and self.retry_after < 0:
            raise ValueError(
                f"retry_after must not be negative, not {self.retry_after!r}"
            )
        for name in ("since", "until"):
            check_aware(getattr(self, name), name)
        for name in ("message", "actor", "bypass"):
            check_text(getattr(self, name), name)
        if not is_a(self.holders, tuple) or None in self.holders:
            raise TypeError(f"holders must be a tuple of names, not {self.holders!r}")
        for holder in self.holders:
            check_text(holder, "holder")
        if (
            self.since is not None
            and self.until is not None
            and self.until <= self.since
        ):
            raise ValueError(
                f"until ({self.until.isoformat()}) must be later than the start"
                f" ({self.since.isoformat()})"
            )
        if self.auto_off and self.until is None:
            raise ValueError("auto_off needs an end: give until as well")

    def in_force(self, now: datetime) -> bool:
        """Tell whether guarded requests are to be refused at a moment.

        Args:
            now: The reading of the clock, so that callers own time.

        Raises:
            ValueError: If ``now`` has no time zone.
        """
        if not self.active:
            return False
        if self.version != VERSION:
            return True
        check_aware(now, "now")
        if not self.begun and self.since is not None and now < self.since:
            return False
        return not (self.auto_off and self.until is not None and self.until <= now)

    @property
    def timed(self) -> bool:
        """Whether a clock has a say in it: a planned start, or an end that opens."""
        return self.auto_off or (self.since is not None and not self.begun)

    def wait_seconds(self, now: datetime, default: int) -> int:
        """Return how long a refused client is asked to wait.

        Args:
            now: The reading of the clock.
            default: Seconds used when the state names neither an end that is
                ahead nor a ``retry_after``.

        Returns:
            From 1 to 86400: a zero would invite clients to hammer the door.
        """
        if self.until is not None and self.until > now:
            seconds = math.ceil((self.until - now).total_seconds())
        else:
            seconds = default if self.retry_after is None else self.retry_after
        return max(1, min(seconds, LONGEST_WAIT))

    def but(self, **changes: object) -> MaintenanceState:
        """Return this state with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]  # checked at run time

    def to_json(self) -> str:
        """Return the documented JSON form, unknown keys included."""
        known: dict[str, object] = {"version": self.version}
        for name in _KNOWN:
            value = getattr(self, name)
            if isinstance(value, datetime):
                value = value.astimezone(UTC).isoformat().replace("+00:00", "Z")
            known[name] = value
        return json.dumps({**known, **self.extra}, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> MaintenanceState:
        """Read the JSON form.

        Raises:
            StateFormatError: If the document is not a state: not UTF-8, not
                one JSON object, a key twice, a value of another type than
                documented, or over 64 KiB. It is the only exception.
        """
        try:
            return cls._from_mapping(_parse(document))
        except StateFormatError:
            raise
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise StateFormatError(str(error) or type(error).__name__) from error

    @classmethod
    def _from_mapping(cls, values: dict[str, object]) -> MaintenanceState:
        if type(values.get("active")) is not bool:
            raise StateFormatError(
                f'"active" must be true or false, not {values.get("active")!r}'
            )
        version = values.pop("version", VERSION)
        if type(version) is not int:
            raise StateFormatError(f'"version" must be an integer, not {version!r}')
        if version != VERSION:
            # A newer release wrote it: only what is certain is read, and
            # everything else is kept for a reader that understands it.
            certain = {
                name: values.pop(name) for name in ("active", "epoch") if name in values
            }
            return cls(**certain, version=version, extra=values)  # type: ignore[arg-type]  # checked in __post_init__
        known = {name: values.pop(name) for name in _KNOWN if name in values}
        for name in ("since", "until"):
            if known.get(name) is not None:
                known[name] = _moment(known[name], name)
        known["holders"] = _strings(known.get("holders", []))
        return cls(**known, extra=values)  # type: ignore[arg-type]  # checked in __post_init__


_KNOWN: Final = tuple(
    item.name
    for item in fields(MaintenanceState)
    if item.name not in {"version", "extra"}
)


def phase(state: MaintenanceState, now: datetime) -> Phase:
    """Return where in its life a state is.

    ``ending``: its announced end has passed, and it waits for a person to open.
    """
    if not state.active:
        return "off"
    over = state.until is not None and state.until <= now
    if state.in_force(now):
        return "ending" if over else "in force"
    return "ended" if over else "scheduled"


def next_epoch(*known: int) -> int:
    """Return an epoch larger than all that are known.

    It starts from the clock's milliseconds only so that a store that lost its
    data does not begin below what workers remember; the order never rests on it.
    """
    return max(int(time.time() * 1000), *(epoch + 1 for epoch in known))


def _parse(document: str | bytes) -> dict[str, object]:
    if len(document) > _SIZE_LIMIT:
        raise StateFormatError(f"more than {_SIZE_LIMIT} bytes")
    text = document.decode("utf-8") if isinstance(document, bytes) else document
    values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(values, dict):
        raise StateFormatError(f"not a JSON object but {type(values).__name__}")
    # What could not be written back, as half of a pair or a number without an end,
    # could not be switched off.
    json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    return values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise StateFormatError("a key appears twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise StateFormatError(f"{name} is not JSON")


def _moment(value: object, name: str) -> datetime:
    if not isinstance(value, str):
        raise StateFormatError(f'"{name}" must be an ISO 8601 time, not {value!r}')
    moment = datetime.fromisoformat(value)
    if moment.utcoffset() is not None:
        moment.astimezone(UTC)  # Beyond the last year, it could not be written back.
    return moment


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise StateFormatError(f'"holders" must be a list of strings, not {value!r}')
    return tuple(value)
