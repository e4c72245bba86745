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
from ..fence import (
    SILENT_AFTER,
    Membership,
    Receipt,
    Roster,
    WorkerReport,
    with_member,
)
from ..state import MaintenanceState, StateFormatError

Change = Callable[[MaintenanceState | None], MaintenanceState]
"""From the stored state, or None where nothing is stored, to the next one.

The state that it returns has a larger epoch. A store may call it more than once.
"""

ENVIRONMENT: Final = "FASTAPI_MAINTENANCE_STORE"
DEFAULT_PATH: Final = ".fastapi-maintenance"
POLL_INTERVAL: Final = 1.0
"""Seconds between two reads of a store that names no interval of its own."""

YOUNG_SERVER: Final = 5.0
"""Seconds in which workers write back what a restarted server has lost."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_PREFIX_OPTION: Final = re.compile(r"(?<=[?&])prefix=([^&#]*)&?")
_TWO_METHODS: Final = ("read", "publish")
_FENCE_METHODS: Final = ("report", "roster", "confirm", "remove")

Model = TypeVar("Model", bound=BaseModel)
Members = TypeVar("Members", bound=Membership | None)
T = TypeVar("T")

MembersChange = Callable[[Membership | None, float], Members]
"""From the stored list of workers and the store's time to the next list."""


class StoreError(Exception):
    """The store cannot be read or set; the message names the remedy."""


class StoreReadOnlyError(StoreError):
    """The store can never be set, for example one configured at start."""


class CannotJoinError(StoreError):
    """A worker cannot report here, and serves without being counted."""


class TemporaryStoreError(StoreError):
    """A failure that a retry may cure: an outage, a restart, a failover."""


@runtime_checkable
class Store(Protocol):
    """Where the state lives: all that a store of your own needs.

    Methods are called from threads, may block, and raise ``StoreError``. A store with
    these two methods is read once a second, and a drain answers *unknown*. With the
    methods of ``FencedStore`` as well it has everything.

    A store may also have: ``wait(names, seconds)``, which returns when there may be a
    new state; ``wake()``, which ends a wait; ``local``, whether a read costs
    microseconds; ``poll_interval``, in seconds; ``location``, a text for people, by
    which the guards of one process share a worker; ``read_only``, whether it can never
    be set; ``in_process``, whether it is memory of this process, which nothing else can
    set; ``forked()``, called in a child process, which must not use its parent's
    connections and locks.
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

        The roster is made if there is none: ``fence.with_member`` says how.

        Raises:
            CannotJoinError: If no worker can report here; it serves uncounted.
            StoreError: If the store does not answer; the worker has not joined.
        """
        ...

    def roster(self, name: str) -> Roster:
        """Return who has joined. Does not create a roster.

        Raises:
            StoreError: If that cannot be read. Never an empty roster instead.
        """
        ...

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark a roster as complete, or replace it by a new one that is not.

        Nothing changes unless ``generation`` is the current one.

        Returns:
            The current generation afterwards; ``""`` without a roster.

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
    return all(callable(getattr(store, method, None)) for method in _FENCE_METHODS)


def read_state(store: Store, name: str) -> MaintenanceState | None:
    """Read a state; whatever a store of a user's own raises is a ``StoreError``."""
    try:
        state: object = store.read(name)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error
    if state is not None and not isinstance(state, MaintenanceState):
        raise StoreError(f"read() returned {state!r}, which is not a state")
    return state


def same_error(error: StoreError) -> StoreError:
    """Return a new error that says the same, without what the first has passed."""
    # The class may be a user's own, and take other arguments.
    kind = TemporaryStoreError if isinstance(error, TemporaryStoreError) else StoreError
    return kind(str(error))


def is_read_only(store: Store) -> bool:
    """Tell whether a store can never be set."""
    return bool(getattr(store, "read_only", False))


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


def parse_membership(stored: str | bytes | None) -> Membership | None:
    """Return the stored list of workers; None if there is none that can be read.

    A list that cannot be read is as good as lost: the next report makes a new one, and
    workers that remember another one testify.
    """
    return parse(Membership, stored)


def add_member(report: WorkerReport) -> MembersChange[Membership]:
    """Return what a report does to the list of workers."""
    return lambda before, now: with_member(before, report, now)


def mark_members(
    generation: str, *, complete: bool
) -> MembersChange[Membership | None]:
    """Return what ``confirm`` does to the list of workers."""
    return lambda before, now: (
        before and before.with_completeness(generation, complete=complete, now=now)
    )


def remove_member(worker: str) -> MembersChange[Membership | None]:
    """Return what ``remove`` does to the list of workers."""
    return lambda before, _: before and before.without(worker)


def judge_liveness(
    worker: str, report: WorkerReport | None, age: float
) -> WorkerReport:
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
        return report.with_liveness("dead", age)
    return report.with_liveness("silent" if age > SILENT_AFTER else "alive", age)


def retry(
    work: Callable[[], T],
    patience: float,
    kind: type[TemporaryStoreError] = TemporaryStoreError,
) -> T:
    """Repeat a call that fails with a temporary error, for so many seconds.

    Raises:
        TemporaryStoreError: The last one.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            return work()
        except kind:
            if time.monotonic() >= limit:
                raise
        # Processes that were in each other's way must not meet again.
        time.sleep(random.uniform(0.0, 0.1))  # noqa: S311  # no secret


def as_store(store: Store | str | None) -> Store:
    """Return a store as it is, or the one that a URL or the environment names.

    Raises:
        TypeError: If it is none of them, a method is async, or only some of the
            methods of a fence are there.
        ValueError: If the URL names no store.
    """
    if store is None or isinstance(store, str):
        return open_store(store)
    if isinstance(store, type) or not isinstance(store, Store):
        raise TypeError(
            f"store must be a Store, a URL or None, not {store!r}; for example"
            ' "file:/var/lib/shop/maintenance"'
        )
    title = type(store).__name__
    for method in _TWO_METHODS + _FENCE_METHODS:
        if inspect.iscoroutinefunction(getattr(store, method, None)):
            raise TypeError(
                f"{title}.{method} must be a plain function, not async: it is called"
                " from threads, and may block"
            )
    # A misspelt one would silently mean that no drain can ever succeed.
    missing = [
        name for name in _FENCE_METHODS if not callable(getattr(store, name, None))
    ]
    if missing and len(missing) < len(_FENCE_METHODS):
        raise TypeError(
            f"{title} has no {', '.join(missing)}; a store that keeps reports has all"
            f" of {', '.join(_FENCE_METHODS)}, another one has none of these names"
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
    if colon and scheme == "env" and not rest.startswith("//"):
        from .env import EnvStore  # noqa: PLC0415

        return EnvStore(rest) if rest else EnvStore()
    if colon and scheme == "file":
        return _open_file(url, rest)
    if colon and scheme in {"redis", "rediss", "unix"}:
        from .redis import RedisStore  # noqa: PLC0415

        return RedisStore.from_url(url)
    if rest.startswith("//") and dialect in {
        "postgresql",
        "postgres",
        "mysql",
        "mariadb",
        "sqlite",
        "oracle",
        "mssql",
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
    # In a path, "+" is no blank.
    options = parse_qs(query.replace("+", "%2B"), keep_blank_values=True)
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


def split_prefix(url: str, given: str | None = None) -> tuple[str, str | None]:
    """Take the option ``prefix`` out of a URL.

    Args:
        url: The URL.
        given: The prefix that was passed beside it.

    Returns:
        The rest of the URL, and the prefix from wherever it was given.

    Raises:
        ValueError: If there is more than one.
    """
    found = [unquote(value) for value in _PREFIX_OPTION.findall(url)]
    if len(found) > 1:
        raise ValueError(
            f"prefix is given more than once in the URL: {', '.join(found)}"
        )
    if found and given not in {None, found[0]}:
        raise ValueError(
            f"prefix is {given!r}, and {found[0]!r} in the URL; give it once"
        )
    rest = _PREFIX_OPTION.sub("", url).rstrip("?&")
    return rest, found[0] if found else given


def _without_password(url: str) -> str:
    # A mistyped scheme may stand before a password, which may have any character.
    return re.sub(r":.*@", "://***@", url, flags=re.DOTALL)
