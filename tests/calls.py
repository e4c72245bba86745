"""Calls an application without a client, for scopes that no client would send."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi.testclient import TestClient

T = TypeVar("T")
Message = MutableMapping[str, Any]  # as Starlette spells it
Send = Callable[[Message], Awaitable[None]]
App = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]
]

HTTP: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"shop.example")],
    "client": ("192.0.2.1", 50000),
    "server": ("shop.example", 80),
    "extensions": {},
    "state": {},
}
"""The scope of a request, but for its path."""


@dataclass
class Answer:
    """What an application sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The status of the response, 0 without one."""
        found = [m["status"] for m in self.messages if m["type"].endswith("start")]
        return int(found[0]) if found else 0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        (start,) = [m for m in self.messages if m["type"].endswith("response.start")]
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in start["headers"]
        }

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return b"".join(m.get("body", b"") for m in self.messages)


async def call(
    app: App,
    path: str = "/",
    *,
    body: Iterable[Message] = ({"type": "http.request"},),
    send: Send | None = None,
    leaves: bool = False,
    **scope: object,
) -> Answer:
    """Send one HTTP request; more keywords replace parts of the scope."""
    answer = Answer()
    waiting = iter(body)

    async def receive() -> Message:
        for message in waiting:
            return message
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def collect(message: Message) -> None:
        answer.messages.append(message)
        if send is not None:
            await send(message)

    whole = {**HTTP, "path": path, "raw_path": None, **scope}
    # In a task of its own, as servers serve a request.
    await asyncio.ensure_future(app(whole, receive, collect))
    return answer


async def handshake(
    app: App, path: str = "/", *, send: Send | None = None, **scope: object
) -> Answer:
    """Ask for a WebSocket and leave; more keywords replace parts of the scope."""
    answer = Answer()
    waiting = iter(({"type": "websocket.connect"},))

    async def receive() -> Message:
        return next(waiting, {"type": "websocket.disconnect", "code": 1001})

    async def collect(message: Message) -> None:
        answer.messages.append(message)
        if send is not None:
            await send(message)

    whole = {**HTTP, "type": "websocket", "scheme": "ws", "subprotocols": []}
    del whole["method"]
    await app({**whole, "path": path, **scope}, receive, collect)
    return answer


def on_loop(client: TestClient, work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function on the event loop of a client's application."""
    assert client.portal is not None
    return client.portal.call(work)
