"""Keep the health check open with the marker, and let admins in by a header."""

import os

from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard, maintenance_exempt
from fastapi_maintenance.exemptions import with_header

# An empty secret is refused here; it would let in everyone who sends no header.
guard = MaintenanceGuard(
    exempt_handler=with_header("X-Admin-Key", os.environ["ADMIN_KEY"])
)
app = FastAPI(
    dependencies=[Depends(guard)], lifespan=guard.lifespan, responses=guard.responses
)


@app.get("/health")
@maintenance_exempt
async def health() -> dict[str, str]:
    """Say that the process is alive."""
    return {"status": "ok"}


@app.get("/healthcare-records")
async def records() -> list[str]:
    """Would be open too, if everything that starts with /health were."""
    return ["confidential"]
