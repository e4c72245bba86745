"""Running handlers on either event loop, in threads, and within their time."""

import logging
import operator
import threading
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from fastapi_maintenance import MaintenanceGuard, MemoryStore
from fastapi_maintenance.exemptions import from_networks, with_header
from fastapi_maintenance.handlers import THREADS, HandlerChain
from tests.guard.support import in_flight

CONNECTION = HTTPConnection({"type": "http", "headers": []})

BACKENDS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


async def yes(_: HTTPConnection) -> bool:
    await anyio.lowlevel.checkpoint()
    return True


async def hanging(_: HTTPConnection) -> bool:
    await anyio.sleep_forever()
    raise AssertionError


def sync_yes(_: HTTPConnection) -> bool:
    return True


def sync_no(_: HTTPConnection) -> bool:
    return False


def sync_to_async(connection: HTTPConnection) -> object:
    return yes(connection)


async def failing(_: HTTPConnection) -> bool:
    raise RuntimeError("away")


@BACKENDS
@pytest.mark.parametrize(
    ("handler", "exempt"),
    [
        (yes, True),
        (sync_yes, True),
        (sync_to_async, True),
        (sync_no, False),
        (failing, False),
        (hanging, False),
    ],
)
async def test_handlers_run_on_every_event_loop(handler: Any, exempt: bool) -> None:
    """A handler of any kind gives the same answer on asyncio and on Trio."""
    chain = HandlerChain(handler, 0.2)
    assert await chain.exempts(CONNECTION) is exempt


@BACKENDS
async def test_log_has_what_a_handler_raised_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The traceback of a handler that fails is its own, on asyncio and on Trio."""
    assert not await HandlerChain(failing, 1.0).exempts(CONNECTION)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert error is not None
    assert error.__context__ is None


@BACKENDS
async def test_hanging_thread_is_left_on_every_event_loop() -> None:
    """A sync handler that hangs does not hold back the answer."""
    released = threading.Event()
    chain = HandlerChain(lambda _: released.wait(30), 0.02)
    try:
        with anyio.fail_after(10):
            assert not await chain.exempts(CONNECTION)
    finally:
        released.set()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_guards_work_on_every_event_loop(backend: Any) -> None:
    """A whole application with a guard and a handler runs on asyncio and on Trio."""

    async def is_staff(x_user: Annotated[str, Header()]) -> bool:
        return x_user == "ada"

    guard = MaintenanceGuard(
        MemoryStore(enabled=True), exempt_handler=Depends(is_staff)
    )
    app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)

    @app.get("/target")
    def target() -> int:
        return in_flight(guard)

    with TestClient(app, backend=backend) as client:
        assert client.get("/target").status_code == 503
        assert client.get("/target", headers={"X-User": "ada"}).json() == 1
    assert in_flight(guard) == 0


async def test_cancelled_work_on_trio_gives_its_count_back() -> None:
    """Work that Trio cancels is counted until then, and no longer."""
    guard = MaintenanceGuard(MemoryStore())
    seen: list[int] = []

    async def cancelled() -> None:
        with anyio.CancelScope() as scope:
            async with guard.admit():
                seen.append(in_flight(guard))
                scope.cancel()
                await anyio.sleep_forever()

    import trio

    await anyio.to_thread.run_sync(trio.run, cancelled)
    assert (seen, in_flight(guard)) == ([1], 0)


async def test_hanging_handlers_do_not_refuse_a_valid_header() -> None:
    """Ready-made handlers are asked first, and need none of the threads."""
    released, begun = threading.Event(), threading.Semaphore(0)

    def hangs(_: HTTPConnection) -> bool:
        begun.release()
        return released.wait(30)

    chain = HandlerChain(
        [hangs, with_header("X-Key", "s3cret"), from_networks("10.0.0.0/8")], 30.0
    )
    admin = HTTPConnection({**CONNECTION.scope, "headers": [(b"x-key", b"s3cret")]})
    async with anyio.create_task_group() as group:
        for _ in range(THREADS):
            group.start_soon(chain.exempts, CONNECTION)
        for _ in range(THREADS):
            await anyio.to_thread.run_sync(begun.acquire)
        with anyio.fail_after(10):
            assert await chain.exempts(admin)
        released.set()


async def test_thread_of_a_handler_is_no_work_of_its_request() -> None:
    """A sync handler that hangs does not hold up the drain of another guard."""
    outer = MaintenanceGuard(MemoryStore())
    released = threading.Event()
    chain = HandlerChain(lambda _: released.wait(30), 0.02)
    try:
        async with outer.admit():
            assert not await chain.exempts(CONNECTION)
        await outer.enable()
        assert (await outer.drain(timeout=5)).drained
    finally:
        released.set()


async def test_threads_are_bounded_per_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler whose every thread hangs fails at once instead of queueing more."""
    released, begun = threading.Event(), threading.Semaphore(0)

    def handler(_: HTTPConnection) -> bool:
        begun.release()
        return released.wait(30)

    chain = HandlerChain(handler, 30.0)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await chain.exempts(CONNECTION))

    async with anyio.create_task_group() as group:
        for _ in range(THREADS):
            group.start_soon(ask)
        for _ in range(THREADS):
            await anyio.to_thread.run_sync(begun.acquire)
        released.set()
    assert answers == [True] * THREADS
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("handlers", "some"), [(None, False), ((), False), ([yes], True), (yes, True)]
)
def test_chain_knows_whether_it_has_handlers(handlers: Any, some: bool) -> None:
    """A guard without handlers asks nothing."""
    assert HandlerChain(handlers, 1).has_handlers is some


async def test_callable_without_a_signature_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What Python cannot describe is tried: a wrong one fails and is logged."""
    chain = HandlerChain([dict, operator.not_], 1.0)
    assert not await chain.exempts(CONNECTION)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "dict" in record.getMessage()


async def test_handlers_may_be_any_iterable() -> None:
    """A generator of handlers is as good as a list of them."""
    chain = HandlerChain((handler for handler in (failing, yes)), 1.0)  # type: ignore[arg-type]  # wider than documented
    assert await chain.exempts(CONNECTION)
    assert await chain.exempts(CONNECTION)
