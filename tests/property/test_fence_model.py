"""Every interleaving of workers, requests and a coordinator, judged by the fence."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastapi_maintenance import MaintenanceState, MemoryStore
from fastapi_maintenance.fence import Fence, Roster, WorkerRow
from fastapi_maintenance.stores._admission import Admission

pytestmark = pytest.mark.property

OLD, NEW = 1, 2


@dataclass(frozen=True)
class Protocol:
    """The order of a worker's steps; the defaults are the ones that are proven."""

    count_first: bool = True
    """Count, then read the epoch."""
    move_first: bool = True
    """Move what is in flight to ``old``, then report the epoch as seen."""
    locked: bool = True
    """Let no other request in between counting and deciding."""
    counts_visible: bool = True
    """Whether coordinators see a count before the worker reads the epoch."""
    claims_counts_first: bool = True
    """Whether its rows say so."""


@dataclass(frozen=True)
class Request:
    """One request on its way through a worker."""

    step: int = 0
    read: int = 0
    doing: str = "arriving"


@dataclass(frozen=True)
class World:
    """All that matters at one moment; a value, so that no moment is visited twice."""

    requests: tuple[Request, ...]
    published: int = OLD
    seen: int = OLD
    current: frozenset[int] = frozenset()
    old: frozenset[int] = frozenset()
    reported: tuple[int, int] = (0, 0)
    lock: int | None = None
    drained: bool = False

    def with_request(self, index: int, request: Request) -> "World":
        """Return the world with one request replaced."""
        requests = list(self.requests)
        requests[index] = request
        return replace(self, requests=tuple(requests))

    @property
    def counts(self) -> tuple[int, int]:
        """What is in flight, current and old."""
        return len(self.current), len(self.old)

    def row(self, protocol: Protocol) -> WorkerRow:
        """Return the row that a coordinator sees."""
        current, old = self.counts if protocol.counts_visible else self.reported
        return WorkerRow(
            id="w",
            host="h",
            pid=1,
            seen=self.seen,
            current=current,
            old=old,
            counts_first=protocol.claims_counts_first,
        )


def stepped(world: World, index: int, protocol: Protocol) -> World | None:
    """Return the world after one step of a request, or None where it must wait."""
    request = world.requests[index]
    if request.doing == "done":
        return None
    if request.doing == "running":
        return finished(world, index)
    if protocol.locked and world.lock not in {None, index}:
        return None
    order = ("count", "read") if protocol.count_first else ("read", "count")
    moves = ("move", "see") if protocol.move_first else ("see", "move")
    step = (*order, *moves, "decide")[request.step]
    world = replace(world, lock=index)
    following = replace(request, step=request.step + 1)
    if step == "count":
        world = replace(world, current=world.current | {index})
    elif step == "read":
        following = replace(following, read=world.published)
    elif step == "move" and request.read > OLD and needs_to_move(world, protocol):
        others = world.current - {index}
        world = replace(world, old=world.old | others, current=world.current - others)
    elif step == "see":
        world = replace(world, seen=max(world.seen, request.read))
        world = replace(world, reported=world.counts)
    elif step == "decide":
        world = replace(world, lock=None)
        if request.read > OLD:
            return finished(world, index)
        following = replace(following, doing="running")
    return world.with_request(index, following)


def needs_to_move(world: World, protocol: Protocol) -> bool:
    """Tell whether a worker has not adopted the new epoch yet."""
    return world.seen < NEW or not protocol.move_first


def finished(world: World, index: int) -> World:
    """Return the world after a request has ended and given its count back."""
    world = replace(world, current=world.current - {index}, old=world.old - {index})
    return world.with_request(index, replace(world.requests[index], doing="done"))


def judged(world: World, protocol: Protocol) -> World:
    """Return the world after a look of the coordinator."""
    before = Roster(generation="g", rows=(), epoch=OLD)
    found = Roster(generation="g", rows=(world.row(protocol),), epoch=NEW)
    fence = Fence(epoch=NEW, workers=1, vouched=False, before=before)
    outcome, _ = fence.judge(found)
    return replace(world, drained=outcome == "drained")


def following(world: World, protocol: Protocol) -> Iterator[World]:
    """Yield every world that may come next."""
    for index in range(len(world.requests)):
        after = stepped(world, index, protocol)
        if after is not None:
            yield after
    if world.published == OLD:
        yield replace(world, published=NEW)
    elif not world.drained:
        yield judged(world, protocol)


def explored(protocol: Protocol, requests: int) -> tuple[int, list[World]]:
    """Visit every interleaving; return how many worlds there are, and the wrong ones.

    A world is wrong when the coordinator has said drained and a request runs that an
    older epoch admitted.
    """
    start = World(requests=(Request(),) * requests)
    known, waiting, wrong = {start}, [start], []
    while waiting:
        world = waiting.pop()
        if world.drained and any(r.doing == "running" for r in world.requests):
            wrong.append(world)
            continue
        for after in following(world, protocol):
            if after not in known:
                known.add(after)
                waiting.append(after)
    return len(known), wrong


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_drained_means_drained_in_every_interleaving(requests: int) -> None:
    """Counting before reading, and moving before reporting, is never wrong."""
    worlds, wrong = explored(Protocol(), requests)
    assert worlds > 10 * requests**3
    assert wrong == []


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(count_first=False),
        Protocol(move_first=False),
        Protocol(counts_visible=False),
    ],
)
def test_every_other_order_is_caught(protocol: Protocol) -> None:
    """Swapping two steps, or claiming what is not so, lets a drain lie."""
    _, wrong = explored(protocol, 2)
    assert wrong


def test_worker_whose_counts_come_late_is_waited_for() -> None:
    """A row that does not claim to count first drains only by acknowledging."""
    _, wrong = explored(
        Protocol(counts_visible=False, claims_counts_first=False), requests=2
    )
    assert wrong == []


def test_every_end_can_be_drained() -> None:
    """When all requests have ended, a look says drained: nobody waits for ever."""
    for protocol in (Protocol(), Protocol(locked=False)):
        done = World(
            requests=(Request(doing="done"),), published=NEW, seen=OLD, reported=(0, 0)
        )
        assert judged(done, protocol).drained


class RealWorker(RuleBasedStateMachine):
    """The worker of a memory store, against what a list would say."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.worker = self.store.worker("default")
        self.worker.join()
        self.held: list[tuple[Admission, int]] = []

    @rule()
    def admit(self) -> None:
        """A request comes."""
        admission = self.worker.admit("work")
        admission.__exit__(ValueError, _Cancelled(), None)  # keep it past this rule
        assert admission.state == self.store.peek("default")
        self.held.append((admission, admission.state.epoch))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        """A request ends."""
        self.held.pop(index % len(self.held))[0].release()

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 50))
    def forget(self, index: int) -> None:
        """A request was cancelled, and the last thread that held it has ended."""
        del self.held[index % len(self.held)]

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 50))
    def recheck(self, index: int) -> None:
        """A request that waited for a handler is decided anew."""
        place = index % len(self.held)
        admission, epoch = self.held[place]
        moved = self.worker.recheck(admission)
        assert moved == (epoch != self.store.peek("default").epoch)
        self.held[place] = (admission, admission.state.epoch)

    @rule(active=st.booleans())
    def publish(self, active: bool) -> None:
        """An operator switches, or fences the same state again."""
        publishing = self.store.publish(
            "default", lambda _: MaintenanceState(active=active)
        )
        with pytest.raises(StopIteration):
            publishing.send(None)

    @invariant()
    def counts_are_exact(self) -> None:
        """What is counted is what is held, by the epoch that admitted it."""
        epoch = self.store.peek("default").epoch
        old = sum(admitted < epoch for _, admitted in self.held)
        assert self.worker.counts()[:2] == (len(self.held) - old, old)

    @invariant()
    def drained_means_drained(self) -> None:
        """The fence says drained exactly when nothing older is held."""
        epoch = self.store.peek("default").epoch
        rows = self.store.roster("default")
        with pytest.raises(StopIteration) as done:
            rows.send(None)
        fence = Fence(epoch=epoch, workers=1, vouched=False, before=done.value.value)
        older = any(admitted < epoch for _, admitted in self.held)
        assert fence.judge(done.value.value)[0] == ("busy" if older else "drained")


class _Cancelled(BaseException):
    """Ends a request while its work goes on."""


TestRealWorker = RealWorker.TestCase
TestRealWorker.settings = settings(stateful_step_count=20)
