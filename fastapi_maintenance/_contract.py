"""The contract of a store, as a suite that any store can be put through."""

from __future__ import annotations

import contextlib
import inspect
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio

from .state import MaintenanceState
from .stores import Store, describe

RACERS: Final = 16
"""How many publications at once a store has to put in order."""

MakeStore = Callable[[], Store | Awaitable[Store]]


async def check_store(make_store: MakeStore) -> None:
    """Check that a store of your own keeps the contract that guards rest on.

    It uses switches with names of its own, and leaves them switched off.

    Args:
        make_store: Returns a store, or an awaitable of one. Called twice: both must
            mean the same place, as the stores of two workers do. For a store that
            lives in an object, return that object: ``lambda: store``.

    Raises:
        AssertionError: If it does not; the message says what was found.
        TypeError: If what was made is no store.

    Examples:
        >>> import asyncio
        >>> from fastapi_maintenance import MemoryStore
        >>> from fastapi_maintenance.testing import check_store
        >>> store = MemoryStore()
        >>> asyncio.run(check_store(lambda: store))
    """
    one, other = [await _made(make_store) for _ in range(2)]
    name = f"check-{secrets.token_hex(6)}"
    contract = _Contract(one, other, name)
    try:
        await contract.starts_off()
        await contract.keeps_every_field()
        await contract.parts_names()
        await contract.leaves_a_failed_change()
        await contract.orders_a_race()
        await contract.opens_under_a_larger_epoch()
    finally:
        for used in (name, contract.neighbour):
            # What was found is worth more than a clean place.
            with contextlib.suppress(Exception):
                await one.publish(used, lambda _: MaintenanceState())


async def _made(make_store: MakeStore) -> Store:
    made = make_store()
    store = await made if inspect.isawaitable(made) else made
    if not isinstance(store, Store):
        raise TypeError(f"make_store must return a Store, not {store!r}")
    return store


class _Contract:
    def __init__(self, one: Store, other: Store, name: str) -> None:
        self._one = one
        self._other = other
        self._name = name
        self.neighbour = f"{name}-2"

    async def starts_off(self) -> None:
        state = await self._one.read(self._name)
        self._require(
            isinstance(state, MaintenanceState),
            f"read() must return a MaintenanceState, not {state!r}",
        )
        self._require(not state.active, "a switch that nobody has set must be off")

    async def keeps_every_field(self) -> None:
        now = datetime.now(UTC).replace(microsecond=123_000)
        wanted = MaintenanceState(
            active=True,
            since=now,
            begun=True,
            until=now + timedelta(hours=1),
            auto_off=True,
            message="Wir ziehen um ☂",
            retry_after=90,
            read_only=True,
            actor="check_store",
            holders=("check_store#1", "operator"),
            bypass=f"sha256:{'0' * 64}",
            extra={"of-a-newer-release": {"kept": [1, 2.5, None]}},
        )
        published = await self._one.publish(self._name, lambda _: wanted)
        for what, state in (
            ("publish() must return the state", published),
            ("read() must return the published state", await self._read(self._one)),
            ("another worker must read it too", await self._read(self._other)),
        ):
            self._require(
                state.but(epoch=0) == wanted, f"{what}: {state!r} is not {wanted!r}"
            )
            self._require(
                state.epoch == published.epoch > 0,
                f"{what} under its new epoch, {published.epoch}, not {state.epoch}",
            )

    async def parts_names(self) -> None:
        state = await self._one.read(self.neighbour)
        self._require(not state.active, "one switch must not set another")

    async def leaves_a_failed_change(self) -> None:
        before = await self._read(self._one)

        def change(present: MaintenanceState) -> MaintenanceState:
            raise _RefusedError(present.epoch)

        try:
            await self._one.publish(self._name, change)
        except _RefusedError as error:
            self._require(
                error.args == (before.epoch,), "change() must get the present state"
            )
        else:
            self._require(False, "publish() must raise what change() raises")  # noqa: FBT003  # a condition
        after = await self._read(self._other)
        self._require(after == before, "a change that fails must change nothing")

    async def orders_a_race(self) -> None:
        await self._one.publish(self.neighbour, lambda _: MaintenanceState())
        epochs: list[int] = []

        async def enter(store: Store, number: int) -> None:
            def change(present: MaintenanceState) -> MaintenanceState:
                return present.but(holders=(*present.holders, f"racer-{number}"))

            epochs.append((await store.publish(self.neighbour, change)).epoch)

        async with anyio.create_task_group() as group:
            for number in range(RACERS):
                group.start_soon(enter, (self._one, self._other)[number % 2], number)
        state = await self._one.read(self.neighbour)
        self._require(
            len(state.holders) == RACERS,
            f"{RACERS} publications at once left traces of {len(state.holders)}: no"
            " other may come between the reading and the writing",
        )
        self._require(
            len(set(epochs)) == RACERS and state.epoch == max(epochs),
            "each publication must have an epoch of its own, the last one the largest",
        )

    async def opens_under_a_larger_epoch(self) -> None:
        before = await self._read(self._one)
        await self._other.publish(self._name, lambda _: MaintenanceState())
        after = await self._read(self._one)
        self._require(not after.active, "it must be possible to switch off")
        self._require(
            after.epoch > before.epoch,
            f"epochs must grow: {after.epoch} after {before.epoch}",
        )

    async def _read(self, store: Store) -> MaintenanceState:
        return await store.read(self._name)

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise AssertionError(f"{describe(self._one)}: {what}")


class _RefusedError(Exception):
    pass
