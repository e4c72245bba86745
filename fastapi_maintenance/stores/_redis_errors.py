"""What Redis refuses, in one line that a person can act on."""

from __future__ import annotations

from typing import Final

from . import StoreError
from ._redis_client import redis

COMMANDS: Final = (
    "eval",
    "evalsha",
    "hdel",
    "hgetall",
    "hmget",
    "hscan",
    "hset",
    "exists",
    "set",
    "time",
    "info",
    "publish",
    "subscribe",
    "unsubscribe",
)
"""All that a user of the store must be allowed to run."""


def acl_line(prefix: str) -> str:
    """Return the least rights that the store needs, as words of ``ACL SETUSER``."""
    commands = " ".join(f"+{command}" for command in COMMANDS)
    return f"resetchannels ~{{{prefix}}}:* &{{{prefix}}}:* {commands}"


class TemporaryError(StoreError):
    """What may be over in a moment: an outage, a restart, a failover."""


class UnsettledError(TemporaryError):
    """What is read now may be a loss that others will mend.

    Attributes:
        seconds: Until it is taken for the truth.
    """

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


def explain(error: Exception, place: str, prefix: str) -> StoreError:
    """Return a one-line error with its remedy, for one of redis-py's.

    Args:
        error: What redis-py raised.
        place: Where, without secrets.
        prefix: That of the store.
    """
    text = " ".join(str(error).split())[:300]
    for mark, known, what, kind in _REFUSALS:
        if mark in text or isinstance(error, known):
            key = text.rpartition(" ")[2]
            return kind(f"{place} {what.format(key=key, prefix=prefix)}")
    # A long request before the password is the end of a connection.
    if isinstance(error, redis.AuthenticationError) or "unauthenticated" in text:
        what = (
            "refuses this user or password; mend it in the store's URL:"
            " redis://USER:PASSWORD@HOST, special characters as %XX"
        )
    elif any(part in text for part in _DENIALS) or isinstance(
        error, redis.exceptions.NoPermissionError
    ):
        what = (
            f"denies this user what the store needs ({text}); allow it with"
            f" `ACL SETUSER <user> {acl_line(prefix)}`"
        )
    elif not isinstance(error, redis.RedisError) or isinstance(
        error, redis.ConnectionError | redis.TimeoutError
    ):
        # What fails on the way, as a name or a provider of credentials, too.
        return TemporaryError(
            f"cannot reach {place}: {text or type(error).__name__}; is it running, and"
            " is this its address? (rediss:// for TLS)"
        )
    else:
        what = f"refuses: {text or type(error).__name__}"
    return StoreError(f"{place} {what}")


_DENIALS: Final = (
    "can't run this command",
    "ACL failure",
    "can't access",
    "NOPERM",
    "no permissions",
)

# redis-py takes the first word off those errors that it has a class for.
_REFUSALS: Final[
    tuple[tuple[str, tuple[type[Exception], ...], str, type[StoreError]], ...]
] = (
    (
        "NOAUTH",
        (),
        (
            "wants a password; put it into the store's URL: redis://:PASSWORD@HOST,"
            " special characters as %XX"
        ),
        StoreError,
    ),
    (
        "unknown command",
        (),
        (
            "has no scripts; use Redis 6.2 or later, or Valkey, with EVAL and EVALSHA"
            " under their own names"
        ),
        StoreError,
    ),
    (
        "READONLY",
        (redis.ReadOnlyError,),
        (
            "is a read-only replica; name the primary in the store's URL, or give a"
            " client of Sentinel's master_for()"
        ),
        TemporaryError,
    ),
    (
        "OOM",
        (redis.exceptions.OutOfMemoryError,),
        "is out of memory and takes no writes; raise its maxmemory or free some",
        TemporaryError,
    ),
    (
        "MISCONF",
        (),
        "cannot save to its disk and takes no writes; mend that, see its log",
        TemporaryError,
    ),
    (
        "LOADING",
        (redis.BusyLoadingError,),
        "is loading its data; try again in a moment",
        TemporaryError,
    ),
    ("BUSY ", (), "is busy with a script; try again in a moment", TemporaryError),
    (
        "MOVED",
        (redis.exceptions.MovedError,),
        (
            "is one node of a cluster that keeps these keys on another; give the URL of"
            " the node that keeps them, or a Redis that is no cluster"
        ),
        StoreError,
    ),
    (
        "FOREIGN",
        (),
        (
            "has another program's data in {key}; choose another ?prefix=, or delete"
            " that key if it is nobody's"
        ),
        StoreError,
    ),
    (
        "WRONGTYPE",
        (),
        (
            "has another program's data under the prefix {prefix}; choose another"
            " ?prefix=, or delete the keys {{{prefix}}}:* if they are nobody's"
        ),
        StoreError,
    ),
    (
        "NEWER",
        (),
        (
            "was used by a newer release under this prefix ({key}); upgrade"
            " fastapi-maintenance-guard here"
        ),
        StoreError,
    ),
)
