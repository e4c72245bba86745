"""A stream that ends by itself when a drain cannot wait for it."""

from collections.abc import AsyncIterator

import anyio
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from fastapi_maintenance import DrainReport, MaintenanceGuard

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/ticks")
async def ticks() -> StreamingResponse:
    """Send a line a second, until the client leaves or a drain asks for the end."""

    async def lines() -> AsyncIterator[str]:
        while not guard.closing.is_set():
            yield "tick\n"
            with anyio.move_on_after(1):
                await guard.closing.wait()
        yield "come back later\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def close(patience: float = 10) -> DrainReport:
    """Refuse what comes, and end after some seconds what would go on for ever."""
    await guard.enable(message="Moving to another machine")
    return await guard.drain(timeout=30, close_after=patience)
