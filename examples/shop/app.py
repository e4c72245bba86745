"""The shop: a catalogue, orders that take a while, a stream, a WebSocket."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from fastapi_maintenance import MaintenanceGuard, maintenance_exempt
from fastapi_maintenance.exemptions import with_header

from .database import connect, create

create()

guard = MaintenanceGuard(
    exempt_handler=with_header("X-Admin-Key", os.environ["SHOP_ADMIN_KEY"])
)
app = FastAPI(
    title="Shop",
    dependencies=[Depends(guard)],
    lifespan=guard.lifespan,
    responses=guard.responses,
)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["https://shop.example"],
    allow_methods=["GET", "POST"],
    # Scripts of a page on another origin see no header that is not named here.
    expose_headers=["Retry-After"],
)


class Order(BaseModel):
    """What a customer orders, and how long the payment provider takes."""

    product: int
    payment_seconds: float = Field(default=0, ge=0, le=60)


@app.get("/health")
@maintenance_exempt
async def health() -> dict[str, str]:
    """Answer the load balancer, under maintenance too."""
    return {"status": "ok"}


@app.get("/products")
def products() -> list[dict[str, Any]]:
    """List the catalogue."""
    with connect() as database:
        return [dict(row) for row in database.execute("SELECT * FROM products")]


@app.post("/orders", status_code=201)
async def order(order: Order) -> dict[str, int]:
    """Take an order; it is half-way until the payment has come through."""
    with connect() as database:
        statement = "INSERT INTO orders (product, state) VALUES (?, 'half-way')"
        number = database.execute(statement, [order.product]).lastrowid or 0
    await asyncio.sleep(order.payment_seconds)
    with connect() as database:
        database.execute("UPDATE orders SET state = 'paid' WHERE id = ?", [number])
    return {"order": number}


@app.get("/orders.csv")
async def export(seconds: float = 0) -> StreamingResponse:
    """Stream all orders, slowly."""

    async def lines() -> AsyncIterator[str]:
        yield "id,product,state\n"
        with connect() as database:
            rows = database.execute("SELECT * FROM orders").fetchall()
        for row in rows:
            yield f"{row['id']},{row['product']},{row['state']}\n"
        await asyncio.sleep(seconds)
        yield "end\n"

    return StreamingResponse(lines(), media_type="text/csv")


@app.websocket("/prices")
async def prices(websocket: WebSocket, ticks: int = 3) -> None:
    """Send some prices, ten a second."""
    await websocket.accept()
    for tick in range(ticks):
        await websocket.send_json({"product": 1, "price": 249 + tick % 3})
        await asyncio.sleep(0.1)
    await websocket.close()
