"""Prometheus: `/metrics` stays open, and refusals are counted."""

from fastapi import Depends, FastAPI
from prometheus_fastapi_instrumentator import Instrumentator

from fastapi_maintenance import MaintenanceGuard, maintenance_exempt

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
metrics = Instrumentator().instrument(app)
metrics.expose(app, dependencies=[Depends(maintenance_exempt)])


@app.get("/prices")
async def prices() -> int:
    """Return a price."""
    return 249
