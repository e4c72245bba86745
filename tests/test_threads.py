"""Threads that outlive their request, and streams whose client has left.

These read the insides of AnyIO and CPython: a release that changes them fails here.
"""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import queue
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from anyio._backends._asyncio import WorkerThread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_maintenance import (
    DrainReport,
    FileStore,
    MaintenanceGuard,
    MemoryStore,
    Roster,
    Store,
    keeper,
    maintenance_exempt,
    threads,
)
from fastapi_maintenance.fence import Verdict
from fastapi_maintenance.switch import DrainOptions
from tests.calls import HTTP, call
from tests.own_store import OwnStore, Server
from tests.stores.redis_server import shared_server
from tests.waiting import Work, until


@asynccontextmanager
async def deadline(work: Work) -> AsyncIterator[None]:
    """Have a deadline that passes when the work has begun."""

    async def pass_it() -> None:
        while not work.begun.is_set():
            await asyncio.sleep(0.001)
        limit.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
        group.create_task(pass_it())
        yield


def sync_endpoint(app: FastAPI | APIRouter, work: Work) -> None:
    """Add an endpoint that works in a thread."""

    @app.get("/work")
    def endpoint() -> str:
        return work.run()


def limited_by(work: Work) -> Any:  # what Depends() returns
    """Return a dependency with a deadline, which it answers itself."""

    async def limit() -> AsyncIterator[None]:
        try:
            async with deadline(work):
                yield
        except TimeoutError as error:
            raise HTTPException(504) from error

    return Depends(limit)


def in_a_dependency_with_a_handler(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a dependency pass, and a handler answer."""

    async def limit() -> AsyncIterator[None]:
        async with deadline(work):
            yield

    async def too_late(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "too late"}, 504)

    app = FastAPI(dependencies=[Depends(guard), Depends(limit)])
    app.add_exception_handler(TimeoutError, too_late)
    sync_endpoint(app, work)
    return app


def in_a_dependency_without_a_handler(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a dependency pass, and that dependency answer."""
    app = FastAPI(dependencies=[Depends(guard), limited_by(work)])
    sync_endpoint(app, work)
    return app


def over_sync_dependencies(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a dependency pass while a sync dependency works."""

    def session() -> str:
        return work.run()

    app = FastAPI(dependencies=[Depends(guard), limited_by(work), Depends(session)])

    @app.get("/work")
    async def endpoint() -> None:
        raise AssertionError

    return app


def in_a_route_class(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a route class pass."""

    class Limited(APIRoute):
        def get_route_handler(
            self,
        ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def limited(request: Request) -> Response:
                try:
                    async with deadline(work):
                        return await handle(request)
                except TimeoutError:
                    return JSONResponse({"detail": "too late"}, 504)

            return limited

    router = APIRouter(route_class=Limited)
    sync_endpoint(router, work)
    app = FastAPI(dependencies=[Depends(guard)])
    app.include_router(router)
    return app


class LimitMiddleware:
    """A middleware with a deadline."""

    def __init__(self, app: ASGIApp, work: Work) -> None:
        self.app = app
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 504 when the work has begun."""
        try:
            async with deadline(self.work):
                await self.app(scope, receive, send)
        except TimeoutError:
            answer = JSONResponse({"detail": "too late"}, 504)
            await answer(scope, receive, send)


def in_a_middleware(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a middleware pass."""
    app = FastAPI(dependencies=[Depends(guard)])
    sync_endpoint(app, work)
    app.add_middleware(LimitMiddleware, work=work)
    return app


def behind_wrap(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of a mounted application pass, which the guard wraps."""
    inner = FastAPI()
    sync_endpoint(inner, work)
    inner.add_middleware(LimitMiddleware, work=work)
    app = FastAPI()
    app.mount("/", guard.wrap(inner))
    return app


def in_a_thread_of_asyncio(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of an endpoint pass that waits for ``asyncio.to_thread``."""
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/work")
    async def endpoint() -> str:
        try:
            async with deadline(work):
                return await asyncio.to_thread(work.run)
        except TimeoutError as error:
            raise HTTPException(504) from error

    return app


def with_wait_for(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Let a deadline of ``asyncio.wait_for`` pass, in a task of its own."""
    app = FastAPI(dependencies=[Depends(guard)])
    sync_endpoint(app, work)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        running = asyncio.ensure_future(app(scope, receive, send))
        while not work.begun.is_set():
            await asyncio.sleep(0.001)
        try:
            await asyncio.wait_for(running, 0.001)
        except TimeoutError:
            answer = JSONResponse({"detail": "too late"}, 504)
            await answer(scope, receive, send)

    return limited


def in_a_thread_of_anyio(guard: MaintenanceGuard, work: Work) -> ASGIApp:
    """Abandon a thread of AnyIO, as its own option says."""
    app = FastAPI(dependencies=[Depends(guard)])

    @app.get("/work", status_code=504)
    async def endpoint() -> None:
        async def leave() -> None:
            while not work.begun.is_set():
                await asyncio.sleep(0.001)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await anyio.to_thread.run_sync(work.run, abandon_on_cancel=True)

    return app


@pytest.fixture(
    params=["memory", "file", pytest.param("redis", marks=pytest.mark.redis)]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return a store of each kind."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "file":
        return FileStore(tmp_path)
    from fastapi_maintenance.stores.redis import RedisStore

    prefix = f"threads-{secrets.token_hex(4)}"
    return RedisStore.from_url(shared_server().url(f"prefix={prefix}"))


@asynccontextmanager
async def serving(guard: MaintenanceGuard) -> AsyncIterator[None]:
    """Run the lifespan of a guard, and keep the collector from helping."""
    async with guard.lifespan():
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


async def drained_after(
    guard: MaintenanceGuard, step: Callable[[], object], *, when: str
) -> DrainReport:
    """Drain, and do something once a look has a word in its reason."""
    seen: list[str] = []

    def progress(_: Roster, verdict: Verdict) -> None:
        if when in verdict.reason and when not in seen:
            seen.append(when)
            step()

    options = DrainOptions(timeout=30, workers=1)
    report = await guard._switch.drain(options, progress=progress)
    assert seen == [when]
    return report


@asynccontextmanager
async def leaving_behind(guard: MaintenanceGuard, work: Work) -> AsyncIterator[None]:
    """After the block, drain: the thread that it has left behind is waited for."""
    try:
        yield
        await guard.enable()
        report = await drained_after(
            guard, work.released.set, when="left behind by its request"
        )
    finally:
        work.released.set()
    assert report.drained
    assert work.ended.is_set()


@pytest.mark.parametrize(
    "shape",
    [
        in_a_dependency_with_a_handler,
        in_a_dependency_without_a_handler,
        over_sync_dependencies,
        in_a_route_class,
        in_a_middleware,
        behind_wrap,
        in_a_thread_of_asyncio,
        with_wait_for,
        in_a_thread_of_anyio,
    ],
)
async def test_thread_that_outlives_its_request_is_waited_for(
    shape: Callable[[MaintenanceGuard, Work], ASGIApp], store: Store
) -> None:
    """The request has been answered 504, and its thread may still write."""
    guard, work = MaintenanceGuard(store), Work()
    app = shape(guard, work)
    async with serving(guard), leaving_behind(guard, work):
        answer = await call(app, "/work")
        assert answer.status == 504


async def test_thread_that_is_left_behind_is_named() -> None:
    """A drain says how many threads it waits for, and the route of the oldest."""
    guard, work = MaintenanceGuard(MemoryStore()), Work()
    app = in_a_middleware(guard, work)
    async with serving(guard):
        try:
            await call(app, "/work")
            await guard.enable()
            report = await guard.drain(timeout=0)
        finally:
            work.released.set()
        (worker,) = report.workers
        assert (report.outcome, worker.old, worker.left_behind) == ("busy", 1, 1)
        assert "GET /work (left behind by its request)" in report.reason


async def test_thread_of_another_guard_s_request_counts_for_both() -> None:
    """With two guards on a route, each one waits for the thread."""
    work = Work()
    guards = [MaintenanceGuard(MemoryStore()) for _ in range(2)]
    app = FastAPI(dependencies=[Depends(guard) for guard in guards])
    sync_endpoint(app, work)
    app.add_middleware(LimitMiddleware, work=work)
    try:
        await call(app, "/work")
        for guard in guards:
            await guard.enable()
            assert (await guard.drain(timeout=0)).outcome == "busy"
    finally:
        work.released.set()
    for guard in guards:
        assert (await guard.drain(timeout=30)).drained


async def test_thread_of_a_request_that_runs_is_not_counted_twice() -> None:
    """While the request itself is in flight, its thread is no second one."""
    guard, work = MaintenanceGuard(MemoryStore()), Work()
    app = FastAPI(dependencies=[Depends(guard)])
    sync_endpoint(app, work)
    request = asyncio.ensure_future(call(app, "/work"))
    await asyncio.to_thread(work.begun.wait, 30)
    await guard.enable()
    report = await guard.drain(timeout=0)
    (worker,) = report.workers
    assert (worker.old, worker.left_behind) == (1, 0)
    work.released.set()
    assert (await request).status == 200
    assert (await guard.drain(timeout=30)).drained


async def test_request_of_this_maintenance_leaves_nothing_old() -> None:
    """What was let in under the present state is not waited for, nor its threads."""
    work = Work()
    guard = MaintenanceGuard(MemoryStore(), exempt_handler=lambda _: True)
    app = in_a_middleware(guard, work)
    await guard.enable()
    try:
        answer = await call(app, "/work")
        assert answer.status == 504
        switch = guard._switch
        assert (await switch.roster() or Roster()).workers[0].old == 0
        assert (await guard.drain(timeout=0)).outcome == "busy"
    finally:
        work.released.set()
    assert (await guard.drain(timeout=30)).drained


async def test_thread_of_an_exempt_request_is_not_waited_for() -> None:
    """Behind ``wrap``, a request is counted until it turns out to be exempt."""
    guard, work = MaintenanceGuard(MemoryStore()), Work()
    inner = FastAPI()

    @inner.get("/health")
    @maintenance_exempt
    def health() -> str:
        return work.run()

    app = FastAPI()
    app.mount("/", guard.wrap(inner))
    request = asyncio.ensure_future(call(app, "/health"))
    try:
        await asyncio.to_thread(work.begun.wait, 30)
        await guard.enable()
        assert (await guard.drain(timeout=30)).drained
        assert not request.done()
    finally:
        work.released.set()
    assert (await request).status == 200


async def test_thread_of_counted_work_in_an_exempt_request_is_waited_for() -> None:
    """What counts itself inside of an exempt request is not exempt."""
    guard, work = MaintenanceGuard(MemoryStore()), Work()
    inner = FastAPI()

    @inner.get("/job")
    @maintenance_exempt
    async def job() -> None:
        with guard.admit(), suppress(TimeoutError):
            async with deadline(work):
                await asyncio.to_thread(work.run)

    app = FastAPI()
    app.mount("/", guard.wrap(inner))
    async with serving(guard), leaving_behind(guard, work):
        assert (await call(app, "/job")).status == 200


async def test_worker_does_not_leave_while_a_thread_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that stops cancels requests, and their threads may still write."""
    monkeypatch.setattr(keeper, "LEAVE_TIMEOUT", 0.05)
    server, work = Server(), Work()
    guard, other = (
        MaintenanceGuard(OwnStore(server, poll_interval=0.01)) for _ in range(2)
    )
    app = in_a_middleware(guard, work)
    async with other.lifespan():
        async with leaving_behind(other, work), guard.lifespan():
            answer = await call(app, "/work")
            assert answer.status == 504
        await asyncio.to_thread(guard._switch._follower.leave)
        assert len(server.reports) == 1


async def test_what_keeps_a_copy_of_the_context_holds_nothing_up(store: Store) -> None:
    """Pools, timers and tasks that a request has started outlive it uncounted."""
    guard = MaintenanceGuard(store)
    app = FastAPI(dependencies=[Depends(guard)])
    kept: list[object] = []
    jobs: queue.Queue[None] = queue.Queue()
    forever = asyncio.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)

    @app.get("/target")
    async def endpoint() -> None:
        loop = asyncio.get_running_loop()
        kept.append(contextvars.copy_context())
        kept.append(loop.call_later(3600, print))
        kept.append(asyncio.create_task(forever.wait()))
        # A thread that the request has started, and one that it has used before.
        kept.append(pool.submit(jobs.get))
        await asyncio.to_thread(print, end="")
        await anyio.to_thread.run_sync(bool)

    async with serving(guard):
        assert (await call(app, "/target")).status == 200
        await guard.enable()
        assert (await guard.drain(timeout=30, workers=1)).drained
    forever.set()
    jobs.put(None)
    pool.shutdown()


async def test_consumer_that_waits_for_its_next_job_holds_nothing_up() -> None:
    """After a ``guard.admit()`` block, its context works for nothing any more."""
    guard = MaintenanceGuard(MemoryStore())
    jobs: queue.Queue[bool] = queue.Queue()
    done = asyncio.Event()

    async def consume() -> None:
        while await asyncio.to_thread(jobs.get):
            async with guard.admit():
                done.set()

    consumer = asyncio.create_task(consume())
    jobs.put(True)
    await done.wait()
    await guard.enable()
    assert (await guard.drain(timeout=30)).drained
    jobs.put(False)
    await consumer


class TestLooking:
    """What the frames of threads show."""

    def test_this_release_shows_its_threads(self) -> None:
        """AnyIO and CPython have the code that is looked for."""
        assert threads.are_visible()

    def test_releases_that_hide_them_are_noticed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where AnyIO or CPython has changed, nothing fails or is promised."""
        with monkeypatch.context() as patch:
            patch.delattr(WorkerThread, "run")
            # The class still has the one of ``threading.Thread``.
            assert "context" not in (threads._anyio_code() or run).co_varnames
        with monkeypatch.context() as patch:
            patch.setattr("anyio._backends._asyncio.WorkerThread", None)
            assert threads._anyio_code() is None
        with monkeypatch.context() as patch:
            patch.delattr(concurrent.futures.thread, "_WorkItem")
            assert threads._executor_code() is None
        for name in ("_ANYIO", "_EXECUTOR"):
            for code in (None, run):
                monkeypatch.setattr(threads, name, code)
                assert not threads.are_visible()
            monkeypatch.undo()

    def test_lazy_objects_are_not_evaluated(self) -> None:
        """What an executor runs may be a proxy that computes even its class."""

        class Lazy:
            @property  # type: ignore[misc]  # as proxies do
            def __class__(self) -> type:
                raise AssertionError

        context = contextvars.copy_context()
        item = SimpleNamespace(fn=Lazy(), args=(Lazy(), (context.run,)))
        assert threads._bound_context(item) is context

    async def test_contexts_are_found_while_they_work(self) -> None:
        """Each kind of thread shows its context from its beginning to its end."""
        mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark")

        def marks() -> list[str]:
            found = (context.get(mark) for context in threads.contexts_at_work())
            return [value for value in found if value is not None]

        async def working(start: Callable[[Work], Any], name: str) -> None:
            work = Work()
            mark.set(name)
            task = asyncio.create_task(start(work))
            while not work.begun.is_set():
                await asyncio.sleep(0.001)
            assert marks() == [name]
            work.released.set()
            assert await task == "done"
            # It tells the loop before it forgets its work.
            until(lambda: not marks())

        await working(lambda work: asyncio.to_thread(work.run), "asyncio")
        await working(lambda work: anyio.to_thread.run_sync(work.run), "anyio")

    @pytest.mark.parametrize("arguments", [(), (print, 1)])
    @pytest.mark.parametrize("wrapped", ["bare", "closure", "argument", "nested"])
    def test_context_is_found_under_what_tracers_add(
        self, wrapped: str, arguments: tuple[object, ...]
    ) -> None:
        """Sentry and OpenTelemetry submit functions of their own around the work."""
        context = contextvars.copy_context()
        work: Callable[..., object] = functools.partial(context.run, print)
        if wrapped == "bare":
            work = context.run
        elif wrapped == "closure":
            work = _around(work)
        elif wrapped == "argument":
            work = functools.partial(map, work)
        else:
            work = _around(functools.partial(map, _around(work)))

        item = SimpleNamespace(fn=work, args=arguments)
        assert threads._bound_context(item) is context
        item = SimpleNamespace(fn=_around, args=(work, arguments))
        assert threads._bound_context(item) is context

    def test_search_for_a_context_ends(self) -> None:
        """Functions that refer to each other, and empty cells, hold nothing up."""

        def even(number: int) -> bool:
            return number == 0 or odd(number - 1)

        def odd(number: int) -> bool:
            return number > 0 and even(number - 1)

        assert threads._bound_context(SimpleNamespace(fn=even)) is None
        assert even(2)

        def early() -> object:
            return later

        assert threads._bound_context(SimpleNamespace(fn=early)) is None
        later = early
        assert early() is early

    async def test_own_thread_is_left_out(self) -> None:
        """A look from a thread of the request itself does not find that one."""

        def look() -> int:
            return len(list(threads.contexts_at_work()))

        assert await anyio.to_thread.run_sync(look) == 0

    def test_idle_thread_of_an_older_anyio_works_for_nothing(self) -> None:
        """Before 4.9, a thread keeps its last context while it waits for the next."""
        idle = Idle()
        idle.start()
        try:
            until(idle.waits)
            assert _found(idle) is None
        finally:
            idle.queue.put(None)
            idle.join(30)

    def test_work_that_waits_in_a_queue_is_work(self) -> None:
        """A function that waits for something in another queue is at work."""
        busy = Idle(waits_elsewhere=True)
        busy.start()
        try:
            until(busy.waits)
            assert _found(busy) is busy.context
        finally:
            busy.other.put(None)
            busy.join(30)

    def test_executor_of_python_3_14_is_understood(self) -> None:
        """There, an item has a tuple ``task`` in place of ``fn``."""
        context = contextvars.copy_context()

        class Item:
            def __init__(self, task: object) -> None:
                self.task = task

        bound = functools.partial(context.run, print)
        assert threads._bound_context(Item((bound, (), {}))) is context
        assert threads._bound_context(Item(())) is None
        assert threads._bound_context(Item(print)) is None
        assert threads._bound_context(None) is None


def _around(work: Callable[..., object]) -> Callable[..., object]:
    return lambda *arguments: work(*arguments)  # noqa: PLW0108  # as tracers do


run = (lambda: None).__code__


class Idle(threading.Thread):
    """A thread of AnyIO as it was before 4.9, whose last context is still there."""

    def __init__(self, *, waits_elsewhere: bool = False) -> None:
        super().__init__()
        self.queue: queue.Queue[None] = queue.Queue()
        self.other: queue.Queue[None] = queue.Queue()
        self.waits_elsewhere = waits_elsewhere
        self.context = contextvars.copy_context()

    def run(self) -> None:
        """Wait for the next item, or in a function of the last one."""
        context = self.context
        if self.waits_elsewhere:
            self.other.get()
        else:
            self.queue.get()
        del context

    def waits(self) -> bool:
        """Tell whether it waits in a queue."""
        return queue.Queue.get.__code__ in list(_codes(self))


def _codes(thread: threading.Thread) -> Iterator[object]:
    frame = _frames().get(thread.ident or 0)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _frames() -> dict[int, Any]:
    return sys._current_frames()


def _found(thread: threading.Thread) -> contextvars.Context | None:
    """Return what is found in a thread, with its class in the place of AnyIO's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_ANYIO", type(thread).run.__code__)
        return threads._context_of(_frames()[thread.ident or 0])


class Stream:
    """A stream that says when it was closed, and that nothing else holds.

    The chunks are in a cycle, as real ones are through tracebacks and tasks: Python
    closes them when it collects garbage.
    """

    def __init__(self, guard: MaintenanceGuard | None = None) -> None:
        self.guard = guard
        self.begun = asyncio.Event()
        self.leave = asyncio.Event()
        self.closed = threading.Event()

    def chunks(self) -> Iterator[bytes]:
        """Yield for ever."""
        cycle: list[object] = []
        generator = self._chunks()
        cycle.extend((cycle, generator))
        return generator

    def _chunks(self) -> Iterator[bytes]:
        try:
            with self._counted():
                while True:
                    yield b"x"
        finally:
            self.closed.set()

    def _counted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.guard is None else self.guard.admit()

    def app(self, guard: MaintenanceGuard) -> FastAPI:
        """Return an application that streams."""
        app = FastAPI(dependencies=[Depends(guard)])

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            return StreamingResponse(self.chunks())

        return app

    async def request(self, app: FastAPI) -> None:
        """Ask for the stream, and leave it when told to."""

        async def receive() -> dict[str, Any]:
            await self.leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                self.begun.set()
                await asyncio.sleep(0)

        body = {"type": "http.request"}
        scope = {**HTTP, "path": "/stream"}
        waiting = iter([body])

        async def first_body() -> dict[str, Any]:
            for message in waiting:
                return message
            return await receive()

        await app(scope, first_body, send)


async def test_stream_that_was_left_is_closed_before_it_is_drained(
    store: Store,
) -> None:
    """The ``finally`` of a stream whose client has gone runs under no maintenance."""
    guard = MaintenanceGuard(store)
    stream = Stream()
    app = stream.app(guard)
    async with serving(guard):
        request = asyncio.create_task(stream.request(app))
        await stream.begun.wait()
        stream.leave.set()
        await request
        del request
        assert not stream.closed.is_set()
        await guard.enable()
        assert (await guard.drain(timeout=30, workers=1)).drained
        assert stream.closed.is_set()


async def test_stream_that_is_left_during_a_drain_is_closed_too(store: Store) -> None:
    """Garbage is collected when nothing else is in flight any more."""
    guard = MaintenanceGuard(store)
    stream = Stream()
    app = stream.app(guard)
    async with serving(guard):
        request = asyncio.create_task(stream.request(app))
        await stream.begun.wait()
        await guard.enable()
        report = await drained_after(guard, stream.leave.set, when="GET /stream")
        assert report.drained
        assert stream.closed.is_set()
        await request


async def test_request_that_drains_waits_for_abandoned_streams(store: Store) -> None:
    """A request leaves itself out, and not the streams that clients have left."""
    guard = MaintenanceGuard(store)
    stream = Stream()
    app = stream.app(guard)
    found: list[tuple[bool, bool]] = []

    @app.get("/migrate")
    async def migrate() -> None:
        async with guard.maintenance(drain_timeout=30, workers=1) as report:
            found.append((report.drained, stream.closed.is_set()))

    async with serving(guard):
        request = asyncio.create_task(stream.request(app))
        await stream.begun.wait()
        stream.leave.set()
        await request
        del request
        assert not stream.closed.is_set()
        assert (await call(app, "/migrate")).status == 200
    assert found == [(True, True)]


async def test_garbage_that_another_thread_collects_is_waited_for() -> None:
    """Python collects in one thread at a time, and finalizers may be at work there."""
    guard, work = MaintenanceGuard(MemoryStore()), Work()

    class Abandoned:
        def __del__(self) -> None:
            work.run()

    async with serving(guard):
        with guard.admit():
            cycle: list[object] = [Abandoned()]
            cycle.append(cycle)
            del cycle
        collecting = threading.Thread(target=gc.collect)
        collecting.start()
        await asyncio.to_thread(work.begun.wait, 30)
        await guard.enable()
        report = await drained_after(guard, work.released.set, when="closing abandoned")
        assert report.drained
        assert work.ended.is_set()
        collecting.join(30)


async def test_stream_that_counts_itself_holds_until_it_is_closed(
    store: Store,
) -> None:
    """With ``guard.admit()`` inside, a generator is in flight until its end."""
    guard = MaintenanceGuard(store)
    stream = Stream(guard)
    app = stream.app(guard)
    async with serving(guard):
        request = asyncio.create_task(stream.request(app))
        await stream.begun.wait()
        await guard.enable()
        report = await drained_after(guard, stream.leave.set, when="GET /stream")
        assert report.drained
        assert stream.closed.is_set()
        await request
        assert guard._switch.worker.make_report().in_flight == 0
