"""Joining and leaving: with a lifespan, nested in another one, and without."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    StoreError,
)
from fastapi_maintenance.stores import Change, location
from tests.guard.support import Ran, both, in_flight, publish
from tests.guards import closed, opened
from tests.waiting import until


class Small:
    """A store of a user's own."""

    def __init__(self) -> None:
        self.state = MaintenanceState()
        self.broken = False

    def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        if self.broken:
            raise OSError("database away")
        return self.state

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        raise AssertionError


def test_worker_joins_in_the_lifespan_and_leaves_with_it() -> None:
    """With the lifespan, a worker is there before the first request, and not after."""
    guard = opened()
    app = FastAPI(lifespan=guard.lifespan, dependencies=[Depends(guard)])
    assert not guard._switch.worker.joined
    with TestClient(app):
        assert guard._switch.worker.joined
    assert not guard._switch.worker.joined


def test_lifespan_fits_into_another_one() -> None:
    """Inside a lifespan of the application it runs where it is written."""
    guard, ran = opened(), Ran()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ran.append("start")
        async with guard.lifespan(app):
            ran.append(f"joined {guard._switch.worker.joined}")
            yield
        ran.append("end")

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(guard)])
    both(app, ran)
    with TestClient(app) as client:
        assert client.get("/target").status_code == 200
    assert ran == ["start", "joined True", "endpoint", "end"]


def test_lifespan_needs_no_application() -> None:
    """The lifespan of a worker without FastAPI takes no argument."""
    guard = opened()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with guard.lifespan():
            yield

    with TestClient(FastAPI(lifespan=lifespan)):
        assert guard._switch.worker.joined


def test_without_a_lifespan_a_worker_joins_at_its_first_guarded_request() -> None:
    """No lifespan is needed: the first request that is guarded joins."""
    guard = opened()
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, Ran())
    client = TestClient(app)
    assert client.get("/docs").status_code == 200
    assert not guard._switch.worker.joined
    assert client.get("/target").status_code == 200
    assert guard._switch.worker.joined
    assert client.get("/target").status_code == 200


def test_worker_can_come_back_after_it_left() -> None:
    """A second lifespan, as tests have them, joins again."""
    guard = opened()
    app = FastAPI(lifespan=guard.lifespan, dependencies=[Depends(guard)])
    both(app, Ran())
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/target").status_code == 200
    assert in_flight(guard) == 0


def test_guards_of_one_store_share_a_worker() -> None:
    """Two guards of a store and name are one worker, there until both have left."""
    first = opened()
    second = MaintenanceGuard(first._switch.store)
    assert first._switch.worker is second._switch.worker
    with TestClient(FastAPI(lifespan=first.lifespan)):
        with TestClient(FastAPI(lifespan=second.lifespan)):
            assert first._switch.worker.joined
        assert first._switch.worker.joined
    assert not first._switch.worker.joined


def test_state_can_be_asked_before_joining() -> None:
    """Before it joined, a guard says what its store can say at once."""
    assert closed().is_active
    assert not opened().is_active
    assert opened().state == MaintenanceState()


def test_state_of_a_file_can_be_asked_before_joining(tmp_path: Path) -> None:
    """A file is read for it, and what cannot be read is said with the remedy."""
    guard = MaintenanceGuard(FileStore(tmp_path))
    assert not guard.is_active
    (tmp_path / "default.json").write_text("{")
    with pytest.raises(StoreError, match=r"default\.json.*fastapi-maintenance on"):
        _ = guard.state


def test_state_of_a_small_store_is_unknown_before_joining() -> None:
    """A store that can only be awaited says nothing yet, and the error what to do."""
    guard = MaintenanceGuard(Small())
    with pytest.raises(StoreError, match=r"guard\.lifespan"):
        _ = guard.state
    with TestClient(FastAPI(lifespan=guard.lifespan)):
        assert not guard.is_active


async def test_start_fails_with_the_store_s_own_error() -> None:
    """A store that fails at start stops the start, with one plain error."""
    store = Small()
    store.broken = True
    with pytest.raises(StoreError, match="database away"):
        async with MaintenanceGuard(store).lifespan():
            raise AssertionError


async def test_error_of_a_lifespan_around_a_small_store_stays_itself() -> None:
    """What an application's own lifespan raises is not wrapped in anything."""
    guard = MaintenanceGuard(Small())
    with pytest.raises(KeyError, match="shutdown"):
        async with guard.lifespan(FastAPI()):
            raise KeyError("shutdown")


def test_unreachable_store_refuses_until_it_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that has never known a state admits nothing, and says so once."""
    store = Small()
    store.broken = True
    guard, ran = MaintenanceGuard(store), Ran()
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, ran)
    client = TestClient(app)
    for _ in range(2):
        assert client.get("/target").status_code == 503
    assert ran == []
    told = [r for r in caplog.records if "until the state is known" in r.getMessage()]
    assert len(told) == 1
    store.broken = False
    assert client.get("/target").status_code == 200
    store.broken = True
    assert client.get("/target").status_code == 200
    # Its keeper would log the outage into the records of other tests.
    guard._switch._follower.leave()


def test_change_is_told_once_per_change(caplog: pytest.LogCaptureFixture) -> None:
    """on_change is called with each new state once, however it is noticed."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    told: list[tuple[bool, str | None]] = []
    guard = opened(on_change=lambda state: told.append((state.enabled, state.message)))
    app = FastAPI(lifespan=guard.lifespan, dependencies=[Depends(guard)])
    both(app, Ran())
    with TestClient(app) as client:
        client.get("/target")
        assert told == []
        publish(guard, enabled=True, message="one")
        client.get("/target")
        client.get("/target")
        publish(guard, enabled=True, message="one")  # A fence: the same once more.
        client.get("/target")
        publish(guard, enabled=True, message="two")
        publish(guard)
        client.get("/target")
    until(lambda: told == [(True, "one"), (True, "two"), (False, None)])
    logged = [r.getMessage() for r in caplog.records if "maintenance is" in r.msg]
    assert len(logged) == 3


def test_worker_that_joins_under_maintenance_is_told() -> None:
    """on_change is called at the start when maintenance is on already."""
    told: list[bool] = []
    guard = closed(on_change=lambda state: told.append(state.enabled))
    with TestClient(FastAPI(lifespan=guard.lifespan)):
        until(lambda: told == [True])


def test_worker_that_comes_back_is_told_what_changed_in_between() -> None:
    """A worker that left and joined again hears of what it missed, and no more."""
    told: list[bool] = []
    guard = closed(on_change=lambda state: told.append(state.enabled))
    app = FastAPI(lifespan=guard.lifespan)
    with TestClient(app):
        pass
    with TestClient(app):
        until(lambda: told == [True])
    publish(guard)
    with TestClient(app):
        until(lambda: told == [True, False])


def test_failing_on_change_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that fails is logged; requests and other callbacks go on."""

    def broken(_: MaintenanceState) -> None:
        raise RuntimeError("pager away")

    told: list[bool] = []
    guard = closed(on_change=broken)
    guard._switch.worker.notifier.listen(lambda state: told.append(state.enabled))
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, Ran())
    assert TestClient(app).get("/target").status_code == 503
    until(lambda: told == [True])
    assert [r.exc_info is not None for r in caplog.records if r.levelname == "ERROR"]


def test_building_a_guard_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a guard nor an application with it makes a file or a directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    guard = MaintenanceGuard()
    FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    assert list(tmp_path.iterdir()) == []
    assert location(guard._switch.store) == str(tmp_path / ".fastapi-maintenance")


def test_environment_names_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument, the variable that the command reads too decides."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", "memory:")
    assert isinstance(MaintenanceGuard()._switch.store, MemoryStore)
    assert repr(MaintenanceGuard(name="pay")) == (
        "<MaintenanceGuard 'pay' of memory of this process>"
    )


def test_joining_late_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that joins at its first request says so: no command saw it before."""
    guard, ran = MaintenanceGuard(FileStore(tmp_path / "state")), Ran()
    app = FastAPI(dependencies=[Depends(guard)])
    both(app, ran)
    client = TestClient(app)
    assert [client.get("/target").status_code for _ in range(2)] == [200, 200]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text.partition("; ")[2] for text in said] == [
        "use FastAPI(lifespan=guard.lifespan)"
    ]


def test_unreachable_store_is_one_line_at_the_start() -> None:
    """A start that fails names the reason without the chain of its causes."""
    guard = MaintenanceGuard("redis://127.0.0.1:1/0?prefix=shop")
    guard._switch.outage = 0.0
    app = FastAPI(lifespan=guard.lifespan)
    with pytest.raises(StoreError, match="cannot reach redis:") as raised:
        TestClient(app).__enter__()
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
