"""HTML files of one piece: their placeholders, and the policy for their code."""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final, Self

from starlette.responses import HTMLResponse, Response

_PLACEHOLDER: Final = re.compile(r"\{\{ ?([a-z_]+) ?\}\}")


class Document:
    """One self-contained HTML file, and the policy that lets its own code run only.

    Args:
        text: The file's content; every ``<script>`` and ``<style>`` of it is allowed.
        policy: Directives beside those of the code.
    """

    def __init__(self, text: str, policy: str) -> None:
        self.text = text
        allowed = [
            f"{directive}-src {' '.join(_hashes(text, directive))}"
            for directive in ("script", "style")
        ]
        self.policy: str = "; ".join(["default-src 'none'", *allowed, policy])

    @classmethod
    def beside(cls, module: str, name: str, policy: str) -> Self:
        """Return a document of the package, beside the file of a module."""
        text = Path(module).with_name(name).read_text(encoding="utf-8")
        return cls(text, policy)

    def response(self, values: Mapping[str, str]) -> Response:
        """Return it with its placeholders filled, escaped."""
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
