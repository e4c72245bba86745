"""What every store keeps: one suite, and one line for each store."""

import contextlib
import runpy
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    DrainError,
    FileStore,
    MaintenanceError,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    Store,
    StoreError,
    open_store,
)
from fastapi_maintenance.keeper import Follower, Keeper
from fastapi_maintenance.stores import (
    as_store,
    has_fence,
    is_in_process,
    location,
    poll_interval,
)
from fastapi_maintenance.testing import check_store
from tests.examples import EXAMPLES
from tests.guards import guard_of
from tests.waiting import eventually

Make = Callable[[], Store]


def memory(_: Path) -> Make:
    store = MemoryStore()
    return lambda: store


def file(folder: Path) -> Make:
    return lambda: FileStore(folder / "state")


def file_by_url(folder: Path) -> Make:
    return lambda: open_store(f"file:{folder}/state?run_dir={folder}/run")


def own(folder: Path) -> Make:
    made = runpy.run_path(str(EXAMPLES / "own_store.py"))["TableStore"]
    return lambda: made(str(folder / "shop.sqlite"))


def own_with_reports(folder: Path) -> Make:
    made = runpy.run_path(str(EXAMPLES / "own_store_with_reports.py"))["ReportingStore"]
    return lambda: made(str(folder / "shop.sqlite"))


def redis_by_url(_: Path) -> Make:
    from tests.stores.redis_workers import fresh_url

    url = fresh_url()
    return lambda: open_store(url)


def postgresql_by_url(_: Path) -> Make:
    from tests.stores.sql_server import fresh_url

    url = fresh_url()
    return lambda: open_store(url)


def sqlite_by_url(folder: Path) -> Make:
    return lambda: open_store(f"sqlite:///{folder}/shop.sqlite")


# A store joins the suite here, with the marks that its tests need: a function of an
# empty directory that returns how to open one and the same place again and again.
PLACES = [
    pytest.param(memory, id="memory"),
    pytest.param(file, id="file"),
    pytest.param(file_by_url, id="file by URL"),
    pytest.param(own, id="own"),
    pytest.param(own_with_reports, id="own with reports"),
    pytest.param(redis_by_url, id="redis", marks=pytest.mark.redis),
    pytest.param(postgresql_by_url, id="postgresql", marks=pytest.mark.sql),
    pytest.param(sqlite_by_url, id="sqlite"),
]


@pytest.fixture(params=PLACES)
def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Yield how to open one place, as each worker and the command do."""
    monkeypatch.chdir(tmp_path)
    open_one: Make = request.param(tmp_path)
    with contextlib.ExitStack() as stack:

        def made() -> Store:
            store = open_one()
            stack.callback(getattr(store, "close", bool))
            return store

        yield made


@asynccontextmanager
async def beside(store: Store) -> AsyncIterator[Follower]:
    """Have a worker with a keeper of its own, as another process has one."""
    kept = Keeper(store).follower("default")
    kept.add_user()
    await anyio.to_thread.run_sync(kept.join)
    try:
        yield kept
    finally:
        await anyio.to_thread.run_sync(kept.leave)


def test_store_keeps_the_published_contract(make: Make) -> None:
    """A store passes the suite that users put their own stores through."""
    check_store(make)


async def test_what_one_worker_sets_the_other_goes_by(make: Make) -> None:
    """Switching on and off reaches a worker of another process."""
    guard = guard_of(make())
    async with guard.lifespan(), contextlib.AsyncExitStack() as stack:
        workers = [guard._switch.worker]
        if not is_in_process(guard._switch.store):
            other = await stack.enter_async_context(beside(make()))
            workers.append(other.worker)
        on = await guard.enable(message="moving", actor="ada")
        for worker in workers:
            await eventually(lambda worker=worker: worker.state == on)  # type: ignore[misc]  # a loop's own
        with pytest.raises(MaintenanceError, match="moving"):
            async with guard.admit():
                raise AssertionError
        off = await guard.disable(actor="bob")
        assert off.epoch > on.epoch
        assert not guard.is_active


async def test_state_outlives_a_worker(make: Make) -> None:
    """A worker that starts later refuses from its first request."""
    first = guard_of(make())
    async with first.lifespan():
        await first.enable(message="closed")
    del first
    later = guard_of(make())
    async with later.lifespan():
        assert later.state.message == "closed"
        assert later.is_active


async def test_work_is_admitted_and_counted(make: Make) -> None:
    """What runs under a guard is counted until it ends, in nested order too."""
    guard = guard_of(make())
    worker = guard._switch.worker
    async with guard.lifespan():
        async with guard.admit():
            with guard.admit():
                assert len(worker.current) == 2
            assert len(worker.current) == 1
        assert not worker.current
        assert not worker.old


async def test_drain_says_what_a_store_can_know(make: Make) -> None:
    """A store with reports is drained or busy; one without can never tell."""
    guard = guard_of(make())
    begun, ended = anyio.Event(), anyio.Event()

    async def work() -> None:
        async with guard.admit():
            begun.set()
            await ended.wait()

    async with guard.lifespan(), anyio.create_task_group() as group:
        # A task of its own: what drains inside its own work does not wait for that.
        group.start_soon(work)
        await begun.wait()
        await guard.enable()
        busy = await guard.drain(timeout=1)
        ended.set()
        drained = await guard.drain()
        outcomes = [busy.outcome, drained.outcome]
        if has_fence(guard._switch.store):
            assert outcomes == ["busy", "drained"]
            assert "work" in busy.reason
        else:
            assert outcomes == ["unknown", "unknown"]
            assert drained.seconds < 1


async def test_blocks_of_two_workers_hold_it_together(make: Make) -> None:
    """Overlapping maintenance() blocks open it when the last one leaves."""
    one, other = guard_of(make()), guard_of(make())
    async with one.lifespan(), other.lifespan():
        if not has_fence(one._switch.store):
            with pytest.raises(DrainError, match="unknown"):
                async with one.maintenance():
                    raise AssertionError
            assert (await one._switch.read()).enabled
            return
        async with one.maintenance(drain_timeout=5):
            async with other.maintenance(drain_timeout=5):
                assert len((await one._switch.read()).holders) == 2
            assert len((await one._switch.read()).holders) == 1
            with pytest.raises(StoreError, match="held by"):
                await other.disable()
        assert not (await other._switch.read()).enabled


async def test_switches_of_one_place_are_apart(make: Make) -> None:
    """A switch of another name is another switch, with workers of its own."""
    shop, pay = guard_of(make()), guard_of(make(), name="pay")
    async with shop.lifespan(), pay.lifespan():
        await pay.enable()
        assert pay.is_active
        assert not shop.is_active
        assert shop._switch.worker is not pay._switch.worker


async def test_worker_is_listed_until_it_leaves(make: Make) -> None:
    """A store with reports lists a worker from its start to its end."""
    guard = guard_of(make())
    if not has_fence(guard._switch.store):
        assert await guard._switch.roster() is None
        with pytest.raises(StoreError, match="keeps no list of workers"):
            await guard._switch.forget("1-a")
        return
    async with guard.lifespan():
        roster = await guard._switch.roster()
        assert roster is not None
        assert [w.id for w in roster.not_dead] == [guard._switch.worker.id]
    roster = await guard._switch.roster()
    assert roster is not None
    assert roster.workers == ()


def test_place_is_described_without_waiting(make: Make) -> None:
    """People are told where a state lives."""
    assert location(make()).strip()


# A store of two methods.


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[TestClient, MaintenanceGuard]]:
    """Serve an application behind a store of two methods."""
    guard = MaintenanceGuard(own(folder)())
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    app.get("/")(lambda: "open")
    with TestClient(app) as client:
        yield client, guard


def test_enable_on_a_small_store_returns_when_this_process_has_adopted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next request of this process is refused, without a warning."""
    with served(tmp_path) as (client, guard):
        assert client.get("/").status_code == 200
        assert client.portal is not None
        client.portal.call(guard.enable)
        assert client.get("/").status_code == 503
        client.portal.call(guard.disable)
        assert client.get("/").status_code == 200
    assert "not acknowledged" not in caplog.text


def test_small_store_is_read_once_a_second(tmp_path: Path) -> None:
    """A change of another process arrives within a second or so."""
    with served(tmp_path) as (client, guard):
        assert poll_interval(guard._switch.store) == 1
        begun = time.monotonic()
        state = MaintenanceState(enabled=True, epoch=1)
        own(tmp_path)().publish("default", lambda _: state)
        while client.get("/").status_code == 200:
            assert time.monotonic() - begun < 3
            time.sleep(0.01)


class Failing:
    """A store of two methods that answers when a test says so."""

    poll_interval = 0.02

    def __init__(self) -> None:
        self.state: MaintenanceState | None = None
        self.fails = False

    def read(self, name: str) -> MaintenanceState | None:
        """Return the state, or fail."""
        if self.fails:
            raise StoreError("the database is away")
        return self.state

    def publish(self, name: str, change: Callable[..., MaintenanceState]) -> Any:
        """Replace the state, or fail."""
        self.state = change(self.read(name))
        return self.state


async def test_small_store_that_fails_keeps_the_last_state(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Workers go on with what they knew, say so once, and obey when it is back."""
    store = Failing()
    guard = guard_of(store)
    async with guard.lifespan():
        await guard.enable()
        store.fails = True
        await eventually(lambda: "keeps the last state it knew" in caplog.text)
        assert guard.is_active
        with pytest.raises(StoreError, match="the database is away"):
            await guard.disable()
        store.fails = False
        await guard.disable()
        await eventually(lambda: not guard.is_active)
    assert caplog.text.count("keeps the last state it knew") == 1


def test_small_store_that_was_never_read_admits_nothing() -> None:
    """A worker that knows no state refuses, and joins when the store is back."""
    store = Failing()
    store.fails = True
    guard = MaintenanceGuard(store)
    app = FastAPI(dependencies=[Depends(guard)])
    app.get("/")(lambda: "open")
    client = TestClient(app)
    assert client.get("/").status_code == 503
    store.fails = False
    assert client.get("/").status_code == 200


# What is no store.


@pytest.mark.parametrize("name", ["", "Shop", "a/b", "a" * 65, 5, None, b"shop"])
def test_name_that_some_store_could_not_have_is_refused(name: Any) -> None:
    """A switch is named alike in files, in Redis and on the command line."""
    with pytest.raises(ValueError, match="must be 1 to 64 of a-z"):
        MaintenanceGuard(MemoryStore(), name=name)


class Coroutines:
    """A store as users of an async framework first write it."""

    async def read(self, name: str) -> None:
        """Return nothing, too late."""

    async def publish(self, name: str, change: object) -> None:
        """Return nothing, too late."""


class AsyncReports(Failing):
    """A store whose reports would never arrive."""

    async def report(self, name: str, report: object) -> None:
        """Return nothing, too late."""


class Misspelt(Failing):
    """A store that has some of the four methods of a fence."""

    def report(self, name: str, report: object) -> None:
        """Keep nothing."""

    def roster(self, name: str) -> None:
        """Return nothing."""

    def confirms(self, name: str, generation: str, *, complete: bool) -> None:
        """Be called by nothing."""


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (7, "store must be a Store, a URL or None, not 7"),
        (MemoryStore, "store must be a Store, a URL or None, not <class"),
        (Coroutines(), "Coroutines.read must be a plain function, not async"),
        (AsyncReports(), "AsyncReports.report must be a plain function, not async"),
        (Misspelt(), "Misspelt has no confirm, remove; a store that keeps reports has"),
    ],
)
def test_what_is_no_store_is_an_error_at_once(store: Any, said: str) -> None:
    """A mistake is found when the guard is built, not at the first request."""
    with pytest.raises(TypeError, match=said):
        MaintenanceGuard(store)


@pytest.mark.parametrize(
    "url",
    [
        *("", "nothing", "memory:x", "http://host/", "foo://a:secret@host/0"),
        "env://VARIABLE",
        *("foo://a:se/secret@host/0", "foo://a:se@secret@host/0", "foo:a:secret@host"),
    ],
)
def test_url_that_names_no_store(url: str) -> None:
    """The error has the forms that there are, and no password."""
    with pytest.raises(ValueError, match=r"unknown store URL .*use memory:") as refused:
        open_store(url)
    assert "secret" not in str(refused.value)
    with pytest.raises(TypeError, match="must be a string"):
        open_store(7)  # type: ignore[arg-type]  # the mistake


def test_environment_names_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is an unset one: the directory in the present one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", "memory:")
    assert isinstance(as_store(None), MemoryStore)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", "")
    assert location(as_store(None)) == str(tmp_path / ".fastapi-maintenance")


def test_store_without_a_name_for_people_is_called_by_its_class() -> None:
    """A store needs no location."""
    assert location(Coroutines()) == "Coroutines"  # type: ignore[arg-type]  # only named


def test_engines_are_loaded_when_they_are_used() -> None:
    """A service pays for no client of a database that it does not use."""
    code = """
import subprocess
import sys
import fastapi_maintenance.stores as stores
stores.open_store("file:state")
print({"redis", "sqlalchemy", "fastapi"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
