"""Static files behind the guard, which no dependency reaches."""

from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles

from fastapi_maintenance import MaintenanceGuard

FOLDER = Path(__file__).parent / "shop"

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
app.mount("/static", guard.wrap(StaticFiles(directory=FOLDER)), name="static")
app.mount("/open", StaticFiles(directory=FOLDER), name="open")
