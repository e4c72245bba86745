"""Ready-made handlers: who is let through, and who only looks alike."""

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from fastapi_maintenance.exemptions import from_networks, with_header

SECRET = "zwölf Dosen"
RAW = SECRET.encode()


def connection(
    headers: list[tuple[bytes, bytes]] | None = None, client: Any = ("192.0.2.1", 1)
) -> HTTPConnection:
    """Return a connection with some headers and an address."""
    return HTTPConnection({"type": "http", "headers": headers or [], "client": client})


@pytest.mark.parametrize(
    ("headers", "exempt"),
    [
        ([(b"x-key", RAW)], True),
        ([(b"accept", b"*/*"), (b"x-key", RAW)], True),
        ([], False),
        ([(b"x-key", b"")], False),
        ([(b"x-key", RAW + b" ")], False),
        ([(b"x-key", RAW[:-1])], False),
        ([(b"x-key", RAW.upper())], False),
        ([(b"x-key", SECRET.encode("latin-1"))], False),
        ([(b"x-key", "é".encode("latin-1"))], False),
        ([(b"x-key", b"\xff\xfe")], False),
        ([(b"x-key", b"x" * 9_000)], False),
        ([(b"x-key", RAW), (b"x-key", RAW)], False),
        ([(b"x-key", b"wrong"), (b"x-key", RAW)], False),
        ([(b"x-key-2", RAW)], False),
        ([(b"cookie", RAW)], False),
    ],
)
def test_only_the_very_secret_exempts(
    headers: list[tuple[bytes, bytes]], exempt: bool
) -> None:
    """One header with exactly the bytes of the secret lets through."""
    assert with_header("X-Key", SECRET)(connection(headers)) is exempt


@pytest.mark.parametrize("name", ["X-Key", "x-key", "X-KEY"])
def test_names_of_headers_have_no_case(name: str) -> None:
    """A header is found however its name is written."""
    assert with_header(name, "hidden")(connection([(b"x-key", b"hidden")]))


@pytest.mark.parametrize(
    ("networks", "host", "exempt"),
    [
        (["10.0.0.0/8"], "10.0.0.7", True),
        (["10.0.0.0/8"], "::ffff:10.0.0.7", True),
        (["10.0.0.0/8"], "11.0.0.7", False),
        (["10.0.0.0/8"], "10.evil.example", False),
        (["10.0.0.0/8"], "10.0.0.7, 192.0.2.1", False),
        (["10.0.0.0/8"], "10.0.0.7\n", False),
        (["10.0.0.0/8"], "010.0.0.7", False),
        (["10.0.0.0/8"], "10.7", False),
        (["10.0.0.0/8"], "testclient", False),
        (["10.0.0.0/8"], "", False),
        (["10.0.0.0/8"], "fe80::1%eth0", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "::ffff:127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["127.0.0.1"], "::1", False),
        (["10.0.0.1"], "10.0.0.100", False),
        (["fd00::/8", "10.0.0.0/8"], "fd00::1", True),
        (["fd00::/8", "10.0.0.0/8"], "10.1.1.1", True),
        (["fd00::/8"], "10.1.1.1", False),
        (["::ffff:10.0.0.0/104"], "10.0.0.7", True),
        (["::ffff:10.0.0.0/104"], "::ffff:10.0.0.7", True),
        (["::ffff:10.0.0.0/104"], "11.0.0.7", False),
        (["::ffff:0.0.0.0/96"], "11.0.0.7", True),
        (["::ffff:0.0.0.0/96"], "fd00::1", False),
    ],
)
def test_only_addresses_inside_exempt(
    networks: list[str], host: str, exempt: bool
) -> None:
    """An address counts as an address, never as text."""
    handler = from_networks(*networks)
    assert handler(connection(client=(host, 1))) is exempt


@pytest.mark.parametrize("header", [b"x-forwarded-for", b"forwarded", b"x-real-ip"])
def test_forwarding_headers_are_not_read(header: bytes) -> None:
    """Any client can write a header: only the server's word on the address counts."""
    handler = from_networks("10.0.0.0/8")
    assert not handler(connection([(header, b"10.0.0.7")]))


def test_client_without_an_address_is_not_inside() -> None:
    """A Unix socket has no address, and no network."""
    assert not from_networks("0.0.0.0/0", "::/0")(connection(client=None))
