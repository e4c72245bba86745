"""Where the command line writes: for people, and for scripts."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output:
    """Lines for people, or JSON lines; a closed pipe does not end a command.

    Args:
        as_json: Write JSON lines instead.
        to_stderr: Write everything to standard error; standard output is a command's.

    Attributes:
        live: Whether a person watches, so that a display may redraw itself.
    """

    def __init__(self, *, as_json: bool, to_stderr: bool = False) -> None:
        self.as_json = as_json
        errors = _open(sys.stderr)
        stream = errors if to_stderr else _open(sys.stdout)
        self.console: Console = _console(stream)
        self._errors = errors
        self.live: bool = (
            stream.isatty() and not self.console.is_dumb_terminal and not as_json
        )

    def say(self, text: str = "") -> None:
        """Write one line for people."""
        if not self.as_json:
            self.show(Text(clean(text)))

    def show(self, what: RenderableType) -> None:
        """Write a table or a styled text for people."""
        if not self.as_json:
            self.console.print(what)

    def emit(self, event: str, **values: object) -> None:
        """Write one line for scripts."""
        if self.as_json:
            line = json.dumps({"event": event, **values})
            print(line, file=self.console.file, flush=True)

    def warn(self, text: str) -> None:
        """Write one line to standard error, for either reader."""
        self._to_stderr(f"warning: {text}")

    def fail(self, text: str) -> None:
        """Write one line to standard error: what went wrong, and the remedy."""
        self._to_stderr(f"error: {text}")

    def _to_stderr(self, text: str) -> None:
        print(clean(text), file=self._errors, flush=True)


def clean(text: str) -> str:
    """Return a text as one line that cannot move the cursor."""
    return "".join(
        " "
        if character in "\r\n\t"
        else "?"
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else character
        for character in text.rstrip()
    )


def plain_table(*columns: Column, expand: bool = False) -> Table:
    """Return a table without lines."""
    return Table(
        *columns,
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 0, 0),
        expand=expand,
    )


def _console(stream: TextIO) -> Console:
    # A pipe has no width: what reads it wants whole lines.
    width = None if stream.isatty() else 10_000
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def _open(stream: TextIO | None) -> TextIO:
    if stream is None:  # Closed by the caller.
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for as long as we live
    return io.TextIOWrapper(
        _IgnoresClosedPipe(stream),
        encoding=stream.encoding,
        errors="backslashreplace",
        write_through=True,
    )


class _IgnoresClosedPipe(io.BufferedIOBase):
    """Drops what is written to a closed pipe or terminal."""

    name = "<stream>"  # TextIOWrapper asks for one

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, content: ReadableBuffer) -> int:
        try:
            self._stream.buffer.write(content)
            self._stream.buffer.flush()
        except OSError:
            # EPIPE, or EIO from a terminal that hung up. What is left in buffers
            # must not fail once more when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return memoryview(content).nbytes
