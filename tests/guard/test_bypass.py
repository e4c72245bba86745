"""Operators get in during maintenance with a token, which is written nowhere."""

import hashlib
import hmac
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    decision,
)
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.control.models import BypassToken, NewState
from fastapi_maintenance.testing import force
from tests.calls import call

TOKEN = "correct-horse-battery"
OTHER = "correct-horse-stapler"
HEADER = "X-Maintenance-Bypass"


def build(guard: MaintenanceGuard) -> FastAPI:
    """Return a guarded application."""
    app = FastAPI(dependencies=[Depends(guard)])

    @app.post("/shop")
    async def shop() -> str:
        return "open"

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return app


@pytest.mark.parametrize(
    "headers",
    [
        {HEADER: TOKEN},
        {HEADER.lower(): TOKEN},
        {"Cookie": f"maintenance_bypass={TOKEN}"},
        {"Cookie": f"a=1; maintenance_bypass={TOKEN}; b=2"},
        {"Cookie": f'maintenance_bypass="{TOKEN}"'},
        {HEADER: OTHER, "Cookie": f"maintenance_bypass={TOKEN}"},
    ],
)
def test_token_lets_in(headers: dict[str, str]) -> None:
    """The token admits as a header or as a cookie, whatever else is sent."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, bypass_token=TOKEN):
        assert client.post("/shop", headers=headers).status_code == 200
        with client.websocket_connect("/live", headers=headers):
            pass


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {HEADER: ""},
        {HEADER: OTHER},
        {HEADER: f"{TOKEN} "[:-2]},
        {HEADER: f"{TOKEN}x"},
        {HEADER: TOKEN.upper()},
        {HEADER: "é".encode("latin-1")},
        {HEADER: "x" * 9_000},
        {HEADER: hashlib.sha256(TOKEN.encode()).hexdigest()},
        {HEADER: f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"},
        {"Cookie": "maintenance_bypass="},
        {"Cookie": "maintenance_bypass"},
        {"Cookie": f"maintenance_bypass={OTHER}"},
        {"Cookie": f"Maintenance_Bypass={TOKEN}"},
        {"Cookie": b"maintenance_bypass=\xe9\xff"},
        {"Authorization": f"Bearer {TOKEN}"},
    ],
)
def test_nothing_else_lets_in(headers: dict[str, str]) -> None:
    """Another token, its hash, another place or nothing is a plain refusal."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, bypass_token=TOKEN):
        assert client.post("/shop", headers=headers).status_code == 503
        with pytest.raises(WebSocketDenialResponse):
            client.websocket_connect("/live", headers=headers).__enter__()


def test_token_is_not_taken_from_the_address() -> None:
    """A token in a URL would be in every log; it does not let in."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, bypass_token=TOKEN):
        for name in ("maintenance_bypass", HEADER, "bypass", "token"):
            assert client.post(f"/shop?{name}={TOKEN}").status_code == 503


def test_no_token_lets_no_client_in() -> None:
    """Without a token of this activation an empty or old one means nothing."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard):
        for value in ("", TOKEN, "None", "sha256:"):
            assert client.post("/shop", headers={HEADER: value}).status_code == 503


@pytest.mark.anyio
async def test_switching_off_revokes_it() -> None:
    """The token of one activation does not open the next one."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    await guard.enable(bypass_token=TOKEN)
    assert client.post("/shop", headers={HEADER: TOKEN}).status_code == 200
    await guard.disable()
    await guard.enable()
    assert client.post("/shop", headers={HEADER: TOKEN}).status_code == 503


@pytest.mark.anyio
async def test_it_survives_a_change_and_ends_with_a_new_one() -> None:
    """Changing the message keeps the token; another token replaces it."""
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    await guard.enable(bypass_token=TOKEN)
    await guard.enable(message="Longer than planned")
    assert client.post("/shop", headers={HEADER: TOKEN}).status_code == 200
    await guard.enable(bypass_token=OTHER)
    assert client.post("/shop", headers={HEADER: TOKEN}).status_code == 503
    assert client.post("/shop", headers={HEADER: OTHER}).status_code == 200


def test_it_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every given token is compared as bytes of one length, in constant time."""
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return genuine(given, expected)

    monkeypatch.setattr(decision.hmac, "compare_digest", compare)  # type: ignore[attr-defined]  # a module
    guard = MaintenanceGuard("memory:")
    client = TestClient(build(guard))
    with force(guard, bypass_token=TOKEN):
        for token in (OTHER, "x", TOKEN):
            client.post("/shop", headers={HEADER: token})
    assert len({given for given, _ in compared}) == 3
    assert {len(part) for pair in compared for part in pair} == {7 + 64}


@pytest.mark.anyio
async def test_a_cookie_that_is_hard_to_read_takes_no_time() -> None:
    """One request cannot take seconds: Python before 3.11.10 unquotes that slowly."""
    guard = MaintenanceGuard("memory:")
    app = build(guard)
    # Before FastAPI, which reads all cookies before it runs a dependency.
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    cookie = b'maintenance_bypass="' + b"\\" * 60_000 + b'"'
    with force(guard, bypass_token=TOKEN):
        before = time.process_time()
        answer = await call(app, "/shop", method="POST", headers=[(b"cookie", cookie)])
        assert time.process_time() - before < 1
    assert answer.status == 503


@pytest.mark.parametrize("token", [TOKEN.encode(), [TOKEN], {"token": TOKEN}])
@pytest.mark.anyio
async def test_a_token_of_another_type_is_not_repeated(token: Any) -> None:
    """An error that says what is wrong with a token does not show it."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(ValueError, match="bypass_token should be") as refused:
        await guard.enable(bypass_token=token)
    assert TOKEN not in str(refused.value)


def test_what_has_a_token_does_not_show_it() -> None:
    """Logs and reports of errors take the repr of what a function works on."""
    for made in (
        EnableOptions.from_arguments(bypass_token=TOKEN),
        NewState.model_validate({"enabled": True, "bypass_token": TOKEN}),
        BypassToken(token=TOKEN),
    ):
        assert TOKEN not in repr(made)
    for model, wrong in (
        (NewState, {"enabled": True, "force": True, "bypass_token": TOKEN}),
        (NewState, {"enabled": True, "bypass_token": [TOKEN]}),
        (BypassToken, {"token": [TOKEN]}),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(wrong)
        assert TOKEN not in str(refused.value)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.anyio
async def test_it_is_written_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the files, the log, the state nor a report holds the token."""
    guard = MaintenanceGuard(FileStore(tmp_path))
    with caplog.at_level(logging.DEBUG):
        async with guard.lifespan():
            state = await guard.enable(bypass_token=TOKEN, message="Moving")
            TestClient(build(guard)).post("/shop", headers={HEADER: TOKEN})
            report = await guard.drain(timeout=5)
    files = contents(tmp_path)
    assert "default.json" in files
    assert not any(TOKEN.encode() in content for content in files.values())
    for text in (caplog.text, repr(state), state.to_json(), repr(report), repr(guard)):
        assert TOKEN not in text


@pytest.mark.parametrize("token", ["short", "", "with spaces in it", "x" * 20 + ";", 7])
@pytest.mark.anyio
async def test_tokens_that_cannot_be_sent_are_refused(token: str) -> None:
    """A token that is guessed, or that no header or cookie can carry, is refused."""
    guard = MaintenanceGuard("memory:")
    with pytest.raises(ValueError, match=r"secrets\.token_urlsafe|valid string"):
        await guard.enable(bypass_token=token)
    assert not guard.is_active
