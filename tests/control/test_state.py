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
    Roster,
    StoreError,
    control_router,
    maintenance_exempt,
)
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.stores import Change
from fastapi_maintenance.testing import frozen_clock
from tests.calls import call

from .support import JSON, SECRET, build, operators_only, reason_when, serving

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_shows_the_state_and_the_workers() -> None:
    """GET answers what is set, which workers have it, and what the store is."""
    with serving() as client:
        answer = client.get("/maintenance")
    shown = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert shown["name"] == "default"
    assert shown["phase"] == "off"
    assert shown["state"]["enabled"] is False
    assert "one process" in shown["notice"]
    assert (shown["outcome"], shown["reason"]) == (None, None)
    (worker,) = shown["workers"]
    assert worker["pid"] == os.getpid()
    assert worker["status"] == "serving"
    assert worker["left"] == 0
    assert set(worker) == {
        *("id", "host", "pid", "in_flight", "left", "oldest"),
        *("kind", "status", "liveness", "age"),
    }


def test_switches_on_and_off_for_every_worker(tmp_path: Path) -> None:
    """PUT closes and opens the service, and says who has acknowledged."""
    store = FileStore(tmp_path)
    with serving(store) as client:
        on = client.put(
            "/maintenance", json={"enabled": True, "message": "Moving", "for": 600}
        )
        assert on.status_code == 200
        assert on.json()["phase"] == "in force"
        assert on.json()["state"]["actor"] == "control@testclient"
        assert on.json()["notice"] is None
        assert (on.json()["acknowledged"], len(on.json()["workers"])) == (1, 1)
        stored = store.read("default")
        assert stored is not None
        assert stored.message == "Moving"
        refused = client.get("/shop")
        assert refused.status_code == 503
        assert refused.json() == {"detail": "Moving"}
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        off = client.put("/maintenance", json={"enabled": False})
        assert off.status_code == 200
        assert off.json()["phase"] == "off"
        assert off.json()["acknowledged"] == 1
        assert client.get("/shop").status_code == 200


def test_sets_everything_that_enable_sets() -> None:
    """Each field of the body arrives in the state."""
    guard = MaintenanceGuard("memory:")
    body = {
        "message": "Moving",
        "at": "2026-11-22T13:00:00Z",
        "until": "2026-11-22T15:00:00+01:00",
        "auto_off": True,
        "read_only": True,
        "retry_after": 90,
        "actor": "ada",
        "bypass_token": "correct-horse-battery",
    }
    assert set(body) == set(EnableOptions.model_fields)
    with frozen_clock(guard, NOON), serving(guard) as client:
        answer = client.put("/maintenance", json={"enabled": True, **body})
        assert answer.status_code == 200
        assert answer.json()["phase"] == "scheduled"
        assert answer.json()["bypass"] is True
        state = guard.state
    assert state.replace(epoch=0, tag="", bypass=None) == MaintenanceState(
        enabled=True,
        starts_at=NOON + HOUR,
        until=NOON + 2 * HOUR,
        auto_off=True,
        message="Moving",
        retry_after=90,
        read_only=True,
        actor="ada",
    )


def test_opening_may_name_the_operator_too() -> None:
    """The actor of a body is the one who is shown, also for opening."""
    with serving() as client:
        client.put("/maintenance", json={"enabled": True})
        off = client.put("/maintenance", json={"enabled": False, "actor": "bob"})
    assert off.json()["state"]["actor"] == "bob"


def test_says_when_a_window_has_ended() -> None:
    """A window that opened by the clock is shown as over."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard, NOON) as clock, serving(guard) as client:
        body = {"enabled": True, "for": 3600, "auto_off": True}
        assert client.put("/maintenance", json=body).json()["phase"] == "in force"
        clock.advance(HOUR)
        shown = client.get("/maintenance").json()
    assert shown["phase"] == "ended"
    assert shown["workers"][0]["status"] == "serving"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"enabled": "true"}',
        b'{"enabled": 1}',
        b'{"enabled": null}',
        b'{"enabled": NaN}',
        b'{"enabled": true, "for": NaN}',
        b'{"enabled": true, "for": 1.5}',
        b'{"enabled": true, "for": true}',
        b'{"enabled": true, "for": 0}',
        b'{"enabled": true, "for": 1e400}',
        b'{"enabled": true, "for": 99999999999999999999}',
        b'{"enabled": true, "seconds": 60}',
        b'{"enabled": true, "until": 1}',
        b'{"enabled": true, "until": "2027-01-01T00:00:00"}',
        b'{"enabled": true, "until": "9999-12-31T23:59:59-23:59"}',
        b'{"enabled": true, "until": "2027-01-01T00:00:00Z", "for": 1}',
        b'{"enabled": true, "message": ""}',
        b'{"enabled": true, "message": " "}',
        b'{"enabled": true, "message": "two\\nlines"}',
        b'{"enabled": true, "message": "\\ud800"}',
        b'{"enabled": true, "message": 7}',
        b'{"enabled": true, "auto_off": true}',
        b'{"enabled": true, "unknown": "\\ud800"}',
        b'{"enabled": true, "force": true}',
        b'{"enabled": false, "message": "x"}',
        b'{"enabled": true, "retry_after": -1}',
        b'{"enabled": true, "retry_after": NaN}',
        b'{"enabled": true, "retry_after": "soon"}',
        b'{"enabled": true, "retry_after": true}',
        b'{"enabled": true, "bypass": "yes"}',
        b'{"enabled": true, "bypass": true, "bypass_token": "correct-horse-battery"}',
        b'{"enabled": true, "bypass_token": "short"}',
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
        assert client.get("/maintenance").json()["state"]["epoch"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"enabled": true, "until": "2020-01-01T00:00:00Z"}',
        b'{"enabled": true, "at": "2020-01-01T00:00:00Z"}',
        b'{"enabled": true, "at": "2999-01-01T00:00Z", "until": "2998-01-01T00:00Z"}',
        b'{"enabled": true, "at": "9999-12-31T23:00:00Z", "for": 86400}',
    ],
)
def test_refuses_times_that_cannot_be(body: bytes, tmp_path: Path) -> None:
    """A time that has passed, or is outside of the calendar, is a 400 that says so."""
    with serving(FileStore(tmp_path)) as client:
        answer = client.put("/maintenance", content=body, headers=JSON)
        assert answer.status_code == 400
        assert isinstance(answer.json()["detail"], str)
        assert client.get("/maintenance").json()["state"]["enabled"] is False


def test_refuses_a_long_body() -> None:
    """More than a state can be is not read."""
    with serving() as client:
        answer = client.put("/maintenance", content=b" " * 20_000, headers=JSON)
    assert answer.status_code == 413


@pytest.mark.anyio
async def test_a_body_that_does_not_arrive_is_no_error_of_the_application() -> None:
    """A client that leaves in the middle leaves no traceback in the log."""
    guard = MaintenanceGuard("memory:")
    half = {"type": "http.request", "body": b'{"enabled"', "more_body": True}
    headers = [(b"x-operator", b"ada"), (b"content-type", b"application/json")]
    for method, path in (("PUT", "/maintenance"), ("POST", "/maintenance/bypass")):
        answer = await call(
            build(guard), path, method=method, body=[half], headers=headers, leaves=True
        )
        assert answer.status == 400
    assert not guard.state.enabled


def test_opens_during_the_work_of_others_by_force_only() -> None:
    """What others hold stays on, until force is sent."""
    store = MemoryStore()
    guard = MaintenanceGuard(store)
    held = MaintenanceState(epoch=1, enabled=True, holders=("deploy#1",))
    store.publish("default", lambda _: held)
    with serving(guard) as client:
        answer = client.put("/maintenance", json={"enabled": False})
        assert answer.status_code == 409
        assert "held by deploy#1" in answer.json()["detail"]
        assert guard.is_active
        looser = {"enabled": True, "read_only": True}
        assert client.put("/maintenance", json=looser).status_code == 409
        forced = {"enabled": False, "force": True}
        assert client.put("/maintenance", json=forced).status_code == 200
        assert not guard.is_active


def test_says_that_a_store_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is set at start is shown, and refuses to be set."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "on")
    with serving(EnvStore()) as client:
        shown = client.get("/maintenance").json()
        assert shown["phase"] == "in force"
        assert shown["settable"] is False
        assert "cannot be set here" in shown["notice"]
        answer = client.put("/maintenance", json={"enabled": False})
    assert answer.status_code == 409
    assert "FASTAPI_MAINTENANCE_MODE" in answer.json()["detail"]


class Failing(MemoryStore):
    """A store that can be made to fail."""

    location = "a failing store"
    poll_interval = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.workers_fail = False
        self.uncounted = False

    def read(self, name: str) -> MaintenanceState:
        """Read, or fail."""
        if self.error is not None:
            raise self.error
        return super().read(name)

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Publish, or fail."""
        if self.error is not None:
            raise self.error
        return super().publish(name, change)

    def roster(self, name: str) -> Roster:
        """List, or fail."""
        if self.error is not None or self.workers_fail:
            raise self.error or StoreError("the reports cannot be read")
        found = super().roster(name)
        return Roster(
            generation=found.generation,
            members=found.members,
            workers=found.workers,
            uncounted=self.uncounted,
        )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("no answer; start it"), "no answer; start it"),
        (ConnectionError("10.0.0.7:6379"), "ConnectionError"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_failing_store_is_an_answer(error: Exception, said: str) -> None:
    """A store that cannot be reached is a 503 with a plain reason, never a 500."""
    store = Failing()
    with serving(store) as client:
        store.error = error
        for answer in (
            client.get("/maintenance"),
            client.put("/maintenance", json={"enabled": True}),
            client.put("/maintenance", json={"enabled": False}),
            client.post("/maintenance/bypass", json={"token": "0123456789abcdef"}),
        ):
            assert answer.status_code == 503
            assert said in answer.json()["detail"]
        assert client.get("/maintenance/console").status_code == 200
        store.error = None


def test_state_is_shown_without_the_workers() -> None:
    """Where the reports cannot be read, the state is shown all the same, and why."""
    store = Failing()
    with serving(store) as client:
        store.workers_fail = True
        shown = client.put("/maintenance", json={"enabled": True}).json()
    assert shown["phase"] == "in force"
    assert shown["workers"] == []
    assert shown["outcome"] == "unknown"
    assert shown["reason"] == "the reports cannot be read"


def test_workers_that_cannot_be_counted_are_named() -> None:
    """A store that knows of workers without reports says so, also while it is off."""
    store = Failing()
    store.in_process, store.poll_interval = False, 0.02
    store.uncounted = True
    with serving(store) as client:
        assert "cannot be counted" in client.get("/maintenance").json()["notice"]
        client.put("/maintenance", json={"enabled": True})
        assert "cannot be counted" in (reason_when(client, "unknown") or "")


class Small:
    """A store of a user's own, with the two methods that it needs."""

    def __init__(self) -> None:
        self.state = MaintenanceState()

    def read(self, name: str) -> MaintenanceState:
        """Return the state."""
        assert name == "default"
        return self.state

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state."""
        self.state = change(self.read(name))
        return self.state


def test_store_without_reports_says_so() -> None:
    """A store that does not know its workers is shown as what it is."""
    with serving(Small()) as client:
        shown = client.put("/maintenance", json={"enabled": True}).json()
        assert shown["workers"] == []
        assert "keeps no reports" in shown["notice"]
        assert (shown["outcome"], shown["reason"]) == ("unknown", shown["notice"])
        assert client.get("/shop").status_code == 503


def test_never_locks_itself_out() -> None:
    """The router answers under maintenance, at every level it may be included at."""
    guard = MaintenanceGuard(MemoryStore(enabled=True))
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
    control = control_router(guard, dependencies=[Depends(operators_only)])
    outer = APIRouter(prefix="/admin", dependencies=[Depends(guard)])
    outer.include_router(control, dependencies=[Depends(guard)])
    app.include_router(outer, dependencies=[Depends(guard)])
    with TestClient(app, headers=SECRET) as client:
        shown = client.get("/admin/maintenance").json()
        assert shown["phase"] == "in force"
        assert client.get("/admin/maintenance/console").status_code == 200
        on = client.put("/admin/maintenance", json={"enabled": True}).json()
        assert [worker["in_flight"] for worker in on["workers"]] == [0]
        off = client.put("/admin/maintenance", json={"enabled": False})
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
    client.put("/payments/maintenance", json={"enabled": True})
    assert payments.is_active
    assert not shop.is_active


def test_documents_its_answers() -> None:
    """OpenAPI names the bodies and the answers, and not the marker."""
    guard = MaintenanceGuard("memory:")
    schema = build(guard).openapi()
    paths = schema["paths"]
    assert set(paths) == {"/shop", "/maintenance", "/maintenance/bypass"}
    put = paths["/maintenance"]["put"]
    body = put["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert body["required"] == ["enabled"]
    assert {"for", *EnableOptions.model_fields} < set(body["properties"])
    assert set(put["responses"]) == {
        *("200", "400", "403", "409", "413", "415", "422", "503")
    }
    models = schema["components"]["schemas"]
    assert models["MaintenanceView"]["properties"]["bypass"]["type"] == "boolean"


@pytest.mark.parametrize("given", [[], (), [Depends(maintenance_exempt)]])
def test_refuses_to_be_built_without_authentication(given: list[object]) -> None:
    """A switch that everybody could use is refused at construction."""
    with pytest.raises(ValueError, match="open to everybody"):
        control_router(MaintenanceGuard("memory:"), dependencies=given)  # type: ignore[arg-type]  # the mistake


def test_guard_is_no_authentication() -> None:
    """The guard itself does not count as a dependency that authenticates."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(ValueError, match="your own"):
        control_router(guard, dependencies=[Depends(guard)])


@pytest.mark.parametrize(
    "given", [Depends(operators_only), operators_only, [operators_only], [Depends()], 7]
)
def test_refuses_other_things_than_dependencies(given: object) -> None:
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


def test_refuses_other_things_than_guards() -> None:
    """Something else than a guard is named in the error."""
    with pytest.raises(TypeError, match="guard must be a MaintenanceGuard"):
        control_router("memory:", dependencies=[Depends(operators_only)])  # type: ignore[arg-type]  # the mistake
