"""How fast the file fence is, with real servers; prints one table.

Run ``python benchmarks/fence.py``. Workers are uvicorn processes of the application
that the chaos tests attack, and this process is the operator.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.chaos.harness import Operator, Service

# Work that begins with an admission, and not some time after it.
FIRST = ("fast", "slow", "sync", "stream", "block")


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1e3


def admissions(service: Service, since: int) -> list[float]:
    """Return when work was admitted after a moment, in milliseconds from it."""
    return sorted(
        (begin - since) / 1e6
        for begin, _, what in service.spans()
        if begin > since and what.startswith(FIRST)
    )


def publications(service: Service, operator: Operator, rounds: int) -> list[str]:
    """Switch on under load: who is admitted afterwards?"""
    after, last, took = 0, [], []
    for _ in range(rounds):
        began = time.monotonic_ns()
        operator.on()
        returned = time.monotonic_ns()
        time.sleep(0.1)
        after += len(admissions(service, returned))
        last += [max(admissions(service, began), default=0.0)]
        took += [(returned - began) / 1e6]
        operator.off()
        time.sleep(0.1)
    return [
        row("publish, until it returns", took),
        row("publish to last admission", last),
        f"{'admitted after publish returned':34} {after:8}",
    ]


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


def row(what: str, values: list[float]) -> str:
    """Return one line of the table."""
    middle, most = statistics.median(values), max(values)
    return f"{what:34} {middle:8.1f} {most:8.1f}"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Service(Path(folder) / "service", f"file:{folder}/state") as service,
    ):
        service.start(options.workers)
        operator = Operator(service)
        lines = [row("drain, idle workers", drains(operator, options.rounds))]
        idle = idle_processor(service, 10)
        with service.load(12):
            lines += publications(service, operator, options.rounds)
            busy = drains(operator, options.rounds)
        lines += [row("drain, busy workers (0.4 s)", busy)]
        lines += [f"{'idle processor time per worker':34} {idle:7.2f}%"]
        violations = len(service.violations())
        lines += [f"{'work that ran after drained':34} {violations:8}"]
    print(f"{options.workers} workers, milliseconds".ljust(34), "  median      max")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
