"""Which form of a refusal a client asks for."""

import re
from typing import Final, Literal

from starlette.requests import HTTPConnection

Kind = Literal["html", "problem", "json"]

PROBLEM: Final = "application/problem+json"

ACCEPT_LIMIT: Final = 1_000
"""Characters of the header that are read; a browser sends about 150."""

_HTML: Final = ("text/html", "application/xhtml+xml")
_JSON: Final = ("/json", "+json")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_QUALITY: Final = re.compile(r"0(?:\.[0-9]*)?|1(?:\.0*)?")


def negotiate(connection: HTTPConnection) -> Kind:
    """Tell which form a client asks for.

    RFC 9110 section 12.4.1 lets a server disregard the header. So HTML is for clients
    that *name* it and prefer it to JSON; ``*/*``, nothing and nonsense mean JSON.
    """
    header = ",".join(connection.headers.getlist("accept"))
    named = qualities(header) if len(header) <= ACCEPT_LIMIT else {}
    html = max(named.get(kind, 0.0) for kind in _HTML)
    json = max([0.0, *(named[kind] for kind in named if kind.endswith(_JSON))])
    if html > json and connection.scope["type"] == "http":
        return "html"
    problem = named.get(PROBLEM, 0.0)
    wants = problem and problem >= named.get("application/json", 0.0)
    return "problem" if wants else "json"


def qualities(header: str) -> dict[str, float]:
    """Return the media types that an ``Accept`` header names, with their weights."""
    named: dict[str, float] = {}
    for item in _QUOTED.sub("", header).lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        weights = [text[2:] for text in parameters if text.startswith("q=")]
        weight = weights[-1] if weights else "1"
        # An invalid weight names nothing: float("nan") would compare as larger.
        if _QUALITY.fullmatch(weight):
            named[kind] = max(named.get(kind, 0.0), float(weight))
    return named
