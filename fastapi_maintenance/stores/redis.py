"""The state in Redis or Valkey: every worker on every machine, one switch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import BaseModel

from ..fence import Receipt, Roster, WorkerReport, roster_of
from ..log import logger
from ..state import MaintenanceState
from . import (
    YOUNG_SERVER,
    Change,
    Members,
    MembersChange,
    StoreError,
    TemporaryStoreError,
    add_member,
    judge_liveness,
    mark_members,
    next_state,
    parse,
    parse_membership,
    parse_state,
    remove_member,
    retry,
    split_prefix,
)

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.client import Pipeline, PubSub
    from redis.connection import ConnectionPool, SSLConnection, parse_url
    from redis.retry import Retry
    from redis.sentinel import Sentinel, SentinelConnectionPool
except ImportError as _error:
    raise ImportError(
        'RedisStore needs redis-py: pip install "fastapi-maintenance-guard[redis]"'
    ) from _error

TIMEOUT: Final = 1.5
"""Seconds that one command may take."""

PATIENCE: Final = 3.0
"""Seconds for which a change is tried again."""

QUIET: Final = 10.0
"""Seconds without a message after which a subscription is tested with a PING."""

RESUBSCRIBE: Final = 1.0
"""Seconds between two attempts to subscribe."""

COMMANDS: Final = (
    "select",
    "get",
    "set",
    "hexists",
    "hset",
    "hgetall",
    "hdel",
    "watch",
    "unwatch",
    "multi",
    "exec",
    "time",
    "info",
    "ping",
    "publish",
    "subscribe",
)
"""All that a user of the store must be allowed to run."""

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_EXAMPLE: Final = "redis://HOST:6379/0?prefix=shop"
# How a client reaches its server. Timeouts, retries and decoding are the store's own.
_TAKEN: Final = re.compile(
    r"host|port|path|db|username|password|credential_provider|client_name|ssl_.+"
)

T = TypeVar("T")
Options = dict[str, Any]  # redis-py's own keyword arguments

# redis-py has types for its clients, not for these.
_parse_url: Callable[[str], Options] = parse_url
_sentinel_pool: Callable[..., ConnectionPool] = SentinelConnectionPool


class RedisStore:
    """Keeps each switch in Redis 6.2 or later, or in Valkey.

    Requests read memory. The keeper's thread hears of a change within milliseconds, and
    looks once a second without being told.

    Args:
        url: ``redis://USER:PASSWORD@HOST:6379/0``, ``rediss://`` for TLS, or
            ``unix:///SOCKET``, with any option that redis-py knows. Or a
            ``redis.Redis``, such as Sentinel's ``master_for`` makes: the store takes
            the address from it and makes connections of its own, with short timeouts.
        prefix: Names the application: two of them on one server must not switch each
            other. 1 to 64 of ``A-Z a-z 0-9 _ . : -``.

    Raises:
        ValueError: If the prefix is missing or the URL cannot work.
        TypeError: If ``url`` is neither a string nor a ``redis.Redis``.
    """

    poll_interval: float = 1.0

    def __init__(self, url: str | redis.Redis, *, prefix: str) -> None:
        self.prefix: str = check_prefix(prefix)
        if isinstance(url, str):
            self._server = _Server.of_url(split_prefix(url, prefix)[0])
        elif isinstance(url, redis.Redis):
            self._server = _Server.of_client(url)
        else:
            raise TypeError(
                f"RedisStore takes a URL or a redis.Redis, not {type(url).__name__};"
                " a client of redis.asyncio cannot be used from a thread"
            )
        self._server.check()
        self._warned_deaf = False
        self._begin()

    def _begin(self) -> None:
        self._client = redis.Redis(connection_pool=self._server.pool())
        self._pubsub: PubSub | None = None
        self._channels: set[str] = set()
        self._heard_at = 0.0
        self._deaf_until = 0.0

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        """Return the store that a URL with ``?prefix=NAME`` names.

        Raises:
            ValueError: If the prefix is missing or the URL cannot work.
        """
        return cls(url, prefix=check_prefix(split_prefix(url)[1]))

    def __repr__(self) -> str:
        return f"RedisStore({self.location!r})"

    @property
    def location(self) -> str:
        """The server and the prefix, without user and password."""
        place = self._server.place
        return f"{place}{'&' if '?' in place else '?'}prefix={self.prefix}"

    def read(self, name: str) -> MaintenanceState | None:
        """Read the state; None when nothing is stored."""
        key = self._key(name, "state")
        with self._translate_errors():
            document = self._client.get(key)
        return parse_state(document, f"{key} in {self.location}")

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, and tell every worker."""
        key = self._key(name, "state")
        tried: dict[bytes, MaintenanceState] = {}

        def attempt(pipe: Pipeline) -> MaintenanceState:
            pipe.watch(key)  # type: ignore[no-untyped-call]  # redis-py's
            document = _read(pipe, key)
            if document in tried:
                # It was carried out, and only the answer was lost.
                return tried[document]
            state = next_state(document, change)
            document = state.to_json().encode()
            tried[document] = state
            pipe.multi()
            pipe.set(key, document)
            pipe.publish(self._channel(name), str(state.epoch))
            pipe.execute()
            return state

        return self._transaction(attempt)

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report under the server's time, and list the worker."""
        members, reports = self._key(name, "members"), self._key(name, "reports")
        with self._translate_errors():
            young = report.generation is None and self._is_young()
            entry = _Entry(at=_seconds(self._client.time()), report=report)
            with self._client.pipeline() as pipe:
                pipe.get(members)
                pipe.hexists(reports, report.id)
                pipe.hset(reports, report.id, entry.to_json())
                stored, replaced, _ = pipe.execute()
        membership = parse_membership(stored)
        if membership is None or report.id not in membership.members:
            membership = self._change_members(name, add_member(report))
        return Receipt(
            membership.generation, membership.complete, bool(replaced), young
        )

    def roster(self, name: str) -> Roster:
        """Read the list of workers and every report."""
        members = self._key(name, "members")
        with self._translate_errors(), self._client.pipeline() as pipe:
            pipe.get(members)
            pipe.hgetall(self._key(name, "reports"))
            pipe.time()
            stored, reports, moment = pipe.execute()
        now = _seconds(moment)
        workers = (
            _parse_report(field.decode(errors="replace"), value, now)
            for field, value in sorted(reports.items())
        )
        return roster_of(parse_membership(stored), workers, now)

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster."""
        after = self._change_members(name, mark_members(generation, complete=complete))
        return "" if after is None else after.generation

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, and remove its report."""

        def remove_report(pipe: Pipeline) -> None:
            pipe.hdel(self._key(name, "reports"), worker)

        self._change_members(name, remove_member(worker), remove_report)

    def wait(self, names: Iterable[str], seconds: float) -> None:
        """Return when a change is published, or time has passed.

        Args:
            names: The switches.
            seconds: How long at most.

        Raises:
            StoreError: If nothing can be heard at present. Changes are then found by
                reading.
        """
        now = time.monotonic()
        if now < self._deaf_until:
            raise TemporaryStoreError(f"{self.location} cannot be listened to")
        try:
            with self._translate_errors():
                self._listen({self._channel(name) for name in names}, seconds, now)
        except StoreError as error:
            self._stop_listening()
            self._deaf_until = now + RESUBSCRIBE
            if not isinstance(error, TemporaryStoreError) and not self._warned_deaf:
                self._warned_deaf = True
                logger.warning(
                    "maintenance: changes are seen after up to %g s, as they cannot be"
                    " listened to: %s",
                    self.poll_interval,
                    error,
                )
            raise

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self._stop_listening()
        self._client.connection_pool.disconnect()

    def forked(self) -> None:
        """Begin again in a child, which must not use its parent's connections."""
        # A thread of the parent may have held their locks: neither redis-py's own care
        # for forks nor the garbage collector may touch them.
        _inherited.extend((self._client, self._pubsub))
        self._begin()

    def _key(self, name: str, kind: str) -> str:
        # What is in braces decides on the slot: all keys of a prefix are in one.
        return f"{{{self.prefix}}}:{name}:{kind}"

    def _channel(self, name: str) -> str:
        return f"{{{self.prefix}}}:{name}"

    def _transaction(self, attempt: Callable[[Pipeline], T]) -> T:
        """Repeat what watches keys and changes them, until it is carried out."""
        # Not by redis-py's ``transaction``: without a server, that never ends.

        def once() -> T:
            with self._translate_errors(), self._client.pipeline() as pipe:
                return attempt(pipe)

        return retry(once, PATIENCE)

    def _change_members(
        self,
        name: str,
        change: MembersChange[Members],
        also: Callable[[Pipeline], None] | None = None,
    ) -> Members:
        key = self._key(name, "members")

        def attempt(pipe: Pipeline) -> Members:
            pipe.watch(key)  # type: ignore[no-untyped-call]  # redis-py's
            before = parse_membership(_read(pipe, key))
            after = change(before, _seconds(pipe.time()))
            pipe.multi()
            if after is not None and after != before:
                pipe.set(key, after.model_dump_json())
            if also is not None:
                also(pipe)
            pipe.execute()
            return after

        return self._transaction(attempt)

    def _is_young(self) -> bool:
        """Tell whether the server has just started, or does not say."""
        try:
            found = self._client.info("server")
        except redis.ResponseError:
            return True
        return float(found.get("uptime_in_seconds", 0)) < YOUNG_SERVER

    def _listen(self, channels: set[str], seconds: float, now: float) -> None:
        if self._pubsub is None:
            self._pubsub = self._client.pubsub()  # type: ignore[no-untyped-call]  # the same
            self._heard_at = now
        new = channels - self._channels
        if new:
            # The confirmation ends the wait, so that what was published before it is
            # read.
            self._pubsub.subscribe(*sorted(new))
            self._channels |= new
        # A connection that nothing passes may be cut without a word.
        quiet = now - self._heard_at
        if quiet > 2 * QUIET:
            raise redis.TimeoutError("a subscription has not answered a PING")
        if quiet > QUIET:
            self._pubsub.ping()
        if self._pubsub.get_message(timeout=seconds) is not None:
            self._heard_at = time.monotonic()

    def _stop_listening(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        self._channels = set()
        if pubsub is not None:
            pubsub.close()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise what redis-py raises as an error of one line, with its remedy."""
        try:
            yield
        except (redis.RedisError, UnicodeError) as error:  # The latter by host names.
            if isinstance(error, redis.ReadOnlyError):
                # After a failover, the name leads to another server.
                self._client.connection_pool.disconnect(inuse_connections=False)
            raise translate(error, self._server.place, self.prefix) from error


_inherited: Final[list[object]] = []


class _Entry(BaseModel):
    """A stored report, with the server's time of it."""

    at: float
    report: WorkerReport

    def to_json(self) -> str:
        return self.model_dump_json(exclude={"report": {"liveness", "age", "lock"}})


def _parse_report(worker: str, stored: bytes, now: float) -> WorkerReport:
    entry = parse(_Entry, stored)
    if entry is None:
        return judge_liveness(worker, None, 0.0)
    return judge_liveness(worker, entry.report, now - entry.at)


def _read(pipe: Pipeline, key: str) -> bytes | None:
    # A pipeline that watches answers at once, and nothing here is decoded.
    return cast("bytes | None", pipe.get(key))


def _seconds(moment: tuple[int, int]) -> float:
    return moment[0] + moment[1] / 1e6


class _Server(NamedTuple):
    """How to reach a Redis.

    Attributes:
        options: What redis-py needs to connect.
        sentinel: What a Sentinel's pool needs as well.
    """

    options: Options
    sentinel: tuple[str, Sentinel] | None = None

    @classmethod
    def of_url(cls, url: str) -> _Server:
        """Return the server of a URL without ``prefix``.

        Raises:
            ValueError: If it cannot be taken apart, the database is not a number, or an
                option has a value that redis-py refuses.
        """
        _check_url(url)
        try:
            found = _parse_url(url)
        except ValueError as error:
            raise ValueError(f"not a Redis URL: {error}") from None
        return cls(_timeouts(TIMEOUT, found) | found | _fixed_options())

    @classmethod
    def of_client(cls, client: redis.Redis) -> _Server:
        """Return the server of a client.

        Raises:
            ValueError: If it is one of replicas.
        """
        pool = client.connection_pool
        given = pool.connection_kwargs
        options = {key: given[key] for key in given if _TAKEN.fullmatch(key)}
        options["connection_class"] = pool.connection_class
        # The timeouts of the client may be those of long jobs.
        timeout = min(given.get("socket_timeout") or TIMEOUT, TIMEOUT)
        options |= _timeouts(timeout, options) | _fixed_options()
        if not isinstance(pool, SentinelConnectionPool):
            return cls(options)
        if not pool.is_master:
            raise ValueError(
                "a client of replicas cannot set the state; use"
                f" sentinel.master_for({pool.service_name!r})"
            )
        return cls(options, (pool.service_name, pool.sentinel_manager))

    def pool(self) -> ConnectionPool:
        if self.sentinel is not None:
            return _sentinel_pool(*self.sentinel, **self.options)
        return ConnectionPool(**self.options)

    def check(self) -> None:
        """Refuse what redis-py would refuse at the first connection.

        Raises:
            ValueError: If it does not know an option, or cannot use its value.
        """
        pool = self.pool()
        try:
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError, redis.RedisError) as error:
            unknown = re.search(r"keyword argument '(\w+)'", str(error))
            raise ValueError(
                f"redis-py knows no option {unknown[1]!r}; leave it out of the URL"
                if unknown
                else f"redis-py refuses an option of the URL: {error}"
            ) from None

    @property
    def place(self) -> str:
        """The address without secrets, as a URL."""
        options = self.options
        database = options.get("db") or 0
        if self.sentinel is not None:
            service, manager = self.sentinel
            hosts = sorted(
                "{host}:{port}".format(**client.connection_pool.connection_kwargs)
                for client in manager.sentinels
            )
            return f"redis+sentinel://{','.join(hosts)}/{service}/{database}"
        if "path" in options:
            return f"unix://{options['path']}?db={database}"
        secure = issubclass(options.get("connection_class", object), SSLConnection)
        host = options.get("host", "localhost")
        host = f"[{host}]" if ":" in host else host
        port = options.get("port", 6379)
        return f"{'rediss' if secure else 'redis'}://{host}:{port}/{database}"


def _timeouts(seconds: float, options: Options) -> Options:
    timeouts: Options = {"socket_timeout": seconds}
    if "path" not in options:  # A Unix socket takes no others.
        timeouts |= {"socket_connect_timeout": seconds, "socket_keepalive": True}
    return timeouts


def _fixed_options() -> Options:
    # The store repeats what may be repeated. The older protocol needs no HELLO, which a
    # user of few rights may not have.
    return {"retry": Retry(NoBackoff(), 0), "decode_responses": False, "protocol": 2}


def check_prefix(prefix: object) -> str:
    """Return a prefix that can stand in keys, channels and ACL patterns.

    Raises:
        ValueError: If it is missing or has other characters.
    """
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ValueError(
            "prefix must name the application with 1 to 64 of A-Z, a-z, 0-9, '_',"
            f" '.', ':' and '-', not {prefix!r}; for example {_EXAMPLE}"
        )
    return prefix


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        port_is_number = False
    if not port_is_number or parts.scheme not in {"redis", "rediss", "unix"}:
        # Not quoted here: what a slip makes of it may be a password.
        raise ValueError(
            f"not a Redis URL; use {_EXAMPLE}, rediss:// for TLS or unix:///SOCKET,"
            " and write '/', '@', '#' and '?' in a password as %2F, %40, %23, %3F"
        )
    if parts.fragment:
        raise ValueError("a Redis URL has no '#'; in a password write it as %23")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError(
            f"the database in a Redis URL must be a number, not {parts.path[1:]!r}"
        )


def acl_line(prefix: str) -> str:
    """Return the least rights that the store needs, as words of ``ACL SETUSER``."""
    commands = " ".join(f"+{command}" for command in COMMANDS)
    return f"resetchannels ~{{{prefix}}}:* &{{{prefix}}}:* {commands}"


def translate(error: Exception, place: str, prefix: str) -> StoreError:
    """Return an error of redis-py as one line with its remedy.

    Args:
        error: What redis-py raised.
        place: Where, without secrets.
        prefix: That of the store.
    """
    # A pipeline puts the failing command, with its arguments, before the reason.
    text = " ".join(str(error).split()).rpartition("caused error: ")[2][:300]
    text = text or type(error).__name__
    for match, what in _TEMPORARY.items():
        if (
            text.startswith(match)
            if isinstance(match, str)
            else isinstance(error, match)
        ):
            return TemporaryStoreError(f"{place} {what}")
    if isinstance(error, redis.AuthenticationError):
        what = (
            f"refuses this user or password ({text}); correct it in the store's URL:"
            " redis://USER:PASSWORD@HOST, special characters as %XX"
        )
    elif isinstance(error, redis.exceptions.NoPermissionError) or re.search(
        "NOPERM|EXEC without MULTI", text
    ):
        what = (
            f"denies this user what the store needs ({text}); allow it with"
            f" `ACL SETUSER <user> {acl_line(prefix)}`"
        )
    elif isinstance(error, redis.exceptions.MovedError):
        what = (
            "is one node of a cluster that keeps these keys on another; give the URL of"
            " the node that keeps them, or a Redis that is no cluster"
        )
    elif text.startswith("WRONGTYPE"):
        what = (
            f"has another program's data under the prefix {prefix}; choose another"
            f" ?prefix=, or delete the keys {{{prefix}}}:* if no program uses them"
        )
    elif isinstance(error, redis.ConnectionError | redis.TimeoutError | UnicodeError):
        return TemporaryStoreError(
            f"cannot reach {place}: {text.rstrip('.')}; is it running, and is this its"
            " address? (rediss:// for TLS)"
        )
    else:
        what = f"refuses: {text}"
    return StoreError(f"{place} {what}")


# By redis-py's class of an error, or by the first word where it has none.
_TEMPORARY: Final[dict[type[Exception] | str, str]] = {
    redis.ReadOnlyError: (
        "is a read-only replica; name the primary in the store's URL, or give a client"
        " of Sentinel's master_for()"
    ),
    redis.exceptions.OutOfMemoryError: (
        "is out of memory and takes no writes; raise its maxmemory or free some"
    ),
    redis.BusyLoadingError: "is loading its data; try again in a moment",
    redis.exceptions.MasterDownError: (
        "is a replica that has lost its primary; try again in a moment"
    ),
    redis.WatchError: (
        "does not answer in time, or is changed by others without a pause; try again"
    ),
    "MISCONF": "cannot save to its disk and takes no writes; its log says why",
    "NOREPLICAS": (
        "takes no writes while fewer than min-replicas-to-write replicas are up"
    ),
    "BUSY": "is busy with a script; try again in a moment",
}
