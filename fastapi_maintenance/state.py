"""What an operator has set: an immutable value, its JSON form, and its phases."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from .checks import check_text, seconds_or_none

Phase = Literal["off", "scheduled", "in force", "overdue", "ended"]
"""``overdue``: the announced end has passed, and the state waits for ``off``."""

VERSION: Final = 1
"""The version of the JSON form that this release writes and fully understands."""

EPOCH_LIMIT: Final = 1 << 53
"""Epochs stay below this: many JSON readers hold numbers as doubles."""

OPERATOR: Final = "operator"
"""The holder's name of a person's own ``on`` beside the holds of programs."""

SIZE_LIMIT: Final = 64 * 1024
"""Bytes of a stored state."""


class StateFormatError(ValueError):
    """A document is not a maintenance state."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is outside of the calendar") from None


def _one_line(text: str) -> str:
    check_text(text)
    return text


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Line = Annotated[str, AfterValidator(_one_line)]


class MaintenanceState(BaseModel):
    """What an operator has set: on or off, since when, until when, and why.

    Keys that this release does not know are kept, for releases that do.

    Attributes:
        epoch: The number of this publication. It grows with each one.
        tag: A random mark of this publication, which tells equal epochs of two
            histories apart.
        version: The version of the JSON form. A version that this release does not know
            refuses every guarded request while ``enabled``.
        enabled: Whether maintenance is on, now or in the planned window.
        since: When it began; when it ended, if it is off.
        starts_at: A planned start. None once it is in force for certain: published so,
            or confirmed by a drain.
        until: The announced end. It feeds ``Retry-After`` and opens nothing, unless
            ``auto_off`` is set.
        auto_off: Open by the clock when ``until`` has passed.
        message: What refused clients read; one line.
        retry_after: Seconds for ``Retry-After`` while no end is ahead.
        read_only: Let GET, HEAD and OPTIONS through.
        actor: Who published it.
        holders: Who keeps maintenance on; it opens when the last one leaves.
        close_after: Seconds after which requests from before this publication are asked
            to end.
        bypass: ``sha256:`` and the digest of the operators' token, never the token. It
            is left out when the model is serialised; ``to_json`` has it.

    Raises:
        ValueError: If a time has no zone, the end is not after the start, ``auto_off``
            has no end, a number is out of range, or a text is not one line. Pydantic's
            ``ValidationError`` is one.

    Examples:
        >>> MaintenanceState(enabled=True, message="Back at noon").enabled
        True
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, strict=True, extra="allow"
    )

    epoch: int = Field(default=0, ge=0, lt=EPOCH_LIMIT)
    tag: str = Field(default="", max_length=64)
    version: int = VERSION
    enabled: bool = False
    since: Moment | None = None
    starts_at: Moment | None = None
    until: Moment | None = None
    auto_off: bool = False
    message: Line | None = None
    retry_after: int | None = Field(default=None, ge=0, le=10**9)
    read_only: bool = False
    actor: Line | None = None
    holders: tuple[Line, ...] = ()
    close_after: Annotated[float | None, AfterValidator(seconds_or_none)] = None
    bypass: Line | None = Field(default=None, exclude=True, repr=False)

    # The text of a newer release, which is written back as it was read.
    _document: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        begin = self.starts_at or self.since
        if self.enabled and begin and self.until and self.until <= begin:
            raise ValueError(
                f"until ({self.until.isoformat()}) must be later than the start"
                f" ({begin.isoformat()})"
            )
        if self.auto_off and self.until is None:
            raise ValueError("auto_off needs an end: give until as well")
        return self

    def in_force(self, now: datetime) -> bool:
        """Tell whether guarded requests are refused at a moment.

        Args:
            now: The time to judge by, with a time zone.

        Raises:
            ValueError: If ``now`` has no time zone.
        """
        if not self.enabled:
            return False
        if self.version != VERSION:
            return True
        if now.utcoffset() is None:
            raise ValueError(f"now has no time zone: {now.isoformat()}; add tzinfo")
        if self.starts_at is not None and now < self.starts_at:
            return False
        return not (self.auto_off and self.until is not None and self.until <= now)

    @property
    def needs_clock(self) -> bool:
        """Whether the time decides: a planned start, or an end that opens."""
        return self.starts_at is not None or self.auto_off

    def phase(self, now: datetime) -> Phase:
        """Return which part of its life the state is in.

        Raises:
            ValueError: If ``now`` has no time zone.
        """
        if not self.enabled:
            return "off"
        in_force = self.in_force(now)
        over = self.until is not None and self.until <= now
        if in_force:
            return "overdue" if over else "in force"
        return "ended" if over else "scheduled"

    def replace(self, **changes: object) -> Self:
        """Return this state with some fields replaced, and validated again.

        Raises:
            ValueError: If the new state cannot be.
        """
        # ``bypass`` is excluded from every dump, so the values are read directly.
        values = {**dict(self), **(self.model_extra or {}), **changes}
        return type(self)(**values)

    def to_json(self) -> str:
        """Return the form that stores keep: all fields and all unknown keys."""
        if self._document is not None:
            return self._document
        values = self.model_dump(mode="json") | {"bypass": self.bypass}
        return json.dumps(values, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> Self:
        """Read the form that stores keep.

        Raises:
            StateFormatError: If the document is not a state: not UTF-8, not one JSON
                object, a key that appears twice, a value of another type than
                documented, or more than 64 KiB. No other exception is raised.
        """
        try:
            text, values = _parse(document)
            if values.get("version", VERSION) == VERSION:
                return cls.model_validate_json(text)
            # Of a newer form, only these are certain. The rest is kept as it is.
            known = {"version", "enabled", "epoch", "tag"} & values.keys()
            state = cls.model_validate({name: values[name] for name in known})
        except StateFormatError:
            raise
        except ValidationError as error:
            raise StateFormatError(first_problem(error)) from None
        except (ValueError, RecursionError) as error:
            raise StateFormatError(str(error) or type(error).__name__) from error
        state._document = text  # noqa: SLF001  # its own class
        return state


def next_epoch(*known: int) -> int:
    """Return an epoch that is larger than all known ones.

    It starts from the clock, so that a store that has lost its data does not begin
    below what workers remember. The order of epochs never depends on the clock.
    """
    epoch = max(int(time.time() * 1000), *(number + 1 for number in known))
    if epoch >= EPOCH_LIMIT:
        raise ValueError(
            f"no epoch is larger than {epoch - 1}; remove the one that was written by"
            " hand from the stored state, and restart the workers"
        )
    return epoch


def _parse(document: str | bytes) -> tuple[str, dict[str, object]]:
    if len(document) > SIZE_LIMIT:
        raise StateFormatError(f"more than {SIZE_LIMIT} bytes")
    text = document.decode("utf-8") if isinstance(document, bytes) else document
    values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(values, dict):
        raise StateFormatError(f"not a JSON object but {type(values).__name__}")
    if "enabled" not in values:
        raise StateFormatError('the key "enabled" is missing: true or false')
    # What cannot be written back, such as half of a surrogate pair, could not be
    # switched off.
    json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    return text, values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise StateFormatError("a key appears twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise StateFormatError(f"{name} is not JSON")


def first_problem(
    error: ValidationError, shown: Callable[[str], str] = lambda field: field
) -> str:
    """Return the first problem that Pydantic found, in one line.

    Args:
        error: What Pydantic raised.
        shown: Turns a field's name into the one that the reader knows.
    """
    problem = error.errors(include_url=False, include_context=False)[0]
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    field = shown(str(problem["loc"][0]))
    if text.startswith("must "):
        return f"{field} {text}"  # From the validators of this package.
    if text.startswith("Input should "):
        # A token of another type, such as bytes, is a secret all the same.
        secret = problem["loc"][0] == "bypass_token"
        value = "" if secret else f", not {problem['input']!r:.80}"
        remedy = (
            "; use datetime.now(UTC)" if problem["type"] == "timezone_aware" else ""
        )
        return f"{field} {text.removeprefix('Input ')}{value}{remedy}"
    return f"{field}: {text}"
