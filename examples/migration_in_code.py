"""A migration from inside the service, which starts when nothing else is running."""

import hmac
import os
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query

from fastapi_maintenance import DrainError, MaintenanceGuard

ADMIN_KEY = os.environ["ADMIN_KEY"].encode()

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
index: list[str] = []


def operators_only(x_admin_key: Annotated[str, Header()]) -> None:
    """Only operators may close the service."""
    if not ADMIN_KEY or not hmac.compare_digest(x_admin_key.encode(), ADMIN_KEY):
        raise HTTPException(403)


@app.post("/admin/reindex", dependencies=[Depends(operators_only)])
async def reindex(patience: Annotated[float, Query(ge=0, le=60)] = 30) -> int:
    """Rebuild the index; this request is left out of its own drain."""
    try:
        async with guard.maintenance(
            message="The search index is being rebuilt",
            until=timedelta(minutes=5),
            drain_timeout=patience,
        ) as report:
            index.append(f"built under epoch {report.epoch}")
    except DrainError as error:
        # Nothing was rebuilt. Closed, this endpoint would refuse the next attempt too.
        await guard.disable()
        raise HTTPException(409, str(error)) from error
    return len(index)
