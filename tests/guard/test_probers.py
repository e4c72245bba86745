"""A refused health check is warned of once, and no other refusal is."""

import logging

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import MaintenanceGuard, MemoryStore, maintenance_exempt

PROBERS = [
    *("kube-probe/1.30", "ELB-HealthChecker/2.0", "GoogleHC/1.0", "Envoy/HC"),
    *("Consul Health Check", "Blackbox Exporter/0.25.0", "Prometheus/2.53.0"),
    "Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/1vsZADi)",
]


def client_of(guard: MaintenanceGuard) -> TestClient:
    """Return a client of a guarded application with an open and a closed route."""
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/healthz")
    async def healthz() -> None: ...

    @app.get("/livez")
    @maintenance_exempt
    async def livez() -> None: ...

    return TestClient(app)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of this package."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "fastapi_maintenance" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("prober", PROBERS)
def test_refused_health_check_is_warned_of_once(
    prober: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for each guard names the prober, the path and the remedy."""
    client = client_of(MaintenanceGuard(MemoryStore(enabled=True)))
    for agent in (prober, prober, *PROBERS):
        answer = client.get("/healthz", headers={"User-Agent": agent})
        assert answer.status_code == 503
    (said,) = warned(caplog)
    assert prober in said
    assert "'/healthz'" in said
    assert "@maintenance_exempt" in said


def test_health_check_that_passes_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """A prober of an exempt route, or while it is open, is not warned of."""
    client = client_of(MaintenanceGuard(MemoryStore(enabled=True)))
    client.get("/livez", headers={"User-Agent": PROBERS[0]})
    client = client_of(MaintenanceGuard(MemoryStore()))
    client.get("/healthz", headers={"User-Agent": PROBERS[0]})
    assert warned(caplog) == []


@pytest.mark.parametrize(
    "agent", ["Mozilla/5.0", "", "my-kube-probe/1", "KUBE-PROBE/1"]
)
def test_refusals_of_others_are_silent(
    agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusing clients logs nothing, however many there are."""
    caplog.set_level(logging.DEBUG, "fastapi_maintenance")
    client = client_of(MaintenanceGuard(MemoryStore(enabled=True)))
    client.get("/healthz")
    before = len(caplog.records)
    for _ in range(10):
        assert client.get("/healthz", headers={"User-Agent": agent}).status_code == 503
    ours = [r for r in caplog.records[before:] if r.name == "fastapi_maintenance"]
    assert ours == []


def test_what_a_prober_sends_is_shown_on_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that poses as a prober cannot forge a second record, or a long one."""
    client = client_of(MaintenanceGuard(MemoryStore(enabled=True)))
    agent = b"kube-probe/\x1b[31m\xe9" + b"x" * 5_000
    client.get("/healthz", headers={"User-Agent": agent})  # type: ignore[arg-type]  # sent as it is
    (said,) = warned(caplog)
    assert "\x1b" not in said
    assert "\n" not in said
    assert len(said) < 400


def test_each_change_is_one_record(caplog: pytest.LogCaptureFixture) -> None:
    """Switching is logged once for each change of a worker, requests are not."""
    caplog.set_level(logging.DEBUG, "fastapi_maintenance")
    guard = MaintenanceGuard("memory:")
    with client_of(guard) as client:
        portal = client.portal
        assert portal is not None
        for _ in range(5):
            client.get("/healthz")
        portal.call(lambda: guard.enable(message="Moving", actor="ada"))
        for _ in range(5):
            client.get("/healthz")
        portal.call(guard.disable)
    said = [r.getMessage() for r in caplog.records if r.name == "fastapi_maintenance"]
    assert len(said) == 2
    assert said[0].startswith("maintenance is on: ")
    assert "by ada: Moving" in said[0]
    assert said[1].startswith("maintenance is off: ")
