"""Running the scripts, with typed answers and one-line errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import StoreError
from ._redis_client import Connector, redis
from ._redis_errors import explain
from ._redis_lua import LOOK, STATE, SYNC

Raw = Any  # what the protocol carries; the shape is the script's


class Keys(NamedTuple):
    """The keys and the channel of one switch."""

    state: str
    workers: str
    lease: str
    channel: str

    @classmethod
    def of(cls, prefix: str, name: str) -> Keys:
        """Return them; the braces keep all in one hash slot of a cluster."""
        start = f"{{{prefix}}}:{name}"
        return cls(
            f"{start}:state",
            f"{start}:workers",
            f"{start}:lease",
            f"{start}:wake",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a heartbeat brought back.

    Attributes:
        epoch: That of the stored state; 0 when there is none.
        tag: Which of the publications under this number it is.
        doc: The JSON form, if it is not the one that the worker has.
        asks: Whether the store wants the worker's document, which is newer.
        wrong: Why the server took no writes, or ``""``.
        run: Which server process it was, or ``""`` where INFO is denied.
        rows: Fields and values of this machine's rows, if it was our turn.
        unsettled: Seconds for which a loss may still be mended by others.
    """

    epoch: int
    tag: str
    doc: bytes
    asks: bool
    wrong: str
    run: str
    rows: tuple[tuple[str, str], ...]
    unsettled: float


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored state, and what the next epoch must exceed."""

    done: bool
    epoch: int
    tag: str
    doc: bytes
    floor: int
    now: int
    unsettled: float


@dataclass(frozen=True, slots=True)
class Looked:
    """All rows at one moment of the server's clock, in milliseconds."""

    epoch: int
    generation: str
    whole: bool
    now: int
    rows: tuple[tuple[str, str], ...]


class Scripts:
    """Runs the scripts of one store.

    Every method raises a one-line ``StoreError`` with the remedy.

    Args:
        connector: Where they run.
        prefix: That of the store's keys.
    """

    def __init__(self, connector: Connector, prefix: str) -> None:
        self.connector = connector
        self.prefix = prefix
        self.place: str = connector.place

    def sync(self, keys: Keys, kernel: str, *arguments: str | bytes) -> Reply:
        """Report a row, and read."""
        keys = keys._replace(lease=f"{keys.lease}:{kernel}")
        found = self._run(SYNC, keys, kernel, *arguments)
        return Reply(
            epoch=int(found[0]),
            tag=found[1].decode(),
            doc=found[2],
            asks=found[3] == 1,
            wrong=found[4].decode(errors="replace"),
            run=found[5].decode(),
            rows=_pairs(found[6]),
            unsettled=int(found[7]) / 1000,
        )

    def read(self, keys: Keys) -> Stored:
        """Read the state."""
        return self._state(keys, "0", "", "0", "", "", "")

    def begin(self, keys: Keys, nonce: str) -> Stored:
        """Read the state to set it next, and notice whether it was lost."""
        return self._state(keys, "0", "", "0", nonce, "", keys.channel)

    def replace(
        self, keys: Keys, before: Stored, epoch: int, tag: str, doc: bytes
    ) -> bool:
        """Replace the state that was read before, if it is still the same."""
        words = (str(before.epoch), before.tag, str(epoch), tag, doc, keys.channel)
        return self._state(keys, *words).done

    def _state(self, keys: Keys, *arguments: str | bytes) -> Stored:
        found = self._run(STATE, keys, *arguments)
        return Stored(
            found[0] == 1,
            int(found[1]),
            found[2].decode(),
            found[3],
            int(found[4]),
            int(found[5]),
            int(found[6]) / 1000,
        )

    def look(self, keys: Keys) -> Looked:
        """Read all rows."""
        found = self._run(LOOK, keys, "")
        return Looked(
            int(found[0]),
            found[1].decode(),
            found[2] == b"1",
            int(found[3]),
            tuple(pair for pair in _pairs(found[4]) if not pair[0].startswith(".")),
        )

    def vouch(self, keys: Keys, generation: str) -> None:
        """Take a generation as complete, if it is still the present one."""
        self._run(LOOK, keys, generation)

    def remove(self, keys: Keys, *fields: str) -> None:
        """Remove rows."""
        self._command("HDEL", keys.workers, *fields)

    def _run(self, script: str, keys: Keys, *arguments: str | bytes) -> Raw:
        rest = (3, keys.state, keys.workers, keys.lease, *arguments)
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return self._command("EVALSHA", sha, *rest)
        except _UnknownScriptError:
            return self._command("EVAL", script, *rest)

    def _command(self, *words: str | bytes | int) -> Raw:
        run: Callable[..., Raw] = self.connector.client.execute_command
        try:
            return run(*words)
        except redis.exceptions.NoScriptError as error:
            raise _UnknownScriptError from error
        except Exception as error:  # As of a credential provider, or a host's name.
            raise self.explain(error) from error

    def explain(self, error: Exception) -> StoreError:
        """Return the one-line error for one of redis-py's."""
        return explain(error, self.place, self.prefix)


class _UnknownScriptError(Exception):
    """The server has forgotten the script, or never knew it."""


def _pairs(flat: list[bytes]) -> tuple[tuple[str, str], ...]:
    words = [item.decode(errors="replace") for item in flat]
    return tuple(zip(words[::2], words[1::2], strict=True))
