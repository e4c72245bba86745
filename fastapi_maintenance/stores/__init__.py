"""Where a state and the workers' reports are kept: one contract, one file per engine.

A store does I/O and nothing else. It knows neither requests nor threads.
"""

from __future__ import annotations

import inspect
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeGuard, TypeVar, runtime_checkable
from urllib.parse import parse_qs, unquote

from pydantic import BaseModel, ValidationError

from .. import processes
from ..fence import SILENT_AFTER, Receipt, Roster, WorkerReport
from ..state import MaintenanceState, StateFormatError

Change = Callable[[MaintenanceState | None], MaintenanceState]
"""From the stored state, or None where nothing is stored, to the next one.

The state that it returns has a larger epoch. A store may call it more than once.
"""

ENVIRONMENT: Final = "FASTAPI_MAINTENANCE_STORE"
DEFAULT_PATH: Final = ".fastapi-maintenance"
POLL_INTERVAL: Final = 1.0
"""Seconds between two reads of a store that names no interval of its own."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be read or set; the message names the remedy."""


class StoreReadOnlyError(StoreError):
    """The store can never be set, as one that is configured at start."""


class CannotJoinError(StoreError):
    """A worker cannot report here, and serves without being counted."""


class TemporaryStoreError(StoreError):
    """What may be over in a moment: an outage, a restart, a failover."""


@runtime_checkable
class Store(Protocol):
    """Where the state lives: all that a store of your own needs.

    Methods are called from threads, may block, and raise ``StoreError``. A store with
    these two methods is read once a second, and a drain answers *unknown*. With the
    methods of ``FencedStore`` as well it has everything.

    A store may also have: ``wait(names, seconds)``, which returns when there may be a
    new state; ``wake()``, which ends a wait; ``close()``; ``local``, whether a read
    costs microseconds; ``poll_interval``, in seconds; ``location``, a text for people,
    by which the guards of one process share a worker; ``forked()``, called in a child
    process, which must not use its parent's connections and locks.
    """

    def read(self, name: str) -> MaintenanceState | None:
        """Return the stored state of a switch, or None where nothing is stored.

        Raises:
            StoreError: If it cannot be read. Workers then keep the last state that
                they know.
        """
        ...

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Save ``change(stored state)`` and return it.

        Nothing else may be saved between the reading and the writing. What ``change``
        raises passes through, and nothing is saved.

        Raises:
            StoreError: If it cannot be set, or the epoch of the new state is not
                larger than the stored one.
        """
        ...


class FencedStore(Store, Protocol):
    """A store that keeps the workers' reports too, so that it can be drained."""

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report in place of the worker's earlier one, and list the worker.

        The roster is made if there is none: ``fence.joined`` says how.

        Raises:
            CannotJoinError: If no worker can report here; it serves uncounted.
            StoreError: If the store does not answer; the worker has not joined.
        """
        ...

    def roster(self, name: str) -> Roster:
        """Return who has joined. Makes nothing.

        Raises:
            StoreError: If that cannot be read. Never an empty roster instead.
        """
        ...

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark a roster as complete, or replace it by a new one that is not.

        Nothing changes unless ``generation`` is the present one.

        Returns:
            The generation that is the present one then; ``""`` without a roster.

        Raises:
            StoreError: If that cannot be stored.
        """
        ...

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, and remove its report.

        Raises:
            StoreError: If that cannot be stored.
        """
        ...


def has_fence(store: Store) -> TypeGuard[FencedStore]:
    """Tell whether a store keeps reports."""
    return all(
        callable(getattr(store, method, None))
        for method in ("report", "roster", "confirm", "remove")
    )


def is_in_process(store: Store) -> bool:
    """Tell whether a store is memory of this process, which nothing else can set."""
    return bool(getattr(store, "in_process", False))


def is_local(store: Store) -> bool:
    """Tell whether a read costs microseconds."""
    return bool(getattr(store, "local", False))


def poll_interval(store: Store) -> float:
    """Return the seconds between two reads of a store."""
    return float(getattr(store, "poll_interval", POLL_INTERVAL))


def location(store: Store) -> str:
    """Return where a store's state lives, for people."""
    found = getattr(store, "location", None)
    return found if isinstance(found, str) else type(store).__name__


def check_name(name: object) -> str:
    """Return the name of a switch.

    Raises:
        ValueError: If it is not a string of 1 to 64 of ``a-z 0-9 _ -``, which file
            names, Redis keys and command lines have in common.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name must be 1 to 64 of a-z, 0-9, '_' and '-', not {name!r}; for"
            " example 'payments'"
        )
    return name


def check_growth(before: MaintenanceState | None, after: MaintenanceState) -> None:
    """Refuse a state whose epoch is not larger than the stored one.

    Raises:
        StoreError: If it is not.
    """
    if before is not None and after.epoch <= before.epoch:
        raise StoreError(
            f"epoch {after.epoch} is not larger than the stored one, {before.epoch};"
            " read the state and publish again"
        )


def next_state(stored: str | bytes | None, change: Change) -> MaintenanceState:
    """Return what a change makes of a stored text; None where nothing is stored.

    Raises:
        StoreError: If the epoch does not grow.
    """
    try:
        before = None if stored is None else MaintenanceState.from_json(stored)
    except StateFormatError:
        # What cannot be understood counts as closed; publishing repairs it.
        before = MaintenanceState(enabled=True)
    state = change(before)
    check_growth(before, state)
    return state


def parse_state(stored: str | bytes | None, place: str) -> MaintenanceState | None:
    """Return the state that a server has stored; None where it has nothing.

    Raises:
        StoreError: If it is not a state.
    """
    try:
        return None if stored is None else MaintenanceState.from_json(stored)
    except StateFormatError as error:
        raise StoreError(
            f"{place} is not a state: {error}; replace it with `fastapi-maintenance on`"
            " or `off`, or choose another ?prefix= if it belongs to another program"
        ) from error


def parse(kind: type[Model], stored: str | bytes | None) -> Model | None:
    """Return a stored document; None if there is none that can be read."""
    try:
        return None if stored is None else kind.model_validate_json(stored)
    except ValidationError:
        return None


def listed(worker: str, report: WorkerReport | None, age: float) -> WorkerReport:
    """Return a worker as a roster lists it.

    Args:
        worker: Its id, under which the report is stored.
        report: The report; None if it cannot be read.
        age: Seconds since it was stored.
    """
    if report is None or report.id != worker:
        # A worker of which nothing is known, so that no drain overlooks it.
        return WorkerReport(id=worker, host="unknown", pid=0, liveness="silent")
    if processes.is_gone(report.process, report.pid):
        return report.listed("dead", age)
    return report.listed("silent" if age > SILENT_AFTER else "alive", age)


def retry(work: Callable[[], T], patience: float) -> T:
    """Repeat what a temporary error has ended, for so many seconds.

    Raises:
        TemporaryStoreError: The last one.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            return work()
        except TemporaryStoreError:
            if time.monotonic() >= limit:
                raise
        # Processes that were in each other's way must not meet again.
        time.sleep(random.uniform(0.0, 0.1))  # noqa: S311  # no secret


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
    for method in (store.read, store.publish):
        if inspect.iscoroutinefunction(method):
            raise TypeError(
                f"{method.__qualname__} must be a plain function, not async: it is"
                " called from threads, and may block"
            )
    return store


def open_store(url: str | None = None) -> Store:
    """Return the store that a URL names, without touching disk or network.

    Args:
        url: ``memory:``, ``env:``, ``env:NAME``, ``file:PATH``,
            ``file:///ABSOLUTE?run_dir=PATH``, ``redis://HOST/0?prefix=shop``,
            ``rediss://``, ``unix://``, or a SQLAlchemy URL. Default: the environment's
            ``FASTAPI_MAINTENANCE_STORE``, else ``file:.fastapi-maintenance``.

    Raises:
        ValueError: If the URL names no store that exists, or has an option that the
            store does not know.
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
    # Each engine is loaded when it is used.
    scheme, colon, rest = url.partition(":")
    dialect = scheme.partition("+")[0]
    if colon and scheme == "memory" and not rest:
        from .memory import MemoryStore  # noqa: PLC0415

        return MemoryStore()
    if colon and scheme == "env":
        from .env import EnvStore  # noqa: PLC0415

        return EnvStore(rest) if rest else EnvStore()
    if colon and scheme == "file":
        return _open_file(url, rest)
    if colon and scheme in {"redis", "rediss", "unix"}:
        from .redis import RedisStore  # noqa: PLC0415

        return RedisStore.from_url(url)
    if rest.startswith("//") and dialect in {
        *("postgresql", "postgres", "mysql", "mariadb", "sqlite", "oracle", "mssql"),
    }:
        from .sql import SQLStore  # noqa: PLC0415

        return SQLStore.from_url(url)
    raise ValueError(
        f"unknown store URL {_without_password(url)!r}; use memory:, env:NAME,"
        " file:PATH, redis://HOST/0?prefix=NAME or postgresql+psycopg://HOST/DATABASE"
    )


def _open_file(url: str, rest: str) -> Store:
    from .file import FileStore  # noqa: PLC0415

    path, _, query = rest.partition("?")
    options = parse_qs(query, keep_blank_values=True)
    run_dir = options.pop("run_dir", [""])
    host = ""
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        # On Windows, the path of ``file:///C:/srv`` is ``C:/srv``.
        drive = os.name == "nt" and path[1:2] == ":"
        path = path if drive else slash + path
    path = unquote(path)
    if host or options or len(run_dir) != 1 or not path:
        raise ValueError(
            f"not a file store URL: {_without_password(url)!r}; use file:PATH or"
            " file:///ABSOLUTE/PATH?run_dir=PATH"
        )
    return FileStore(Path(path), run_dir=run_dir[0] or None)


def _without_password(url: str) -> str:
    # A mistyped scheme may stand before a password, which may have any character.
    return re.sub(r":.*@", "://***@", url, flags=re.DOTALL)
