"""A store of your own: the state in a table of the database that you have anyway."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from fastapi import Depends, FastAPI

from fastapi_maintenance import Change, MaintenanceGuard, MaintenanceState, StoreError

TABLE = "CREATE TABLE IF NOT EXISTS maintenance (name TEXT PRIMARY KEY, state TEXT)"
READ = "SELECT state FROM maintenance WHERE name = ?"
WRITE = "REPLACE INTO maintenance VALUES (?, ?)"


class TableStore:
    """Keeps each switch in one line of a table."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.location = f"table maintenance of {path}"

    def read(self, name: str) -> MaintenanceState | None:
        """Return the stored state; None where nothing is stored."""
        with self.transaction() as database:
            found = database.execute(READ, [name]).fetchone()
        return MaintenanceState.from_json(found[0]) if found else None

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Save what follows from the stored state. The transaction is exclusive."""
        with self.transaction() as database:
            found = database.execute(READ, [name]).fetchone()
            before = MaintenanceState.from_json(found[0]) if found else None
            state = change(before)
            if before is not None and state.epoch <= before.epoch:
                raise StoreError("another state was published; publish again")
            database.execute(WRITE, [name, state.to_json()])
        return state

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a database that is rolled back when the block fails."""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
                database.execute(TABLE)
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used: {error}") from error


guard = MaintenanceGuard(TableStore("shop.sqlite"))
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
