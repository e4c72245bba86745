"""What the guard adds to a request, as ratios within one run.

Run ``python benchmarks/guard.py``. Applications are called in process, as ASGI, so that
no server and no socket is measured. Each round times every application once, in turn,
and each keeps its best round: noise only ever adds. Processor time is measured, so that
other programs on the machine count little.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from starlette.requests import HTTPConnection

from fastapi_maintenance import FileStore, MaintenanceGuard, MemoryStore, open_store
from fastapi_maintenance import maintenance_exempt as exempt

Receive = dict[str, Any]


async def empty(connection: HTTPConnection) -> None:
    """Stand for the least that a dependency can cost."""


async def refusing(connection: HTTPConnection) -> None:
    """Stand for the least that a refusal can cost."""
    headers = {"Retry-After": "60", "Cache-Control": "no-store"}
    raise HTTPException(503, connection.scope["path"], headers)


class Counter:
    """The least that can count a request to its end: a number, and a callback."""

    def __init__(self) -> None:
        self.in_flight = 0

    async def __call__(self, connection: HTTPConnection) -> None:
        """Count one request."""
        self.in_flight += 1
        connection.scope["fastapi_middleware_astack"].callback(self.release)

    def release(self) -> None:
        """Count it out."""
        self.in_flight -= 1


def application(*dependencies: object, marked: bool = False) -> FastAPI:
    """Return an application with one trivial route."""
    app = FastAPI(dependencies=[Depends(call) for call in dependencies])  # type: ignore[arg-type]  # callables

    async def route() -> dict[str, int]:
        return {"ok": 1}

    app.get("/items")(exempt(route) if marked else route)
    return app


async def call(app: Callable[..., Any]) -> int:
    """Send one request; return the status."""
    statuses: list[int] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/items",
        "raw_path": b"/items",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", b"shop.example")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }

    async def receive() -> Receive:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Receive) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


Cases = dict[str, tuple[FastAPI, int]]
"""Applications by name, and the status that each answers with."""


async def best_of(cases: Cases, rounds: int, requests: int) -> dict[str, float]:
    """Return microseconds per request for each application, in its best round."""
    best = dict.fromkeys(cases, float("inf"))
    for name, (app, status) in cases.items():
        if await call(app) != status:
            sys.exit(f"{name}: not {status}")
    for _ in range(rounds):
        for name, (app, _status) in cases.items():
            start = time.process_time()
            for _ in range(requests):
                await call(app)
            spent = (time.process_time() - start) / requests * 1e6
            best[name] = min(best[name], spent)
    return best


async def measure(rounds: int, requests: int, urls: list[str]) -> dict[str, float]:
    """Return microseconds per request for each application."""
    with tempfile.TemporaryDirectory() as directory:
        on = MemoryStore(enabled=True)
        stores = {
            "memory": MemoryStore(),
            "file": FileStore(Path(directory) / "state"),
            **{url.partition(":")[0]: open_store(url) for url in urls},
        }
        let_in_guard = MaintenanceGuard(on, exempt_handler=let_in)
        cases = {
            "no dependency": (application(), 200),
            "empty async dependency": (application(empty), 200),
            "counter": (application(Counter()), 200),
        }
        for name, store in stores.items():
            guard = MaintenanceGuard(store)
            cases[f"guard off, {name}"] = (application(guard), 200)
        guard = MaintenanceGuard(on)
        cases |= {
            "dependency that refuses": (application(refusing), 503),
            "guard on, refusing": (application(guard), 503),
            "guard on, exempt by marker": (application(guard, marked=True), 200),
            "guard on, exempt by handler": (application(let_in_guard), 200),
        }
        return await best_of(cases, rounds, requests)


async def let_in(connection: HTTPConnection) -> bool:
    """Exempt everyone."""
    return bool(connection)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--store", action="append", default=[], metavar="URL")
    options = parser.parse_args()
    best = asyncio.run(measure(options.rounds, options.requests, options.store))
    base = best["no dependency"]
    unit = best["empty async dependency"] - base
    counter = best["counter"] - base
    print(f"{'':30}{'us/request':>12}{'added':>9}{'x empty':>9}{'x counter':>11}")
    for name, spent in best.items():
        added = spent - base
        ratios = f"{added / unit:9.2f}{added / counter:11.2f}" if added else ""
        print(f"{name:30}{spent:12.1f}{added:9.1f}{ratios}")
    serving = best["guard off, memory"]
    least, ours = best["dependency that refuses"], best["guard on, refusing"]
    print(
        f"\nrefusing costs {ours / serving:.2f} of serving the same route with the"
        f" guard off; the least that a dependency can cost is {least / serving:.2f}"
    )


if __name__ == "__main__":
    main()
