"""Let operators in by the role in their JWT (PyJWT)."""

import os
import sys

import jwt
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from fastapi_maintenance import MaintenanceGuard

KEY = os.environ["JWT_KEY"]
SHORTEST_KEY = 32  # bytes, for HS256 (RFC 7518 section 3.2)
if len(KEY.encode()) < SHORTEST_KEY:
    sys.exit("JWT_KEY must have at least 32 bytes; take secrets.token_urlsafe(32)")


def is_operator(connection: HTTPConnection) -> bool:
    """Tell whether a valid token says so; every other token says nothing."""
    scheme, _, token = connection.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    try:
        claims = jwt.decode(
            token,
            KEY,
            algorithms=["HS256"],  # Never taken from the token itself.
            audience="shop",
            issuer="https://login.example",
            # Without this a token that has no end is good for ever.
            options={"require": ["exp", "aud", "iss"]},
        )
    except jwt.PyJWTError:
        return False
    return claims.get("role") == "operator"


guard = MaintenanceGuard(exempt_handler=is_operator)
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
