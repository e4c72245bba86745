"""The contract of a store and its workers, on PostgreSQL and on SQLite in a file."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text

from fastapi_maintenance import MaintenanceState, StoreError, open_store
from fastapi_maintenance.changes import EnableOptions, with_new_epoch
from fastapi_maintenance.fence import WorkerReport
from fastapi_maintenance.processes import ProcessIdentity
from fastapi_maintenance.stores.sql import SQLStore, schema
from fastapi_maintenance.switch import DrainOptions
from tests.guards import switch_of
from tests.stores.children import ended, in_child
from tests.stores.sql_server import fresh_url, shared_server
from tests.waiting import eventually

NAME = "default"
ON = MaintenanceState(enabled=True, message="upgrade")

Open = Callable[..., SQLStore]


@pytest.fixture(params=[pytest.param("postgresql", marks=pytest.mark.sql), "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a store that was never used."""
    if request.param == "postgresql":
        return fresh_url()
    (tmp_path / "link").symlink_to(tmp_path)
    return f"sqlite:///{tmp_path}/shop.db?prefix=t{secrets.token_hex(6)}"


@pytest.fixture
def opened() -> Iterator[Open]:
    """Return what opens stores, which are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(url: str | Engine, **options: str) -> SQLStore:
            store = SQLStore(url, **options)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(url: str, opened: Open) -> SQLStore:
    """Return a store that was never used."""
    return opened(url)


def on(_: MaintenanceState | None) -> MaintenanceState:
    """Switch on."""
    return ON


def one_more(before: MaintenanceState | None) -> MaintenanceState:
    """Count the publications."""
    number = int(before.message or 0) if before else 0
    epoch = before.epoch + 1 if before else 1
    return MaintenanceState(epoch=epoch, message=str(number + 1))


def report(worker: str, **values: object) -> WorkerReport:
    """Return a report of this process."""
    known = {"host": "web-1", "pid": os.getpid(), "process": str(ProcessIdentity.own())}
    return WorkerReport.model_validate({"id": worker, **known, **values})


def run(store: SQLStore, statement: str) -> None:
    """Change the tables as another program would; ``{}`` stands for the prefix."""
    with store._engine.begin() as connection:
        connection.execute(text(statement.format(store.prefix)))


def test_reading_makes_nothing(store: SQLStore) -> None:
    """Before the first publication or report there is nothing, not even a table."""
    assert store.read(NAME) is None
    assert store.roster(NAME).members == frozenset()
    assert store.confirm(NAME, "g", complete=True) == ""
    store.remove(NAME, "w")
    assert not store._has_tables()


def test_state_comes_back_whole(url: str, opened: Open) -> None:
    """Another store of the place reads every field, those of later releases too."""
    state = MaintenanceState.from_json(
        '{"enabled": true, "epoch": 7, "tag": "t", "message": "für 5 € \\ud83d\\ude80",'
        ' "bypass": "sha256:00", "later": [1], "since": "2026-11-24T12:00:00Z"}'
    )
    assert opened(url).publish(NAME, lambda _: state) == state
    other = opened(url)
    found = other.read(NAME)
    assert found == state
    assert found is not None
    assert found.to_json() == state.to_json()


def test_change_that_fails_first_leaves_nothing(store: SQLStore) -> None:
    """A first publication that fails has not set the switch to anything."""

    def fail(_: MaintenanceState | None) -> MaintenanceState:
        raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            store.publish(NAME, fail)
        assert store.read(NAME) is None


@pytest.mark.parametrize("first", ["publish", "report"])
def test_stores_that_make_the_tables_at_once(
    url: str, opened: Open, first: str
) -> None:
    """Many stores whose first use is at the same moment lose nothing."""
    stores = [opened(url) for _ in range(6)]

    def use(store: SQLStore) -> None:
        if first == "publish":
            store.publish(NAME, one_more)
        else:
            store.report(NAME, report(f"w{id(store)}"))

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(use, stores))
    if first == "publish":
        found = stores[0].read(NAME)
        assert found is not None
        assert found.message == "6"
    else:
        roster = stores[0].roster(NAME)
        assert roster.complete
        assert len(roster.members) == len(roster.workers) == len(stores)


def test_ages_are_by_the_clock_of_the_database(store: SQLStore) -> None:
    """A roster and a report that were just made are young."""
    store.report(NAME, report("a"))
    roster = store.roster(NAME)
    assert 0 <= roster.age < 5
    assert 0 <= roster.workers[0].age < 5


def test_removing_concerns_one_switch(store: SQLStore) -> None:
    """A worker is removed from the switch that is named, once or twice."""
    store.report(NAME, report("a"))
    store.remove("other", "a")
    assert store.roster(NAME).members == {"a"}
    store.remove(NAME, "a")
    store.remove(NAME, "a")
    assert store.roster(NAME).members == set()
    assert not store.report(NAME, report("a")).replaced


def test_report_that_is_gone_was_not_replaced(store: SQLStore) -> None:
    """A worker that is listed and whose report was lost is told so."""
    store.report(NAME, report("a"))
    run(store, "DELETE FROM {}_reports")
    roster = store.roster(NAME)
    assert roster.members == {"a"}
    assert not roster.workers
    assert not store.report(NAME, report("a")).replaced
    assert store.report(NAME, report("a")).replaced


def test_silent_is_not_dead(store: SQLStore) -> None:
    """A report that grows old by the database's clock is silent, and nothing more."""
    store.report(NAME, report("a"))
    run(store, "UPDATE {}_reports SET reported_at = reported_at - 60")
    (worker,) = store.roster(NAME).workers
    assert worker.liveness == "silent"
    assert 60 <= worker.age < 70


def test_dead_is_proven_by_the_process_table(store: SQLStore) -> None:
    """A worker whose process is gone is dead at once."""
    store.report(NAME, report("a", pid=ended()))
    (worker,) = store.roster(NAME).workers
    assert worker.liveness == "dead"


def test_report_that_cannot_be_read_is_a_worker(store: SQLStore) -> None:
    """A damaged report is never taken for a worker that is gone."""
    store.report(NAME, report("a"))
    run(store, "UPDATE {}_reports SET document = 'no JSON'")
    (worker,) = store.roster(NAME).workers
    assert (worker.id, worker.host, worker.seen) == ("a", "unknown", 0)


def test_reports_without_a_list_are_no_roster(store: SQLStore) -> None:
    """What a loss has left is no complete list; the next report makes one."""
    store.report(NAME, report("a"))
    store.report(NAME, report("b"))
    run(store, "UPDATE {}_switches SET members = 'no JSON'")
    assert not store.roster(NAME).complete
    assert store.roster(NAME).generation == ""
    receipt = store.report(NAME, report("a", generation="older"))
    assert (receipt.complete, receipt.replaced) == (False, True)
    run(store, "DELETE FROM {}_switches")
    assert not store.roster(NAME).complete
    assert store.roster(NAME).generation == ""


def test_list_of_workers_that_cannot_be_read_is_a_lost_one(store: SQLStore) -> None:
    """It cannot be confirmed or left, and the next report makes a new one."""
    first = store.report(NAME, report("a"))
    run(store, "UPDATE {}_switches SET members = '[]'")
    assert store.confirm(NAME, first.generation, complete=True) == ""
    store.remove(NAME, "b")
    again = store.report(NAME, report("a", generation=first.generation))
    assert again.generation != first.generation
    assert not again.complete


def test_damaged_state_counts_as_closed(store: SQLStore) -> None:
    """It cannot be read, a change sees an enabled state, and publishing repairs it."""
    store.publish(NAME, with_new_epoch(lambda _: MaintenanceState()))
    run(store, "UPDATE {}_switches SET state = 'no JSON'")
    with pytest.raises(StoreError, match=r"'default' in .*_switches .*is not a state"):
        store.read(NAME)
    found = []

    def off(before: MaintenanceState | None) -> MaintenanceState:
        found.append(before)
        return MaintenanceState()

    store.publish(NAME, with_new_epoch(off))
    assert found == [MaintenanceState(enabled=True)]
    assert store.read(NAME) is not None


def test_prefixes_are_separate(url: str, opened: Open) -> None:
    """Another prefix in the same schema sees no change."""
    store = opened(url)
    other = opened(url.partition("?")[0], prefix=f"{store.prefix}x")
    state = store.publish(NAME, with_new_epoch(on))
    store.report(NAME, report("a"))
    assert other.read(NAME) is None
    assert other.roster(NAME).members == frozenset()
    other.publish(NAME, with_new_epoch(lambda _: MaintenanceState()))
    assert store.read(NAME) == state


def test_schema_makes_what_the_store_uses(url: str, opened: Open) -> None:
    """The printed DDL makes tables that the store then uses as they are."""
    store = opened(url)
    for statement in schema(url).split(";")[:-1]:
        with store._engine.begin() as connection:
            connection.execute(text(statement))
    assert store._has_tables()
    store.report(NAME, report("a"))
    state = store.publish(NAME, with_new_epoch(on))
    assert opened(url).read(NAME) == state


@pytest.mark.sql
def test_engine_of_the_application_is_used_as_it_is(opened: Open) -> None:
    """Its transactions are the store's own even where it commits each statement."""
    bare = shared_server().url()
    prefix = f"t{secrets.token_hex(6)}"
    engine = create_engine(bare, isolation_level="AUTOCOMMIT", pool_size=6)
    store = opened(engine, prefix=prefix)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: store.publish(NAME, one_more), range(30)))
    found = store.read(NAME)
    assert found is not None
    assert found.message == "30"
    store.close()
    assert engine.pool.checkedin()  # type: ignore[attr-defined]  # not closed
    place = f"{bare.replace(':pass-w0rd%2F%23%40', '')}?prefix={prefix}"
    assert store.location.startswith(place)
    engine.dispose()


def test_sqlite_engine_that_begins_by_itself(tmp_path: Path, opened: Open) -> None:
    """The recipe of SQLAlchemy's documentation for SQLite works with the store."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")

    @event.listens_for(engine, "connect")
    def connected(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # of sqlite3

    @event.listens_for(engine, "begin")
    def begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN")  # type: ignore[attr-defined]  # SQLAlchemy's

    store = opened(engine)
    store.report(NAME, report("a"))
    state = store.publish(NAME, with_new_epoch(on))
    assert store.read(NAME) == state
    assert store.roster(NAME).members == {"a"}
    engine.dispose()


def test_engines_without_an_address_are_different_places(opened: Open) -> None:
    """Two engines that only a function can connect never share a keeper."""
    for url in ("postgresql+psycopg://", "postgresql+psycopg://db/shop"):
        engines = [create_engine(url, creator=list) for _ in range(2)]
        one, other = [opened(engine) for engine in engines]
        assert one.location != other.location
        assert one.location == opened(engines[0]).location


def test_open_store_knows_the_url(url: str) -> None:
    """``open_store`` takes any URL of the store, with its prefix."""
    store = open_store(url)
    assert isinstance(store, SQLStore)
    assert f"prefix={store.prefix}" in store.location
    assert repr(store) == f"SQLStore({store.location!r})"
    assert store.poll_interval == 1.0


def test_forked_child_uses_connections_of_its_own(url: str, opened: Open) -> None:
    """A child reads for itself, and its end does not end the parent's connection."""
    store = opened(url)
    state = store.publish(NAME, with_new_epoch(on))

    def child() -> bool:
        store.forked()
        found = store.read(NAME) == state
        store.close()
        return found

    assert in_child(child)
    assert store.read(NAME) == state


def elsewhere(url: str) -> str:
    """Return a URL of the same tables, whose worker is another one of this process."""
    if url.startswith("sqlite"):
        return url.replace("/shop.db", "/link/shop.db")
    return f"{url}&application_name=elsewhere"


async def test_stores_of_one_place_share_a_worker(url: str, opened: Open) -> None:
    """Two guards with one URL are one worker with one keeper, and one report."""
    one, other = switch_of(opened(url)), switch_of(opened(url))
    assert one.keeper is other.keeper
    assert one.worker is other.worker
    async with one.attached(), other.attached():
        roster = await one.roster()
        assert roster is not None
        assert len(roster.members) == 1
    roster = await one.roster()
    assert roster is not None
    assert roster.members == frozenset()


async def test_workers_acknowledge_within_a_tick(url: str, opened: Open) -> None:
    """``enable`` returns when every worker has adopted, which a tick is enough for."""
    workers = [switch_of(opened(url)), switch_of(opened(elsewhere(url)))]
    operator = workers[0]
    async with workers[0].attached(), workers[1].attached():
        for _ in range(2):
            begun = time.monotonic()
            done = await operator.enable(EnableOptions(message="upgrade"))
            assert time.monotonic() - begun < 2.5, "a tick, on a busy machine"
            assert [w.worker.state.epoch for w in workers] == [done.state.epoch] * 2
        report = await operator.drain(DrainOptions(timeout=10))
        assert report.drained, report
        assert len(report.workers) == 2
        await operator.disable()
        assert not any(switch.worker.state.enabled for switch in workers)


async def test_drain_waits_for_what_is_in_flight(url: str, opened: Open) -> None:
    """A request of another worker makes it busy, and its end makes it drained."""
    operator, busy = switch_of(opened(url)), switch_of(opened(elsewhere(url)))
    async with operator.attached(), busy.attached():
        admission = busy.worker.admit("POST /orders")
        assert admission is not None
        options = DrainOptions(timeout=0.5)
        report = await operator.drain(options, enable=EnableOptions())
        assert report.outcome == "busy"
        admission.release()
        report = await operator.drain(DrainOptions(timeout=10))
        assert report.drained, report


@pytest.mark.parametrize(
    "loss",
    [
        ["DELETE FROM {}_switches", "DELETE FROM {}_reports"],
        ["DROP TABLE {}_switches", "DROP TABLE {}_reports"],
    ],
    ids=["rows", "tables"],
)
async def test_what_is_lost_is_written_back(
    url: str, opened: Open, loss: list[str]
) -> None:
    """Workers restore the enabled state and say that the roster is not complete."""
    store = opened(url)
    switch = switch_of(store)
    async with switch.attached():
        state = (await switch.enable(EnableOptions(message="upgrade"))).state
        for statement in loss:
            run(store, statement)
        await eventually(lambda: store.read(NAME) == state, what="it is written back")
        await eventually(lambda: store.roster(NAME).members, what="it joins again")
        await eventually(lambda: not store.roster(NAME).complete, what="it testifies")
        report = await switch.drain(DrainOptions(timeout=5))
        assert report.outcome == "lost"
        assert "--workers N" in report.reason
        report = await switch.drain(DrainOptions(timeout=5, workers=1))
        assert report.drained, report
        assert store.roster(NAME).complete


async def test_older_backup_does_not_open(url: str, opened: Open) -> None:
    """A state from before is replaced by the one that workers know."""
    store = opened(url)
    switch = switch_of(store)
    async with switch.attached():
        before = (await switch.disable()).state
        state = (await switch.enable(EnableOptions(message="upgrade"))).state
        with store._engine.begin() as connection:
            connection.execute(
                text(f"UPDATE {store.prefix}_switches SET state = :state"),
                {"state": before.to_json()},
            )
        await eventually(lambda: store.read(NAME) == state, what="it is written back")
        assert switch.worker.state == state


async def test_deleted_sqlite_file_is_noticed(tmp_path: Path, opened: Open) -> None:
    """Workers find the new file in its place, and write back what it lacks."""
    store = opened(f"sqlite:///{tmp_path}/shop.db")
    switch = switch_of(store)
    async with switch.attached():
        state = (await switch.enable(EnableOptions(message="upgrade"))).state
        (tmp_path / "shop.db").unlink()
        await eventually(lambda: store.read(NAME) == state, what="it is written back")
        await eventually(lambda: not store.roster(NAME).complete, what="it testifies")
