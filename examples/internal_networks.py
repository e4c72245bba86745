"""Let the office and the cluster in by their networks."""

from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard
from fastapi_maintenance.exemptions import from_networks

guard = MaintenanceGuard(exempt_handler=from_networks("10.0.0.0/8", "fd00::/8"))
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
