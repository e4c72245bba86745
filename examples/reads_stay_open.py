"""Keep reads open while writes are refused: the state says so, not a handler."""

from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard, MaintenanceState

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
articles: list[str] = ["first"]


@app.get("/articles")
async def listed() -> list[str]:
    """List the articles."""
    return articles


@app.post("/articles")
async def added(title: str) -> None:
    """Add an article."""
    articles.append(title)


async def freeze() -> MaintenanceState:
    """Do what `fastapi-maintenance on --read-only` does."""
    return await guard.enable(message="Articles are read-only", read_only=True)
