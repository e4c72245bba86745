"""The console in a real browser."""

import asyncio
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from playwright.async_api import Page, Route, expect

from fastapi_maintenance import MaintenanceState

from .conftest import Service, Visit, Visitor

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"&"


async def opened(service: Service, visitor: Visitor) -> Page:
    """Open the console, and wait until it shows the state."""
    page = visitor.page
    await page.goto(f"{service.url}/maintenance/console")
    await expect(page.locator("#place")).to_contain_text("default")
    return page


async def status_of(service: Service) -> int:
    """Return how the service answers another client."""

    def ask() -> int:
        connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
        connection.request("GET", "/")
        status = connection.getresponse().status
        connection.close()
        return status

    return await asyncio.to_thread(ask)


async def test_console_switches_on_and_off(service: Service, visit: Visit) -> None:
    """An operator closes the service with a message and an end, and opens it again."""
    page = await opened(service, await visit())
    await expect(page.locator("#word")).to_have_text("Open")
    await page.get_by_label("Message").fill("Moving")
    await page.get_by_label("Expected to end").select_option("in 30 minutes")
    await page.get_by_role("button", name="Switch on").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Take the service out of service?")
    assert await status_of(service) == 200
    await dialog.get_by_role("button", name="Switch on").click()
    await expect(page.locator("#word")).to_have_text("Under maintenance")
    await expect(page.locator("#said")).to_have_text("Moving")
    await expect(page.get_by_role("timer")).to_contain_text("until")
    await expect(page.locator("#acknowledged")).to_have_text(
        "acknowledged by 1 of 1 worker"
    )
    await expect(page.locator("#verdict")).to_have_text("Drained")
    await expect(page.get_by_role("cell", name="drained")).to_be_visible()
    assert await status_of(service) == 503
    state = service.guard.state
    assert state.actor == "control@127.0.0.1"
    assert state.until is not None
    assert state.since is not None
    assert state.until - state.since == timedelta(minutes=30)
    await page.get_by_role("button", name="Switch off").click()
    await page.get_by_role("dialog").get_by_role("button", name="Switch off").click()
    await expect(page.locator("#word")).to_have_text("Open")
    assert await status_of(service) == 200


async def test_console_works_from_the_keyboard(service: Service, visit: Visit) -> None:
    """Everything is reached and used without a pointer, and the focus is never lost."""
    page = await opened(service, await visit())
    await page.get_by_label("Message").focus()
    await page.keyboard.type("Moving")
    await page.keyboard.press("Tab")
    await expect(page.get_by_label("Expected to end")).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await expect(page.get_by_label("Read-only")).to_be_checked()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Switch on")).to_be_focused()
    outline = await page.evaluate(
        "getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline == "solid"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert not service.guard.state.enabled
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")
    await expect(page.locator("#word")).to_have_text("Read-only")
    await expect(page.locator("#verdict")).to_have_text("Drained; reads continue")
    await expect(page.get_by_role("button", name="Switch off")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")
    await expect(page.locator("#word")).to_have_text("Open")
    await expect(page.get_by_label("Message")).to_be_focused()


async def test_console_forgets_an_answer_that_a_change_overtook(
    service: Service, visit: Visit
) -> None:
    """What was asked before a change and comes after it does not undo its page."""
    page = await opened(service, await visit())
    asked, changed = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if route.request.method == "GET" and not asked.is_set():
            answer = await route.fetch()
            asked.set()
            await changed.wait()
            await route.fulfill(response=answer)
        else:
            await route.continue_()

    await page.route("**/maintenance", hold)
    await asyncio.wait_for(asked.wait(), 30)
    await page.get_by_label("Make a bypass token").check()
    await page.get_by_role("button", name="Switch on").click()
    await page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    await expect(page.locator("#token")).to_be_visible()
    async with page.expect_response("**/maintenance") as late:
        changed.set()
    assert (await (await late.value).json())["state"]["enabled"] is False
    await expect(page.locator("#verdict")).to_have_text("Drained")
    await expect(page.locator("#word")).to_have_text("Under maintenance")
    await expect(page.locator("#token")).to_be_visible()


async def test_console_shows_a_drain_as_it_goes(service: Service, visit: Visit) -> None:
    """What still runs is shown with its route, and the end of it as it comes."""
    client = HTTPConnection("127.0.0.1", service.port, timeout=60)
    client.request("GET", "/slow")
    page = await opened(service, await visit())
    await expect(page.get_by_role("cell", name="GET /slow")).to_be_visible()
    await expect(page.get_by_role("cell", name="serving")).to_be_visible()
    await service.call(service.guard.enable())
    await expect(page.locator("#verdict")).to_have_text("Waiting for 1 request")
    await expect(page.locator("#reason")).to_contain_text("GET /slow")
    await expect(page.get_by_role("cell", name="draining (1 left)")).to_be_visible()
    service.finish.set()
    await expect(page.locator("#verdict")).to_have_text("Drained")
    assert await page.locator("#bar").evaluate("e => e.value") == 1
    assert (await asyncio.to_thread(client.getresponse)).status == 200
    client.close()


async def test_console_follows_what_others_do(service: Service, visit: Visit) -> None:
    """A change by a command or another operator shows without a reload."""
    page = await opened(service, await visit())
    await service.call(service.guard.enable(message="From a shell", actor="bob"))
    await expect(page.locator("#word")).to_have_text("Under maintenance")
    await expect(page.locator("#said")).to_have_text("From a shell")
    await expect(page.locator("#by")).to_contain_text("by bob")
    await expect(page.get_by_label("Message")).to_have_value("From a shell")
    await service.call(service.guard.disable())
    await expect(page.locator("#word")).to_have_text("Open")


async def test_console_keeps_what_is_being_written(
    service: Service, visit: Visit
) -> None:
    """A change by another operator does not overwrite a form that is being filled."""
    page = await opened(service, await visit())
    await page.get_by_label("Message").fill("Half a sent")
    await service.call(service.guard.enable(message="From a shell"))
    await expect(page.locator("#said")).to_have_text("From a shell")
    await expect(page.get_by_label("Message")).to_have_value("Half a sent")


async def test_console_changes_without_losing_the_rest(
    service: Service, visit: Visit
) -> None:
    """What the form does not show stays as it was set by a command."""
    end = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(days=1)
    await service.call(service.guard.enable(until=end, auto_off=True, retry_after=77))
    page = await opened(service, await visit())
    await expect(page.locator("#verdict")).to_have_text("Cannot be drained")
    await page.get_by_label("Message").fill("Longer")
    await page.get_by_role("button", name="Apply").click()
    await expect(page.locator("#said")).to_have_text("Longer")
    state = service.guard.state
    assert (state.until, state.auto_off, state.retry_after) == (end, True, 77)


async def test_console_shows_a_planned_window(service: Service, visit: Visit) -> None:
    """Before its start a window is counted down to, and requests are let in."""
    start = datetime.now(UTC) + timedelta(hours=3)
    await service.call(service.guard.enable(at=start, message="Tonight"))
    page = await opened(service, await visit())
    await expect(page.locator("#word")).to_have_text("Scheduled")
    await expect(page.get_by_role("timer")).to_contain_text("until it begins")
    await expect(page.locator("#said")).to_have_text("Tonight")
    assert await status_of(service) == 200


async def test_console_shows_a_token_once_and_trades_it(
    service: Service, visit: Visit
) -> None:
    """A new token is shown, lets this browser in, and is gone after a reload."""
    visitor = await visit()
    page = await opened(service, visitor)
    await page.get_by_label("Make a bypass token").check()
    await page.get_by_role("button", name="Switch on").click()
    await page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    await expect(page.locator("#token")).not_to_be_empty()
    token = await page.locator("#token").inner_text()
    assert len(token) >= 43
    await page.get_by_role("button", name="Let this browser in").first.click()
    await expect(page.locator("#enter")).to_have_text("This browser is let in.")
    (cookie,) = await visitor.context.cookies()
    assert cookie["name"] == "maintenance_bypass"
    assert cookie["value"] == token
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    answer = await page.goto(service.url)
    assert answer is not None
    assert answer.status == 200
    assert await status_of(service) == 503
    page = await opened(service, visitor)
    await expect(page.locator("#token")).to_be_hidden()
    assert token not in await page.content()


async def test_console_takes_a_token_from_elsewhere(
    service: Service, visit: Visit
) -> None:
    """A token of the command line is traded here; a wrong one is named as such."""
    await service.call(service.guard.enable(bypass_token="correct-horse-battery"))
    visitor = await visit()
    page = await opened(service, visitor)
    await page.get_by_text("Use a bypass token in this browser").click()
    for token in ("correct-horse-stapler", "correct-horse-battery"):
        await page.get_by_label("Token", exact=True).fill(token)
        await page.keyboard.press("Enter")
        if token.endswith("stapler"):
            await expect(page.get_by_role("alert")).to_contain_text(
                "not the bypass token"
            )
            await expect(page.get_by_label("Token", exact=True)).to_have_value("")
    await expect(page.locator("#passed")).to_have_text("This browser is let in.")
    assert await visitor.context.cookies()


async def test_console_opens_under_others_only_when_told_twice(
    service: Service, visit: Visit
) -> None:
    """A hold of another one is named before it is overridden."""
    held = MaintenanceState(enabled=True, holders=("deploy#1", "operator"))
    await service.call(service.guard._switch.publish(lambda _: held))
    page = await opened(service, await visit())
    await expect(page.locator("#by")).to_contain_text("held by deploy#1, operator")
    await page.get_by_role("button", name="Switch off").click()
    await expect(page.get_by_role("dialog")).to_contain_text(
        "deploy#1 still holds maintenance"
    )
    await page.get_by_role("button", name="Cancel").click()
    assert service.guard.state.enabled
    await page.get_by_role("button", name="Switch off").click()
    await page.get_by_role("button", name="Open anyway").click()
    await expect(page.locator("#word")).to_have_text("Open")


async def test_console_says_what_went_wrong(service: Service, visit: Visit) -> None:
    """What the service refuses is said in its words, and gone with the next success."""
    page = await opened(service, await visit())
    await page.get_by_label("Expected to end").select_option("at a time…")
    await page.get_by_label("End, in your time zone").fill("2020-01-01T00:00")
    await page.get_by_role("button", name="Switch on").click()
    await page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    await expect(page.get_by_role("alert")).to_contain_text("must be later")
    await page.get_by_label("Expected to end").select_option("No end announced")
    await page.get_by_role("button", name="Switch on").click()
    await page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    await expect(page.get_by_role("alert")).to_be_hidden()
    await expect(page.locator("#word")).to_have_text("Under maintenance")


async def test_console_says_when_there_is_no_answer(
    service: Service, visit: Visit
) -> None:
    """While the service restarts the console says so, and goes on when it is back."""
    page = await opened(service, await visit())
    broken = True

    async def answer(route: Route) -> None:
        if broken:
            await route.fulfill(status=503, json={"detail": "The store is away"})
        else:
            await route.continue_()

    await page.route(f"{service.url}/maintenance", answer)
    await expect(page.get_by_role("alert")).to_have_text("The store is away")
    broken = False
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_console_shows_everything_as_text(service: Service, visit: Visit) -> None:
    """What others wrote is shown as it is, and runs nothing."""
    hostile = MaintenanceState(
        enabled=True, message=HOSTILE, actor=HOSTILE, holders=(HOSTILE,)
    )
    await service.call(service.guard._switch.publish(lambda _: hostile))
    visitor = await visit()
    worker = {
        "host": HOSTILE,
        "pid": 1,
        "liveness": "silent",
        "in_flight": 1,
        "left": 1,
        "kind": HOSTILE,
        "status": HOSTILE,
        "oldest": {"route": HOSTILE, "seconds": 1.0},
    }
    given = {"notice": HOSTILE, "outcome": "lost", "reason": HOSTILE}

    async def answer(route: Route) -> None:
        shown = await (await route.fetch()).json()
        await route.fulfill(json={**shown, **given, "workers": [worker]})

    await visitor.page.route(f"{service.url}/maintenance", answer)
    page = await opened(service, visitor)
    await expect(page.locator("#said")).to_have_text(HOSTILE)
    await expect(page.locator("#by")).to_contain_text(HOSTILE)
    await expect(page.locator("#notice")).to_have_text(HOSTILE)
    await expect(page.locator("#reason")).to_have_text(HOSTILE)
    await expect(page.get_by_role("cell").first).to_have_text(f"{HOSTILE}/1")
    await expect(page.get_by_role("cell").nth(1)).to_have_text(HOSTILE)
    await expect(page.get_by_role("cell").last).to_contain_text(HOSTILE)
    await page.get_by_role("button", name="Switch off").click()
    await expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert await page.locator("img").count() == 0
    assert await page.locator("script").count() == 1


async def test_console_asks_once_a_second_and_one_at_a_time(
    service: Service, visit: Visit
) -> None:
    """A slow service is not asked again before it has answered."""
    visitor = await visit()
    page = visitor.page
    await page.clock.install()
    asked: list[str] = []
    slow = asyncio.Event()

    async def answer(route: Route) -> None:
        asked.append(route.request.method)
        if len(asked) == 4:
            await slow.wait()
        await route.continue_()

    await page.route(f"{service.url}/maintenance", answer)
    page = await opened(service, visitor)
    for number in (2, 3, 4):
        # The page sets its clock when it has read an answer, in a moment of its own.
        while len(asked) < number:
            await page.clock.run_for(1_000)
        assert len(asked) == number
    await page.clock.run_for(5_000)
    assert asked == ["GET"] * 4
    async with page.expect_response(f"{service.url}/maintenance"):
        slow.set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
async def test_console_is_accessible(
    service: Service, visit: Visit, scheme: str, width: int
) -> None:
    """Axe finds nothing to repair in any state, in light and dark, and on a phone."""
    visitor = await visit(scheme=scheme, width=width)
    page = await opened(service, visitor)
    assert await visitor.violations() == []
    await page.get_by_label("Message").fill("Donaudampfschifffahrt" * 8)
    await page.get_by_label("Make a bypass token").check()
    await page.get_by_role("button", name="Switch on").click()
    assert await visitor.violations() == []
    await page.get_by_role("dialog").get_by_role("button", name="Switch on").click()
    await expect(page.locator("#verdict")).to_have_text("Drained")
    await page.get_by_text("Use a bypass token in this browser").click()
    assert await visitor.violations() == []
    assert not await visitor.overflows()


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "form"])
async def test_page_of_another_site_switches_nothing(
    service: Service, visit: Visit, kind: str
) -> None:
    """A page of another origin cannot switch with the operator's own browser."""
    visitor = await visit()
    page = await opened(service, visitor)
    # The same server under another name is another origin for a browser.
    await page.goto(f"http://localhost:{service.port}/health")
    target = f"{service.url}/maintenance"
    if kind == "form":
        await page.evaluate(
            """target => {
              document.body.innerHTML = `<form method="post" enctype="text/plain"
                action="${target}/bypass"><input name='{"token":"' value='"}'></form>`;
              document.forms[0].submit();
            }""",
            target,
        )
        await page.wait_for_url(f"{target}/bypass")
        await expect(page.locator("body")).to_contain_text("send application/json")
    else:
        for method in ("PUT", "POST"):
            await page.evaluate(
                """([target, method, kind]) => fetch(target, {
                  method, credentials: "include",
                  mode: method == "PUT" ? "cors" : "no-cors",
                  headers: {"Content-Type": kind}, body: '{"enabled": true}',
                }).catch(() => null)""",
                [target, method, kind],
            )
    assert not service.guard.state.enabled
    visitor.complaints = [
        text
        for text in visitor.complaints
        if "CORS policy" not in text and "ERR_FAILED" not in text
    ]
