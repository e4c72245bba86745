"""What the tests of the guard share: a guard that is on, and what ran."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import fastapi
from fastapi import APIRouter, FastAPI, WebSocket

from fastapi_maintenance import MaintenanceGuard, MaintenanceState, MemoryStore

RELEASE = tuple(int(part) for part in fastapi.__version__.split(".")[:2])

PATIENCE = 10.0

FRONTENDS = RELEASE >= (0, 139)
NO_FRONTENDS = "this FastAPI does not run dependencies for app.frontend()"


class Ran(list[str]):
    """What has run, in order; endpoints and dependencies append their names."""

    async def endpoint(self) -> dict[str, str]:
        """Answer a request."""
        self.append("endpoint")
        return {"status": "served"}

    async def socket(self, websocket: WebSocket) -> None:
        """Serve a WebSocket with one message."""
        self.append("socket")
        await websocket.accept()
        await websocket.send_text("served")
        await websocket.close()


def closed(**options: object) -> MaintenanceGuard:
    """Return a guard with maintenance on."""
    return MaintenanceGuard(MemoryStore(enabled=True), **options)  # type: ignore[arg-type]  # the options of any test


def opened(**options: object) -> MaintenanceGuard:
    """Return a guard with maintenance off."""
    return MaintenanceGuard(MemoryStore(), **options)  # type: ignore[arg-type]  # the options of any test


def in_flight(guard: MaintenanceGuard) -> int:
    """Return how many requests a guard counts."""
    worker = guard._switch.worker
    worker.drop_exempt()
    return len(worker.current) + len(worker.old)


async def emptied(guard: MaintenanceGuard) -> bool:
    """Wait until nothing is in flight; False after ten seconds."""
    deadline = time.monotonic() + PATIENCE
    while in_flight(guard) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    return not in_flight(guard)


def eventually(condition: Callable[[], object]) -> bool:
    """Wait at most ten seconds until another thread makes a condition true."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def built(folder: Path) -> Path:
    """Write what a frontend build leaves behind."""
    (folder / "index.html").write_text("<h1>shop</h1>")
    (folder / "app.js").write_text("1")
    return folder


def both(router: FastAPI | APIRouter, ran: Ran, path: str = "") -> None:
    """Add an HTTP route and a WebSocket."""
    router.add_api_route(f"{path}/target", ran.endpoint)
    router.add_api_websocket_route(f"{path}/socket", ran.socket)


Build = Callable[[MaintenanceGuard, Ran], FastAPI]


def publish(guard: MaintenanceGuard, **fields: object) -> MaintenanceState:
    """Set the state of a guard on a memory store, from any thread."""

    def change(before: MaintenanceState | None) -> MaintenanceState:
        epoch = before.epoch + 1 if before else 1
        return MaintenanceState(epoch=epoch, tag=f"test-{epoch}", **fields)  # type: ignore[arg-type]  # the fields of any test

    switch = guard._switch
    switch.join_now()
    state = switch.store.publish(switch.name, change)
    switch.keeper.look()
    return state
