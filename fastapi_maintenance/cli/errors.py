"""One line for everything that goes wrong, and the documented exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from ..changes import HeldError
from ..state import first_problem
from ..stores import ENVIRONMENT, StoreError, StoreReadOnlyError
from .exits import ExitCode, FailureError
from .output import Output, clean

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
        # What the package logs for services is said here in a command's own words.
        logging.getLogger("fastapi_maintenance").addHandler(_SILENT)
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
            given = self._options_of(words)
            out = Output(
                as_json=bool(given.get("as_json")), to_stderr=words[:1] == ["run"]
            )
            text = _text(error, words, given.get("store"))
            out.emit("error", exit=code, error=clean(text))
            out.fail(text)
        sys.exit(code if isinstance(code, int) else ExitCode.DONE)

    def _options_of(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the options of a command, as far as they can be understood.

        What follows the command of ``run`` is not its own.
        """
        command = self.commands.get(words[0]) if words else None
        if command is None:
            return {"as_json": "--json" in words}
        context = command.make_context(
            words[0],
            list(words[1:]),
            resilient_parsing=True,
            ignore_unknown_options=True,
        )
        return context.params


_SILENT: Final = logging.NullHandler()


def _code(error: Exception) -> int | None:
    if isinstance(error, FailureError):
        return error.code
    if isinstance(error, StoreReadOnlyError | HeldError | ValueError | ImportError):
        return ExitCode.USAGE
    if isinstance(error, StoreError | OSError):
        return ExitCode.UNREACHABLE
    return ExitCode.USAGE if isinstance(error, _UsageError) else None


def _text(error: Exception, words: Sequence[str], store: str | None) -> str:
    if isinstance(error, FailureError) and error.run_as is not None:
        return f"{error}: {_as_user(error.run_as, words, store)}"
    if isinstance(error, ValidationError):
        return first_problem(error)
    text = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if context is not None:
        text = f"{text.rstrip('.')}; see `{context.command_path} --help`"
    return text or type(error).__name__


def _as_user(user: str, words: Sequence[str], store: str | None) -> str:
    """Return the same command for another user."""
    command, *rest = words
    variable = os.environ.get(ENVIRONMENT)
    if variable and store is None:
        # sudo does not pass the environment on.
        rest = ["--store", variable, *rest]
    return shlex.join(["sudo", "-u", user, "fastapi-maintenance", command, *rest])
