"""The maintenance page in a real browser."""

import re
from datetime import timedelta

import pytest
from playwright.async_api import Route, expect

from .conftest import Service, Visit

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></p><script>alert(2)</script>'\"&"


async def test_page_shows_the_message_and_counts_down(
    service: Service, visit: Visit
) -> None:
    """A visitor reads why and for how long, and sees the time run down."""
    await service.call(service.guard.enable(message="Moving", until=timedelta(hours=2)))
    page = (await visit()).page
    await page.clock.install()
    await page.goto(service.url)
    await expect(page).to_have_title("Down for maintenance")
    await expect(page.locator("#message")).to_have_text("Moving")
    timer = page.get_by_role("timer")
    await expect(timer).to_have_text(
        re.compile(r"^1h ?5\dmin ?\d\ds$"), use_inner_text=True
    )
    await page.clock.run_for(3_600_000)
    await expect(timer).to_have_text(
        re.compile(r"^5\dmin ?\d\ds$"), use_inner_text=True
    )


async def test_page_returns_by_itself_when_the_service_does(
    service: Service, visit: Visit
) -> None:
    """After the announced end the visitor is back in the service without a click."""
    await service.call(service.guard.enable(until=timedelta(minutes=5)))
    page = (await visit()).page
    await page.clock.install()
    await page.goto(service.url)
    await service.call(service.guard.disable())
    await page.clock.run_for(4 * 60_000)
    await expect(page.locator("h1")).to_be_visible()
    await page.clock.run_for(3 * 60_000)
    await expect(page.locator("body")).to_contain_text("The service is open")


async def test_page_stays_and_tells_what_is_new(service: Service, visit: Visit) -> None:
    """While it lasts the page is not reloaded, and shows a new message and end."""
    await service.call(service.guard.enable(message="Moving"))
    page = (await visit()).page
    await page.clock.install()
    await page.goto(service.url)
    await expect(page.get_by_role("timer")).to_be_hidden()
    await page.evaluate("window.untouched = true")
    later = service.guard.enable(message="Longer", until=timedelta(hours=1))
    await service.call(later)
    await page.clock.run_for(90_000)
    await expect(page.locator("#message")).to_have_text("Longer")
    await expect(page.get_by_role("status")).to_contain_text("Still under maintenance")
    await expect(page.get_by_role("timer")).to_be_visible()
    await expect(page.locator("#until")).not_to_be_empty()
    assert await page.evaluate("window.untouched") is True


@pytest.mark.parametrize("status", [None, 502, 503, 504])
async def test_page_survives_a_restart(
    service: Service, visit: Visit, status: int | None
) -> None:
    """A service or proxy that does not answer for a while loses no visitor."""
    await service.call(service.guard.enable())
    visitor = await visit()
    page = visitor.page
    await page.clock.install()
    await page.goto(service.url)
    broken = True

    async def answer(route: Route) -> None:
        if not broken:
            await route.continue_()
        elif status is None:
            await route.abort("connectionrefused")
        else:
            await route.fulfill(status=status, body="<h1>Bad gateway</h1>")

    await page.route(service.url + "/", answer)
    await page.clock.run_for(90_000)
    await expect(page.get_by_role("status")).to_contain_text("No answer yet")
    await expect(page.get_by_role("heading")).to_contain_text("down for")
    broken = False
    await service.call(service.guard.disable())
    await page.clock.run_for(60_000)
    await expect(page.locator("body")).to_contain_text("The service is open")
    if status is None:
        # The refused connection itself is in the browser's console.
        visitor.complaints = [
            text for text in visitor.complaints if "ERR_CONNECTION_REFUSED" not in text
        ]


async def test_visitors_do_not_return_in_the_same_second(
    service: Service, visit: Visit
) -> None:
    """The moment at which a page asks again is drawn for each visitor."""
    await service.call(service.guard.enable(until=timedelta(minutes=10)))
    page = (await visit()).page
    await page.clock.install()
    asked = []
    for drawn in (0.0, 0.999):
        await page.add_init_script(f"Math.random = () => {drawn}")
        await page.goto(service.url)
        await page.clock.run_for(602_000)
        asked.append(await page.get_by_role("status").inner_text())
    assert asked[0].startswith(("Checking", "Still"))
    assert asked[1].startswith("No need to reload")


async def test_visitor_can_ask_at_any_time(service: Service, visit: Visit) -> None:
    """The one button works from the keyboard, and is seen when it has the focus."""
    await service.call(service.guard.enable())
    page = (await visit()).page
    await page.goto(service.url)
    await page.keyboard.press("Tab")
    button = page.get_by_role("link", name="Try again")
    await expect(button).to_be_focused()
    assert await button.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("Still under maintenance")
    await service.call(service.guard.disable())
    await page.keyboard.press("Enter")
    await expect(page.locator("body")).to_contain_text("The service is open")


async def test_page_works_without_scripts(service: Service, visit: Visit) -> None:
    """Without scripts the message, the end and the way back are there."""
    state = await service.call(
        service.guard.enable(message="Moving", until=timedelta(hours=1))
    )
    page = (await visit(scripts=False)).page
    await page.goto(f"{service.url}/?page=2")
    await expect(page.locator("#message")).to_have_text("Moving")
    await expect(page.locator("#until")).to_have_text(
        f"{state.until:%Y-%m-%d %H:%M} UTC"
    )
    await expect(page.get_by_role("timer")).to_be_hidden()
    await service.call(service.guard.disable())
    await page.get_by_role("link", name="Try again").click()
    await expect(page.locator("body")).to_contain_text("The service is open")
    assert page.url == f"{service.url}/?page=2"


async def test_page_sends_no_form_again(service: Service, visit: Visit) -> None:
    """After a form the page says that it was lost, and repeats nothing by itself."""
    await service.call(service.guard.enable())
    page = (await visit()).page
    await page.clock.install()
    await page.set_content(
        f'<form method="post" action="{service.url}"><button>Buy</button>'
    )
    await page.get_by_role("button").click()
    await expect(page.get_by_text("not received")).to_be_visible()
    await expect(page.get_by_role("link")).to_be_hidden()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    await page.clock.run_for(600_000)
    assert asked == []


async def test_hostile_message_is_text(service: Service, visit: Visit) -> None:
    """A message is shown as it is, and runs nothing, after an update too."""
    await service.call(service.guard.enable(message=HOSTILE))
    page = (await visit()).page
    await page.clock.install()
    await page.goto(service.url)
    await expect(page.locator("#message")).to_have_text(HOSTILE)
    await service.call(service.guard.enable(message=HOSTILE + "2"))
    await page.clock.run_for(90_000)
    await expect(page.locator("#message")).to_have_text(HOSTILE + "2")
    assert await page.locator("img").count() == 0
    assert await page.locator("script").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
async def test_page_is_accessible(
    service: Service, visit: Visit, scheme: str, width: int
) -> None:
    """Axe finds nothing to repair, in light and dark, wide and on a phone."""
    words = "Ein langes Wort: " + "Donaudampfschifffahrt" * 8
    await service.call(
        service.guard.enable(message=words, until=timedelta(days=2, hours=3))
    )
    visitor = await visit(scheme=scheme, width=width)
    await visitor.page.goto(service.url)
    assert await visitor.violations() == []
    assert not await visitor.overflows()
    assert await visitor.page.evaluate("document.documentElement.lang") == "en"
    await expect(visitor.page.get_by_role("main")).to_have_count(1)


@pytest.mark.parametrize(
    ("wish", "moving"), [("reduce", "none"), ("no-preference", "roll")]
)
async def test_nothing_moves_for_those_who_ask(
    service: Service, visit: Visit, wish: str, moving: str
) -> None:
    """What moves stands still where motion is to be reduced."""
    await service.call(service.guard.enable())
    page = (await visit(motion=wish)).page
    await page.goto(service.url)
    name = await page.locator(".tape").evaluate(
        "e => getComputedStyle(e).animationName"
    )
    assert name == moving
