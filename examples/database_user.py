"""Look the user up in a database: an exempt handler with dependencies of its own."""

import sqlite3
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

from fastapi_maintenance import MaintenanceGuard


class User(BaseModel):
    """Who sent a request."""

    name: str
    staff: bool


def database() -> Iterator[sqlite3.Connection]:
    """Open a connection for one request, and close it."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(
        "CREATE TABLE users (token TEXT, name TEXT, staff INTEGER);"
        "INSERT INTO users VALUES ('t-ada', 'ada', 1), ('t-bob', 'bob', 0);"
    )
    try:
        yield connection
    finally:
        connection.close()


def current_user(
    connection: Annotated[sqlite3.Connection, Depends(database)],
    x_token: Annotated[str, Header()],
) -> User:
    """Find the user, or answer 401; under maintenance a 401 means *not exempt*."""
    query = "SELECT name, staff FROM users WHERE token = ?"
    row = connection.execute(query, [x_token]).fetchone()
    if row is None:
        raise HTTPException(401, "unknown token")
    return User(name=row[0], staff=row[1])


async def is_staff(user: Annotated[User, Depends(current_user)]) -> bool:
    """Tell whether the user works here."""
    return user.staff


guard = MaintenanceGuard(exempt_handler=Depends(is_staff))
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/me")
async def me(user: Annotated[User, Depends(current_user)]) -> User:
    """Return who you are."""
    return user
