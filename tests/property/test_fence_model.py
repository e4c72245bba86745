"""Every interleaving of workers, requests, a store and a coordinator.

The model has the steps of the protocol, in its order or in a wrong one; the real
``Fence`` judges what a coordinator sees in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastapi_maintenance import MaintenanceState, Roster, WorkerReport
from fastapi_maintenance.fence import Fence
from fastapi_maintenance.worker import Admission, Worker

pytestmark = pytest.mark.property


class State(NamedTuple):
    """A publication."""

    epoch: int
    tag: str
    enabled: bool


OFF = State(1, "before", enabled=False)
OTHER = State(2, "another history", enabled=False)
MINE = "the coordinator's"


@dataclass(frozen=True)
class Protocol:
    """The order of steps; the defaults are the ones that are proven."""

    count_then_read: bool = True
    """A request is counted and reads the state in one step."""
    adopt_then_report: bool = True
    """A worker reports an epoch after it has adopted it."""
    publish_then_look: bool = True
    """A coordinator looks at reports after it has published."""
    list_then_read: bool = True
    """A worker is listed before it reads the state for the first time."""
    looks_only: bool = True
    """A coordinator makes no roster."""
    tags: bool = True
    """Publications are told apart by their tags, too."""
    leave_at_once: bool = True
    """A worker looks for requests and stops admitting in one step."""
    members: bool = True
    """A roster lists who has joined, beside their reports."""


class Report(NamedTuple):
    """What a worker has said."""

    seen: int
    tag: str
    current: int
    old: int


UNSEEN = Report(0, "", 0, 0)


class Process(NamedTuple):
    """One worker."""

    phase: str = "joined"
    known: State = OFF
    current: frozenset[int] = frozenset()
    old: frozenset[int] = frozenset()
    fetched: State | None = None
    says: Report | None = None
    generation: int | None = 1
    testifies: bool = False


class Stored(NamedTuple):
    """What the store has."""

    state: State | None = OFF
    generation: int = 1
    complete: bool = True
    members: frozenset[int] | None = frozenset()
    reports: tuple[tuple[int, Report], ...] = ()


NOTHING = Stored(state=None, members=None)


@dataclass(frozen=True)
class World:
    """All that matters at one moment; a value, so that no moment is visited twice."""

    processes: tuple[Process, ...]
    requests: tuple[tuple[int, str], ...]
    stored: Stored
    loses: int = 0
    leaves: frozenset[int] = frozenset()
    wants: int | None = None
    stage: str = "begin"
    before: Stored = NOTHING
    mine: State | None = None
    looks: tuple[Stored, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether work runs that an open state has admitted, and must not."""
        return self.stage == "drained" and any(
            doing == "running" for _, doing in self.requests
        )


def processes(world: World, index: int, **changes: Any) -> World:
    """Return the world with one worker changed."""
    changed = list(world.processes)
    changed[index] = changed[index]._replace(**changes)
    return replace(world, processes=tuple(changed))


def storing(world: World, **changes: Any) -> World:
    """Return the world with other contents of the store."""
    return replace(world, stored=world.stored._replace(**changes))


def doing(world: World, number: int, step: str) -> World:
    """Return the world with a request at another step."""
    requests = list(world.requests)
    requests[number] = requests[number][0], step
    return replace(world, requests=tuple(requests))


def of_request(world: World, number: int, protocol: Protocol) -> Iterator[World]:
    """Yield what a request may do next."""
    index, step = world.requests[number]
    worker = world.processes[index]
    admits = worker.phase in {"joined", "leaving"}
    counted = processes(world, index, current=worker.current | {number})
    if step == "arriving" and admits and protocol.count_then_read:
        if worker.known.enabled:
            yield doing(world, number, "refused")
        else:
            yield doing(counted, number, "running")
    elif step == "arriving" and admits:
        yield doing(world, number, "refused" if worker.known.enabled else "read")
    elif step == "read":
        yield doing(counted, number, "running")
    elif step == "running":
        ended = processes(
            world,
            index,
            current=worker.current - {number},
            old=worker.old - {number},
        )
        yield doing(ended, number, "ended")


def of_worker(world: World, index: int, protocol: Protocol) -> Iterator[World]:
    """Yield what a worker and its keeper may do next."""
    worker, stored = world.processes[index], world.stored
    if worker.testifies:
        # Before anything else, as the keeper is one thread.
        after = processes(world, index, testifies=False)
        if stored.generation == worker.generation and stored.members is not None:
            after = storing(after, generation=stored.generation + 1, complete=False)
            after = processes(after, index, generation=stored.generation + 1)
        yield after
    elif worker.phase == "absent":
        if protocol.list_then_read:
            yield processes(said(world, index, UNSEEN), index, phase="listed")
        else:
            yield processes(world, index, known=stored.state or OFF, phase="has read")
    elif worker.phase == "listed":
        yield processes(world, index, known=stored.state or OFF, phase="joined")
    elif worker.phase == "has read":
        report = Report(worker.known.epoch, worker.known.tag, 0, 0)
        yield processes(said(world, index, report), index, phase="joined")
    elif worker.phase == "left":
        members = None if stored.members is None else stored.members - {index}
        reports = tuple(r for r in stored.reports if r[0] != index)
        after = storing(world, members=members, reports=reports)
        yield processes(after, index, phase="gone")
    elif worker.phase == "leaving":
        yield processes(world, index, phase="left")
    elif worker.phase == "joined":
        yield from of_keeper(world, index, protocol)
        if index in world.leaves and not (worker.current or worker.old):
            phase = "left" if protocol.leave_at_once else "leaving"
            yield processes(world, index, phase=phase)


def of_keeper(world: World, index: int, protocol: Protocol) -> Iterator[World]:
    """Yield the next step of learning, adopting and reporting."""
    worker, stored = world.processes[index], world.stored
    if worker.says is not None:
        yield processes(said(world, index, worker.says), index, says=None)
    elif worker.fetched is not None:
        adopted = processes(
            world,
            index,
            known=worker.fetched,
            fetched=None,
            current=frozenset(),
            old=worker.old | worker.current,
        )
        if protocol.adopt_then_report:
            yield adopted
        else:
            yield processes(adopted, index, says=None)
    elif stored.state is not None and stored.state.epoch > worker.known.epoch:
        after = processes(world, index, fetched=stored.state)
        if not protocol.adopt_then_report:
            report = Report(
                stored.state.epoch,
                stored.state.tag,
                len(worker.current),
                len(worker.old),
            )
            after = said(after, index, report)
        yield after
    elif stored.state is not None and stored.state != worker.known:
        # Two histories: the enabled state wins, above both.
        epoch = max(stored.state.epoch, worker.known.epoch) + 1
        winner = max(stored.state, worker.known, key=lambda state: state.enabled)
        yield storing(world, state=winner._replace(epoch=epoch))
    else:
        known = worker.known
        report = Report(known.epoch, known.tag, len(worker.current), len(worker.old))
        if dict(stored.reports).get(index) != report:
            yield processes(world, index, says=report)


def said(world: World, index: int, report: Report) -> World:
    """Return the world after a report has reached the store."""
    worker, stored = world.processes[index], world.stored
    if stored.members is None:
        stored = stored._replace(
            generation=stored.generation + 1,
            complete=worker.generation is None,
            members=frozenset(),
        )
    assert stored.members is not None
    reports = dict(stored.reports)
    fewer = worker.generation is not None and (
        index not in reports
        or (stored.generation != worker.generation and stored.complete)
    )
    stored = stored._replace(
        members=stored.members | {index},
        reports=tuple(sorted({**reports, index: report}.items())),
    )
    return processes(
        replace(world, stored=stored),
        index,
        generation=stored.generation,
        testifies=fewer,
    )


def of_loss(world: World) -> Iterator[World]:
    """Yield what a deletion of the roster may do next, one file after the other."""
    if not world.loses:
        return
    world = replace(world, loses=world.loses - 1)
    stored = world.stored
    if stored.members is not None:
        yield storing(world, members=None)
    for report in stored.reports:
        yield storing(world, reports=tuple(r for r in stored.reports if r != report))


def seen(stored: Stored, state: State, protocol: Protocol) -> Roster:
    """Return the roster that a coordinator sees."""
    if stored.members is None:
        return Roster(complete=False)
    workers = [
        WorkerReport(
            id=str(index),
            host="h",
            pid=1,
            seen=said.seen,
            tag=said.tag if protocol.tags or said.seen != state.epoch else state.tag,
            current=said.current,
            old=said.old,
        )
        for index, said in stored.reports
    ]
    members = (
        {str(index) for index in stored.members}
        if protocol.members
        else {worker.id for worker in workers}
    )
    return Roster(
        generation=str(stored.generation),
        complete=stored.complete,
        members=frozenset(members),
        workers=tuple(workers),
    )


@functools.cache
def drained(
    state: State,
    before: Stored,
    looks: tuple[Stored, ...],
    wants: int | None,
    protocol: Protocol,
) -> bool:
    """Return what the fence says after a number of looks."""
    fence = Fence(
        state=MaintenanceState(**state._asdict()),
        roster_before=seen(before, state, protocol),
        workers=wants,
        settling=0,
    )
    verdicts = [fence.judge(seen(look, state, protocol), 1.0) for look in looks]
    return verdicts[-1].outcome == "drained"


def of_coordinator(world: World, protocol: Protocol) -> Iterator[World]:
    """Yield what the coordinator may do next."""
    stored = world.stored
    if world.stage == "begin":
        yield replace(world, before=listed(stored), stage="knows")
    elif world.stage == "knows" and not protocol.publish_then_look:
        before = world.before
        assert drained(stored.state or OFF, before, (before,), world.wants, protocol)
        yield published(world, "drained")
    elif world.stage == "knows":
        yield published(world, "looks")
    elif world.stage == "looks":
        yield from look(world, protocol)
    elif world.stage == "confirms":
        present, looks = stored.state, world.looks
        assert present is not None
        if present == world.mine:
            yield replace(world, stage="drained")
        else:
            # A worker that knew another history has published it again. The coordinator
            # takes it over, and judges the same look by it.
            assert present.tag == MINE
            done = drained(present, world.before, looks, world.wants, protocol)
            stage = "drained" if done else "looks"
            yield replace(world, mine=present, stage=stage, looks=looks[:1])


def published(world: World, stage: str) -> World:
    """Return the world after the coordinator's publication."""
    state = world.stored.state
    known = [said.seen for _, said in world.before.reports]
    epoch = max([1, state.epoch if state else 0, *known]) + 1
    mine = State(epoch, MINE, enabled=True)
    return storing(replace(world, mine=mine, stage=stage), state=mine)


def listed(stored: Stored) -> Stored:
    """Return what a roster shows of the store."""
    return NOTHING if stored.members is None else stored._replace(state=None)


def look(world: World, protocol: Protocol) -> Iterator[World]:
    """Yield the world after a look that matters: the first one, or the last one."""
    assert world.mine is not None
    if world.stored.members is None and not protocol.looks_only:
        world = storing(
            world,
            generation=world.stored.generation + 1,
            complete=True,
            members=frozenset(),
        )
    looks = (*world.looks, listed(world.stored))
    again = world.stored.state != world.mine
    if again or drained(world.mine, world.before, looks, world.wants, protocol):
        yield replace(world, looks=looks, stage="confirms")
    elif not world.looks:
        yield replace(world, looks=looks)
    else:
        yield world


def following(world: World, protocol: Protocol) -> Iterator[World]:
    """Yield every world that may come next."""
    for number in range(len(world.requests)):
        yield from of_request(world, number, protocol)
    for index in range(len(world.processes)):
        yield from of_worker(world, index, protocol)
    yield from of_loss(world)
    yield from of_coordinator(world, protocol)


def explored(start: World, protocol: Protocol) -> tuple[set[World], World | None]:
    """Visit every interleaving; return the worlds, and the first wrong one."""
    known, waiting = {start}, [start]
    while waiting:
        world = waiting.pop()
        if world.is_wrong:
            return known, world
        for after in following(world, protocol):
            if after not in known:
                known.add(after)
                waiting.append(after)
    return known, None


REPORT = Report(OFF.epoch, OFF.tag, 0, 0)
ONE = Stored(members=frozenset({0}), reports=((0, REPORT),))
TWO = Stored(members=frozenset({0, 1}), reports=((0, REPORT), (1, REPORT)))
BUSY = Process(current=frozenset({0}))


def one_worker() -> World:
    """Return a worker with three requests on their way."""
    return World((Process(),), ((0, "arriving"),) * 3, ONE)


def joining() -> World:
    """Return an idle worker, and one that joins and gets requests."""
    absent = Process(phase="absent", generation=None)
    return World((Process(), absent), ((1, "arriving"),) * 2, ONE)


def leaving() -> World:
    """Return an idle worker, and one that leaves while requests come."""
    return World(
        (Process(), Process()), ((1, "arriving"),) * 2, TWO, leaves=frozenset({1})
    )


def losing() -> World:
    """Return an idle worker, a busy one, and a roster that is deleted."""
    return World((Process(), BUSY), ((1, "running"),), TWO, loses=2)


def two_histories() -> World:
    """Return a busy worker of another history, whose store has lost everything."""
    worker = BUSY._replace(known=OTHER)
    return World(
        (worker,), ((0, "running"),), Stored(state=None, members=None), wants=1
    )


SCENES = pytest.mark.parametrize(
    "scene", [one_worker, joining, leaving, losing, two_histories]
)


@SCENES
def test_drained_means_drained_in_every_interleaving(
    scene: Callable[[], World],
) -> None:
    """With the steps in their order, a drain is never wrong, and it can end."""
    worlds, wrong = explored(numbered(scene()), Protocol())
    assert wrong is None
    assert any(world.stage == "drained" for world in worlds)
    assert len(worlds) > 50


@pytest.mark.parametrize(
    ("scene", "protocol"),
    [
        (one_worker, Protocol(count_then_read=False)),
        (one_worker, Protocol(adopt_then_report=False)),
        (one_worker, Protocol(publish_then_look=False)),
        (joining, Protocol(list_then_read=False)),
        (losing, Protocol(looks_only=False)),
        (two_histories, Protocol(tags=False)),
        (leaving, Protocol(leave_at_once=False)),
        (losing, Protocol(members=False)),
    ],
)
def test_every_other_order_is_caught(
    scene: Callable[[], World], protocol: Protocol
) -> None:
    """Each rule of the protocol is needed: without it, a drain lies."""
    assert explored(numbered(scene()), protocol)[1] is not None


def numbered(world: World) -> World:
    """Return a scene whose running request is counted where it runs."""
    for number, (index, step) in enumerate(world.requests):
        assert (step == "running") is (number in world.processes[index].current)
    return world


class RealWorker(RuleBasedStateMachine):
    """The worker, against what a list would say."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker("default", "a test")
        self.state = MaintenanceState(epoch=1, tag="1")
        self.worker.start(self.state, counted=True)
        self.worker.garbage.wanted = False
        self.held: list[tuple[Admission, int]] = []

    @rule()
    def admit(self) -> None:
        """A request comes."""
        admission = self.worker.admit("work")
        if admission is not None:
            assert admission.state == self.state
            self.held.append((admission, self.state.epoch))
        else:
            assert not self.worker.joined

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 50), twice=st.booleans())
    def release(self, index: int, twice: bool) -> None:
        """A request ends; giving its count back twice takes nothing from others."""
        admission, _ = self.held.pop(index % len(self.held))
        admission.release()
        if twice:
            admission.release()
            assert not self.worker.readmit(admission)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 50))
    def recheck(self, index: int) -> None:
        """A request that waited for a handler is decided again."""
        place = index % len(self.held)
        admission, epoch = self.held[place]
        assert self.worker.readmit(admission) == (epoch != self.state.epoch)
        assert admission.state == self.state
        self.held[place] = (admission, self.state.epoch)

    @rule(enabled=st.booleans())
    def adopt(self, enabled: bool) -> None:
        """The keeper learns of a new state."""
        epoch = self.state.epoch + 1
        self.state = MaintenanceState(epoch=epoch, tag=str(epoch), enabled=enabled)
        self.worker.adopt(self.state)
        self.worker.garbage.wanted = False

    @rule()
    def learn_late(self) -> None:
        """A thread that was stopped adopts an older state, which changes nothing."""
        self.worker.adopt(MaintenanceState(enabled=False))

    @rule()
    def leave(self) -> None:
        """The worker leaves, if nothing is in flight."""
        joined = self.worker.joined
        assert self.worker.leave() == (joined and not self.held)

    @rule()
    def join_again(self) -> None:
        """The worker joins, or joins again."""
        self.worker.start(self.state, counted=True)
        self.worker.garbage.wanted = False
        self.held = [(admission, 0) for admission, _ in self.held]

    @invariant()
    def counts_are_exact(self) -> None:
        """What is reported is what is held, by the epoch that admitted it."""
        report = self.worker.make_report()
        old = sum(epoch < self.state.epoch for _, epoch in self.held)
        assert (report.current, report.old) == (len(self.held) - old, old)
        if self.worker.joined:
            assert (report.seen, report.tag) == (self.state.epoch, self.state.tag)
        else:
            assert (report.seen, report.tag) == (0, "")

    @invariant()
    def drained_means_drained(self) -> None:
        """The fence says drained exactly when nothing older is held."""
        report = self.worker.make_report()
        roster = Roster(generation="g", members=frozenset({report.id}))
        roster = Roster(generation="g", members=roster.members, workers=(report,))
        fence = Fence(state=self.state, roster_before=roster, settling=0)
        old = any(epoch < self.state.epoch for _, epoch in self.held)
        drained = not old and self.worker.joined
        assert (fence.judge(roster, 1.0).outcome == "drained") == drained


TestRealWorker = RealWorker.TestCase
TestRealWorker.settings = settings(stateful_step_count=20)
