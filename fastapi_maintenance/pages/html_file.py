"""Self-contained HTML files: their placeholders, and a policy for their code."""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final, Self

from starlette.responses import HTMLResponse, Response

_PLACEHOLDER: Final = re.compile(r"\{\{ ?([a-z_]+) ?\}\}")


class HtmlFile:
    """A self-contained HTML file, and a policy that lets only its own code run.

    Args:
        text: The file's content. Its ``<script>`` and ``<style>`` elements are allowed.
        policy: Further directives of its ``Content-Security-Policy``.
    """

    def __init__(self, text: str, policy: str) -> None:
        self.text = text
        allowed = [
            f"{directive}-src {' '.join(_hashes(text, directive))}"
            for directive in ("script", "style")
        ]
        self.policy: str = "; ".join(["default-src 'none'", *allowed, policy])

    @classmethod
    def load(cls, module: str, name: str, policy: str) -> Self:
        """Return a file of the package that is in the directory of a module."""
        text = Path(module).with_name(name).read_text(encoding="utf-8")
        return cls(text, policy)

    def response(self, values: Mapping[str, str]) -> Response:
        """Return it with its placeholders replaced, escaped."""
        return HTMLResponse(
            filled(self.text, values),
            headers={
                "Content-Security-Policy": self.policy,
                "Referrer-Policy": "same-origin",
                "X-Content-Type-Options": "nosniff",
            },
        )


def filled(text: str, values: Mapping[str, str]) -> str:
    """Replace known placeholders, in one pass: a value is never read as a template."""
    return _PLACEHOLDER.sub(
        lambda found: escape(values[found[1]]) if found[1] in values else found[0],
        text,
    )


def _hashes(text: str, tag: str) -> list[str]:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(code.encode()).digest() for code in found)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
