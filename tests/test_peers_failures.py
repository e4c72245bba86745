"""Cases in which maintenance middlewares of today fail, and this package does not.

Each was met in a released package or in its issue tracker; none is made up.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from starlette.routing import Route

from fastapi_maintenance import (
    Change,
    EnvStore,
    FileStore,
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MaintenanceState,
    MemoryStore,
    StoreError,
    control_router,
    maintenance_exempt,
)
from fastapi_maintenance.testing import force, frozen_clock
from tests.calls import call
from tests.guards import closed

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def guarded(guard: MaintenanceGuard) -> FastAPI:
    """Return an application behind a dependency."""
    return FastAPI(dependencies=[Depends(guard)])


def behind_the_middleware(guard: MaintenanceGuard) -> FastAPI:
    """Return an application behind a middleware."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    return app


both_ways = pytest.mark.parametrize("make", [guarded, behind_the_middleware])
Make = Callable[[MaintenanceGuard], FastAPI]


async def reached() -> str:
    """Answer, where nothing should."""
    return "reached"


@both_ways
def test_included_routers_are_covered(make: Make) -> None:
    """Routes of routers that are included later, and in each other, are refused.

    Some look for routes once, at the start, and in one level.
    """
    app = make(closed())
    client = TestClient(app)
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")
    inner.get("/target")(reached)
    outer.include_router(inner)
    app.include_router(outer, prefix="/v1")
    assert client.get("/v1/outer/inner/target").status_code == 503
    late = APIRouter()
    late.get("/late")(reached)
    app.include_router(late)
    assert client.get("/late").status_code == 503


@both_ways
def test_marker_does_not_leak_to_an_equal_path(make: Make) -> None:
    """Exempting ``/health`` does not exempt ``/admin/health``.

    Some compare the path that a route was declared with, or the end of a path.
    """
    app = make(closed())

    @app.get("/health")
    @maintenance_exempt
    async def health() -> str:
        return "ok"

    admin = APIRouter()
    admin.get("/health")(reached)
    app.include_router(admin, prefix="/admin")
    app.get("/health-of-others")(reached)
    client = TestClient(app)
    assert client.get("/health").status_code == 200
    assert client.get("/admin/health").status_code == 503
    assert client.get("/health-of-others").status_code == 503


@both_ways
def test_marker_is_of_one_method(make: Make) -> None:
    """Exempting GET does not exempt DELETE on the same path.

    Some remember paths, not endpoints.
    """
    app = make(closed())

    @app.get("/things")
    @maintenance_exempt
    async def read() -> str:
        return "read"

    app.delete("/things")(reached)
    client = TestClient(app)
    assert client.get("/things").status_code == 200
    assert client.delete("/things").status_code == 503


def test_mounts_are_covered_by_the_middleware(tmp_path: Path) -> None:
    """The middleware refuses mounted applications, static files and plain routes.

    A dependency does not reach them, and says so; some middlewares do not either.
    """
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    sub = FastAPI()
    sub.get("/target")(reached)

    app = behind_the_middleware(closed())
    app.mount("/sub", sub)
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.router.routes.append(Route("/plain", PlainTextResponse("reached")))
    client = TestClient(app)
    for path in ("/sub/target", "/static/a.txt", "/plain"):
        assert client.get(path).status_code == 503
    assert client.get("/sub/docs").status_code == 200


def test_wrapped_mount_is_covered_without_a_middleware(tmp_path: Path) -> None:
    """``guard.wrap`` closes one mount, beside the dependency."""
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    guard = MaintenanceGuard("memory:")
    app = guarded(guard)
    app.mount("/static", guard.wrap(StaticFiles(directory=tmp_path)))
    client = TestClient(app)
    assert client.get("/static/a.txt").text == "a"
    with force(guard):
        assert client.get("/static/a.txt").status_code == 503


@both_ways
@pytest.mark.parametrize("root", ["/api", "/health", "/"])
@pytest.mark.anyio
async def test_root_path_opens_and_closes_nothing(make: Make, root: str) -> None:
    """Behind a proxy that strips a prefix, the same routes are open as without.

    Some compare ``request.url.path``, which has the prefix.
    """
    app = make(closed())
    app.get("/target")(reached)

    @app.get("/health")
    @maintenance_exempt
    async def health() -> str:
        return "ok"

    prefix = root.rstrip("/")
    for path, status in (("/health", 200), ("/target", 503)):
        whole = f"{prefix}{path}"
        assert (await call(app, whole, root_path=root)).status == status


@both_ways
@pytest.mark.parametrize("host", ["x/docs?", "x/health#", "a/health/..;/", "x/zzz?"])
@pytest.mark.anyio
async def test_host_header_opens_nothing(make: Make, host: str) -> None:
    """A forged ``Host`` does not make a closed route look like another one.

    Some take the path from ``request.url``, whose authority a client writes.
    """
    app = make(closed())
    app.get("/target")(reached)
    headers = [(b"host", host.encode())]
    assert (await call(app, "/target", headers=headers)).status == 503


async def says_no(_: Request) -> bool:
    """Do not exempt."""
    return False


class SaysNo:
    """An object that does not exempt, asynchronously."""

    async def __call__(self, request: Request) -> bool:
        """Do not exempt."""
        return await says_no(request)


class ReturnsNo:
    """An object whose synchronous call returns a coroutine."""

    def __call__(self, request: Request) -> object:
        """Return what must be awaited."""
        return says_no(request)


@both_ways
@pytest.mark.parametrize(
    "handler",
    [says_no, SaysNo(), ReturnsNo(), lambda request: says_no(request)],  # noqa: PLW0108  # the case
    ids=["function", "object", "returns", "lambda"],
)
def test_coroutine_is_not_a_yes(make: Make, handler: Callable[..., object]) -> None:
    """An asynchronous handler that says no means no, however it is wrapped.

    Some take the coroutine that they did not await for a true value: all get in.
    """
    app = make(closed(exempt_handler=handler))
    app.get("/target")(reached)
    assert TestClient(app).get("/target").status_code == 503


@both_ways
@pytest.mark.parametrize("answer", ["false", [False], 1, object(), NotImplemented])
def test_only_true_is_a_yes(make: Make, answer: object) -> None:
    """What merely counts as true in Python does not exempt."""
    app = make(closed(exempt_handler=lambda _: answer))
    app.get("/target")(reached)
    assert TestClient(app).get("/target").status_code == 503


@both_ways
def test_failing_handler_closes(make: Make) -> None:
    """A handler that raises does not exempt, and is no 500.

    Some let the error through, or the client.
    """

    def broken(request: Request) -> bool:
        raise ConnectionError(request.url.path)

    app = make(closed(exempt_handler=broken))
    app.get("/target")(reached)
    assert TestClient(app).get("/target").status_code == 503


@both_ways
def test_retry_after_is_a_number_of_seconds(make: Make) -> None:
    """``Retry-After`` has a form that the RFC knows.

    Some send an ISO date, at which clients' libraries raise.
    """
    guard = MaintenanceGuard("memory:")
    app = make(guard)
    app.get("/target")(reached)
    with frozen_clock(guard, NOON), force(guard, until=NOON + timedelta(minutes=20)):
        value = TestClient(app).get("/target").headers["retry-after"]
    assert value == "1200"
    with pytest.raises(ValueError, match="Invalid date value"):
        parsedate_to_datetime((NOON + timedelta(minutes=20)).isoformat())


@both_ways
def test_window_of_tomorrow_blocks_nothing_today(make: Make) -> None:
    """A planned window begins when it begins, and ends by itself if it was told to.

    Some block from the moment at which it is set.
    """
    guard = MaintenanceGuard("memory:")
    app = make(guard)
    app.get("/target")(reached)
    client = TestClient(app)
    hour = timedelta(hours=1)
    with (
        frozen_clock(guard, NOON) as clock,
        force(guard, at=NOON + hour, until=NOON + 2 * hour, auto_off=True),
    ):
        seen = []
        for _ in range(3):
            seen.append(client.get("/target").status_code)
            clock.advance(hour)
    assert seen == [200, 503, 200]


@both_ways
def test_marked_health_checks_answer(make: Make) -> None:
    """A switch for everything leaves the probe alone that would restart the service."""
    app = make(closed())

    @app.get("/livez")
    @maintenance_exempt
    async def livez() -> str:
        return "ok"

    probe = {"User-Agent": "kube-probe/1.30"}
    assert TestClient(app).get("/livez", headers=probe).status_code == 200


@both_ways
def test_unknown_paths_stay_unknown(make: Make) -> None:
    """Maintenance does not turn every 404 into a 503, nor a 405."""
    app = make(closed())
    app.get("/target")(reached)
    client = TestClient(app)
    assert client.get("/nowhere").status_code == 404
    assert client.post("/target").status_code == 405


@both_ways
def test_switch_does_not_lock_itself_out(make: Make) -> None:
    """What switches maintenance off is reachable while it is on.

    Some put the endpoint that switches behind the switch.
    """
    guard = closed()
    app = make(guard)
    app.get("/target")(reached)

    async def operators_only() -> None: ...

    app.include_router(control_router(guard, dependencies=[Depends(operators_only)]))
    client = TestClient(app)
    assert client.get("/target").status_code == 503
    assert client.put("/maintenance", json={"enabled": False}).status_code == 200
    assert client.get("/target").status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"off"', b'{"enabled": "false"}', b"\xff", b"null", b"0"],
)
def test_torn_state_file_does_not_open(tmp_path: Path, content: bytes) -> None:
    """A state file that is cut off or edited wrongly keeps a closed service closed.

    Some read an empty or half-written file as *off*.
    """
    guard = MaintenanceGuard(FileStore(tmp_path))
    app = guarded(guard)
    app.get("/target")(reached)
    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(guard.enable)
        assert client.get("/target").status_code == 503
        (tmp_path / "default.json").write_bytes(content)
        assert client.get("/target").status_code == 503
    with TestClient(app) as client:
        assert client.get("/target").status_code == 503


def test_readers_never_see_half_a_state(tmp_path: Path) -> None:
    """While one switches in a loop, another reads a whole state each time.

    Some truncate the file before they write it: readers see it empty, as off.
    """
    store, other = FileStore(tmp_path), FileStore(tmp_path)

    def longer(number: int) -> Change:
        message = "x" * (1 + number * 9)
        return lambda _: MaintenanceState(
            epoch=number + 1, tag=str(number), enabled=True, message=message
        )

    store.publish("default", longer(0))

    seen: set[bool] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            state = other.read("default")
            seen.add(state is not None and state.enabled)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 200):
        store.publish("default", longer(number))
    done.set()
    reader.join(30)
    assert seen == {True}


def test_state_survives_the_process_that_set_it(tmp_path: Path) -> None:
    """A worker that is killed right after it switched leaves the service closed.

    Some hold the state in the memory of one worker, which the next one knows not.
    """
    script = (
        "import os, sys, signal\n"
        "from fastapi_maintenance import FileStore, MaintenanceState\n"
        "FileStore(sys.argv[1]).publish(\n"
        "    'default', lambda _: MaintenanceState(epoch=1, tag='a', enabled=True))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert MaintenanceGuard(FileStore(tmp_path)).is_active


@pytest.mark.parametrize("word", ["fales", "ture", "2", "enabled?"])
def test_misspelt_variable_does_not_open(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is no known word is an error at the start, and not *off*.

    Some log a warning, and open.
    """
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", word)
    with pytest.raises(ValueError, match="FASTAPI_MAINTENANCE_MODE is"):
        EnvStore()


class Unreachable(MemoryStore):
    """A store that no worker can join."""

    def read(self, name: str) -> MaintenanceState:
        """Fail."""
        raise StoreError(f"{name}: no answer")


@both_ways
def test_unreachable_store_does_not_open(make: Make) -> None:
    """A worker that has never known the state admits nothing.

    Some take a store that does not answer for *off*.
    """
    app = make(MaintenanceGuard(Unreachable()))
    app.get("/target")(reached)
    assert TestClient(app).get("/target").status_code == 503
