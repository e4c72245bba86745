"""Switch over HTTP and in a browser, behind a password that needs no database."""

import hmac
import os
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from fastapi_maintenance import MaintenanceGuard, control_router

PASSWORD = os.environ["OPERATORS_PASSWORD"].encode()

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


def operators_only(
    given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())],
) -> None:
    """Ask for the password; a browser sends it by itself from then on."""
    if not PASSWORD or not hmac.compare_digest(given.password.encode(), PASSWORD):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})


app.include_router(control_router(guard, dependencies=[Depends(operators_only)]))


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
