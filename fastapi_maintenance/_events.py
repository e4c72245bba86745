"""A drain as server-sent events."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Event = tuple[str, Mapping[str, object]]
Feed = MemoryObjectSendStream[Event]

BUFFERED: Final = 16
"""Events that wait for a slow client; more are dropped, the last one never is."""

EVENT_SCHEMA: Final = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["look", "report"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
"""One event, as tools read the schema of an event stream."""


class EventStream(Response):
    """Sends events while they are made, and stops their making when nobody listens.

    Args:
        make: Sends events into a stream until there are no more.

    An iterator of a ``StreamingResponse`` would be left to the collector when a client
    goes away between two events, with what it has open; this one runs in one task
    group, which a disconnect cancels.
    """

    media_type = "text/event-stream"

    def __init__(self, make: Callable[[Feed], Awaitable[None]]) -> None:
        self._make = make
        self.status_code = 200
        self.background = None
        # A proxy that collects a response before it passes it on shows nothing.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        feed, events = anyio.create_memory_object_stream[Event](BUFFERED)
        async with feed, events, anyio.create_task_group() as group:

            async def make() -> None:
                async with feed:
                    await self._make(feed)

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(make)
            group.start_soon(listen)
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async for event in events:
                    await send(_body(_encoded(*event), more=True))
                await send(_body(b"", more=False))
            except OSError:
                pass  # How a server may say that the client has gone.
            group.cancel_scope.cancel()


def _encoded(name: str, data: Mapping[str, object]) -> bytes:
    # JSON has no line breaks of its own, which would end the field.
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _body(content: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": content, "more_body": more}
