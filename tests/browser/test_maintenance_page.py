"""The maintenance page in a real browser."""

import re
from datetime import timedelta

import pytest
from playwright.sync_api import Route, expect

from .conftest import Service, Visit

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></p><script>alert(2)</script>'\"&"


def test_page_shows_the_message_and_counts_down(service: Service, visit: Visit) -> None:
    """A visitor reads why and for how long, and sees the time run down."""
    service.call(service.guard.enable(message="Moving", until=timedelta(hours=2)))
    page = visit().page
    page.clock.install()
    page.goto(service.url)
    expect(page).to_have_title("Down for maintenance")
    expect(page.locator("#message")).to_have_text("Moving")
    timer = page.get_by_role("timer")
    expect(timer).to_have_text(re.compile(r"^1h ?5\dmin ?\d\ds$"), use_inner_text=True)
    page.clock.run_for(3_600_000)
    expect(timer).to_have_text(re.compile(r"^5\dmin ?\d\ds$"), use_inner_text=True)


def test_page_returns_by_itself_when_the_service_does(
    service: Service, visit: Visit
) -> None:
    """After the announced end the visitor is back in the service without a click."""
    service.call(service.guard.enable(until=timedelta(minutes=5)))
    page = visit().page
    page.clock.install()
    page.goto(service.url)
    service.call(service.guard.disable())
    page.clock.run_for(4 * 60_000)
    expect(page.locator("h1")).to_be_visible()
    page.clock.run_for(3 * 60_000)
    expect(page.locator("body")).to_contain_text("The service is open")


def test_page_stays_and_tells_what_is_new(service: Service, visit: Visit) -> None:
    """While it lasts the page is not reloaded, and shows a new message and end."""
    service.call(service.guard.enable(message="Moving"))
    page = visit().page
    page.clock.install()
    page.goto(service.url)
    expect(page.get_by_role("timer")).to_be_hidden()
    page.evaluate("window.untouched = true")
    later = service.guard.enable(message="Longer", until=timedelta(hours=1))
    service.call(later)
    page.clock.run_for(90_000)
    expect(page.locator("#message")).to_have_text("Longer")
    expect(page.get_by_role("status")).to_contain_text("Still under maintenance")
    expect(page.get_by_role("timer")).to_be_visible()
    expect(page.locator("#until")).not_to_be_empty()
    assert page.evaluate("window.untouched") is True


@pytest.mark.parametrize("status", [None, 502, 503, 504])
def test_page_survives_a_restart(
    service: Service, visit: Visit, status: int | None
) -> None:
    """A service or proxy that does not answer for a while loses no visitor."""
    service.call(service.guard.enable())
    visitor = visit()
    page = visitor.page
    page.clock.install()
    page.goto(service.url)
    broken = True

    def answer(route: Route) -> None:
        if not broken:
            route.continue_()
        elif status is None:
            route.abort("connectionrefused")
        else:
            route.fulfill(status=status, body="<h1>Bad gateway</h1>")

    page.route(service.url + "/", answer)
    page.clock.run_for(90_000)
    expect(page.get_by_role("status")).to_contain_text("No answer yet")
    expect(page.get_by_role("heading")).to_contain_text("down for")
    broken = False
    service.call(service.guard.disable())
    page.clock.run_for(60_000)
    expect(page.locator("body")).to_contain_text("The service is open")
    if status is None:
        # The refused connection itself is in the browser's console.
        visitor.complaints = [
            text for text in visitor.complaints if "ERR_CONNECTION_REFUSED" not in text
        ]


def test_visitors_do_not_return_in_the_same_second(
    service: Service, visit: Visit
) -> None:
    """The moment at which a page asks again is drawn anew for each visitor."""
    service.call(service.guard.enable(until=timedelta(minutes=10)))
    page = visit().page
    page.clock.install()
    asked = []
    for drawn in (0.0, 0.999):
        page.add_init_script(f"Math.random = () => {drawn}")
        page.goto(service.url)
        page.clock.run_for(602_000)
        asked.append(page.get_by_role("status").inner_text())
    assert asked[0].startswith(("Checking", "Still"))
    assert asked[1].startswith("No need to reload")


def test_visitor_can_ask_at_any_time(service: Service, visit: Visit) -> None:
    """The one button works from the keyboard, and is seen when it has the focus."""
    service.call(service.guard.enable())
    page = visit().page
    page.goto(service.url)
    page.keyboard.press("Tab")
    button = page.get_by_role("link", name="Try again")
    expect(button).to_be_focused()
    assert button.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Still under maintenance")
    service.call(service.guard.disable())
    page.keyboard.press("Enter")
    expect(page.locator("body")).to_contain_text("The service is open")


def test_page_works_without_scripts(service: Service, visit: Visit) -> None:
    """Without scripts the message, the end and the way back are there."""
    state = service.call(
        service.guard.enable(message="Moving", until=timedelta(hours=1))
    )
    page = visit(scripts=False).page
    page.goto(f"{service.url}/?page=2")
    expect(page.locator("#message")).to_have_text("Moving")
    expect(page.locator("#until")).to_have_text(f"{state.until:%Y-%m-%d %H:%M} UTC")
    expect(page.get_by_role("timer")).to_be_hidden()
    service.call(service.guard.disable())
    page.get_by_role("link", name="Try again").click()
    expect(page.locator("body")).to_contain_text("The service is open")
    assert page.url == f"{service.url}/?page=2"


def test_page_sends_no_form_again(service: Service, visit: Visit) -> None:
    """After a form the page says that it was lost, and repeats nothing by itself."""
    service.call(service.guard.enable())
    page = visit().page
    page.clock.install()
    page.set_content(f'<form method="post" action="{service.url}"><button>Buy</button>')
    page.get_by_role("button").click()
    expect(page.get_by_text("not received")).to_be_visible()
    expect(page.get_by_role("link")).to_be_hidden()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    page.clock.run_for(600_000)
    assert asked == []


def test_hostile_message_is_text(service: Service, visit: Visit) -> None:
    """A message is shown as it is, and runs nothing, after an update too."""
    service.call(service.guard.enable(message=HOSTILE))
    page = visit().page
    page.clock.install()
    page.goto(service.url)
    expect(page.locator("#message")).to_have_text(HOSTILE)
    service.call(service.guard.enable(message=HOSTILE + "2"))
    page.clock.run_for(90_000)
    expect(page.locator("#message")).to_have_text(HOSTILE + "2")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_page_is_accessible(
    service: Service, visit: Visit, scheme: str, width: int
) -> None:
    """Axe finds nothing to mend, in light and dark, wide and on a phone."""
    words = "Ein langes Wort: " + "Donaudampfschifffahrt" * 8
    service.call(service.guard.enable(message=words, until=timedelta(days=2, hours=3)))
    visitor = visit(scheme=scheme, width=width)
    visitor.page.goto(service.url)
    assert visitor.violations() == []
    assert not visitor.overflows()
    assert visitor.page.evaluate("document.documentElement.lang") == "en"
    expect(visitor.page.get_by_role("main")).to_have_count(1)


@pytest.mark.parametrize(
    ("wish", "moving"), [("reduce", "none"), ("no-preference", "roll")]
)
def test_nothing_moves_for_those_who_ask(
    service: Service, visit: Visit, wish: str, moving: str
) -> None:
    """What moves stands still where motion is to be reduced."""
    service.call(service.guard.enable())
    page = visit(motion=wish).page
    page.goto(service.url)
    name = page.locator(".tape").evaluate("e => getComputedStyle(e).animationName")
    assert name == moving
