"""What the middleware adds to a request, as ratios within one run.

Run ``python benchmarks/asgi.py``. It measures as ``benchmarks/guard.py`` does: in
process, processor time, each round once through all cases, the best round of each.
The last of 10, 100 and 1,000 routes is asked for, with and without maintenance.
"""

import argparse
import asyncio

from fastapi import Depends, FastAPI
from guard import best_of, empty

from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MemoryStore,
)

ROUTES = (10, 100, 1_000)


def application(
    routes: int = 1, guard: MaintenanceGuard | None = None, *dependencies: object
) -> FastAPI:
    """Return an application that answers at the last of its routes."""
    app = FastAPI(dependencies=[Depends(call) for call in dependencies])  # type: ignore[arg-type]  # callables
    if guard is not None:
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)

    async def route() -> dict[str, int]:
        return {"ok": 1}

    for number in range(routes - 1):
        app.add_api_route(f"/others/{number}/{{name}}", route)
    app.add_api_route("/items", route)
    return app


async def measure(rounds: int, requests: int) -> dict[str, float]:
    """Return microseconds per request for each application."""
    off = MaintenanceGuard(MemoryStore())
    on = MaintenanceGuard(MemoryStore(enabled=True))
    cases = {
        "nothing": (application(), 200),
        "empty async dependency": (application(1, None, empty), 200),
        "middleware off": (application(1, off), 200),
        "dependency off": (application(1, None, off), 200),
        "middleware and dependency off": (application(1, off, off), 200),
    }
    for routes in ROUTES:
        cases[f"{routes:,} routes, middleware off"] = (application(routes, off), 200)
        cases[f"{routes:,} routes, middleware on"] = (application(routes, on), 503)
    return await best_of(cases, rounds, requests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--requests", type=int, default=25)
    options = parser.parse_args()
    best = asyncio.run(measure(options.rounds, options.requests))
    base = best["nothing"]
    unit = best["empty async dependency"] - base
    print(f"{'':30}{'us/request':>12}{'added':>9}{'x empty dependency':>20}")
    for name, spent in best.items():
        alone = "routes" not in name and name != "nothing"
        added = f"{spent - base:.1f}" if alone else ""
        ratio = f"{(spent - base) / unit:.2f}" if alone else ""
        print(f"{name:30}{spent:12.1f}{added:>9}{ratio:>20}")
    print()
    for routes in ROUTES:
        refusing = best[f"{routes:,} routes, middleware on"]
        serving = best[f"{routes:,} routes, middleware off"]
        print(
            f"of {routes:,} routes: refusing costs {refusing / serving:.2f} of serving"
        )


if __name__ == "__main__":
    main()
