"""``routes``: what the guard covers of an application."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.table import Column, Table
from rich.text import Text

from ..inventory import NOT_COVERED, Entry, survey
from .exits import ExitCode, FailureError
from .output import Output, clean, plain_table

_STYLES: Final = {"guarded": "green", NOT_COVERED: "bold red"}


def show_routes(application: str, out: Output) -> int:
    """List every route, mount and WebSocket of an application.

    Raises:
        FailureError: If it cannot be imported, or is not an application.
    """
    entries = survey(load(application))
    out.emit("routes", app=application, routes=[asdict(entry) for entry in entries])
    if entries:
        out.show(_table(entries))
        out.say()
    counts = Counter(entry.coverage for entry in entries)
    out.say(", ".join(f"{number} {kind}" for kind, number in counts.items()) or "none")
    if counts[NOT_COVERED] and not out.as_json:
        out.warn(
            f"{counts[NOT_COVERED]} not covered: use guard.wrap() where something is"
            " mounted, or add MaintenanceModeMiddleware"
        )
    return ExitCode.DONE


def load(application: str) -> object:
    """Import an application as uvicorn does, the working directory first.

    Raises:
        FailureError: If that fails; the line names what and why.
    """
    module_name, colon, attributes = application.partition(":")
    if not (module_name and colon and attributes):
        raise FailureError(
            ExitCode.USAGE,
            f"not an application: {application!r}; write MODULE:NAME, such as main:app",
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does
        raise FailureError(
            ExitCode.USAGE,
            f"cannot import {module_name!r}: {type(error).__name__}: {error}",
        ) from error
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise FailureError(
                ExitCode.USAGE,
                f"{module_name!r} has no {attributes!r}; write MODULE:NAME",
            ) from None
    if not callable(found) or isinstance(found, type):
        raise FailureError(
            ExitCode.USAGE,
            f"{application!r} is not an application but {type(found).__name__}",
        )
    return found


def _table(entries: list[Entry]) -> Table:
    table = plain_table(
        Column("COVERAGE", no_wrap=True),
        Column("KIND", no_wrap=True),
        Column("PATH", overflow="fold"),
        Column("NOTE", overflow="fold"),
    )
    for entry in entries:
        table.add_row(
            Text(entry.coverage, style=_STYLES.get(entry.coverage, "")),
            Text(",".join(entry.methods) or entry.kind),
            Text(clean(entry.path)),
            Text(clean(entry.note)),
        )
    return table
