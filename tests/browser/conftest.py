"""A real browser, and a real server for it to visit."""

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pytest
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBasic
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from fastapi_maintenance import (
    FileStore,
    MaintenanceError,
    control_router,
    maintenance_exception_handler,
)
from tests.guards import guard_of

T = TypeVar("T")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.ready.set()


class Service:
    """A running service, and its switch."""

    def __init__(self, folder: Path) -> None:
        self.guard = guard_of(FileStore(folder), retry_after=60)
        self.finish = threading.Event()
        self.app = FastAPI(
            dependencies=[Depends(self.guard)], lifespan=self.guard.lifespan
        )
        self.app.add_exception_handler(
            MaintenanceError, maintenance_exception_handler()
        )
        self.app.include_router(
            control_router(self.guard, dependencies=[Depends(HTTPBasic())])
        )
        self.app.get("/")(self.root)
        self.app.post("/")(self.root)
        self.app.get("/slow")(self.slow)
        self.loop = asyncio.new_event_loop()
        config = uvicorn.Config(self.app, port=0, log_level="error")
        self.server = Server(config)

    async def root(self) -> str:
        """Answer."""
        return "The service is open"

    def slow(self) -> None:
        """Answer when the test says so."""
        self.finish.wait(60)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop of the service, while that of the test goes on."""
        done = asyncio.run_coroutine_threadsafe(work, self.loop)
        return await asyncio.wait_for(asyncio.wrap_future(done), 30)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve for the time of a block."""
        thread = threading.Thread(
            target=self.loop.run_until_complete, args=[self.server.serve()]
        )
        thread.start()
        assert self.server.ready.wait(30)
        try:
            yield
        finally:
            self.finish.set()
            self.server.should_exit = True
            self.server.force_exit = True
            thread.join(30)
            self.loop.close()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for all tests of a module, as they share its browser."""
    return "asyncio"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A running service whose state is in a directory of its own."""
    service = Service(tmp_path / "store")
    with service.running():
        yield service


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """The browser of this machine; without one these tests fail."""
    path = shutil.which("chromium")
    assert path, "install chromium, as with apt-get"
    # Not the driver that blocks: it switches greenlets, and a run under coverage that
    # followed them has hung.
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


class Visitor:
    """One person with a browser, who notes what it complains about."""

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.complaints: list[str] = []
        self.page = page
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._note(message.text))

    @classmethod
    async def arrive(
        cls,
        browser: Browser,
        *,
        scheme: Literal["light", "dark"] = "light",
        width: int = 1280,
        motion: Literal["reduce", "no-preference"] = "no-preference",
        scripts: bool = True,
    ) -> Self:
        """Sit down at a browser of their own."""
        context = await browser.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": 720},
            reduced_motion=motion,
            java_script_enabled=scripts,
            http_credentials={"username": "ada", "password": "lovelace"},
        )
        return cls(context, await context.new_page())

    def _note(self, text: str) -> None:
        # That an answer is a 503 is what these tests are about.
        if "the server responded with a status of" not in text:
            self.complaints.append(text)

    async def violations(self) -> list[str]:
        """Return what axe finds that is not accessible on the page as it stands."""
        source = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
        await self.page.evaluate(source)
        found = await self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [
            f"{item['id']}: {node['html']} {node['failureSummary']}"
            for item in found["violations"]
            for node in item["nodes"]
        ]

    async def overflows(self) -> bool:
        """Tell whether the page is wider than the screen."""
        return bool(
            await self.page.evaluate(
                "(({scrollWidth, clientWidth}) => scrollWidth > clientWidth)"
                "(document.documentElement)"
            )
        )


Visit = Callable[..., Awaitable[Visitor]]
"""Makes a visitor, with the options of one."""


@pytest.fixture
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    """Make visitors; what their browsers complain about fails the test."""
    visitors: list[Visitor] = []

    async def make(**options: Any) -> Visitor:  # those of a visitor
        visitors.append(await Visitor.arrive(browser, **options))
        return visitors[-1]

    yield make
    for visitor in visitors:
        # An answer that a test makes up may be under way, and would fail the next test.
        await visitor.page.unroute_all(behavior="wait")
        await visitor.context.close()
    assert [text for visitor in visitors for text in visitor.complaints] == []
