"""How to reach a Redis: addresses without secrets, short patience, one-line errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.client import PubSub
    from redis.connection import ConnectionPool, SSLConnection, parse_url
    from redis.retry import Retry
    from redis.sentinel import SentinelConnectionPool
except ImportError as error:
    raise ImportError(
        'RedisStore needs redis-py: pip install "fastapi-maintenance-guard[redis]"'
    ) from error

__all__ = ["Connector", "PubSub", "check_prefix", "redis", "split_prefix"]

TIMEOUT: Final = 1.5
"""Seconds that one command may take."""

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_EXAMPLE: Final = "redis://HOST:6379/0?prefix=shop"
# What redis-py adds to a client's pool for itself, or what we decide.
_NOT_OURS: Final = re.compile(
    r"maint_notifications|orig_|himport|cache|event_dispatcher|connection_pool$"
    r"|retry|decode_responses$|protocol$|legacy_responses$|health_check|timeout$"
)

Options = dict[str, Any]  # redis-py's own keyword arguments

# redis-py has types for its clients, not for these.
_parse: Callable[[str], Options] = parse_url
_sentinel_pool: Callable[..., ConnectionPool] = SentinelConnectionPool


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


def split_prefix(url: str) -> tuple[str, str | None]:
    """Take the option ``prefix`` out of a URL.

    Raises:
        ValueError: If it is there twice, or the URL cannot be taken apart.
    """
    try:
        parts = urlsplit(url)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        port_is_number = False
    if not port_is_number or parts.scheme not in {"redis", "rediss", "unix"}:
        # Not quoted here: what a slip of the pen made of it may be a password.
        raise ValueError(
            f"not a Redis URL; use {_EXAMPLE}, rediss:// for TLS or unix:///SOCKET,"
            " and write '/', '@', '#' and '?' in a password as %2F, %40, %23, %3F"
        )
    if parts.fragment:
        raise ValueError("a Redis URL has no '#'; in a password write it as %23")
    options = parse_qsl(parts.query, keep_blank_values=True)
    prefixes = [value for key, value in options if key == "prefix"]
    if len(prefixes) > 1:
        raise ValueError(f"prefix is given {len(prefixes)} times; give it once")
    rest = urlencode([(key, value) for key, value in options if key != "prefix"])
    return urlunsplit(parts._replace(query=rest)), prefixes[0] if prefixes else None


def options_of_url(url: str) -> Options:
    """Return redis-py's options for a URL without ``prefix``.

    Raises:
        ValueError: If redis-py does not know an option, or the database is no
            number.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError(
            f"the database in a Redis URL must be a number, not {parts.path[1:]!r}"
        )
    try:
        found = _parse(url)
    except ValueError as error:
        raise ValueError(f"not a Redis URL: {error}") from None
    options: Options = {"socket_timeout": TIMEOUT}
    if parts.scheme != "unix":
        options |= {"socket_connect_timeout": TIMEOUT, "socket_keepalive": True}
    # The older protocol needs no HELLO, which a user of few rights may not have.
    return {**options, "protocol": 2, **found}


class Connector:
    """Makes clients for one Redis, anew after a fork.

    Args:
        options: What redis-py needs to connect.
        sentinel: What a Sentinel's pool needs besides.

    Raises:
        ValueError: If redis-py does not know an option.
    """

    def __init__(
        self, options: Options, sentinel: tuple[object, ...] | None = None
    ) -> None:
        self._options = options | {
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": False,
        }
        self._sentinel = sentinel
        self._pid = 0
        self._client: redis.Redis | None = None
        pool = self._pool()
        try:
            # Makes no connection, but refuses what it does not know.
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError, redis.RedisError) as error:
            unknown = re.search(r"keyword argument '(\w+)'", str(error))
            raise ValueError(
                f"redis-py knows no option {unknown[1]!r}; leave it out of the URL"
                if unknown
                else f"redis-py refuses an option of the URL: {error}"
            ) from None

    @classmethod
    def of_url(cls, url: str) -> Connector:
        """Return a connector for a URL without ``prefix``."""
        return cls(options_of_url(url))

    @classmethod
    def of_client(cls, client: redis.Redis) -> Connector:
        """Return a connector to where a client leads, with short patience.

        The client itself is not used: its own timeouts and repetitions may be
        those of long jobs, and a worker must notice an outage within seconds.

        Raises:
            ValueError: If it leads to replicas.
        """
        pool = client.connection_pool
        options = {
            key: value
            for key, value in pool.connection_kwargs.items()
            if not _NOT_OURS.search(key)
        }
        given = pool.connection_kwargs.get("socket_timeout") or TIMEOUT
        options |= {
            "connection_class": pool.connection_class,
            "socket_timeout": min(given, TIMEOUT),
            "protocol": 2,
        }
        if "path" not in options:
            options["socket_connect_timeout"] = min(given, TIMEOUT)
        if not isinstance(pool, SentinelConnectionPool):
            return cls(options)
        if not pool.is_master:
            raise ValueError(
                "a client of replicas cannot set the state; use"
                f" sentinel.master_for({pool.service_name!r})"
            )
        return cls(options, (pool.service_name, pool.sentinel_manager))

    @property
    def place(self) -> str:
        """The address without secrets, as a URL."""
        options = self._options
        database = options.get("db") or 0
        if self._sentinel is not None:
            return f"redis+sentinel://{self._sentinel[0]}/{database}"
        if "path" in options:
            return f"unix://{options['path']}?db={database}"
        secure = issubclass(options.get("connection_class", object), SSLConnection)
        host = options.get("host", "localhost")
        host = f"[{host}]" if ":" in host else host
        port = options.get("port", 6379)
        return f"{'rediss' if secure else 'redis'}://{host}:{port}/{database}"

    @property
    def client(self) -> redis.Redis:
        """A client of this very process."""
        if self._client is None or self._pid != os.getpid():
            if self._client is not None:
                # The parent may have held its locks when it forked: not even
                # the collector may touch it here.
                _inherited.append(self._client)
            self._pid = os.getpid()
            self._client = redis.Redis(connection_pool=self._pool())
        return self._client

    def close(self) -> None:
        """Let go of idle connections; the next command makes new ones."""
        self.client.connection_pool.disconnect(inuse_connections=False)

    def _pool(self) -> ConnectionPool:
        if self._sentinel is not None:
            return _sentinel_pool(*self._sentinel, **self._options)
        return ConnectionPool(**self._options)


_inherited: Final[list[object]] = []
