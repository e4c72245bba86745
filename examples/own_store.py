"""A store of your own: the state in a table of the database that you have anyway."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing

from fastapi import Depends, FastAPI

from fastapi_maintenance import MaintenanceGuard, MaintenanceState

TABLE = "CREATE TABLE IF NOT EXISTS maintenance (name TEXT PRIMARY KEY, state TEXT)"


class TableStore:
    """Keeps each switch in one row."""

    def __init__(self, path: str) -> None:
        self.location = f"table maintenance of {path}"
        self._path = path

    async def read(self, name: str) -> MaintenanceState:
        """Return the present state; off when there is no row."""
        return await asyncio.to_thread(self._change, name, None)

    async def publish(
        self, name: str, change: Callable[[MaintenanceState], MaintenanceState]
    ) -> MaintenanceState:
        """Replace the state; the transaction keeps other operators out meanwhile."""
        return await asyncio.to_thread(self._change, name, change)

    def _change(
        self, name: str, change: Callable[[MaintenanceState], MaintenanceState] | None
    ) -> MaintenanceState:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            database.execute(TABLE)
            database.execute("BEGIN IMMEDIATE")
            query = "SELECT state FROM maintenance WHERE name = ?"
            row = database.execute(query, [name]).fetchone()
            state = MaintenanceState.from_json(row[0]) if row else MaintenanceState()
            if change is not None:
                state = change(state).but(epoch=state.epoch + 1)
                values = [name, state.to_json()]
                database.execute("REPLACE INTO maintenance VALUES (?, ?)", values)
            database.execute("COMMIT")
            return state


guard = MaintenanceGuard(TableStore("shop.sqlite"))
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
