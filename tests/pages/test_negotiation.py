"""Which form a client asks for, as an independent reader of the header sees it."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection
from werkzeug.http import parse_accept_header

from fastapi_maintenance.pages.negotiation import ACCEPT_LIMIT, negotiate

TYPES = [
    "text/html",
    "application/xhtml+xml",
    "application/json",
    "application/problem+json",
    "application/vnd.api+json",
    "text/json",
    "text/plain",
    "image/webp",
    "*/*",
    "text/*",
    "application/*",
]
QUALITIES = ["", "0", "0.0", "0.1", "0.5", "0.50", "0.9", "1", "1.0", "nan", "-1", "2"]


def asked(*accept: str, kind: str = "http") -> str:
    """Return what is negotiated for one header line each."""
    scope: dict[str, Any] = {
        "type": kind,
        "headers": [(b"accept", line.encode("latin-1")) for line in accept],
    }
    return negotiate(HTTPConnection(scope))


def expected(accept: str) -> str:
    """Return what the documented rule says of Werkzeug's reading."""
    named: dict[str, float] = {}
    for value, quality in parse_accept_header(accept):
        kind = value.partition(";")[0].strip().lower()
        named[kind] = max(named.get(kind, 0), quality)
    html = max(named.get("text/html", 0), named.get("application/xhtml+xml", 0))
    json = max(
        (quality for kind, quality in named.items() if kind.endswith("json")), default=0
    )
    if html > json:
        return "html"
    problem = named.get("application/problem+json", 0)
    return (
        "problem" if problem and problem >= named.get("application/json", 0) else "json"
    )


@st.composite
def items(draw: st.DrawFn) -> str:
    """Return one media range, spelled in one of the ways that are allowed."""
    kind = draw(st.sampled_from(TYPES))
    kind = draw(st.sampled_from([kind, kind.upper(), kind.title()]))
    extra = draw(st.sampled_from(["", ";level=1", '; x="a,b;q=0"', ";charset=utf-8"]))
    quality = draw(st.sampled_from(QUALITIES))
    space = draw(st.sampled_from(["", " ", "  "]))
    named = draw(st.sampled_from(["q", "Q"]))
    return f"{kind}{extra}" + (f"{space};{space}{named}={quality}" if quality else "")


@given(st.lists(items(), max_size=6), st.sampled_from([",", ", ", " , ", ",,"]))
@pytest.mark.property
def test_reads_the_header_as_werkzeug_does(listed: list[str], comma: str) -> None:
    """The forms are those that the rule gives by Werkzeug's reading of the header."""
    accept = comma.join(listed)
    assert asked(accept) == expected(accept)


@given(
    st.text(st.characters(max_codepoint=255), max_size=200)
    | st.text(',;="\\ \tq01./*', max_size=30)
)
@pytest.mark.property
def test_never_fails_whatever_is_sent(accept: str) -> None:
    """Any header gets one of the three forms."""
    assert asked(accept) in {"html", "problem", "json"}


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        # Firefox, Chrome and Safari, an image and a script of theirs.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", "html"),
        ("image/avif,image/webp,image/svg+xml,*/*;q=0.8", "json"),
        ("*/*", "json"),
        ("", "json"),
        ("text/*", "json"),
        ("text/html;q=0", "json"),
        ("text/html;q=nan", "json"),
        ("text/html;q=\uff11", "json"),
        ("application/json, text/plain, */*", "json"),
        ("application/json, text/html", "json"),
        ("application/json;q=0.9, text/html", "html"),
        ("application/vnd.api+json, text/html", "json"),
        ("application/problem+json", "problem"),
        ("application/problem+json, application/json", "problem"),
        ("application/problem+json;q=0.5, application/json", "json"),
        ("application/problem+json, text/html;q=0.9", "problem"),
        ("application/problem+json;q=0", "json"),
        ("text/html;", "html"),
        (";q=1,", "json"),
        (";", "json"),
        (" ;text/html", "json"),
    ],
)
def test_gives_the_form_that_is_named(accept: str, form: str) -> None:
    """HTML is for those who name it and prefer it, a problem for those who name it."""
    assert asked(accept.encode().decode("latin-1")) == form


def test_reads_several_lines_as_one() -> None:
    """A header in two lines means the same as in one (RFC 9110, section 5.3)."""
    assert asked("application/json", "text/html") == "json"
    assert asked("application/json;q=0.1", "text/html") == "html"


def test_no_header_means_json() -> None:
    """A client that names nothing gets JSON."""
    assert asked() == "json"


def test_handshakes_get_no_page() -> None:
    """A WebSocket's answer is never HTML: no browser would show it."""
    assert asked("text/html", kind="websocket") == "json"


@pytest.mark.parametrize(
    "accept",
    ["text/html," * 6_000, '"\\' * 30_000, ";" * 60_000, "text/html;" + "q=" * 30_000],
)
def test_long_header_costs_nothing(accept: str) -> None:
    """64 KiB of header are not read at all."""
    before = time.process_time()
    assert asked(accept) == "json"
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("unit", ['"\\', '"', ",", ";", "\\", '";'])
def test_worst_header_that_is_read_is_quick(unit: str) -> None:
    """No header of the longest length that is read takes long to read."""
    before = time.process_time()
    asked((unit * ACCEPT_LIMIT)[:ACCEPT_LIMIT])
    assert time.process_time() - before < 0.5
