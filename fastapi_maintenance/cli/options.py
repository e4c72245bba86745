"""What can be given on the command line, and what is made of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from ..orders import Order, default_actor
from ..waiting import Plan
from .times import parse_duration, parse_moment

TIMEOUT: Final = "60"

Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where the state lives: file:PATH or redis://HOST/0?prefix=NAME. Default:"
        " $FASTAPI_MAINTENANCE_STORE, else file:.fastapi-maintenance.",
    ),
]
Name = Annotated[
    str, typer.Option(metavar="NAME", help="Which switch of the store it is about.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON lines.")]
Message = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What refused clients read.")
]
For = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="20m", help="How long it is expected to last: 45s, 20m, 1h30m."
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="When it is expected to end: ISO 8601 or HH:MM; local time unless it has"
        " an offset.",
    ),
]
At = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="When it begins; now by default."),
]
AutoOff = Annotated[
    bool, typer.Option("--auto-off", help="Open by the clock at the end.")
]
ReadOnly = Annotated[
    bool, typer.Option("--read-only", help="Let GET, HEAD and OPTIONS pass.")
]
RetryAfter = Annotated[
    str | None,
    typer.Option(metavar="N", help="Seconds for Retry-After when no end is ahead."),
]
Bypass = Annotated[
    bool,
    typer.Option("--bypass", help="Make a token that lets operators in; shown once."),
]
Init = Annotated[
    bool, typer.Option("--init", help="Make the store where there is none yet.")
]
Timeout = Annotated[
    str | None,
    typer.Option(metavar="60", help="Seconds to wait, or 10m; 60 by default."),
]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="How many workers must be there; says that these are all."
    ),
]

CloseAfter = Annotated[
    str | None,
    typer.Option(
        metavar="10s",
        help="Close counted WebSockets (code 1012) after this time, and tell streams"
        " that ask.",
    ),
]


def an_order(
    *,
    message: str | None,
    for_: str | None,
    until: str | None,
    at: str | None,
    auto_off: bool,
    read_only: bool,
    retry_after: str | None,
    token: str | None,
) -> Order:
    """Return what an operator asks for.

    Raises:
        ValueError: If an option cannot work; the message names the remedy.
    """
    if for_ is not None and until is not None:
        raise ValueError("--for and --until both name the end; give one of them")
    now = datetime.now(UTC)
    begin = None if at is None else parse_moment(at, after=now)
    end: datetime | timedelta | None = None
    if for_ is not None:
        end = parse_duration(for_)
    elif until is not None:
        end = parse_moment(until, after=begin or now)
    if auto_off and end is None:
        raise ValueError("--auto-off needs an end: give --for or --until as well")
    return Order(
        message=message,
        at=begin,
        until=end,
        auto_off=auto_off,
        retry_after=None
        if retry_after is None
        else parse_duration(retry_after, bare=True),
        read_only=read_only,
        bypass_token=token,
        actor=default_actor(),
    )


def a_plan(timeout: str | None, workers: str | None, close_after: str | None) -> Plan:
    """Return how long and for whom to wait.

    Raises:
        ValueError: If a number cannot work.
    """
    if workers is not None and not (workers.isascii() and workers.isdigit()):
        raise ValueError(f"--workers must be a whole number, not {workers!r}")
    return Plan(
        timeout=parse_duration(timeout or TIMEOUT, bare=True).total_seconds(),
        workers=1 if workers is None else int(workers),
        vouched=workers is not None,
        close_after=None
        if close_after is None
        else parse_duration(close_after, bare=True).total_seconds(),
    )
