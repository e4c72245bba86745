"""The command line: ``fastapi-maintenance`` and ``python -m fastapi_maintenance``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code.

    Args:
        arguments: What follows the program's name; from the command line by default.

    Raises:
        ImportError: If the extra is not installed; the message has the line that
            installs it.
    """
    try:
        import rich  # noqa: PLC0415  # missing is this function's to say
        import typer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        # A person reads this in a terminal: the message, without a traceback.
        sys.tracebacklimit = 0
        raise ImportError(
            f"the command line needs {error.name}; install it with"
            " `pip install 'fastapi-maintenance-guard[cli]'`"
        ) from None
    del rich
    from .app import app  # noqa: PLC0415  # it needs both

    command = typer.main.get_command(app)
    command.main(args=arguments, prog_name="fastapi-maintenance")
