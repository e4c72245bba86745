"""An advisory lock in PostgreSQL that transactions share and a migration excludes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Depends, FastAPI
from sqlalchemy import Connection, create_engine, event, func, select, text

from fastapi_maintenance import MaintenanceError, MaintenanceGuard

LOCK = 7_305_122  # Any number that no other program uses in this database.

engine = create_engine(os.environ["SHOP_DATABASE_URL"])
guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@event.listens_for(engine, "begin")
def share(connection: Connection) -> None:
    """Refuse each new transaction as soon as a migration waits for the lock."""
    if not connection.scalar(select(func.pg_try_advisory_xact_lock_shared(LOCK))):
        raise MaintenanceError


@contextmanager
def excluded() -> Iterator[Connection]:
    """Wait for every transaction, of every process, and keep new ones out."""
    alone = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with alone.connect() as connection:
        connection.execute(select(func.pg_advisory_lock(LOCK)))
        yield connection
    alone.dispose()  # Its connection held the lock, and ends with it.


@app.post("/orders")
def order() -> int:
    """Write what a migration must not see half-way."""
    with engine.begin() as connection:
        query = text("INSERT INTO orders DEFAULT VALUES RETURNING id")
        return int(connection.execute(query).scalar_one())
