"""Where the state lives: one contract, one module for each engine.

A store of your own needs the small half only, ``Store``. Those that ship
here are also ``FencedStore``: they know their workers and can be drained.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable
from urllib.parse import parse_qs, unquote, urlsplit

from ..fence import Roster
from ..state import MaintenanceState

if TYPE_CHECKING:
    from ._worker import Worker

Change = Callable[[MaintenanceState], MaintenanceState]
"""From the present state to the next one; may run more than once."""

ENVIRONMENT: Final = "FASTAPI_MAINTENANCE_STORE"
DEFAULT_PATH: Final = ".fastapi-maintenance"

_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")


class StoreError(Exception):
    """The store cannot be read or set; the message names the remedy."""


class StoreReadOnlyError(StoreError):
    """The store can never be set, as one that is configured at start."""


@runtime_checkable
class Store(Protocol):
    """Where the state lives: all that a store of your own needs.

    Such a store is refreshed in the background once a second. It has no fence:
    a drain answers *unknown*, never *drained*.
    """

    async def read(self, name: str) -> MaintenanceState:
        """Return the present state of a switch; off when nothing is stored.

        Raises:
            StoreError: If the state cannot be read. Workers then keep the last
                one that they know.
        """
        ...

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state by ``change(state)`` under a larger epoch.

        No other publication may come between the reading and the writing.

        Raises:
            StoreError: If it cannot be set.
        """
        ...


class FencedStore(Store, Protocol):
    """A store that knows its workers, so that it can tell when they are drained."""

    @property
    def location(self) -> str:
        """Where the state lives, for people; without secrets."""
        ...

    @property
    def pause(self) -> float:
        """Seconds between two looks of a drain."""
        ...

    def worker(self, name: str) -> Worker:
        """Return this process's one worker for a switch; it may not have joined."""
        ...

    def peek(self, name: str) -> MaintenanceState:
        """Return what can be said of the state without waiting.

        Raises:
            StoreError: If that is nothing; the message names the remedy.
        """
        ...

    async def roster(self, name: str) -> Roster:
        """Return all worker rows, the proven dead removed.

        Raises:
            StoreError: If the rows cannot be read. Never an empty roster instead.
        """
        ...

    async def forget(self, name: str, workers: Iterable[str]) -> None:
        """Remove rows of workers that a person knows to be gone for good."""
        ...

    async def vouch(self, name: str, generation: str) -> None:
        """Take a roster as complete, on a person's word, while it is the present one.

        Args:
            name: Which switch.
            generation: That of the roster which was judged.
        """
        ...


def is_fenced(store: Store) -> bool:
    """Tell whether a store knows its workers."""
    return all(hasattr(store, part) for part in ("worker", "peek", "roster"))


def describe(store: Store) -> str:
    """Return where a store's state lives, for people."""
    location = getattr(store, "location", None)
    return location if isinstance(location, str) else type(store).__name__


def check_name(name: object) -> str:
    """Return the name of a switch.

    Raises:
        ValueError: If it is no string or does not match ``[a-z0-9_-]{1,64}``, which
            is what file names, Redis keys and command lines have in common.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name must be 1 to 64 of a-z, 0-9, '_' and '-', not {name!r}; for"
            " example 'payments'"
        )
    return name


def as_store(store: Store | str | None) -> Store:
    """Return a store as it is, or the one that a URL or the environment names.

    Raises:
        TypeError: If it is none of them.
        ValueError: If the URL names no store.
    """
    if store is None or isinstance(store, str):
        return open_store(store)
    if isinstance(store, type) or not isinstance(store, Store):
        raise TypeError(
            f"store must be a Store, a URL or None, not {store!r}; for example"
            ' "file:/var/lib/shop/maintenance"'
        )
    return store


def open_store(url: str | None = None) -> Store:
    """Return the store that a URL names, without touching disk or network.

    Args:
        url: ``memory:``, ``env:``, ``env:NAME``, ``file:PATH``,
            ``file:///ABSOLUTE?run_dir=PATH``, ``redis://HOST/0?prefix=shop``,
            ``rediss://`` or ``unix://``. Default: the environment's
            ``FASTAPI_MAINTENANCE_STORE``, else ``file:.fastapi-maintenance``.

    Raises:
        ValueError: If the URL names no store that exists, or has an option that
            the store does not know.
        ImportError: If the store needs an extra; the message has the line that
            installs it.

    Examples:
        >>> open_store("memory:").location
        'memory of this process'
    """
    if url is None:
        url = os.environ.get(ENVIRONMENT) or f"file:{DEFAULT_PATH}"
    if not isinstance(url, str):
        raise TypeError(f"a store URL must be a string, not {url!r}")
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "memory" and not rest:
        from .memory import MemoryStore  # noqa: PLC0415  # each store is loaded when it is used

        return MemoryStore()
    if colon and scheme == "env":
        from .env import EnvStore  # noqa: PLC0415  # each store is loaded when it is used

        return EnvStore(rest) if rest else EnvStore()
    if colon and scheme == "file":
        return _open_file(url, rest)
    if colon and scheme in {"redis", "rediss", "unix"}:
        from .redis import RedisStore  # noqa: PLC0415  # each store is loaded when it is used

        return RedisStore.from_url(url)
    raise ValueError(
        f"unknown store URL {_shown(url)!r}; use memory:, env:NAME, file:PATH or"
        " redis://HOST/0?prefix=NAME"
    )


def _open_file(url: str, rest: str) -> Store:
    from .file import FileStore  # noqa: PLC0415  # each store is loaded when it is used

    parts = urlsplit(rest)
    options = parse_qs(parts.query, keep_blank_values=True)
    run_dir = options.pop("run_dir", [None])
    path = unquote(parts.path)
    if parts.netloc or parts.fragment or options or len(run_dir) != 1 or not path:
        raise ValueError(
            f"not a file store URL: {url!r}; use file:PATH or"
            " file:///ABSOLUTE/PATH?run_dir=PATH"
        )
    return FileStore(Path(path), run_dir=run_dir[0] or None)


def _shown(url: str) -> str:
    # A mistyped scheme may stand before a password.
    return re.sub(r"//[^/@]*@", "//***@", url)
