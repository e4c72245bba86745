"""The state from an environment variable: set when the process starts."""

from __future__ import annotations

import os
from typing import Final, NoReturn

from . import Change, StoreReadOnlyError
from .memory import MemoryStore

_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class EnvStore(MemoryStore):
    """Reads a variable once, at construction; it can never be set at run time.

    Args:
        variable: Its name. Unset or empty means off.

    Raises:
        ValueError: If its value is not one of ``1 true yes on`` or ``0 false no off``,
            in any case: a misspelt word must not open a service.
    """

    read_only: bool = True

    def __init__(self, variable: str = "FASTAPI_MAINTENANCE_MODE") -> None:
        if not variable or "=" in variable or "\0" in variable:
            raise ValueError(f"not a name of an environment variable: {variable!r}")
        value = os.environ.get(variable, "")
        # Compose writes ``VARIABLE=`` for a variable that is not set.
        word = value.strip().casefold() or "off"
        if word not in _WORDS:
            raise ValueError(
                f"{variable} is {value!r}; set it to one of {', '.join(_WORDS)}, or"
                " unset it for off"
            )
        super().__init__(enabled=_WORDS[word])
        self.variable = variable
        self.location: str = f"environment variable {variable}"

    def publish(self, name: str, change: Change) -> NoReturn:
        """Refuse: what is set at start stays.

        Raises:
            StoreReadOnlyError: Always; a ``StoreError``.
        """
        raise StoreReadOnlyError(
            f"maintenance is set by the environment variable {self.variable} when the"
            " service starts; change it there and restart, or use another store"
        )
