"""sqladmin stays open while the rest of the application is closed."""

from fastapi import Depends, FastAPI
from sqladmin import Admin
from sqlalchemy import create_engine

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    maintenance_exempt,
)

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)])
app.add_middleware(MaintenanceModeMiddleware, guard=guard)

admin = Admin(app, create_engine("sqlite:///shop.sqlite"))
maintenance_exempt(admin.admin)


@app.get("/prices")
async def prices() -> int:
    """Return a price."""
    return 249
