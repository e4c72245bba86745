"""Both sides of the switch: orders, holders, drains, and work that obeys."""

import asyncio
import getpass
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from fastapi_maintenance import (
    DrainError,
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    StoreError,
)
from fastapi_maintenance.fence import Roster
from fastapi_maintenance.orders import (
    HeldError,
    Order,
    default_actor,
    digest,
    new_holder,
)
from fastapi_maintenance.switch import Switch, utc_now
from fastapi_maintenance.waiting import FenceRefusedError, Plan

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BRIEF = Plan(timeout=0.0)


def switch(store: MemoryStore | None = None, **fields: Any) -> Switch:
    """Return a joined switch at a moment of its own, with a state."""
    made = Switch(MemoryStore() if store is None else store, "default")
    made.clock = lambda: NOW
    made.worker.join()
    publishing = made.source.publish("default", lambda _: MaintenanceState(**fields))
    with pytest.raises(StopIteration):
        publishing.send(None)
    return made


class TestOrder:
    """What follows from what an operator asks for."""

    def test_plain_one_is_in_force_at_once(self) -> None:
        """Without a start, no clock has a say in whether it is on."""
        state = Order(message="m", actor="a").applied(MaintenanceState(), NOW)
        assert (state.active, state.begun, state.since) == (True, True, NOW)
        assert (state.message, state.actor, state.holders) == ("m", "a", ())
        assert state.in_force(NOW - HOUR)

    def test_start_ahead_is_a_plan(self) -> None:
        """With a start ahead it begins then, and its length counts from there."""
        order = Order(at=NOW + HOUR, until=HOUR, auto_off=True)
        state = order.applied(MaintenanceState(), NOW)
        assert (state.begun, state.since, state.until) == (
            False,
            NOW + HOUR,
            NOW + 2 * HOUR,
        )
        moments = [NOW, NOW + HOUR, NOW + 2 * HOUR]
        assert [state.in_force(moment) for moment in moments] == [False, True, False]

    def test_start_that_has_passed_is_at_once(self) -> None:
        """A start that has passed is kept for people; it is on now."""
        state = Order(at=NOW - HOUR, until=HOUR).applied(MaintenanceState(), NOW)
        assert (state.begun, state.since, state.until) == (True, NOW - HOUR, NOW + HOUR)

    def test_second_one_keeps_since_when_it_has_been_on(self) -> None:
        """Changing the message does not change since when it has been on."""
        before = Order(message="a").applied(MaintenanceState(), NOW)
        after = Order(message="b", retry_after=HOUR).applied(before, NOW + HOUR)
        assert (after.since, after.message, after.retry_after) == (NOW, "b", 3600)

    def test_token_lasts_until_it_is_off(self) -> None:
        """A token outlives later orders, and neither a new one nor switching off."""
        token, other = "t" * 16, "u" * 16
        first = Order(bypass_token=token).applied(MaintenanceState(), NOW)
        assert first.bypass == digest(token)
        assert token not in first.to_json()
        assert Order().applied(first, NOW).bypass == digest(token)
        assert Order(bypass_token=other).applied(first, NOW).bypass == digest(other)
        assert Order().applied(first.but(active=False), NOW).bypass is None

    def test_unknown_keys_are_kept_and_orders_of_a_drain_are_not(self) -> None:
        """Keys of newer releases survive; what a drain asked for ends with it."""
        before = MaintenanceState(active=True, extra={"new": 1, "close_after": 5.0})
        assert dict(Order().applied(before, NOW).extra) == {"new": 1}

    @pytest.mark.parametrize(
        "order",
        [
            Order(at=NOW + HOUR),
            Order(until=HOUR, auto_off=True),
            Order(read_only=True),
        ],
    )
    def test_nothing_may_open_under_the_work_of_others(self, order: Order) -> None:
        """While others hold it, no order may let anything in that they shut out."""
        before = MaintenanceState(active=True, begun=True, holders=("job#1",))
        with pytest.raises(HeldError, match="job#1"):
            order.applied(before, NOW)
        assert order.applied(before.but(active=False), NOW).active

    def test_operator_gets_a_name_beside_other_holders(self) -> None:
        """An operator's own `on` must survive the end of the others' work."""
        before = MaintenanceState(active=True, begun=True, holders=("job#1",))
        after = Order().applied(before, NOW)
        assert after.holders == ("job#1", "operator")
        assert Order().applied(after, NOW).holders == ("job#1", "operator")


async def test_switching_off_is_refused_while_others_hold_it() -> None:
    """Opening under somebody's work needs force."""
    made = switch(active=True, begun=True, holders=("job#1", "operator"))
    with pytest.raises(HeldError, match=r"held by job#1.*off --force"):
        await made.disable()
    assert made.state.active
    state = await made.disable(actor="ada", force=True)
    assert (state.active, state.actor, state.since) == (False, "ada", NOW)
    with pytest.raises(ValueError, match="actor"):
        await made.disable(actor="")


async def test_operator_alone_switches_off_without_force() -> None:
    """A person's own hold is a person's to end."""
    made = switch(active=True, begun=True, holders=("operator",))
    assert not (await made.disable()).active


async def test_state_by_the_clock() -> None:
    """A window begins and ends by the clock of the switch."""
    made = switch(active=True, since=NOW + HOUR, until=NOW + 2 * HOUR, auto_off=True)
    seen = []
    for hours in range(3):
        made.clock = lambda hours=hours: NOW + hours * HOUR  # type: ignore[misc]  # bound at once
        seen.append(made.in_force(made.state))
    assert seen == [False, True, False]
    assert utc_now().utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "nothing to fence"),
        ({"active": True, "since": NOW + HOUR}, "window begins at"),
        (
            {"active": True, "begun": True, "until": NOW + HOUR, "auto_off": True},
            "auto_off could open it",
        ),
    ],
)
async def test_what_could_open_by_itself_is_not_fenced(
    fields: dict[str, Any], reason: str
) -> None:
    """A drain of a state that is off, planned or ends by a clock changes nothing."""
    made = switch(**fields)
    before = made.state
    with pytest.raises(FenceRefusedError, match=reason):
        await made.drain(BRIEF)
    assert made.state == before


async def test_window_that_has_begun_is_fenced_without_its_clock() -> None:
    """Fencing publishes it as in force at once: no worker's clock can doubt it."""
    made = switch(active=True, since=NOW - HOUR)
    assert (await made.drain(BRIEF)).drained
    assert made.state.begun


async def test_drain_can_publish_what_it_waits_for() -> None:
    """An order and its fence are one publication."""
    made = switch()
    looks: list[tuple[Roster, str, str]] = []

    def look(*seen: Any) -> None:
        looks.append(seen)

    plan = Plan(timeout=5, close_after=3.0)
    report = await made.drain(plan, order=Order(message="m"), look=look)
    assert report.drained
    assert (made.state.message, made.state.epoch) == ("m", report.epoch)
    assert made.state.extra["close_after"] == 3.0
    assert [seen[1] for seen in looks] == ["drained"]
    assert (await made.drain(BRIEF)).drained
    assert "close_after" not in made.state.extra


async def waiting(made: Switch, plan: Plan, **options: Any) -> str:
    """Return how a drain ends that cannot be drained by itself."""
    admission = made.worker.admit("work")
    admission.__exit__(None, None, None)
    held = Held(made)
    try:
        return (await made.drain(plan, **options)).outcome
    finally:
        held.end()


class Held:
    """Work in a thread of its own, which a drain has to wait for."""

    def __init__(self, made: Switch) -> None:
        self._ended = threading.Event()
        begun = threading.Event()

        def work() -> None:
            with made.worker.admit("work"):
                begun.set()
                self._ended.wait(30)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        begun.wait(30)

    def end(self) -> None:
        """End the work."""
        self._ended.set()
        self._thread.join(30)


async def test_drain_waits_for_work_that_ends() -> None:
    """A drain ends with the work that it waits for."""
    made = switch(active=True, begun=True)
    held = Held(made)
    outcomes: list[str] = []

    def look(_: Roster, outcome: str, __: str) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 3:
            held.end()

    report = await made.drain(Plan(timeout=30), look=look)
    assert (report.outcome, outcomes[0], outcomes[-1]) == ("drained", "busy", "drained")
    assert report.seconds > 0


async def test_drain_that_runs_out_of_time_is_busy() -> None:
    """Work that outlasts the time is said to be running."""
    assert await waiting(switch(active=True, begun=True), BRIEF) == "busy"
    assert await waiting(switch(active=True, begun=True), Plan(timeout=0.02)) == "busy"


@pytest.mark.parametrize(
    "overtaking",
    [
        MaintenanceState(),
        MaintenanceState(active=True, begun=True, actor="bob"),
        MaintenanceState(active=True, since=NOW + HOUR),
        MaintenanceState(active=True, begun=True, read_only=True),
        MaintenanceState(active=True, until=NOW + HOUR, auto_off=True),
    ],
)
async def test_drain_that_is_overtaken_is_superseded(
    overtaking: MaintenanceState,
) -> None:
    """Another operator's state ends the wait at once, whatever the rows say."""
    made = switch(active=True, begun=True)

    def look(*_: object) -> None:
        publishing = made.source.publish("default", lambda _: overtaking)
        with pytest.raises(StopIteration):
            publishing.send(None)

    report = await made.drain(Plan(timeout=30), look=look)
    assert report.outcome == "superseded"
    assert (overtaking.actor or "somebody") in report.reason


async def test_drain_that_is_overtaken_while_busy_is_superseded() -> None:
    """It does not wait for the work that another one's state let in again."""
    made = switch(active=True, begun=True)

    async def open_again() -> None:
        await made.disable(actor="bob")

    async with anyio.create_task_group() as group:

        def look(_: Roster, outcome: str, __: str) -> None:
            assert outcome == "busy"
            group.start_soon(open_again)

        assert await waiting(made, Plan(timeout=30), look=look) == "superseded"


async def test_holder_outlives_a_second_holder_s_publication() -> None:
    """A later state that keeps the waiter's own hold does not end its wait."""
    made = switch()
    plan = Plan(timeout=30)
    fenced = await made.fence(plan, Order(), holder="one#1")
    held = Held(made)
    other = await made.fence(plan, Order(), holder="two#2")
    assert other.state.holders == ("one#1", "two#2")
    outcomes: list[str] = []

    def look(_: Roster, outcome: str, __: str) -> None:
        outcomes.append(outcome)
        held.end()

    report = await made.wait(fenced, plan, look=look)
    assert report.drained
    assert (await made.wait(other, plan)).drained


@pytest.mark.parametrize(
    "looser",
    [
        {"read_only": True},
        {"until": NOW + HOUR, "auto_off": True},
        {"since": NOW + HOUR, "begun": False},
    ],
)
async def test_hold_does_not_cover_a_looser_state(looser: dict[str, Any]) -> None:
    """A later state that keeps the hold but could let work in ends the wait."""
    made = switch()
    fenced = await made.fence(BRIEF, Order(), holder="one#1")
    await made.source.publish("default", lambda state: state.but(**looser))
    report = await made.wait(fenced, Plan(timeout=30))
    assert report.outcome == "superseded"


async def test_state_that_cannot_be_read_makes_a_drain_unknown() -> None:
    """Clean rows are not enough when nobody can say what the state is."""

    class Fading(MemoryStore):
        async def read(self, name: str) -> MaintenanceState:
            raise StoreError("the disk is gone")

    made = switch(Fading(), active=True, begun=True)
    report = await made.drain(BRIEF)
    assert report.outcome == "unknown"
    assert "the disk is gone" in report.reason


async def test_vouched_drain_completes_the_roster() -> None:
    """A person's word is passed on to the store once it was drained."""
    vouched: list[str] = []

    class Vouching(MemoryStore):
        async def vouch(self, name: str, generation: str) -> None:
            vouched.append(f"{name} {generation}")

    made = switch(Vouching(), active=True, begun=True)
    assert (await made.drain(Plan(timeout=0, workers=2, vouched=True))).drained is False
    assert vouched == []
    assert (await made.drain(Plan(timeout=0, vouched=True))).drained
    assert vouched == ["default memory"]


async def test_undo_puts_back_what_stood_before() -> None:
    """What was published to be fenced can be taken back, if nobody else published."""
    made = switch()
    fenced = await made.fence(BRIEF, Order(message="m", actor="ada"))
    state = await made.undo(fenced)
    assert state is not None
    assert (state.active, state.actor) == (False, "ada")
    made = switch(active=True, begun=True, message="before")
    fenced = await made.fence(BRIEF, Order(message="after"))
    state = await made.undo(fenced)
    assert state is not None
    assert (state.active, state.message) == (True, "before")
    assert await made.undo(fenced) is None
    assert made.state.message == "before"


async def test_undo_of_a_hold_lets_go_of_it_alone() -> None:
    """Where somebody published since, only the own hold is taken back."""
    made = switch()
    fenced = await made.fence(BRIEF, Order(), holder="one#1")
    await made.fence(BRIEF, Order(), holder="two#2")
    state = await made.undo(fenced)
    assert state is not None
    assert (state.active, state.holders) == (True, ("two#2",))


async def test_order_to_close_is_not_given_again() -> None:
    """Neither undoing nor leaving closes what was let in since an earlier drain."""
    made = switch(active=True, begun=True, extra={"new": 1})
    closing = Plan(timeout=0.0, close_after=3.0)
    assert (await made.drain(closing)).drained
    undone = await made.undo(await made.fence(BRIEF, Order(message="m")))
    assert undone is not None
    assert (undone.active, undone.extra) == (True, {"new": 1})
    await made.fence(BRIEF, Order(), holder="one#1")
    await made.fence(closing, Order(), holder="two#2")
    left = await made.release("two#2", stays=False)
    assert (left.holders, left.extra) == (("operator", "one#1"), {"new": 1})


def guard_and_store() -> tuple[MaintenanceGuard, MemoryStore]:
    """Return a guard that has joined a memory store."""
    store = MemoryStore()
    guard = MaintenanceGuard(store)
    guard._switch.worker.join()
    return guard, store


async def test_block_under_maintenance_opens_at_its_end() -> None:
    """A block runs drained and held, and what it closed is open after it."""
    guard, store = guard_and_store()
    async with guard.maintenance(message="moving", until=HOUR) as report:
        state = store.peek("default")
        assert report.drained
        assert (state.active, state.message) == (True, "moving")
        assert state.until is not None
        assert [holder.partition("#")[0] for holder in state.holders] == [
            default_actor()
        ]
    assert not store.peek("default").active


@pytest.mark.parametrize("stay", [True, False])
async def test_block_that_fails_stays_on_unless_told_otherwise(stay: bool) -> None:
    """A failed migration must not open the service, and is a person's to open."""
    guard, store = guard_and_store()
    with pytest.raises(KeyError):
        async with guard.maintenance(stay_on_error=stay):
            raise KeyError("migration")
    state = store.peek("default")
    assert (state.active, state.holders) == (stay, ("operator",) if stay else ())
    assert not (await guard.disable()).active


async def test_block_that_is_cancelled_stays_on() -> None:
    """A cancelled block has not ended: it stays on, and its hold is given back."""
    guard, store = guard_and_store()
    begun = asyncio.Event()

    async def block() -> None:
        async with guard.maintenance():
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(block())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.peek("default").active
    assert store.peek("default").holders == ("operator",)


async def test_block_that_is_not_drained_does_not_start() -> None:
    """While requests run the block does not, and the state stays on."""
    guard, store = guard_and_store()
    held = Held(guard._switch)
    try:
        with pytest.raises(DrainError, match="busy") as error:
            async with guard.maintenance(drain_timeout=0.02):
                raise AssertionError
    finally:
        held.end()
    assert error.value.report.outcome == "busy"
    assert store.peek("default").active


async def test_overlapping_blocks_hold_it_together() -> None:
    """Blocks of several tasks each hold it; the last one to leave opens."""
    guard, store = guard_and_store()
    async with guard.maintenance(message="one"):
        async with guard.maintenance():
            assert len(store.peek("default").holders) == 2
            assert store.peek("default").message == "one"
        with pytest.raises(StoreError, match="is held by"):
            await guard.disable()
        assert store.peek("default").active
    assert not store.peek("default").active


async def test_block_leaves_an_operator_s_own_maintenance_on() -> None:
    """What a person switched on before the block is on after it."""
    guard, store = guard_and_store()
    await guard.enable(message="mine", read_only=True, retry_after=5)
    async with guard.maintenance():
        state = store.peek("default")
        assert (state.message, state.retry_after) == ("mine", 5)
        # What let reads in has to give way to the block.
        assert not state.read_only
    state = store.peek("default")
    assert (state.active, state.holders) == (True, ("operator",))


async def test_actor_is_who_published_last() -> None:
    """Who joins or leaves is named, not who switched it on before; a block is, too."""
    made = switch()
    seen = []
    for actor in ("ada", None, "bob"):
        held = Order(actor=actor)
        fenced = await made.fence(BRIEF, held, holder=new_holder(actor or "cleo"))
        seen.append(fenced.state.actor)
    assert seen == ["ada", "ada", "bob"]
    gone = [await made.release(who, stays=False) for who in made.state.holders]
    assert [state.actor for state in gone] == ["ada", "cleo", "bob"]
    assert not made.state.active
    guard, store = guard_and_store()
    async with guard.maintenance():
        assert store.peek("default").actor == default_actor()


async def test_block_that_was_forced_open_leaves_the_new_state_alone() -> None:
    """After `off --force` the end of the block publishes nothing."""
    guard, store = guard_and_store()
    async with guard.maintenance():
        opened = await guard._switch.disable(force=True)
    assert store.peek("default") == opened


async def test_block_is_refused_where_it_could_open_by_the_clock() -> None:
    """No block runs in a window that ends by itself."""
    guard, _ = guard_and_store()
    await guard.enable(until=HOUR, auto_off=True)
    with pytest.raises(FenceRefusedError, match="auto_off"):
        async with guard.maintenance():
            raise AssertionError


async def test_work_outside_requests_obeys_and_is_counted() -> None:
    """Jobs and consumers are admitted, counted and refused like requests."""
    guard, store = guard_and_store()
    counts = guard._switch.worker.counts
    for _ in range(2):
        with guard.admit():
            assert counts()[0] == 1
        async with guard.admit():
            assert counts()[0] == 1
    await guard.enable(message="closed")
    with pytest.raises(MaintenanceError, match="closed") as refused, guard.admit():
        raise AssertionError
    assert refused.value.status_code == 503
    with pytest.raises(MaintenanceError):
        async with guard.admit():
            raise AssertionError
    assert counts() == (0, 0, None)
    assert store.peek("default").active


async def test_work_joins_by_itself() -> None:
    """No lifespan is needed for work outside requests, in a thread neither."""
    guard = MaintenanceGuard("memory:")
    with guard.admit():
        assert guard._switch.worker.joined
    other = MaintenanceGuard("memory:")
    async with other.admit():
        assert other._switch.worker.joined


async def test_failed_work_is_not_counted_any_more() -> None:
    """An error ends the work and passes."""
    guard, _ = guard_and_store()
    with pytest.raises(KeyError), guard.admit():
        raise KeyError
    with pytest.raises(KeyError):
        async with guard.admit():
            raise KeyError
    assert guard._switch.worker.counts() == (0, 0, None)


def test_one_admission_is_one_work() -> None:
    """Entering the same object again would let go of a count: it is refused."""
    guard, _ = guard_and_store()
    work = guard.admit()
    with work:
        with pytest.raises(RuntimeError, match=r"guard\.admit\(\) for each"), work:
            raise AssertionError
        assert guard._switch.worker.counts()[0] == 1
    with work:
        assert guard._switch.worker.counts()[0] == 1
    work.__exit__(None, None, None)
    assert guard._switch.worker.counts() == (0, 0, None)


def test_actor_is_who_runs_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """People can tell who holds it: the user, the machine and the process."""
    assert default_actor().endswith(f"/{os.getpid()}")
    assert default_actor().startswith(f"{getpass.getuser()}@")
    assert new_holder("ada") != new_holder("ada")
    assert new_holder("ada").startswith("ada#")

    def nobody() -> str:
        raise KeyError("uid without a name")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert default_actor().startswith(f"{os.getuid()}@")
