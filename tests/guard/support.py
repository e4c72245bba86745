"""What the tests of the guard share: a guard that is on, and what ran."""

from collections.abc import Callable
from pathlib import Path

import fastapi
from fastapi import APIRouter, FastAPI, WebSocket

from fastapi_maintenance import MaintenanceGuard, MaintenanceState
from tests.waiting import eventually

RELEASE = tuple(int(part) for part in fastapi.__version__.split(".")[:2])

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


def in_flight(guard: MaintenanceGuard) -> int:
    """Return how many requests a guard counts."""
    worker = guard._switch.worker
    worker.drop_exempt()
    return len(worker.current) + len(worker.old)


async def emptied(guard: MaintenanceGuard) -> None:
    """Wait until nothing is in flight."""
    await eventually(lambda: not in_flight(guard))


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
    switch.join_blocking()
    state = switch.store.publish(switch.name, change)
    switch.keeper.look()
    return state
