"""A lifespan of your own, with the guard's inside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard

guard = MaintenanceGuard()
pool: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the requests need before the worker joins, and close it after."""
    pool.append("connection")
    async with guard.lifespan(app):
        yield
    pool.clear()


app = FastAPI(dependencies=[Depends(guard)], lifespan=lifespan)


@app.get("/")
async def home() -> int:
    """Return the size of the pool."""
    return len(pool)
