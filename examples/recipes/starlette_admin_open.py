"""starlette-admin stays open while the rest of the application is closed."""

import os

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from starlette_admin.contrib.sqla import Admin

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    maintenance_exempt,
)

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)])
app.add_middleware(MaintenanceModeMiddleware, guard=guard)

engine = create_engine("sqlite:///shop.sqlite")
admin = Admin(engine, secret_key=os.environ["ADMIN_SECRET"])
admin.mount_to(app)
maintenance_exempt(admin.app)


@app.get("/prices")
async def prices() -> int:
    """Return a price."""
    return 249
