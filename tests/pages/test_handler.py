"""What refused clients get once the exception handler is installed."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import anyio.lowlevel
import pytest
from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    maintenance_exception_handler,
)
from fastapi_maintenance.handlers import THREADS
from fastapi_maintenance.pages import Page
from fastapi_maintenance.testing import force, frozen_clock
from tests.calls import call

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PROBLEM = {"Accept": "application/problem+json"}


def build(guard: MaintenanceGuard, page: Page = None) -> FastAPI:
    """Return an application whose refusals are shaped by the handler."""
    app = FastAPI(dependencies=[Depends(guard)])
    app.add_exception_handler(MaintenanceError, maintenance_exception_handler(page))

    @app.api_route("/shop", methods=["GET", "HEAD", "POST"])
    async def shop() -> str:
        raise AssertionError

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        raise AssertionError

    return app


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_page_waits_for_no_thread_of_the_endpoints(kind: str) -> None:
    """Requests that hold every thread do not hold up what browsers are told."""

    def page(_: Request, error: MaintenanceError) -> str:
        return str(error.detail)

    async def awaited(request: Request, error: MaintenanceError) -> str:
        return page(request, error)

    guard, release = MaintenanceGuard("memory:"), threading.Event()
    app = build(guard, page if kind == "sync" else awaited)
    app.add_api_route("/slow", lambda: release.wait(20))
    everything = int(to_thread.current_default_thread_limiter().total_tokens)
    headers = [(b"accept", b"text/html")]
    async with anyio.create_task_group() as running:
        try:
            for _ in range(everything):
                running.start_soon(call, app, "/slow")
            while to_thread.current_default_thread_limiter().available_tokens:
                await anyio.lowlevel.checkpoint()
            await guard.enable(message="Moving", acknowledge=0)
            with anyio.fail_after(10):
                answer = await call(app, "/shop", headers=headers)
        finally:
            release.set()
    assert (answer.status, answer.body) == (503, b"Moving")


@pytest.mark.anyio
async def test_pages_that_hang_take_no_thread_from_exempt_handlers() -> None:
    """A handler is still asked in time when as many pages hang as can be made."""
    begun, release = threading.Semaphore(0), threading.Event()

    def page(_: Request, error: MaintenanceError) -> str:
        begun.release()
        release.wait(20)
        return str(error.detail)

    def is_operator(connection: HTTPConnection) -> bool:
        return "x-operator" in connection.headers

    guard = MaintenanceGuard("memory:", exempt_handler=is_operator)
    app = build(guard, page)
    app.add_api_route("/orders", lambda: "served")
    await guard.enable(acknowledge=0)
    refused = partial(call, app, "/shop", headers=[(b"accept", b"text/html")])
    async with anyio.create_task_group() as running:
        try:
            for _ in range(THREADS):
                running.start_soon(refused)
            for _ in range(THREADS):
                assert await to_thread.run_sync(begun.acquire, True, 20)
            answer = await call(app, "/orders", headers=[(b"x-operator", b"yes")])
        finally:
            release.set()
    assert (answer.status, answer.body) == (200, b'"served"')


@contextmanager
def closed(
    page: Page = None, *, message: str | None = "Moving"
) -> Iterator[TestClient]:
    """Yield a client of an application under maintenance."""
    guard = MaintenanceGuard("memory:", retry_after=42)
    with force(guard, message=message):
        yield TestClient(build(guard, page))


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        (BROWSER, "text/html; charset=utf-8"),
        (PROBLEM, "application/problem+json"),
        ({}, "application/json"),
    ],
)
def test_every_form_has_the_headers_of_a_refusal(
    headers: dict[str, str], kind: str
) -> None:
    """Each form is a 503 that says when to return and that it varies."""
    with closed() as client:
        answer = client.get("/shop", headers=headers)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == kind
    assert answer.headers["retry-after"] == "42"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["vary"] == "Accept"
    assert "Moving" in answer.text


def test_problem_has_the_members_of_the_standard() -> None:
    """A problem says its status and detail as RFC 9457 has it."""
    with closed() as client:
        answer = client.get("/shop", headers=PROBLEM)
    assert answer.json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Moving",
        "retry_after": 42,
    }


def test_json_is_what_it_is_without_the_handler() -> None:
    """Clients that ask for neither get FastAPI's own form."""
    with closed() as client:
        assert client.get("/shop").json() == {"detail": "Moving"}


def test_head_gets_the_headers_alone() -> None:
    """HEAD is refused with the same headers and no content."""
    with closed() as client:
        answer = client.head("/shop", headers=BROWSER)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "42"


def test_handshake_is_denied_with_json() -> None:
    """A WebSocket handshake is denied with a response, and never with a page."""
    with closed() as client, pytest.raises(WebSocketDenialResponse) as caught:
        client.websocket_connect("/live", headers=BROWSER).__enter__()
    assert caught.value.status_code == 503
    assert caught.value.headers["retry-after"] == "42"
    assert caught.value.json() == {"detail": "Moving"}


def test_headers_of_cors_are_added() -> None:
    """The answer passes the application's CORS middleware, and both vary."""
    guard = MaintenanceGuard("memory:")
    app = build(guard)
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    with force(guard):
        answer = TestClient(app).get(
            "/shop", headers={**BROWSER, "Origin": "https://a.example"}
        )
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert {part.strip() for part in answer.headers["vary"].split(",")} == {
        "Accept",
        "Origin",
    }


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "\"'><img src=x>&"])
def test_message_is_text_and_never_markup(hostile: str) -> None:
    """The page shows any message as text, and runs nothing of it."""
    with closed(message=hostile) as client:
        text = client.get("/shop", headers=BROWSER).text
    assert hostile not in text
    assert "<img" not in text
    assert text.count("<script>") == 1


def test_message_is_no_template() -> None:
    """A message that names a placeholder is shown as it is."""
    with closed(message="{{ until }} {{ message }} {x.__class__}") as client:
        text = client.get("/shop", headers=BROWSER).text
    assert "{{ until }} {{ message }} {x.__class__}" in text


def test_page_is_self_contained_and_says_so() -> None:
    """The page loads nothing, and its policy allows its own code by hash only."""
    with closed() as client:
        answer = client.get("/shop", headers=BROWSER)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    for foreign in ("http://", "https://", "//cdn", "@import", "url("):
        assert foreign not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_page_has_a_friendlier_sentence_than_the_default_detail() -> None:
    """Without a message the page does not repeat its heading."""
    with closed(message=None) as client:
        text = client.get("/shop", headers=BROWSER).text
    assert "We are working on it" in text
    assert "Service temporarily unavailable" not in text


def test_page_names_the_end_for_those_without_scripts() -> None:
    """The announced end stands in the page itself, in UTC and for machines."""
    guard = MaintenanceGuard("memory:")
    with force(guard, until=timedelta(hours=2)) as state:
        text = TestClient(build(guard)).get("/shop", headers=BROWSER).text
    assert state.until is not None
    assert f"{state.until:%Y-%m-%d %H:%M} UTC</time>" in text
    assert f'datetime="{state.until:%Y-%m-%dT%H:%M:%SZ}"' in text
    assert 'data-left="7200"' in text or 'data-left="7199"' in text
    assert '<div class="end" id="end" >' in text


def test_page_without_an_end_shows_none() -> None:
    """Where no end is announced, none is shown."""
    with closed() as client:
        text = client.get("/shop", headers=BROWSER).text
    assert 'data-left="0"' in text
    assert '<div class="end" id="end" hidden>' in text


def test_page_after_a_form_does_not_repeat_it() -> None:
    """What a form sent is not sent again by a reload; the page says it was lost."""
    with closed() as client:
        read = client.get("/shop", headers=BROWSER).text
        sent = client.post("/shop", headers=BROWSER).text
    assert 'data-reload="yes"' in read
    assert '<p class="sent" hidden>' in read
    assert 'data-reload="no"' in sent
    assert '<p class="sent" >' in sent


def test_file_replaces_the_page(tmp_path: Path) -> None:
    """A file of the application's own is sent, its three placeholders filled."""
    page = tmp_path / "closed.html"
    page.write_text(
        "<p>{{ message }}|{{until}}|{{ retry_after }}|{{ reload }}|{{ user }}</p>",
        encoding="utf-8",
    )
    with closed(page, message="<Ümzug>") as client:
        page.unlink()
        answer = client.get("/shop", headers=BROWSER)
    assert answer.status_code == 503
    assert answer.text == "<p>&lt;Ümzug&gt;||42|{{ reload }}|{{ user }}</p>"
    assert "content-security-policy" not in answer.headers
    assert answer.headers["retry-after"] == "42"


def test_file_is_named_by_a_string_too(tmp_path: Path) -> None:
    """A path may be a string."""
    (tmp_path / "closed.html").write_text("closed", encoding="utf-8")
    with closed(str(tmp_path / "closed.html")) as client:
        assert client.get("/shop", headers=BROWSER).text == "closed"


def as_text(request: Request, error: MaintenanceError) -> str:
    """Return HTML."""
    return f"{request.url.path}: {error.detail}"


async def as_text_later(request: Request, error: MaintenanceError) -> str:
    """Return HTML, asynchronously."""
    return as_text(request, error)


def as_response(request: Request, error: MaintenanceError) -> Response:
    """Return a response that says 200, as those of templates do."""
    return HTMLResponse(as_text(request, error), headers={"X-Own": "yes"})


class Renderer:
    """An object whose call is asynchronous."""

    async def __call__(self, request: Request, error: MaintenanceError) -> str:
        """Return HTML."""
        return as_text(request, error)


@pytest.mark.parametrize(
    "page", [as_text, as_text_later, as_response, Renderer(), lambda *_: later()]
)
def test_callable_replaces_the_page(page: Callable[..., object]) -> None:
    """A callable makes the page, however it is asynchronous, and it stays a 503."""
    with closed(page) as client:
        answer = client.get("/shop", headers=BROWSER)
    assert answer.status_code == 503
    assert answer.text == "/shop: Moving"
    assert answer.headers["retry-after"] == "42"
    assert answer.headers["cache-control"] == "no-store"


async def later() -> str:
    """Return what the others return."""
    return "/shop: Moving"


def broken(request: Request, error: MaintenanceError) -> str:
    """Fail, as a page that needs the database does."""
    raise ConnectionError(request.url.path, error.detail)


def nothing(request: Request, error: MaintenanceError) -> None:
    """Return nothing, as a callable without a return does."""


def number(request: Request, error: MaintenanceError) -> int:
    """Return something else than a page."""
    return len(request.url.path) + error.retry_after


@pytest.mark.parametrize("page", [broken, nothing, number])
def test_callable_that_fails_costs_one_line(
    page: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    """A page that fails is replaced by ours, and logged once until it works again."""
    with closed(page) as client, caplog.at_level(logging.ERROR):
        for _ in range(3):
            answer = client.get("/shop", headers=BROWSER)
            assert answer.status_code == 503
            assert "We are down for" in answer.text
    assert len(caplog.records) == 1


def test_callable_is_logged_again_after_it_has_worked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A page that fails again after it has worked is logged again."""
    answers = iter([7, "fine", 7])
    with (
        closed(lambda *_: next(answers)) as client,
        caplog.at_level(logging.ERROR),
    ):
        for _ in range(3):
            client.get("/shop", headers=BROWSER)
    assert len(caplog.records) == 2


def test_callable_is_asked_for_browsers_only() -> None:
    """A client that asks for JSON does not have a page made."""
    with closed(broken) as client:
        assert client.get("/shop").json() == {"detail": "Moving"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_bad_file_is_refused_at_construction(
    content: bytes | None, tmp_path: Path
) -> None:
    """A page that is missing or is not text is found when the service starts."""
    page = tmp_path / "closed.html"
    if content is not None:
        page.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read the maintenance page"):
        maintenance_exception_handler(page)


def test_directory_is_refused_at_construction(tmp_path: Path) -> None:
    """A directory is not accepted as a page."""
    with pytest.raises(ValueError, match="give the path of an HTML file"):
        maintenance_exception_handler(tmp_path)


def test_anything_else_is_refused_at_construction() -> None:
    """Neither a path nor a callable is a mistake."""
    with pytest.raises(TypeError, match="page must be a path, a callable or None"):
        maintenance_exception_handler(7)  # type: ignore[arg-type]  # the mistake


def test_handler_leaves_other_errors_as_they_were() -> None:
    """Registered for all of ``HTTPException``, it shapes refusals only."""
    app = FastAPI()
    handler = maintenance_exception_handler()
    app.add_exception_handler(HTTPException, handler)
    app.add_exception_handler(LookupError, handler)

    @app.get("/gone")
    async def gone() -> None:
        raise HTTPException(410, "gone", headers={"X-Own": "yes"})

    @app.get("/broken")
    async def lost() -> None:
        raise LookupError

    client = TestClient(app)
    answer = client.get("/gone", headers=BROWSER)
    assert answer.status_code == 410
    assert answer.json() == {"detail": "gone"}
    assert answer.headers["x-own"] == "yes"
    with pytest.raises(LookupError):
        client.get("/broken")


@pytest.mark.parametrize(("passed", "shown"), [(0, True), (10, False)])
def test_page_judges_the_end_by_the_clock_of_the_guard(
    passed: int, *, shown: bool
) -> None:
    """Under a frozen clock, the page has the end until that clock has reached it."""
    guard = MaintenanceGuard("memory:")
    noon = datetime(2020, 1, 1, 12, tzinfo=UTC)
    with frozen_clock(guard, noon) as clock, force(guard, until=timedelta(minutes=10)):
        clock.advance(timedelta(minutes=passed))
        answer = TestClient(build(guard)).get("/shop", headers=BROWSER)
    assert ("2020-01-01 12:10 UTC" in answer.text) is shown
    assert ('data-left="600"' in answer.text) is shown
