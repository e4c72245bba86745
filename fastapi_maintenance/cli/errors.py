"""One line for whatever goes wrong, and the documented exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import typer
from typer.core import TyperGroup

from ..orders import HeldError
from ..stores import StoreError, StoreReadOnlyError
from .output import Output, clean
from .target import UNREACHABLE, USAGE, FailureError

# Typer exports one of its usage errors; older releases take them from Click.
_UsageError: Final = typer.BadParameter.__base__ or typer.BadParameter


class OneLineErrors(TyperGroup):
    """Ends with one line on standard error and the documented exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # Typer's own
        windows_expand_args: bool = True,  # Typer's own
        **extra: object,
    ) -> object:
        """Run a command and end the process."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(
                args=words,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except Exception as error:
            code = _code(error)
            if code is None:
                raise
            _fail(words, code, _text(error))
        sys.exit(code if isinstance(code, int) else 0)


def _code(error: Exception) -> int | None:
    if isinstance(error, FailureError):
        return error.code
    if isinstance(error, StoreReadOnlyError | HeldError | ValueError | ImportError):
        return USAGE
    if isinstance(error, StoreError | OSError):
        return UNREACHABLE
    return USAGE if isinstance(error, _UsageError) else None


def _text(error: Exception) -> str:
    text = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if context is not None:
        text = f"{text.rstrip('.')}; see `{context.command_path} --help`"
    return text or type(error).__name__


def _fail(words: list[str], code: int, text: str) -> None:
    own = words[: words.index("--")] if "--" in words else words
    aside = own[:1] == ["run"]
    out = Output(as_json="--json" in own, aside=aside)
    out.emit("error", exit=code, error=clean(text))
    out.fail(text)
