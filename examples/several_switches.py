"""Two switches in one store: payments alone, or everything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard

everything = MaintenanceGuard()
payments = MaintenanceGuard(name="payments", detail="Payments are under maintenance")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Join both."""
    async with everything.lifespan(app), payments.lifespan(app):
        yield


app = FastAPI(dependencies=[Depends(everything)], lifespan=lifespan)
router = APIRouter(prefix="/payments", dependencies=[Depends(payments)])


@app.get("/products")
async def products() -> list[str]:
    """List the catalogue."""
    return ["coffee"]


@router.post("")
async def pay() -> str:
    """Pay."""
    return "paid"


app.include_router(router)
