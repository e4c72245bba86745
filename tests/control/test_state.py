"""Showing and setting the state over HTTP."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    EnvStore,
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    StoreError,
    control_router,
    maintenance_exempt,
)
from fastapi_maintenance.fence import Roster
from fastapi_maintenance.stores import Change
from fastapi_maintenance.testing import force, frozen_clock

from .support import JSON, SECRET, build, operators_only, serving

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_shows_the_state_and_the_workers() -> None:
    """GET answers what is set, who obeys, and whom it speaks for."""
    with serving() as client:
        answer = client.get("/maintenance")
    shown = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert shown["name"] == "default"
    assert shown["phase"] == "off"
    assert shown["active"] is False
    assert "one process" in shown["notice"]
    (worker,) = shown["workers"]
    assert worker["pid"] == os.getpid()
    assert worker["liveness"] == "alive"
    assert worker["in_flight"] == 0


def test_switches_on_and_off_for_every_worker(tmp_path: Path) -> None:
    """PUT closes and opens the service, through whatever store it has."""
    store = FileStore(tmp_path)
    with serving(store) as client:
        on = client.put(
            "/maintenance", json={"active": True, "message": "Moving", "for": 600}
        )
        assert on.status_code == 200
        assert on.json()["phase"] == "on"
        assert on.json()["actor"] == "control@testclient"
        assert on.json()["notice"] is None
        assert store.peek("default").message == "Moving"
        refused = client.get("/shop")
        assert refused.status_code == 503
        assert refused.json() == {"detail": "Moving"}
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        off = client.put("/maintenance", json={"active": False})
        assert off.status_code == 200
        assert off.json()["phase"] == "off"
        assert client.get("/shop").status_code == 200


def test_sets_everything_that_enable_sets() -> None:
    """Each field of the body arrives in the state."""
    guard = MaintenanceGuard("memory:")
    with (
        frozen_clock(guard, NOON),
        TestClient(build(guard), headers=SECRET) as client,
    ):
        answer = client.put(
            "/maintenance",
            json={
                "active": True,
                "message": "Moving",
                "at": "2026-11-22T13:00:00Z",
                "until": "2026-11-22T15:00:00+01:00",
                "auto_off": True,
                "read_only": True,
                "retry_after": 90,
            },
        )
        assert answer.status_code == 200
        assert answer.json()["phase"] == "scheduled"
        state = guard.state
    assert state.but(epoch=0) == MaintenanceState(
        active=True,
        since=NOON + HOUR,
        until=NOON + 2 * HOUR,
        auto_off=True,
        message="Moving",
        retry_after=90,
        read_only=True,
        actor="control@testclient",
    )


def test_says_when_a_window_has_ended() -> None:
    """A window that opened by the clock is over, though nobody switched it off."""
    guard = MaintenanceGuard("memory:")
    with (
        frozen_clock(guard, NOON) as clock,
        force(guard, until=HOUR, auto_off=True),
        TestClient(build(guard), headers=SECRET) as client,
    ):
        assert client.get("/maintenance").json()["phase"] == "on"
        clock.advance(HOUR)
        assert client.get("/maintenance").json()["phase"] == "ended"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"active": "true"}',
        b'{"active": 1}',
        b'{"active": null}',
        b'{"active": NaN}',
        b'{"active": true, "for": NaN}',
        b'{"active": true, "for": 1.5}',
        b'{"active": true, "for": true}',
        b'{"active": true, "for": 0}',
        b'{"active": true, "for": 1e400}',
        b'{"active": true, "for": 99999999999999999999}',
        b'{"active": true, "until": 1}',
        b'{"active": true, "until": "2027-01-01T00:00:00"}',
        b'{"active": true, "until": "2027-01-01T00:00:00Z", "for": 1}',
        b'{"active": true, "message": ""}',
        b'{"active": true, "message": "\\ud800"}',
        b'{"active": true, "message": 7}',
        b'{"active": true, "unknown": "\\ud800"}',
        b'{"active": true, "force": true}',
        b'{"active": false, "message": "x"}',
        b'{"active": true, "retry_after": -1}',
        b'{"active": true, "bypass": "yes"}',
        b"\xff",
        b"[" * 10_000,
    ],
)
def test_refuses_what_the_schema_does_not_say(body: bytes) -> None:
    """A body that is not a state changes nothing, and what is wrong is said."""
    with serving() as client:
        answer = client.put("/maintenance", content=body, headers=JSON)
        assert answer.status_code == 422
        assert all(
            {"loc", "msg", "type"} <= set(item) for item in answer.json()["detail"]
        )
        assert client.get("/maintenance").json()["epoch"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"active": true, "until": "2020-01-01T00:00:00Z"}',
        b'{"active": true, "until": "9999-12-31T23:59:59-23:59"}',
        b'{"active": true, "at": "2999-01-01T00:00:00Z", "until": "2998-01-01T00:00Z"}',
        b'{"active": true, "at": "9999-12-31T23:00:00Z", "for": 86400}',
        b'{"active": true, "auto_off": true}',
        b'{"active": true, "message": "two\\nlines"}',
        b'{"active": true, "message": " "}',
    ],
)
def test_refuses_what_the_state_cannot_be(body: bytes, tmp_path: Path) -> None:
    """What has the right form and no sense is a 400 that names the reason."""
    with serving(FileStore(tmp_path)) as client:
        answer = client.put("/maintenance", content=body, headers=JSON)
        assert answer.status_code == 400
        assert isinstance(answer.json()["detail"], str)
        assert client.get("/maintenance").json()["active"] is False


def test_refuses_a_long_body() -> None:
    """More than a state can be is not read."""
    with serving() as client:
        answer = client.put("/maintenance", content=b" " * 20_000, headers=JSON)
    assert answer.status_code == 413


def test_opens_under_the_work_of_others_by_force_only() -> None:
    """What others hold stays on, until force is sent."""
    guard = MaintenanceGuard("memory:")
    held = MaintenanceState(active=True, begun=True, holders=("deploy#1",))
    with force(guard), TestClient(build(guard), headers=SECRET) as client:
        client.portal.call(guard._switch.source.publish, "default", lambda _: held)  # type: ignore[union-attr]  # it runs
        answer = client.put("/maintenance", json={"active": False})
        assert answer.status_code == 409
        assert "held by deploy#1" in answer.json()["detail"]
        assert guard.is_active
        looser = {"active": True, "read_only": True}
        assert client.put("/maintenance", json=looser).status_code == 409
        forced = {"active": False, "force": True}
        assert client.put("/maintenance", json=forced).status_code == 200
        assert not guard.is_active


def test_says_that_a_store_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is set at start is shown, and refuses to be set."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "on")
    with serving(EnvStore()) as client:
        shown = client.get("/maintenance").json()
        assert shown["phase"] == "on"
        assert shown["settable"] is False
        assert "cannot be set here" in shown["notice"]
        answer = client.put("/maintenance", json={"active": False})
    assert answer.status_code == 409
    assert "FASTAPI_MAINTENANCE_MODE" in answer.json()["detail"]


class Failing(MemoryStore):
    """A store whose parts can be made to fail."""

    location = "a failing store"

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception = StoreError("the rows cannot be read")
        self.settable = True

    async def read(self, name: str) -> MaintenanceState:
        """Fail."""
        raise self.error

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Publish, or fail."""
        if not self.settable:
            raise self.error
        return await super().publish(name, change)

    async def roster(self, name: str) -> Roster:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("no answer; start it"), "no answer; start it"),
        (ConnectionError("10.0.0.7:6379"), "the store failed with ConnectionError"),
        (KeyError("x"), "the store failed with KeyError"),
    ],
)
def test_failing_store_is_an_answer(error: Exception, said: str) -> None:
    """A store that cannot be reached is a 503 with a plain reason, never a 500."""
    store = Failing()
    with serving(store) as client:
        store.error, store.settable = error, False
        on = {"active": True}
        token = {"token": "0123456789abcdef"}
        for answer in (
            client.get("/maintenance"),
            client.put("/maintenance", json=on),
            client.put("/maintenance", json={"active": False}),
            client.get("/maintenance/events"),
            client.post("/maintenance/bypass", json=token),
        ):
            assert answer.status_code == 503
            assert said in answer.json()["detail"]
        assert client.get("/maintenance/console").status_code == 200


def test_state_is_shown_without_the_workers() -> None:
    """Where the workers cannot be read the state is shown all the same, and why."""
    with serving(Failing()) as client:
        shown = client.put("/maintenance", json={"active": True}).json()
    assert shown["phase"] == "on"
    assert shown["workers"] == []
    assert shown["notice"] == "the rows cannot be read"


class Small:
    """A store of a user's own."""

    def __init__(self) -> None:
        self.state = MaintenanceState()

    async def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        assert name == "default"
        return self.state

    async def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        before = await self.read(name)
        self.state = change(before).but(epoch=before.epoch + 1)
        return self.state


def test_store_without_a_fence_says_so() -> None:
    """A store that does not know its workers is shown as what it is."""
    with serving(Small()) as client:
        shown = client.put("/maintenance", json={"active": True}).json()
        assert shown["workers"] == []
        assert "cannot be counted" in shown["notice"]
        assert client.get("/shop").status_code == 503


def test_never_locks_itself_out() -> None:
    """The router answers under maintenance, at every level it may be included at."""
    guard = MaintenanceGuard(MemoryStore(active=True))
    app = FastAPI(dependencies=[Depends(guard)])
    control = control_router(guard, dependencies=[Depends(operators_only)])
    outer = APIRouter(prefix="/admin", dependencies=[Depends(guard)])
    outer.include_router(control, dependencies=[Depends(guard)])
    app.include_router(outer, dependencies=[Depends(guard)])
    client = TestClient(app, headers=SECRET)
    assert client.get("/admin/maintenance").json()["phase"] == "on"
    assert client.get("/admin/maintenance/console").status_code == 200
    (worker,) = client.put("/admin/maintenance", json={"active": True}).json()[
        "workers"
    ] or [{}]
    assert worker.get("in_flight", 0) == 0
    off = client.put("/admin/maintenance", json={"active": False})
    assert off.json()["phase"] == "off"


def test_two_switches_have_a_router_each() -> None:
    """Routers of two guards stand side by side and set their own switch."""
    store = MemoryStore()
    shop = MaintenanceGuard(store)
    payments = MaintenanceGuard(store, name="payments")
    app = FastAPI()
    needed = [Depends(operators_only)]
    app.include_router(control_router(shop, dependencies=needed))
    app.include_router(
        control_router(payments, dependencies=needed, prefix="/payments/maintenance")
    )
    client = TestClient(app, headers=SECRET)
    client.put("/payments/maintenance", json={"active": True})
    assert payments.is_active
    assert not shop.is_active


def test_documents_its_answers() -> None:
    """OpenAPI names the bodies and the answers, and not the marker."""
    guard = MaintenanceGuard("memory:")
    schema = build(guard).openapi()["paths"]
    assert set(schema) == {
        "/shop",
        "/maintenance",
        "/maintenance/events",
        "/maintenance/bypass",
    }
    put = schema["/maintenance"]["put"]
    body = put["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert body["required"] == ["active"]
    assert "for" in body["properties"]
    assert set(put["responses"]) == {
        "200",
        "400",
        "403",
        "409",
        "413",
        "415",
        "422",
        "503",
    }
    events = schema["/maintenance/events"]["get"]["responses"]["200"]["content"]
    assert set(events) == {"text/event-stream"}


@pytest.mark.parametrize("given", [[], (), [Depends(maintenance_exempt)]])
def test_refuses_to_be_built_without_authentication(given: list[object]) -> None:
    """A switch for everybody is refused at construction."""
    with pytest.raises(ValueError, match="a switch for everybody"):
        control_router(MaintenanceGuard("memory:"), dependencies=given)  # type: ignore[arg-type]  # the mistake


def test_guard_is_no_authentication() -> None:
    """The guard itself protects nobody's switch."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(ValueError, match="your own"):
        control_router(guard, dependencies=[Depends(guard)])


@pytest.mark.parametrize(
    "given", [Depends(operators_only), operators_only, [operators_only], [Depends()], 7]
)
def test_refuses_dependencies_that_are_none(given: object) -> None:
    """What is not a list of ``Depends`` is refused with how to write it."""
    with pytest.raises(TypeError, match=r"Depends\(operators_only\)"):
        control_router(MaintenanceGuard("memory:"), dependencies=given)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("prefix", ["", "/", "maintenance", "/maintenance/", 7])
def test_refuses_a_prefix_that_is_no_path(prefix: str) -> None:
    """A prefix that could not be routed is refused at construction."""
    with pytest.raises(ValueError, match="prefix must be a path"):
        control_router(
            MaintenanceGuard("memory:"),
            dependencies=[Depends(operators_only)],
            prefix=prefix,
        )


def test_refuses_what_is_no_guard() -> None:
    """Something else than a guard is named in the error."""
    with pytest.raises(TypeError, match="guard must be a MaintenanceGuard"):
        control_router("memory:", dependencies=[Depends(operators_only)])  # type: ignore[arg-type]  # the mistake
