"""A middleware for the whole application: mounts too, and before a body is read."""

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    maintenance_exempt,
)


class Document(BaseModel):
    """What clients upload."""

    text: str


guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)])
app.add_middleware(MaintenanceModeMiddleware, guard=guard)
app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])
reports = FastAPI()


@app.post("/documents")
async def upload(document: Document) -> int:
    """Take a document, which FastAPI would read before any dependency."""
    return len(document.text)


@reports.get("/today")
async def today() -> str:
    """Answer from a mounted application, which no dependency reaches."""
    return "report"


@reports.get("/health")
@maintenance_exempt
async def health() -> str:
    """Stay open in a mounted application, too."""
    return "ok"


app.mount("/reports", reports)
