"""One application, guarded by what the environment variable PEER names.

The application is the same for all: two trivial routes, one of them on an included
router where the peer can serve that.
"""

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI

PEER = os.environ["PEER"]
ON = os.environ["MODE"] == "on"
FOLDER = Path(os.environ["FOLDER"])

options: dict[str, Any] = {}

if PEER.startswith("ours"):
    from fastapi_maintenance import MaintenanceGuard, MaintenanceModeMiddleware

    guard = MaintenanceGuard(f"file:{FOLDER / 'state'}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        """Join, and set the mode."""
        async with guard.lifespan(app):
            await (guard.enable() if ON else guard.disable())
            yield

    options["lifespan"] = lifespan
    if PEER == "ours: dependency":
        options["dependencies"] = [Depends(guard)]

if PEER == "waygate":
    from waygate import make_engine
    from waygate.fastapi import WaygateMiddleware

    engine = make_engine()

    @asynccontextmanager
    async def waygate_lifespan(_app: FastAPI) -> Any:
        """Set the mode."""
        if ON:
            await engine.enable_global_maintenance(reason="measured")
        yield

    options["lifespan"] = waygate_lifespan

app = FastAPI(**options)

if PEER == "ours: middleware":
    app.add_middleware(MaintenanceModeMiddleware, guard=guard)
elif PEER == "waygate":
    app.add_middleware(WaygateMiddleware, engine=engine)
elif PEER.startswith("fastapi-maintenance"):
    from fastapi_maintenance.backends import LocalFileBackend

    from fastapi_maintenance import MaintenanceModeMiddleware

    backend = None
    if PEER.endswith("file"):
        path = FOLDER / "mode"
        path.write_text("1" if ON else "0")
        backend = LocalFileBackend(str(path))
    else:
        os.environ["FASTAPI_MAINTENANCE_MODE"] = "1" if ON else "0"
    app.add_middleware(MaintenanceModeMiddleware, backend=backend)


@app.get("/items")
async def items() -> dict[str, int]:
    """Answer at once."""
    return {"ok": 1}
