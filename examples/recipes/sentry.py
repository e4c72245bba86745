"""Sentry, without an event for every refused request."""

import sentry_sdk
from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceError, MaintenanceGuard

# The address of the project comes from $SENTRY_DSN.
sentry_sdk.init(ignore_errors=[MaintenanceError])

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/reports/{divisor}")
async def report(divisor: int) -> float:
    """Fail when the divisor is 0, which is an event."""
    return 100 / divisor
