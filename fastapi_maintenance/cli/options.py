"""What can be given on the command line: each option once, in groups."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, get_type_hints

import typer
from pydantic import ValidationError

from ..changes import EnableOptions, default_actor
from ..checks import check_text
from ..state import first_problem
from ..switch import DrainOptions
from .times import parse_duration, parse_moment

TIMEOUT: Final = "60"


@dataclass(frozen=True, kw_only=True)
class Where:
    """The switch that a command is about, and for whom it writes."""

    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the state lives: file:PATH, redis://HOST/0?prefix=NAME or"
            " postgresql+psycopg://HOST/DB. Default: $FASTAPI_MAINTENANCE_STORE, else"
            " file:.fastapi-maintenance.",
        ),
    ] = None
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Which switch of the store.")
    ] = "default"
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines.")] = False


@dataclass(frozen=True, kw_only=True)
class Enabling:
    """What ``run`` sets."""

    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What refused clients read.")
    ] = None
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="20m",
            help="How long it is expected to last: 45s, 20m, 1h30m.",
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When it is expected to end: ISO 8601 or HH:MM; local time unless it"
            " has an offset.",
        ),
    ] = None
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Let GET, HEAD and OPTIONS through.")
    ] = False
    retry_after: Annotated[
        str | None,
        typer.Option(metavar="N", help="Seconds for Retry-After when no end is ahead."),
    ] = None
    bypass: Annotated[
        bool,
        typer.Option(
            "--bypass", help="Make a token that lets operators in; shown once."
        ),
    ] = False
    init: Annotated[
        bool, typer.Option("--init", help="Make the store where there is none yet.")
    ] = False

    def options(self, token: str | None) -> EnableOptions:
        """Return what an operator asks for.

        Args:
            token: The bypass token, if there is to be one.

        Raises:
            ValueError: If an option cannot work; the message names the remedy.
        """
        return self._options(token, until=self._end(datetime.now(UTC)))

    def _options(
        self,
        token: str | None,
        *,
        until: datetime | timedelta | None,
        at: datetime | None = None,
        auto_off: bool = False,
    ) -> EnableOptions:
        if self.message is not None:
            check_text(self.message, "--message")
        values = {
            "message": self.message,
            "at": at,
            "until": until,
            "auto_off": auto_off,
            "retry_after": None
            if self.retry_after is None
            else parse_duration(self.retry_after, bare=True),
            "read_only": self.read_only,
            "bypass_token": token,
            "actor": default_actor(),
        }
        try:
            return EnableOptions.model_validate(values)
        except ValidationError as error:
            raise ValueError(first_problem(error, _option)) from None

    def _end(
        self, now: datetime, begin: datetime | None = None
    ) -> datetime | timedelta | None:
        if self.for_ is not None and self.until is not None:
            raise ValueError("--for and --until both name the end; give one of them")
        if self.for_ is not None:
            length = parse_duration(self.for_)
            if not length:
                raise ValueError("--for must be longer than 0 seconds")
            return length
        if self.until is None:
            return None
        end = parse_moment(self.until, after=begin or now)
        if end <= now:
            raise ValueError(f"--until {self.until} has passed; give a time to come")
        return end


@dataclass(frozen=True, kw_only=True)
class Planning(Enabling):
    """What ``on`` sets: it can be planned, too."""

    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it begins; now by default."),
    ] = None
    auto_off: Annotated[
        bool, typer.Option("--auto-off", help="Open by the clock at the end.")
    ] = False

    def options(self, token: str | None) -> EnableOptions:
        """Return what an operator asks for, and when it begins."""
        now = datetime.now(UTC)
        begin = None if self.at is None else parse_moment(self.at, after=now)
        end = self._end(now, begin)
        if self.auto_off and end is None:
            raise ValueError("--auto-off needs an end: give --for or --until as well")
        return self._options(token, until=end, at=begin, auto_off=self.auto_off)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long and for whom a command waits."""

    timeout: Annotated[
        str | None,
        typer.Option(metavar="60", help="Seconds to wait, or 10m; 60 by default."),
    ] = None
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Wait until N workers have joined. The exact number also completes a"
            " list that was lost; 0 if the service is stopped.",
        ),
    ] = None
    close_after: Annotated[
        str | None,
        typer.Option(
            metavar="10s",
            help="Close counted WebSockets (code 1012) after this time, and set"
            " guard.closing for streams.",
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether any of them is on the command line."""
        return (self.timeout, self.workers, self.close_after) != (None, None, None)

    def options(self) -> DrainOptions:
        """Return how long and for whom to wait.

        Raises:
            ValueError: If a number cannot work.
        """
        count = self.workers
        if count is not None and not (count.isascii() and count.isdigit()):
            raise ValueError(f"--workers must be a whole number, not {count!r}")
        return DrainOptions(
            timeout=parse_duration(self.timeout or TIMEOUT, bare=True).total_seconds(),
            workers=None if count is None else int(count),
            close_after=None
            if self.close_after is None
            else parse_duration(self.close_after, bare=True).total_seconds(),
        )


def grouped(function: Callable[..., int]) -> Callable[..., int]:
    """Make a command for Typer: each field of a group becomes an option of its own."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if not (isinstance(hint, type) and is_dataclass(hint)):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[name] = hint
        own = get_type_hints(hint, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=own[field.name],
            )
            for field in fields(hint)
        ]

    @functools.wraps(function)
    def command(**values: object) -> int:
        for name, group in groups.items():
            names = [field.name for field in fields(group)]
            values[name] = group(**{each: values.pop(each) for each in names})
        return function(**values)

    command.__dict__["__signature__"] = inspect.Signature(parameters)  # PEP 362
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"
