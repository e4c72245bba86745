"""How fast the fence is, with real servers; prints one table for each store.

Run ``python benchmarks/fence.py``. Workers are uvicorn processes of the application
that the chaos tests attack, and this process is the operator. The goals are those of
the documentation; the probe says what this machine takes for the same steps without us.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fastapi_maintenance.changes import Changes, EnableOptions
from fastapi_maintenance.fence import has_acknowledged
from fastapi_maintenance.state import MaintenanceState
from fastapi_maintenance.switch import utc_now
from tests.chaos.harness import Operator, Service
from tests.stores.redis_server import serving

# Work that begins at once when it is admitted.
FIRST = ("fast", "slow", "block")
GOALS = {"file": (100.0, 120.0), "redis": (20.0, 100.0)}
"""Milliseconds from a publication to the last acknowledgement, and of an idle drain."""


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1e3


def admissions(service: Service, since: int) -> int:
    """Return how much work was admitted after a moment."""
    return sum(
        begin > since and what.startswith(FIRST) for begin, _, what in service.spans()
    )


def acknowledge(operator: Operator, workers: int) -> None:
    """Publish, and look every two milliseconds until the last worker has seen it."""
    switch = operator.switch
    fence = switch.keeper.fence
    assert fence is not None
    options = EnableOptions(message="benchmark")

    def change(before: MaintenanceState | None) -> MaintenanceState:
        return Changes(now=utc_now()).turn_on(before, options)

    state = asyncio.run(switch.publish(change)).state
    while True:
        listed = fence.roster(switch.name).workers
        if sum(has_acknowledged(worker, state) for worker in listed) == workers:
            return
        time.sleep(0.002)


def publications(
    service: Service, operator: Operator, rounds: int, goal: float
) -> Iterator[str]:
    """Switch on under load: how long until the last worker has seen it?"""
    seen, returned, after = [], [], 0
    for _ in range(rounds):
        seen.append(milliseconds(lambda: acknowledge(operator, len(service.instances))))
        operator.off()
        time.sleep(0.1)
        returned.append(milliseconds(operator.on))
        moment = time.monotonic_ns()
        time.sleep(0.1)
        after += admissions(service, moment)
        operator.off()
        time.sleep(0.1)
    yield row("publication to last acknowledgement", seen, goal)
    yield row("until `on` returns", returned)
    yield f"{'requests admitted after that':38} {after:8}"


def drains(operator: Operator, rounds: int) -> list[float]:
    """Return how long draining takes, the publication included."""
    took = []
    for _ in range(rounds):
        took.append(milliseconds(operator.drain))
        operator.off()
        time.sleep(0.1)
    return took


def idle_processor(service: Service, seconds: float) -> float:
    """Return the share of a processor that one worker takes while nothing happens."""
    before = [ticks(instance.pid) for instance in service.instances]
    time.sleep(seconds)
    after = [ticks(instance.pid) for instance in service.instances]
    used = (sum(after) - sum(before)) / os.sysconf("SC_CLK_TCK")
    return used / seconds / len(service.instances) * 100


def ticks(pid: int) -> int:
    """Return the processor time of a process."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(values[11]) + int(values[12])


def row(what: str, values: list[float], goal: float | None = None) -> str:
    """Return one line of the table."""
    middle, most = statistics.median(values), max(values)
    line = f"{what:38} {middle:8.1f} {most:8.1f}"
    return line if goal is None else f"{line} {goal:8.0f}"


def probe(folder: Path, rounds: int) -> list[float]:
    """Return how late this machine wakes a sleeper, and how long a rename takes."""
    took = []
    path = folder / "probe"
    for _ in range(rounds):
        began = time.monotonic()
        time.sleep(0.05)
        path.with_suffix(".new").write_bytes(b"x" * 300)
        path.with_suffix(".new").replace(path)
        took.append((time.monotonic() - began - 0.05) * 1e3)
    return took


@contextlib.contextmanager
def store_url(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a store of a kind."""
    if kind == "file":
        yield f"file:{folder}/state"
        return
    with serving(folder / "redis") as server:
        # Until it is older than a server that may have lost what it had.
        time.sleep(5)
        yield server.url("prefix=benchmark")


def measure(kind: str, count: int, rounds: int, folder: Path) -> Iterator[str]:
    """Yield the lines of one table."""
    acknowledged, drained = GOALS[kind]
    with (
        store_url(kind, folder) as url,
        Service(folder / "service", url) as service,
    ):
        service.start(count)
        operator = service.settled()
        yield row("drain, idle workers", drains(operator, rounds), drained)
        idle = idle_processor(service, 10)
        yield f"{'idle processor time of a worker, %':38} {idle:8.2f} {'':8} {0.5:8}"
        with service.load(12):
            yield from publications(service, operator, rounds, acknowledged)
            busy = drains(operator, rounds)
        yield row("drain, busy workers (0.4 s)", busy)
        yield f"{'work that ran after drained':38} {len(service.violations()):8}"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--store", choices=list(GOALS), action="append")
    options = parser.parse_args()
    for kind in options.store or GOALS:
        head = f"{kind}: {options.workers} workers, milliseconds"
        print(f"{head:38}   median      max     goal")
        with tempfile.TemporaryDirectory() as folder:
            print(row("(probe: a late wake-up and a rename)", probe(Path(folder), 20)))
            for line in measure(kind, options.workers, options.rounds, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
