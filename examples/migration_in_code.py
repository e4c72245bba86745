"""A migration from inside the service, which starts when nothing else is running."""

from datetime import timedelta
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query

from fastapi_maintenance import DrainError, MaintenanceGuard

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
index: list[str] = []


@app.post("/admin/reindex")
async def reindex(
    x_confirm: Annotated[str, Header()],
    patience: Annotated[float, Query(ge=0, le=60)] = 30,
) -> int:
    """Rebuild the index; this request is left out of its own drain."""
    if x_confirm != "yes":
        raise HTTPException(400, "send X-Confirm: yes")
    try:
        async with guard.maintenance(
            message="The search index is being rebuilt",
            until=timedelta(minutes=5),
            drain_timeout=patience,
        ) as report:
            index.append(f"built under epoch {report.epoch}")
    except DrainError as error:
        # Requests are still running: nothing was rebuilt, and the state stays on.
        raise HTTPException(409, str(error)) from error
    return len(index)
