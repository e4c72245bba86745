"""The console in a real browser."""

import json
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from playwright.sync_api import Page, Route, expect

from fastapi_maintenance import MaintenanceState

from .conftest import Service, Visit, Visitor

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"&"


def opened(service: Service, visitor: Visitor) -> Page:
    """Open the console, and wait until it shows the state."""
    page = visitor.page
    page.goto(f"{service.url}/maintenance/console")
    expect(page.locator("#place")).to_contain_text("default")
    return page


def status_of(service: Service) -> int:
    """Return how the service answers somebody else."""
    connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def test_console_switches_on_and_off(service: Service, visit: Visit) -> None:
    """An operator closes the service with a message and an end, and opens it again."""
    page = opened(service, visit())
    expect(page.locator("#word")).to_have_text("Open")
    page.get_by_label("Message").fill("Moving")
    page.get_by_label("Expected to end").select_option("in 30 minutes")
    page.get_by_role("button", name="Switch on").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Take the service out of service?")
    assert status_of(service) == 200
    dialog.get_by_role("button", name="Switch on").click()
    expect(page.locator("#word")).to_have_text("Under maintenance")
    expect(page.locator("#said")).to_have_text("Moving")
    expect(page.get_by_role("timer")).to_contain_text("until")
    expect(page.locator("#verdict")).to_have_text("Drained")
    assert status_of(service) == 503
    state = service.guard.state
    assert state.actor == "control@127.0.0.1"
    assert state.until is not None
    assert state.since is not None
    assert state.until - state.since == timedelta(minutes=30)
    page.get_by_role("button", name="Switch off").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch off").click()
    expect(page.locator("#word")).to_have_text("Open")
    assert status_of(service) == 200


def test_console_works_from_the_keyboard(service: Service, visit: Visit) -> None:
    """Everything is reached and used without a pointer, and the focus is never lost."""
    page = opened(service, visit())
    page.get_by_label("Message").focus()
    page.keyboard.type("Moving")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Expected to end")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("Read-only")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Switch on")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert not service.guard.state.active
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#word")).to_have_text("Read-only")
    expect(page.locator("#verdict")).to_have_text("Drained; reads continue")
    expect(page.get_by_role("button", name="Switch off")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#word")).to_have_text("Open")
    expect(page.get_by_label("Message")).to_be_focused()


def test_console_shows_a_drain_as_it_goes(service: Service, visit: Visit) -> None:
    """What still runs is shown with its route, and the end of it as it comes."""
    client = HTTPConnection("127.0.0.1", service.port, timeout=60)
    client.request("GET", "/slow")
    page = opened(service, visit())
    expect(page.get_by_role("cell", name="GET /slow")).to_be_visible()
    service.call(service.guard.enable())
    expect(page.locator("#verdict")).to_have_text("Waiting for 1 request")
    expect(page.locator("#reason")).to_contain_text("1 in flight")
    service.finish.set()
    expect(page.locator("#verdict")).to_have_text("Drained")
    assert page.locator("#bar").evaluate("e => e.value") == 1
    assert client.getresponse().status == 200
    client.close()


def test_console_follows_what_others_do(service: Service, visit: Visit) -> None:
    """A change by a command or a colleague shows without a reload."""
    page = opened(service, visit())
    service.call(service.guard.enable(message="From a shell", actor="bob"))
    expect(page.locator("#word")).to_have_text("Under maintenance")
    expect(page.locator("#said")).to_have_text("From a shell")
    expect(page.locator("#by")).to_contain_text("by bob")
    expect(page.get_by_label("Message")).to_have_value("From a shell")
    service.call(service.guard.disable())
    expect(page.locator("#word")).to_have_text("Open")


def test_console_keeps_what_is_being_written(service: Service, visit: Visit) -> None:
    """A change by somebody else does not overwrite a form that is being filled."""
    page = opened(service, visit())
    page.get_by_label("Message").fill("Half a sent")
    service.call(service.guard.enable(message="From a shell"))
    expect(page.locator("#said")).to_have_text("From a shell")
    expect(page.get_by_label("Message")).to_have_value("Half a sent")


def test_console_changes_without_losing_the_rest(
    service: Service, visit: Visit
) -> None:
    """What the form does not show stays as it was set by a command."""
    end = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(days=1)
    service.call(service.guard.enable(until=end, auto_off=True, retry_after=77))
    page = opened(service, visit())
    expect(page.locator("#verdict")).to_have_text("Not fenced")
    page.get_by_label("Message").fill("Longer")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#said")).to_have_text("Longer")
    state = service.guard.state
    assert (state.until, state.auto_off, state.retry_after) == (end, True, 77)


def test_console_shows_a_planned_window(service: Service, visit: Visit) -> None:
    """Before its start a window is counted down to, and requests are let in."""
    start = datetime.now(UTC) + timedelta(hours=3)
    service.call(service.guard.enable(at=start, message="Tonight"))
    page = opened(service, visit())
    expect(page.locator("#word")).to_have_text("Scheduled")
    expect(page.get_by_role("timer")).to_contain_text("until it begins")
    expect(page.locator("#said")).to_have_text("Tonight")
    assert status_of(service) == 200


def test_console_shows_a_token_once_and_trades_it(
    service: Service, visit: Visit
) -> None:
    """A new token is shown, lets this browser in, and is gone after a reload."""
    visitor = visit()
    page = opened(service, visitor)
    page.get_by_label("Make a bypass token").check()
    page.get_by_role("button", name="Switch on").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    expect(page.locator("#token")).not_to_be_empty()
    token = page.locator("#token").inner_text()
    assert len(token) >= 43
    page.get_by_role("button", name="Let this browser through").first.click()
    expect(page.locator("#enter")).to_have_text("This browser is let through.")
    (cookie,) = visitor.context.cookies()
    assert cookie["name"] == "maintenance_bypass"
    assert cookie["value"] == token
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert page.goto(service.url).status == 200  # type: ignore[union-attr]  # it answers
    assert status_of(service) == 503
    page = opened(service, visitor)
    expect(page.locator("#token")).to_be_hidden()
    assert token not in page.content()


def test_console_takes_a_token_from_elsewhere(service: Service, visit: Visit) -> None:
    """A token of the command line is traded here; a wrong one is named as such."""
    service.call(service.guard.enable(bypass_token="correct-horse-battery"))
    visitor = visit()
    page = opened(service, visitor)
    page.get_by_text("Use a bypass token in this browser").click()
    for token in ("correct-horse-stapler", "correct-horse-battery"):
        page.get_by_label("Token", exact=True).fill(token)
        page.keyboard.press("Enter")
        if token.endswith("stapler"):
            expect(page.get_by_role("alert")).to_contain_text("not the bypass token")
            expect(page.get_by_label("Token", exact=True)).to_have_value("")
    expect(page.locator("#passed")).to_have_text("This browser is let through.")
    assert visitor.context.cookies()


def test_console_opens_under_others_only_when_told_twice(
    service: Service, visit: Visit
) -> None:
    """A hold of somebody else is named before it is overridden."""
    held = MaintenanceState(active=True, begun=True, holders=("deploy#1", "operator"))
    source = service.guard._switch.source
    service.call(source.publish("default", lambda _: held))
    page = opened(service, visit())
    expect(page.locator("#by")).to_contain_text("held by deploy#1, operator")
    page.get_by_role("button", name="Switch off").click()
    expect(page.get_by_role("dialog")).to_contain_text("deploy#1 still holds it closed")
    page.get_by_role("button", name="Cancel").click()
    assert service.guard.state.active
    page.get_by_role("button", name="Switch off").click()
    page.get_by_role("button", name="Open anyway").click()
    expect(page.locator("#word")).to_have_text("Open")


def test_console_says_what_went_wrong(service: Service, visit: Visit) -> None:
    """What the service refuses is said in its words, and gone with the next success."""
    page = opened(service, visit())
    page.get_by_label("Expected to end").select_option("at a time…")
    page.get_by_label("End, in your time zone").fill("2020-01-01T00:00")
    page.get_by_role("button", name="Switch on").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("alert")).to_contain_text("has passed already")
    page.get_by_label("Expected to end").select_option("No end announced")
    page.get_by_role("button", name="Switch on").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#word")).to_have_text("Under maintenance")


def test_console_says_when_nobody_answers(service: Service, visit: Visit) -> None:
    """While the service restarts the console says so, and goes on when it is back."""
    page = opened(service, visit())
    broken = True

    def answer(route: Route) -> None:
        if broken:
            route.fulfill(status=503, json={"detail": "The store is away"})
        else:
            route.continue_()

    page.route(f"{service.url}/maintenance", answer)
    expect(page.get_by_role("alert")).to_have_text("The store is away")
    broken = False
    expect(page.get_by_role("alert")).to_be_hidden()


def test_console_shows_everything_as_text(service: Service, visit: Visit) -> None:
    """Whatever others wrote is shown as it is, and runs nothing."""
    source = service.guard._switch.source
    hostile = MaintenanceState(
        active=True,
        begun=True,
        message=HOSTILE,
        actor=HOSTILE,
        holders=(HOSTILE,),
    )
    service.call(source.publish("default", lambda _: hostile))
    visitor = visit()
    worker = {
        "id": "1",
        "host": HOSTILE,
        "pid": 1,
        "liveness": "lost",
        "seen": 0,
        "in_flight": 1,
        "old": 1,
        "oldest_route": HOSTILE,
        "oldest_age": 1.0,
    }

    def answer(route: Route) -> None:
        shown = route.fetch().json()
        route.fulfill(json={**shown, "workers": [worker], "notice": HOSTILE})

    look = json.dumps({"outcome": "lost", "reason": HOSTILE, "workers": [worker]})
    visitor.page.route(f"{service.url}/maintenance", answer)
    visitor.page.route(
        "**/events?*",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: look\ndata: {look}\n\n"
        ),
    )
    page = opened(service, visitor)
    expect(page.locator("#said")).to_have_text(HOSTILE)
    expect(page.locator("#by")).to_contain_text(HOSTILE)
    expect(page.locator("#notice")).to_have_text(HOSTILE)
    expect(page.locator("#reason")).to_have_text(HOSTILE)
    expect(page.get_by_role("cell").first).to_have_text(f"{HOSTILE}/1")
    page.get_by_role("button", name="Switch off").click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_console_is_accessible(
    service: Service, visit: Visit, scheme: str, width: int
) -> None:
    """Axe finds nothing to mend in any state, in light and dark, and on a phone."""
    visitor = visit(scheme=scheme, width=width)
    page = opened(service, visitor)
    assert visitor.violations() == []
    page.get_by_label("Message").fill("Donaudampfschifffahrt" * 8)
    page.get_by_label("Make a bypass token").check()
    page.get_by_role("button", name="Switch on").click()
    assert visitor.violations() == []
    page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    expect(page.locator("#verdict")).to_have_text("Drained")
    page.get_by_text("Use a bypass token in this browser").click()
    assert visitor.violations() == []
    assert not visitor.overflows()


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "form"])
def test_page_of_another_site_switches_nothing(
    service: Service, visit: Visit, kind: str
) -> None:
    """A page of another origin cannot switch with the operator's own browser."""
    visitor = visit()
    page = opened(service, visitor)
    # The same server under another name is another origin for a browser.
    page.goto(f"http://localhost:{service.port}/health")
    target = f"{service.url}/maintenance"
    if kind == "form":
        page.evaluate(
            """target => {
              document.body.innerHTML = `<form method="post" enctype="text/plain"
                action="${target}/bypass"><input name='{"token":"' value='"}'></form>`;
              document.forms[0].submit();
            }""",
            target,
        )
        page.wait_for_url(f"{target}/bypass")
        expect(page.locator("body")).to_contain_text("send application/json")
    else:
        for method in ("PUT", "POST"):
            page.evaluate(
                """([target, method, kind]) => fetch(target, {
                  method, credentials: "include",
                  mode: method == "PUT" ? "cors" : "no-cors",
                  headers: {"Content-Type": kind}, body: '{"active": true}',
                }).catch(() => null)""",
                [target, method, kind],
            )
    assert not service.guard.state.active
    visitor.complaints = [
        text
        for text in visitor.complaints
        if "CORS policy" not in text and "ERR_FAILED" not in text
    ]
