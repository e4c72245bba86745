"""Trading a bypass token for a cookie."""

import logging

import pytest
from fastapi.testclient import TestClient

from fastapi_maintenance import MaintenanceGuard, MemoryStore
from fastapi_maintenance.testing import force

from .support import SECRET, build, serving

ODD = "!#$%&'()*+-./:<=>?@[]^_`{|}~"


@pytest.mark.parametrize("token", ["correct-horse-battery", ODD])
def test_token_is_traded_for_a_cookie_that_lets_in(token: str) -> None:
    """The cookie admits afterwards, whatever the token is made of."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard), headers=SECRET)
    with force(guard, bypass_token=token):
        assert client.get("/shop").status_code == 503
        answer = client.post("/maintenance/bypass", json={"token": token})
        assert answer.status_code == 204
        assert answer.content == b""
        assert client.get("/shop").status_code == 200


def test_token_of_the_router_is_shown_once_and_works() -> None:
    """A token that the router makes is in that answer only, and lets in."""
    with serving() as client:
        on = client.put("/maintenance", json={"enabled": True, "bypass": True}).json()
        token = on["bypass_token"]
        assert len(token) >= 43
        shown = client.get("/maintenance")
        assert token not in shown.text
        assert "sha256" not in shown.text
        assert shown.json()["bypass"] is True
        given = client.post("/maintenance/bypass", json={"token": token})
        assert given.status_code == 204
        assert client.post("/shop").status_code == 200
        client.put("/maintenance", json={"enabled": False})
        client.put("/maintenance", json={"enabled": True})
        assert client.post("/shop").status_code == 503


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_cookie_is_kept_from_scripts_and_other_sites(
    scheme: str, *, secure: bool
) -> None:
    """HttpOnly, SameSite=Lax and the whole site; Secure where the site is."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard), f"{scheme}://shop.example", headers=SECRET)
    with force(guard, bypass_token="correct-horse-battery"):
        answer = client.post(
            "/maintenance/bypass", json={"token": "correct-horse-battery"}
        )
    parts = answer.headers["set-cookie"].split("; ")
    assert parts[0] == "maintenance_bypass=correct-horse-battery"
    expected = {"HttpOnly", "Path=/", "SameSite=lax"} | (
        {"Secure"} if secure else set()
    )
    assert set(parts[1:]) == expected
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "token", ["correct-horse-stapler", "short", "", "é" * 20, "a b" * 10, '"; x=1' * 5]
)
def test_other_tokens_get_no_cookie(
    token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not the token is a 403 that repeats nothing of it."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard), headers=SECRET)
    with (
        force(guard, bypass_token="correct-horse-battery"),
        caplog.at_level(logging.DEBUG, "fastapi_maintenance"),
    ):
        answer = client.post("/maintenance/bypass", json={"token": token})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert not token or token not in answer.text + caplog.text


@pytest.mark.parametrize("enabled", [True, False])
def test_without_a_token_there_is_nothing_to_trade(*, enabled: bool) -> None:
    """Off, or on without a token, is a 409."""
    with serving(MemoryStore(enabled=enabled)) as client:
        answer = client.post(
            "/maintenance/bypass", json={"token": "correct-horse-battery"}
        )
    assert answer.status_code == 409


def test_bad_body_repeats_no_secret() -> None:
    """What is wrong with a body is said without what was in it."""
    with serving() as client:
        answer = client.post(
            "/maintenance/bypass", json={"token": ["correct-horse-battery"]}
        )
    assert answer.status_code == 422
    assert "correct-horse" not in answer.text
