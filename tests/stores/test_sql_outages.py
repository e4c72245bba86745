"""What a database does to a service when it ends, hangs, or has no connection left."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import anyio.to_thread
import psycopg
import pytest
from sqlalchemy import create_engine, event, text

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.changes import EnableOptions, with_new_epoch
from fastapi_maintenance.fence import Roster, Verdict
from fastapi_maintenance.stores import TemporaryStoreError
from fastapi_maintenance.stores.sql import schema
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.guards import switch_of
from tests.stores.sql_server import SQLServer, fresh_url, serving, shared_server
from tests.stores.test_sql import NAME, Open, on, one_more, opened, report
from tests.waiting import eventually, until

__all__ = ["opened"]  # a fixture


@pytest.fixture
def server() -> Iterator[SQLServer]:
    """Return a server of the test's own, which it may kill."""
    with serving() as server:
        yield server


def off(_: MaintenanceState | None) -> MaintenanceState:
    """Switch off."""
    return MaintenanceState()


def waits_for_lock(server: SQLServer) -> bool:
    """Tell whether a statement waits for another transaction."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return server.run(query) != [(0,)]


@contextlib.contextmanager
def in_the_way(server: SQLServer, *statements: str) -> Iterator[Callable[[], None]]:
    """Hold a transaction of another program open; yield what commits it."""
    with server.connect() as connection:
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement.encode())
        yield lambda: (connection.execute("COMMIT"), None)[1]


@pytest.mark.sql
def test_killed_in_the_middle_of_a_publication(server: SQLServer, opened: Open) -> None:
    """The state before stands, and the same store goes on with the next server."""
    store = opened(fresh_url(server))
    state = store.publish(NAME, with_new_epoch(on))

    def crash(_: MaintenanceState | None) -> MaintenanceState:
        server.kill()
        return MaintenanceState()

    with pytest.raises(TemporaryStoreError, match="does not answer"):
        store.publish(NAME, with_new_epoch(crash))
    with pytest.raises(TemporaryStoreError, match="does not answer"):
        store.read(NAME)
    server.start()
    assert store.read(NAME) == state
    assert store.publish(NAME, with_new_epoch(off)) == store.read(NAME)


@pytest.mark.sql
def test_publication_tries_to_connect_for_a_while(
    server: SQLServer, opened: Open
) -> None:
    """A restart that ends within three seconds fails no ``on``."""
    store = opened(fresh_url(server))
    store.read(NAME)
    server.stop()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(store.publish, NAME, with_new_epoch(on))
        server.start()
        assert done.result().enabled
    server.stop()
    begun = time.monotonic()
    with pytest.raises(TemporaryStoreError):
        store.publish(NAME, with_new_epoch(off))
    assert time.monotonic() - begun >= 3


@pytest.mark.sql
async def test_killed_in_the_middle_of_a_wait(server: SQLServer, opened: Open) -> None:
    """The wait outlives a crash and a restart, and then tells what is true."""
    switch = switch_of(opened(fresh_url(server)))
    async with switch.attached():
        admission = switch.worker.admit("POST /orders")
        assert admission is not None
        looks: list[Verdict] = []

        def progress(_: Roster, verdict: Verdict) -> None:
            looks.append(verdict)

        async def crash() -> None:
            await anyio.to_thread.run_sync(until, lambda: looks)
            await anyio.to_thread.run_sync(server.kill)
            before = len(looks)
            await anyio.to_thread.run_sync(server.start)
            await anyio.to_thread.run_sync(until, lambda: len(looks) > before)
            admission.release()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crash)
            found = await switch.drain(
                DrainOptions(timeout=30), enable=EnableOptions(), progress=progress
            )
        assert found.drained, found
        assert switch.worker.state.enabled


@pytest.mark.sql
async def test_workers_keep_what_they_know(server: SQLServer, opened: Open) -> None:
    """While the database is away a worker decides by its last state."""
    store = opened(fresh_url(server))
    switch = Switch(store, NAME)
    async with switch.attached():
        state = (await switch.enable(EnableOptions())).state
        server.kill()
        with pytest.raises(TemporaryStoreError):
            await switch.read()
        checked = switch.worker.checked
        await eventually(lambda: switch.worker.checked > checked)
        assert switch.worker.state == state
        server.start()


@pytest.mark.sql
def test_one_connection_is_enough(opened: Open) -> None:
    """One connection is enough for a process; an error tells the next one so."""
    server = shared_server()
    user = server.add_user("CREATE", limit=1)
    store = opened(server.url(user=user))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.publish(NAME, one_more), range(24)))
        list(pool.map(lambda _: store.report(NAME, report("a")), range(24)))
        list(pool.map(lambda _: store.roster(NAME), range(24)))
    found = store.read(NAME)
    assert found is not None
    assert found.message == "24"
    other = opened(server.url(user=user))
    with pytest.raises(TemporaryStoreError, match="too many connections for role"):
        other.read(NAME)
    store.close()
    until(lambda: not _is_connected(server, user), what="the server has noticed")
    assert other.read(NAME) == found


def _is_connected(server: SQLServer, user: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
    return server.run(query, user) != [(0,)]


@pytest.mark.sql
def test_pool_without_a_free_connection(opened: Open) -> None:
    """A pool that the application has used up is an outage, and names the remedy."""
    engine = create_engine(
        shared_server().url(), pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    store = opened(engine, prefix=f"t{secrets.token_hex(6)}")
    with (
        engine.connect(),
        pytest.raises(TemporaryStoreError, match="does not answer: QueuePool limit"),
    ):
        store.read(NAME)
    assert store.read(NAME) is None
    engine.dispose()


@pytest.mark.sql
def test_idle_connections_may_be_closed(opened: Open) -> None:
    """A connection that the server has closed is replaced, and nothing is noticed."""
    server = shared_server()
    user = server.add_user("CREATE")
    store = opened(server.url(user=user))
    state = store.publish(NAME, with_new_epoch(on))
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
    assert server.run(query, user)
    assert store.read(NAME) == state


@pytest.mark.sql
def test_no_transaction_stays_open(opened: Open) -> None:
    """Between two calls the connection is idle, and holds neither lock nor snapshot."""
    server = shared_server()
    user = server.add_user("CREATE")
    store = opened(server.url(user=user))
    query = "SELECT state, xact_start FROM pg_stat_activity WHERE usename = %s"
    for call in (
        lambda: store.read(NAME),
        lambda: store.publish(NAME, with_new_epoch(on)),
        lambda: store.report(NAME, report("a")),
        lambda: store.roster(NAME),
        lambda: store.remove(NAME, "a"),
    ):
        call()
        assert server.run(query, user) == [("idle", None)]


@pytest.mark.sql
def test_switch_that_another_writer_makes_first(opened: Open) -> None:
    """Two first publications at once are two publications."""
    server = shared_server()
    store = opened(fresh_url(server))
    store._make_tables()
    made = f"INSERT INTO {store.prefix}_switches (name) VALUES ('{NAME}')"
    with in_the_way(server, made) as commit, ThreadPoolExecutor(1) as pool:
        done = pool.submit(store.publish, NAME, with_new_epoch(on))
        until(lambda: waits_for_lock(server), what="the publication waits")
        commit()
        assert done.result() == store.read(NAME)


@pytest.mark.sql
def test_tables_that_another_worker_makes_first(opened: Open) -> None:
    """Workers that start at the same moment on a new database all join."""
    server = shared_server()
    url = fresh_url(server)
    store = opened(url)
    made = schema(url).split(";")[:-1]
    with in_the_way(server, *made) as commit, ThreadPoolExecutor(1) as pool:
        done = pool.submit(store.report, NAME, report("a"))
        until(lambda: waits_for_lock(server), what="the report waits")
        commit()
        assert done.result().complete


@pytest.mark.sql
def test_lock_that_is_held_for_ever(opened: Open) -> None:
    """A publication that cannot have the lock ends with an error in some seconds."""
    server = shared_server()
    store = opened(f"{fresh_url(server)}&options=-c%20statement_timeout%3D200")
    state = store.publish(NAME, with_new_epoch(on))
    lock = f"SELECT * FROM {store.prefix}_switches FOR UPDATE"
    with in_the_way(server, lock):
        with pytest.raises(TemporaryStoreError, match="statement timeout"):
            store.publish(NAME, with_new_epoch(off))
        assert store.read(NAME) == state


@pytest.mark.sql
def test_stopped_worker_locks_no_one_out(opened: Open) -> None:
    """The server ends a transaction of a worker that does not go on."""
    server = shared_server()
    url = fresh_url(server)
    limit = "options=-c%20idle_in_transaction_session_timeout%3D100"
    stopped, store = opened(f"{url}&{limit}"), opened(url)
    stopped.publish(NAME, with_new_epoch(off))
    released, holds = threading.Event(), threading.Event()

    def stop(_: MaintenanceState | None) -> MaintenanceState:
        holds.set()
        released.wait(30)
        return MaintenanceState()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(stopped.publish, NAME, with_new_epoch(stop))
        try:
            assert holds.wait(30)
            state = store.publish(NAME, with_new_epoch(on))
        finally:
            released.set()
        with pytest.raises(TemporaryStoreError):
            done.result()
    assert store.read(NAME) == state


@pytest.mark.sql
@pytest.mark.parametrize("query", ["", "&target_session_attrs=any"])
def test_read_only_database(opened: Open, query: str) -> None:
    """A replica, or a primary that became one, is an outage."""
    limit = "options=-c%20default_transaction_read_only%3Don"
    url = fresh_url()
    opened(url).publish(NAME, with_new_epoch(off))
    store = opened(f"{url}&{limit}{query}")
    with pytest.raises(TemporaryStoreError, match="read-only"):
        store.report(NAME, report("a"))
    with pytest.raises(TemporaryStoreError, match="read-only"):
        store.publish(NAME, with_new_epoch(on))


@pytest.mark.sql
def test_read_only_engine_of_the_application(opened: Open) -> None:
    """The application's own connections are left alone."""
    engine = create_engine(
        shared_server().url(),
        connect_args={"options": "-c default_transaction_read_only=on"},
    )
    store = opened(engine)
    with pytest.raises(TemporaryStoreError, match="must lead to the primary"):
        store._transaction(
            lambda connection: connection.execute(text("CREATE TABLE x (y int)"))
        )
    assert engine.pool.checkedin()  # type: ignore[attr-defined]  # of this pool
    engine.dispose()


FAIL_ONCE = """
CREATE SEQUENCE {prefix}_tries;
CREATE FUNCTION {prefix}_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('{prefix}_tries') = 1 THEN
        RAISE EXCEPTION 'said the test' USING ERRCODE = '{code}';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail AFTER UPDATE ON {prefix}_switches
    DEFERRABLE INITIALLY {when} FOR EACH ROW EXECUTE FUNCTION {prefix}_fail();
"""


@pytest.mark.sql
@pytest.mark.parametrize("when", ["IMMEDIATE", "DEFERRED"])
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_what_the_database_has_rolled_back_is_repeated(
    opened: Open, code: str, when: str
) -> None:
    """A deadlock or a serialization failure fails nobody, in a commit neither."""
    server = shared_server()
    store = opened(fresh_url(server))
    generation = store.report(NAME, report("a")).generation
    server.run(FAIL_ONCE.format(prefix=store.prefix, code=code, when=when))
    assert store.publish(NAME, with_new_epoch(on)) == store.read(NAME)
    server.run(f"ALTER SEQUENCE {store.prefix}_tries RESTART")
    assert store.confirm(NAME, generation, complete=False) != generation
    assert server.run(f"SELECT last_value FROM {store.prefix}_tries") == [(2,)]


@pytest.mark.sql
def test_commit_of_which_nothing_is_known_is_not_repeated(opened: Open) -> None:
    """It may have been carried out, so only a person can tell."""
    server = shared_server()
    store = opened(fresh_url(server))
    store.report(NAME, report("a"))
    server.run(FAIL_ONCE.format(prefix=store.prefix, code="40003", when="DEFERRED"))
    with pytest.raises(TemporaryStoreError, match="does not answer: said the test"):
        store.publish(NAME, with_new_epoch(on))
    assert server.run(f"SELECT last_value FROM {store.prefix}_tries") == [(1,)]


def test_busy_sqlite_file_is_tried_again(tmp_path: Path, opened: Open) -> None:
    """A file that another program has locked for a moment fails no publication."""
    store = opened(f"sqlite:///{tmp_path}/shop.db?timeout=0")
    store.publish(NAME, with_new_epoch(off))
    refused = threading.Event()
    event.listen(store._engine, "handle_error", lambda _: refused.set())
    with store._engine.connect() as other, ThreadPoolExecutor(1) as pool:
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        done = pool.submit(store.publish, NAME, with_new_epoch(on))
        assert refused.wait(30)
        other.rollback()
        assert done.result().enabled


def test_busy_sqlite_file_is_an_outage(tmp_path: Path, opened: Open) -> None:
    """A file that another program keeps locked is waited for, then an outage."""
    store = opened(f"sqlite:///{tmp_path}/shop.db?timeout=0.1")
    state = store.publish(NAME, with_new_epoch(on))
    with store._engine.connect() as other:
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(TemporaryStoreError, match="database is locked"):
            store.publish(NAME, with_new_epoch(off))
        with pytest.raises(TemporaryStoreError, match="database is locked"):
            store.read(NAME)
    assert store.read(NAME) == state


@pytest.mark.sql
async def test_start_fails_when_the_database_refuses(opened: Open) -> None:
    """A wrong password ends the start at once: waiting would not help."""
    switch = Switch(opened(shared_server().url(password="wrong")), NAME)
    begun = time.monotonic()
    with pytest.raises(StoreError, match="refuses the login"):
        async with switch.attached():
            raise AssertionError
    assert time.monotonic() - begun < 8
    assert not switch.worker.joined


def test_driver_error_that_was_not_translated(tmp_path: Path, opened: Open) -> None:
    """An error that SQLAlchemy passes on as it came is an outage, not a crash."""
    store = opened(f"sqlite:///{tmp_path}/shop.db")
    assert isinstance(store._translate(psycopg.OperationalError()), TemporaryStoreError)
    assert "OperationalError" in str(store._translate(psycopg.OperationalError()))
