"""An advisory lock in PostgreSQL that transactions share and a migration excludes."""

import os

from fastapi import Depends, FastAPI
from sqlalchemy import Connection, create_engine, event, func, select, text

from fastapi_maintenance import MaintenanceError, MaintenanceGuard

engine = create_engine(os.environ["SHOP_DATABASE_URL"])
guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)

LOCK = 7_305_122  # Any number that no other program uses in this database.


@event.listens_for(engine, "begin")
def share(connection: Connection) -> None:
    """Refuse new transactions from the moment in which a migration wants the lock."""
    if not connection.scalar(select(func.pg_try_advisory_xact_lock_shared(LOCK))):
        raise MaintenanceError


def exclude(connection: Connection) -> None:
    """Wait for all running transactions; hold the lock until this one has ended."""
    connection.execute(select(func.pg_advisory_xact_lock(LOCK)))


@app.post("/orders")
def order() -> int:
    """Write what a migration must not see half-way."""
    with engine.begin() as connection:
        query = text("INSERT INTO orders DEFAULT VALUES RETURNING id")
        return int(connection.execute(query).scalar_one())
