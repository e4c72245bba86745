"""Whether it is drained: a look at the present state that publishes nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
    MemoryStore,
    Roster,
)
from fastapi_maintenance.fence import WorkerReport, worker_status
from fastapi_maintenance.testing import frozen_clock

from .support import reason_when, serving

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ON = MaintenanceState(epoch=7, tag="a", enabled=True)
PASSING = ON.replace(until=NOON + timedelta(hours=1), auto_off=True)


def shown(client: TestClient) -> tuple[str | None, str | None]:
    """Return outcome and reason."""
    answer = client.get("/maintenance").json()
    return answer["outcome"], answer["reason"]


def test_is_busy_until_older_work_has_ended() -> None:
    """Work from before the state holds it up, by name, and its end is seen."""
    guard = MaintenanceGuard("memory:")
    with serving(guard) as client:
        with guard.admit():
            body = client.put("/maintenance", json={"enabled": True}).json()
            assert body["outcome"] == "busy"
            assert "work" in body["reason"]
            assert body["acknowledged"] == 1
            (worker,) = body["workers"]
            assert (worker["in_flight"], worker["left"]) == (1, 1)
            assert worker["status"] == "draining (1 left)"
            assert worker["kind"] == "draining"
            assert worker["oldest"]["route"] == "work"
        assert shown(client) == ("drained", None)
        (worker,) = client.get("/maintenance").json()["workers"]
        assert worker["status"] == "drained"


class WithSilent(MemoryStore):
    """A store with a worker that has not answered for two hours."""

    location = "a store with a silent worker"
    in_process, poll_interval = False, 0.02

    def roster(self, name: str) -> Roster:
        """List that worker too."""
        found = super().roster(name)
        silent = WorkerReport(
            id="gone", host="web-9", pid=7, liveness="silent", age=7_200
        )
        return replace(found, workers=(*found.workers, silent))


def test_worker_that_is_silent_for_long_is_lost() -> None:
    """A silent worker is named with its silence once no other one is waited for."""
    guard = MaintenanceGuard(WithSilent())
    with serving(guard) as client:
        with guard.admit():
            client.put("/maintenance", json={"enabled": True})
            assert "still running on" in (reason_when(client, "busy") or "")
        reason = reason_when(client, "lost") or ""
    assert "web-9/7 has not answered for 2 h" in reason
    assert "fastapi-maintenance forget gone" in reason


def test_looking_publishes_nothing() -> None:
    """A look leaves the epoch, so that it ends no wait of a command."""
    guard = MaintenanceGuard("memory:")
    with serving(guard) as client:
        client.put("/maintenance", json={"enabled": True})
        before = guard.state
        assert shown(client) == ("drained", None)
        assert guard.state is before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"for": 7200, "auto_off": True}, "auto_off could open"),
        ({"at": "2026-11-22T13:00:00Z"}, "the window begins"),
    ],
)
def test_state_that_rests_on_clocks_has_no_outcome(
    body: dict[str, object], said: str
) -> None:
    """What a clock could open or has not begun is never called drained."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard, NOON), serving(guard) as client:
        client.put("/maintenance", json={"enabled": True, **body})
        outcome, reason = shown(client)
    assert outcome is None
    assert said in (reason or "")


def test_window_that_the_clock_has_begun_is_drained_by_switching_on() -> None:
    """A planned window cannot be drained until it is published as in force."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard, NOON) as clock, serving(guard) as client:
        planned = {"enabled": True, "at": "2026-11-22T13:00:00Z"}
        client.put("/maintenance", json=planned)
        clock.advance(timedelta(hours=1))
        outcome, reason = shown(client)
        assert outcome is None
        assert "once more" in (reason or "")
        (worker,) = client.get("/maintenance").json()["workers"]
        assert worker["status"] == "refusing"
        client.put("/maintenance", json={"enabled": True})
        assert shown(client) == ("drained", None)


def test_new_list_of_workers_is_not_trusted_at_once(tmp_path: Path) -> None:
    """While others may still join a new roster, nothing is called drained."""
    guard = MaintenanceGuard(FileStore(tmp_path))
    switch = guard._switch
    switch.settling = 3_600
    with serving(guard) as client:
        assert client.put("/maintenance", json={"enabled": True}).status_code == 200
        assert "is new" in (reason_when(client, "lost") or "")
        switch.settling = 0
        assert reason_when(client, "drained") is None


@pytest.mark.parametrize(
    ("state", "report", "status"),
    [
        (MaintenanceState(epoch=7, tag="a"), {"current": 3}, "serving"),
        (MaintenanceState(epoch=8), {"current": 3}, "not acknowledged"),
        (ON, {}, "drained"),
        (ON, {"seen": 6}, "not acknowledged"),
        (ON, {"current": 1}, "drained"),
        (ON, {"old": 2}, "draining (2 left)"),
        (ON, {"seen": 6, "current": 1}, "draining (1 left)"),
        (ON, {"uncounted": 1}, "cannot be counted"),
        (ON, {"liveness": "silent", "age": 12.3}, "drained, no answer for 12 s"),
        (ON, {"liveness": "silent", "age": 4.0, "old": 1}, "no answer for 4.0 s"),
        (PASSING, {}, "refusing"),
        (PASSING, {"seen": 6}, "not acknowledged"),
    ],
)
def test_status_of_a_worker_is_said_in_words(
    state: MaintenanceState, report: dict[str, object], status: str
) -> None:
    """A worker serves, drains with what is left, is drained, or does not answer."""
    worker = WorkerReport.model_validate(
        {"id": "1", "host": "web-1", "pid": 7, "seen": 7, "tag": "a", **report}
    )
    assert worker_status(worker, state, NOON).text == status
