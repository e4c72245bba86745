"""What an operator asks for, and the state that follows: pure, without a store."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ._checks import check_aware, check_text, whole_seconds
from .state import CLOSE_AFTER, OPERATOR, MaintenanceState
from .stores import StoreError

TOKEN_LENGTH: Final = 16
"""The shortest bypass token, in characters."""


class HeldError(StoreError):
    """Others hold maintenance on; opening would open it under them."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Order:
    """What an operator asks for with ``enable`` or ``on``; validated when made.

    Raises:
        ValueError: If a time is naive, the end is not after the start, a text
            is not one line, or the token is too short.
        TypeError: If a value has another type than documented.
    """

    message: str | None = None
    at: datetime | None = None
    until: datetime | timedelta | None = None
    auto_off: bool = False
    retry_after: int | timedelta | None = None
    read_only: bool = False
    bypass_token: str | None = None
    actor: str | None = None

    def __post_init__(self) -> None:
        check_text(self.message, "message")
        check_text(self.actor, "actor")
        check_aware(self.at, "at")
        if self.retry_after is not None:
            whole_seconds(self.retry_after, "retry_after")
        if self.bypass_token is not None:
            digest(self.bypass_token)
        if isinstance(self.until, timedelta):
            if self.until <= timedelta(0):
                raise ValueError(f"until must be a time to come, not {self.until!r}")
        else:
            check_aware(self.until, "until")
        if self.auto_off and self.until is None:
            raise ValueError("auto_off needs an end: give until as well")

    def applied(self, before: MaintenanceState, now: datetime) -> MaintenanceState:
        """Return the state that follows.

        Raises:
            HeldError: If it could open under the work of another holder.
        """
        begun = self.at is None or self.at <= now
        start = now if self.at is None else self.at
        if before.active and before.begun and begun and before.since is not None:
            start = before.since
        end = self.until
        if isinstance(end, timedelta):
            try:
                end = (now if begun else start) + end
            except OverflowError:
                raise ValueError(f"until ({end}) is beyond the calendar") from None
        if end is not None and begun and end <= now:
            raise ValueError(f"until ({end.isoformat()}) has passed already")
        others = before.active and set(before.holders) - {OPERATOR}
        looser = not begun or self.auto_off or (self.read_only and not before.read_only)
        if others and looser:
            raise HeldError(
                f"{', '.join(sorted(others))} works under maintenance now; a planned"
                " start, auto_off or read_only could open it meanwhile"
            )
        seconds = self.retry_after
        token = self.bypass_token
        kept = before.bypass if before.active else None
        return MaintenanceState(
            active=True,
            since=start,
            begun=begun,
            until=end,
            auto_off=self.auto_off,
            message=self.message,
            retry_after=None
            if seconds is None
            else whole_seconds(seconds, "retry_after"),
            read_only=self.read_only,
            actor=self.actor,
            holders=_held_too(before),
            bypass=kept if token is None else digest(token),
            extra=durable(before),
        )


def opened(
    before: MaintenanceState,
    now: datetime,
    *,
    actor: str | None = None,
    force: bool = False,
) -> MaintenanceState:
    """Return the state that is off, after another one.

    Raises:
        HeldError: If others hold it on, unless ``force``.
    """
    others = sorted(set(before.holders) - {OPERATOR}) if before.active else []
    if others and not force:
        raise HeldError(
            f"maintenance is held by {', '.join(others)}; wait until they are done, or"
            " use `off --force` if they are gone"
        )
    return MaintenanceState(since=now, actor=actor, extra=durable(before))


def joined(
    present: MaintenanceState, order: Order, holder: str, now: datetime
) -> MaintenanceState:
    """Return the state that one more holder keeps on."""
    if not present.active:
        return order.applied(present, now).but(holders=(holder,))
    asked = order.applied(MaintenanceState(), now)
    return present.but(
        holders=(*(present.holders or (OPERATOR,)), holder),
        actor=asked.actor or present.actor,
        message=asked.message or present.message,
        until=asked.until or present.until,
        retry_after=present.retry_after
        if asked.retry_after is None
        else asked.retry_after,
        bypass=asked.bypass or present.bypass,
        # The stricter of both: reads may disturb whoever did not ask for them.
        read_only=present.read_only and asked.read_only,
    )


def left(
    present: MaintenanceState, holder: str, now: datetime, *, stays: bool
) -> MaintenanceState:
    """Return the state without a holder; off without the last one, unless it stays."""
    others = tuple(other for other in present.holders if other != holder)
    actor = holder.partition("#")[0]
    if stays and OPERATOR not in others:
        # What stays on is a person's to open, without force.
        others = (*others, OPERATOR)
    if others:
        return present.but(holders=others, actor=actor, extra=durable(present))
    return opened(present, now, actor=actor, force=True)


def durable(state: MaintenanceState) -> dict[str, object]:
    """Return the further keys of a state that a later publication repeats.

    Keys of newer releases are kept. An order to close belongs to one drain: workers
    would take it for a new one, and close what was let in since.
    """
    return {key: value for key, value in state.extra.items() if key != CLOSE_AFTER}


def digest(token: str) -> str:
    """Return how a bypass token is stored.

    Raises:
        ValueError: If it has fewer than 16 characters, or some that no header
            and cookie can carry.
    """
    if len(str(token)) < TOKEN_LENGTH:
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
    return hashed(token.encode())


def hashed(token: bytes) -> str:
    """Return the form in which a token is stored and compared, whatever was sent."""
    return f"sha256:{hashlib.sha256(token).hexdigest()}"


def new_token() -> str:
    """Return a bypass token of 256 bits."""
    return secrets.token_urlsafe(32)


def new_holder(actor: str | None = None) -> str:
    """Return a name to hold maintenance on by, which no other holder has."""
    return f"{actor or default_actor()}#{secrets.token_hex(4)}"


def default_actor() -> str:
    """Return who runs this process, as ``user@host/pid``."""
    try:
        import getpass  # noqa: PLC0415  # brings terminals along, for operators only

        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}/{os.getpid()}"


def _held_too(before: MaintenanceState) -> tuple[str, ...]:
    # An operator's own ``on`` needs a name only beside the holds of others.
    if not before.active or not before.holders or OPERATOR in before.holders:
        return before.holders if before.active else ()
    return (*before.holders, OPERATOR)
