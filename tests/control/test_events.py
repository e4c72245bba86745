"""Watching a drain as server-sent events."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI

from fastapi_maintenance import MaintenanceGuard, MemoryStore, StoreError
from fastapi_maintenance._events import BUFFERED, EventStream, Feed
from fastapi_maintenance.fence import Roster
from fastapi_maintenance.testing import frozen_clock
from tests import asgi

from .support import build, serving

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEADERS = [(b"host", b"shop.example"), (b"x-operator", b"ada")]


class Watcher:
    """A client of the events that stays until it is told to leave."""

    def __init__(self, app: asgi.App, query: bytes = b"") -> None:
        self.app = app
        self.query = query
        self.status = 0
        self.text = ""
        self.ended = False
        self.news = anyio.Event()
        self.gone = anyio.Event()
        self.fails_with: OSError | None = None

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The events so far."""
        found = []
        for block in self.text.split("\n\n")[:-1]:
            name, data = block.split("\n")
            found.append(
                (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
            )
        return found

    async def run(self) -> None:
        """Ask, and stay."""
        asked = False

        async def receive() -> asgi.Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: asgi.Message) -> None:
            if self.fails_with is not None:
                raise self.fails_with
            self.status = message.get("status", self.status)
            self.text += message.get("body", b"").decode()
            self.ended = message.get("more_body") is False
            self.news.set()
            self.news = anyio.Event()

        scope = {**asgi._HTTP, "path": "/maintenance/events", "headers": HEADERS}
        await self.app({**scope, "query_string": self.query}, receive, send)

    async def until(self, name: str) -> dict[str, Any]:
        """Wait for an event, and return its data."""
        with anyio.fail_after(20):
            while True:
                for found, data in self.events:
                    if found == name:
                        return data
                await self.news.wait()


@asynccontextmanager
async def watched(
    store: MemoryStore | None = None, query: bytes = b""
) -> AsyncIterator[tuple[MaintenanceGuard, Watcher, anyio.Event]]:
    """Yield a guard under maintenance, a watcher, and what ends the work in flight."""
    guard = MaintenanceGuard(store or MemoryStore())
    app: FastAPI = build(guard)
    done, started = anyio.Event(), anyio.Event()

    async def work() -> None:
        async with guard.admit():
            started.set()
            await done.wait()

    async with guard.lifespan(), anyio.create_task_group() as group:
        group.start_soon(work)
        await started.wait()
        await guard.enable(message="Moving")
        yield guard, Watcher(app, query), done
        done.set()


@pytest.mark.anyio
async def test_watches_until_drained() -> None:
    """Looks come while work is in flight, and one report when it has ended."""
    async with watched() as (guard, watcher, done), anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        look = await watcher.until("look")
        assert look["outcome"] == "busy"
        assert look["workers"][0]["old"] == 1
        assert look["workers"][0]["oldest_route"] == "work"
        done.set()
        report = await watcher.until("report")
        assert report["outcome"] == "drained"
        assert report["drained"] is True
        assert report["epoch"] == guard.state.epoch
    assert watcher.status == 200
    assert watcher.ended
    assert [name for name, _ in watcher.events].count("report") == 1


@pytest.mark.anyio
async def test_shows_no_more_than_two_looks_a_second() -> None:
    """A watcher is not sent every look of the fence."""
    async with watched(query=b"timeout=0.7") as (_, watcher, _):
        await watcher.run()
    names = [name for name, _ in watcher.events]
    assert names == ["look", "look", "report"]
    assert watcher.events[-1][1]["outcome"] == "busy"


@pytest.mark.anyio
async def test_watcher_is_not_counted() -> None:
    """A drain does not wait for those who watch it."""
    async with watched() as (guard, watcher, done), anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await watcher.until("look")
        done.set()
        assert (await guard.drain(timeout=10)).drained
        watcher.gone.set()


@pytest.mark.anyio
async def test_watching_supersedes_nobody() -> None:
    """A command that waits is not disturbed by those who watch."""
    async with watched() as (guard, watcher, done), anyio.create_task_group() as group:
        drained: list[bool] = []

        async def drain() -> None:
            drained.append((await guard.drain(timeout=10)).drained)

        group.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(watcher.run)
        await watcher.until("look")
        done.set()
        await watcher.until("report")
    assert drained == [True]


@pytest.mark.anyio
async def test_switching_off_ends_the_watch() -> None:
    """Who watches learns that the state they watched is gone."""
    async with watched() as (guard, watcher, _), anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await watcher.until("look")
        await guard.disable(actor="bob")
        report = await watcher.until("report")
    assert report["outcome"] == "superseded"
    assert "bob" in report["reason"]


@pytest.mark.anyio
async def test_leaving_ends_the_watch() -> None:
    """A client that goes away leaves nothing running."""
    async with watched() as (_, watcher, _):
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(watcher.run)
                await watcher.until("look")
                watcher.gone.set()
    assert not watcher.ended
    assert "report" not in dict(watcher.events)


@pytest.mark.anyio
async def test_server_that_says_so_while_sending_ends_the_watch() -> None:
    """A server that raises when the client has gone gets no error back."""
    async with watched() as (_, watcher, _):
        watcher.fails_with = BrokenPipeError()
        with anyio.fail_after(20):
            await watcher.run()
    assert watcher.status == 0


class Forgetful(MemoryStore):
    """A store whose rows can be read once."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = -1

    async def roster(self, name: str) -> Roster:
        """Return the rows, or fail."""
        self.reads += 1
        if self.reads > 0:
            raise StoreError("the rows cannot be read any more")
        return await super().roster(name)


@pytest.mark.anyio
async def test_store_that_fails_meanwhile_is_a_report() -> None:
    """A failing store ends the watch with *unknown* and the reason."""
    async with watched(Forgetful()) as (_, watcher, _):
        await watcher.run()
    ((name, report),) = watcher.events
    assert name == "report"
    assert report["outcome"] == "unknown"
    assert report["drained"] is False
    assert report["reason"] == "the rows cannot be read any more"


@pytest.mark.anyio
async def test_slow_client_gets_the_report_all_the_same() -> None:
    """Looks are dropped for a client that reads slowly, and the report never is."""

    async def make(feed: Feed) -> None:
        for _ in range(BUFFERED):
            feed.send_nowait(("look", {}))
        with pytest.raises(anyio.WouldBlock):
            feed.send_nowait(("look", {}))
        await feed.send(("report", {}))

    sent: list[bytes] = []
    messages, queue = anyio.create_memory_object_stream[asgi.Message]()

    async def send(message: asgi.Message) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(message.get("body", b""))

    with messages, queue:
        async with anyio.create_task_group() as group:
            group.start_soon(EventStream(make), {}, queue.receive, send)
    assert len(sent) == BUFFERED + 3
    assert sent[-2] == b"event: report\ndata: {}\n\n"


def test_nothing_to_watch_while_off() -> None:
    """Off is a 409: there is nothing to fence."""
    with serving() as client:
        answer = client.get("/maintenance/events")
    assert answer.status_code == 409
    assert "nothing to fence" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"until": "2026-11-22T14:00:00Z", "auto_off": True}, "auto_off could open"),
        ({"at": "2026-11-22T13:00:00Z"}, "the window begins"),
    ],
)
def test_clocks_are_no_fence(body: dict[str, object], said: str) -> None:
    """A state that a clock could open or begin is not watched, and why is said."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard, NOON), serving(guard) as client:
        set_to = {"active": True, **body}
        assert client.put("/maintenance", json=set_to).status_code == 200
        answer = client.get("/maintenance/events")
    assert answer.status_code == 409
    assert said in answer.json()["detail"]


def test_window_that_the_clock_began_is_no_fence() -> None:
    """A planned window is not watched even when it is in force: set it once more."""
    guard = MaintenanceGuard("memory:")
    with frozen_clock(guard, NOON) as clock, serving(guard) as client:
        planned = {"active": True, "at": "2026-11-22T13:00:00Z"}
        client.put("/maintenance", json=planned)
        clock.advance(timedelta(hours=1))
        assert client.get("/maintenance").json()["phase"] == "on"
        answer = client.get("/maintenance/events")
        assert answer.status_code == 409
        assert "set it once more" in answer.json()["detail"]
        client.put("/maintenance", json={"active": True})
        assert '"drained": true' in client.get("/maintenance/events").text


@pytest.mark.parametrize("query", ["timeout=nan", "timeout=-1", "timeout=1e9"])
def test_bad_questions_are_refused(query: str) -> None:
    """A time that nobody can wait is a 422."""
    with serving() as client:
        assert client.get(f"/maintenance/events?{query}").status_code == 422


def test_events_are_not_collected_by_proxies() -> None:
    """The stream asks not to be kept, and not to be passed on in one piece."""
    with serving() as client:
        client.put("/maintenance", json={"active": True})
        answer = client.get("/maintenance/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
