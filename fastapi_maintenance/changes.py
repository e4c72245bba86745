"""What an operator asks for, and the state that follows. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from .checks import whole_seconds
from .state import (
    OPERATOR,
    VERSION,
    Line,
    MaintenanceState,
    Moment,
    first_problem,
    next_epoch,
)
from .stores import Change, StoreError

TOKEN_LENGTH: Final = 16
"""The shortest bypass token, in characters."""


class HeldError(StoreError):
    """Others hold maintenance on, and this change could open under their work."""


class CannotDrainError(ValueError):
    """The state could open by the clock, or is off: there is nothing to wait for."""


class SupersededError(Exception):
    """Another state was published in the meantime; raised within a change."""


def _ahead(length: datetime | timedelta) -> datetime | timedelta:
    if isinstance(length, timedelta) and length <= timedelta(0):
        raise ValueError("must be longer than 0 seconds")
    return length


def _in_whole_seconds(value: object) -> int:
    if isinstance(value, int | float | timedelta) and not isinstance(value, bool):
        return whole_seconds(value)
    raise ValueError(f"must be seconds or a timedelta, not {value!r}")


def _valid_token(token: str) -> str:
    validated_token_digest(token)
    return token


class EnableOptions(BaseModel):
    """What an operator asks for with ``enable`` or ``on``, validated.

    The fields are the parameters of ``MaintenanceGuard.enable``.

    Raises:
        ValueError: If a value cannot work: a time without a zone, a duration that is
            not longer than 0 seconds, a text that is not one line, a short token.
    """

    # Neither its repr nor an error shows the token.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True
    )

    message: Line | None = None
    at: Moment | None = None
    until: Annotated[Moment | timedelta, AfterValidator(_ahead)] | None = None
    auto_off: bool = False
    retry_after: Annotated[int, BeforeValidator(_in_whole_seconds)] | None = None
    read_only: bool = False
    bypass_token: Annotated[str, AfterValidator(_valid_token)] | None = Field(
        default=None, repr=False
    )
    actor: Line | None = None

    @classmethod
    def from_arguments(cls, **values: object) -> Self:
        """Return the options that code asks for; an error is one line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    def state(
        self,
        *,
        now: datetime,
        since: datetime | None = None,
        holders: tuple[str, ...] = (),
    ) -> MaintenanceState:
        """Return the state that these options describe.

        Args:
            now: The present moment.
            since: When it began, unless it is planned; now by default.
            holders: Who keeps it on.

        Raises:
            ValueError: If the start or the end has passed.
        """
        if self.at is not None and self.at <= now:
            raise ValueError(
                f"the start ({self.at.isoformat()}) has passed; leave it out to begin"
                " now"
            )
        begin = self.at or now
        until = self.until
        if isinstance(until, timedelta):
            try:
                until = begin + until
            except OverflowError:
                raise ValueError(
                    f"until ({until}) ends outside of the calendar"
                ) from None
        if until is not None and until <= begin:
            raise ValueError(
                f"the end ({until.isoformat()}) must be later than the start"
                f" ({begin.isoformat()})"
            )
        return MaintenanceState(
            enabled=True,
            since=None if self.at else since or now,
            starts_at=self.at,
            until=until,
            auto_off=self.auto_off,
            message=self.message,
            retry_after=self.retry_after,
            read_only=self.read_only,
            actor=self.actor,
            holders=holders,
            bypass=None
            if self.bypass_token is None
            else validated_token_digest(self.bypass_token),
        )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Names for the changes of a state, at one moment.

    Each is a function of the stored state, or None where nothing is stored, that
    returns the state to follow it. ``with_new_epoch`` adds the epoch.
    """

    now: datetime

    def turn_on(
        self, before: MaintenanceState | None, options: EnableOptions
    ) -> MaintenanceState:
        """Switch on as asked; refused if it could open under the work of another."""
        on = self._unless_over(before)
        others = others_holding(on)
        lets_reads_in = on is not None and options.read_only and not on.read_only
        if others and (options.at or options.auto_off or lets_reads_in):
            raise HeldError(
                f"{', '.join(others)} holds maintenance; a planned start, auto_off or"
                " read_only could let requests in too early; wait until the work is"
                " done"
            )
        # A planned window that has begun goes on, and began when it was planned.
        goes_on = on is not None and on.in_force(self.now)
        since = on.starts_at or on.since if on is not None and goes_on else None
        holders = on.holders if on is not None else ()
        if holders and OPERATOR not in holders:
            # A person's own ``on`` needs a name only beside the holds of others.
            holders = (*holders, OPERATOR)
        state = options.state(now=self.now, since=since, holders=holders)
        if on is not None:
            state = state.replace(bypass=state.bypass or on.bypass)
        return _keep_unknown(before, state)

    def turn_off(
        self,
        before: MaintenanceState | None,
        *,
        actor: str | None = None,
        force: bool = False,
    ) -> MaintenanceState:
        """Open again; refused if others hold it, unless ``force``."""
        others = others_holding(before)
        if others and not force:
            raise HeldError(
                f"maintenance is held by {', '.join(others)}; wait until they are done,"
                " or use `off --force` if they are gone"
            )
        state = MaintenanceState(since=self.now, actor=actor)
        return _keep_unknown(before, state)

    def add_hold(
        self, before: MaintenanceState | None, options: EnableOptions, holder: str
    ) -> MaintenanceState:
        """Switch on, or keep it on, under one more name."""
        if self._unless_over(before) is None or before is None:
            return self.turn_on(before, options).replace(holders=(holder,))
        asked = options.state(now=self.now)
        return before.replace(
            holders=(*(before.holders or (OPERATOR,)), holder),
            actor=asked.actor or before.actor,
            message=asked.message or before.message,
            until=asked.until or before.until,
            retry_after=before.retry_after
            if asked.retry_after is None
            else asked.retry_after,
            bypass=asked.bypass or before.bypass,
            # The stricter of both: reads may disturb the work that did not allow them.
            read_only=before.read_only and asked.read_only,
        )

    def release_hold(
        self, before: MaintenanceState, holder: str, *, stays: bool
    ) -> MaintenanceState:
        """Leave; open with the last holder, unless it stays on."""
        others = tuple(other for other in before.holders if other != holder)
        actor = holder.rpartition("#")[0]
        if stays and OPERATOR not in others:
            # So that a person can open it without force.
            others = (*others, OPERATOR)
        if others:
            return before.replace(holders=others, actor=actor, close_after=None)
        return self.turn_off(before, actor=actor, force=True)

    def make_drainable(
        self, state: MaintenanceState, close_after: float | None = None
    ) -> MaintenanceState:
        """Return the state in the form that can be drained: in force, by no clock.

        Raises:
            CannotDrainError: If it is off, has not begun, or opens by itself.
        """
        if self._unless_over(state) is None:
            raise CannotDrainError(
                "maintenance is off; switch it on first: fastapi-maintenance on --wait"
            )
        if state.auto_off:
            raise CannotDrainError(
                "auto_off could open the service under running work; switch it on"
                " again without auto_off to drain it"
            )
        if not state.in_force(self.now):
            raise CannotDrainError(
                f"the window begins at {state.starts_at}; nothing can be drained"
                " before; wait until then, or switch it on now"
            )
        return state.replace(
            since=state.since or state.starts_at,
            starts_at=None,
            close_after=close_after,
        )

    def _unless_over(self, state: MaintenanceState | None) -> MaintenanceState | None:
        """Return a state that is on or planned; None if it is off or has ended."""
        if state is None or state.phase(self.now) in {"off", "ended"}:
            return None
        return state


def with_new_epoch(
    change: Callable[[MaintenanceState | None], MaintenanceState],
    *,
    above: Iterable[int] = (),
) -> Change:
    """Return a change that gives its state a new epoch and a new tag.

    Args:
        change: From the stored state to the next one.
        above: Epochs that workers report: the store may have lost what it had.
    """
    known = tuple(above)
    tag = secrets.token_hex(8)

    def apply(before: MaintenanceState | None) -> MaintenanceState:
        if before is not None and before.version != VERSION:
            raise StoreError(
                "the stored state was written by a newer release (version"
                f" {before.version}); upgrade fastapi-maintenance-guard here"
            )
        state = change(before)
        epoch = next_epoch(before.epoch if before else 0, *known)
        return state.replace(epoch=epoch, tag=tag)

    return apply


def only_if_stored(stored: MaintenanceState | None, change: Change) -> Change:
    """Return a change that raises ``SupersededError`` unless ``stored`` is there."""

    def apply(before: MaintenanceState | None) -> MaintenanceState:
        if before != stored:
            raise SupersededError
        return change(before)

    return apply


def others_holding(state: MaintenanceState | None) -> list[str]:
    """Return the programs that keep a state on, sorted."""
    if state is None or not state.enabled:
        return []
    return sorted(set(state.holders) - {OPERATOR})


def is_at_least_as_strict(after: MaintenanceState, before: MaintenanceState) -> bool:
    """Tell whether a state lets in nothing that another one refuses.

    Bypass tokens are left out: what they let in is no work from before a drain.
    """
    return (
        after.enabled and not after.needs_clock and after.read_only <= before.read_only
    )


def validated_token_digest(token: str) -> str:
    """Return how a bypass token is stored.

    Raises:
        ValueError: If it has fewer than 16 characters, or some that no header and no
            cookie can carry.
    """
    if len(token) < TOKEN_LENGTH:
        raise ValueError(
            f"a bypass token needs at least {TOKEN_LENGTH} characters; take"
            " secrets.token_urlsafe(32)"
        )
    if not all(
        "!" <= character <= "~" and character not in '",;\\' for character in token
    ):
        raise ValueError(
            "a bypass token must be visible ASCII without quotes, commas, semicolons"
            " and backslashes; take secrets.token_urlsafe(32)"
        )
    return token_digest(token.encode())


def token_digest(token: bytes) -> str:
    """Return the stored form of any bytes that a client sent as a token."""
    return f"sha256:{hashlib.sha256(token).hexdigest()}"


def new_token() -> str:
    """Return a bypass token of 256 bits."""
    return secrets.token_urlsafe(32)


def new_holder(actor: str | None = None) -> str:
    """Return a unique name to hold maintenance under."""
    return f"{actor or default_actor()}#{secrets.token_hex(4)}"


def default_actor() -> str:
    """Return who runs this process, as ``user@host/pid``."""
    try:
        import getpass  # noqa: PLC0415  # only operators need it

        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}/{os.getpid()}"


def _keep_unknown(
    before: MaintenanceState | None, state: MaintenanceState
) -> MaintenanceState:
    extra = before.model_extra if before is not None else None
    return state.replace(**extra) if extra else state
