"""A page for browsers, problem+json for clients that ask for it, JSON for others."""

from fastapi import Depends, FastAPI

from fastapi_maintenance import (
    MaintenanceError,
    MaintenanceGuard,
    maintenance_exception_handler,
)

guard = MaintenanceGuard(retry_after=300)
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
app.add_exception_handler(MaintenanceError, maintenance_exception_handler())


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
