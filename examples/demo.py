"""A shop under traffic goes into maintenance, is migrated, and comes back.

$ python examples/demo.py            # two workers, the state in a directory
$ python examples/demo.py --redis    # two groups of two workers, one switch in Redis
$ python examples/demo.py --sql      # the same, with the switch in a database

It ends with exit code 1 if anything that it shows did not happen.
"""

import argparse
import importlib
import json
import shlex
import sys
import time
from typing import Any, NamedTuple

from stage import Answer, Slow, Stage, StageError, Traffic, staged, wait_until

MESSAGE = "Upgrading the database"
WIDTH = 64
"""Columns of the picture of the traffic."""
SERVED = 200
REFUSED = 503
TWENTY_MINUTES = 1200
LONGEST = 30.0
LONG = 0.5
"""Seconds from which on a request is one of the long ones."""
SOME = 4
MOST = 40
SLACK = 0.5
"""Seconds that a change may take to arrive; none with a directory, few with Redis."""
LATE = 2.0
"""Seconds that a client on a busy machine may learn too late of its own answer.

A wait that does not wait returns earlier than that. The migration is the strict check:
it fails if it finds an order half-way.
"""


class Probe(NamedTuple):
    """One kind of client, and what it gets while the shop is open and closed."""

    who: str
    method: str
    path: str
    opened: int
    closed: int
    headers: dict[str, str] | None = None
    body: object = None

    def ask(self, stage: Stage) -> Answer:
        """Send the request."""
        if self.method == "WS":
            return stage.listen(self.path)
        return stage.send(self.method, self.path, headers=self.headers, body=self.body)


def probes(stage: Stage) -> list[Probe]:
    """Return everybody who may come to a shop."""
    preflight = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
    }
    admin = {"X-Admin-Key": stage.admin_key}
    order = {"product": 1}
    return [
        Probe("customer", "GET", "/products", 200, 503),
        Probe("customer", "POST", "/orders", 201, 503, body=order),
        Probe("customer", "WS", "/prices?ticks=1", 101, 503),
        Probe("load balancer", "GET", "/health", 200, 200),
        Probe("developer", "GET", "/docs", 200, 200),
        Probe("developer", "GET", "/openapi.json", 200, 200),
        Probe("admin with key", "GET", "/products", 200, 200, admin),
        Probe("browser, preflight", "OPTIONS", "/orders", 200, 200, preflight),
        Probe("no such page", "GET", "/nothing", 404, 404),
        Probe("no such method", "DELETE", "/products", 405, 405),
    ]


class Screen:
    """Prints what happens, with Rich where it is, and remembers what did not."""

    def __init__(self) -> None:
        self.failed = 0
        self._began = time.monotonic()
        try:
            console = importlib.import_module("rich.console")
        except ImportError:
            self._console: Any = None
        else:
            self._console = console.Console(highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        if self._console is None:
            print(text, flush=True)
        else:
            self._console.print(text, style=style or None, markup=False)
        sys.stdout.flush()

    def step(self, text: str) -> None:
        """Begin a part."""
        seconds = time.monotonic() - self._began
        self.say(f"\n{seconds:4.1f} s  {text}", "bold")

    def check(self, happened: bool, text: str) -> None:  # reads as a sentence
        """Print what had to happen, and whether it did."""
        self.failed += not happened
        if happened:
            self.say(f"        ok  {text}", "green")
        else:
            self.say(f"    FAILED  {text}", "bold red")

    def command(self, stage: Stage, *words: str, expected: int = 0) -> None:
        """Run `fastapi-maintenance` as an operator would."""
        shown = shlex.join(["fastapi-maintenance", *words])
        self.say(f"$ {shown.replace(sys.executable, 'python')}", "bold cyan")
        code = stage.run(*words)
        if code != expected:
            self.check(happened=False, text=f"exit code {code} instead of {expected}")


def main() -> int:
    """Run the whole story."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(kind="file")
    for kind, where in (("redis", "Redis"), ("sql", "a database")):
        parser.add_argument(
            f"--{kind}",
            action="store_const",
            const=kind,
            dest="kind",
            help=f"two groups of workers, one switch in {where}",
        )
    kind = parser.parse_args().kind
    screen = Screen()
    try:
        with staged(kind) as stage, Traffic(stage) as traffic:
            tell(screen, stage, traffic)
    except StageError as error:
        screen.check(happened=False, text=str(error))
    if screen.failed:
        screen.say(f"\n{screen.failed} thing(s) did not happen.", "bold red")
        return 1
    screen.say("\nAll of it happened.", "bold green")
    return 0


def tell(screen: Screen, stage: Stage, traffic: Traffic) -> None:
    """Tell the story."""
    groups = "two groups of two workers" if len(stage.ports) > 1 else "two workers"
    screen.step(f"A shop on uvicorn with {groups}, and customers all the time")
    everybody = probes(stage)
    show_open(screen, stage, everybody)

    screen.step("Some work takes longer: payments, an export, a WebSocket")
    slow = start_slow_work(stage)
    screen.check(happened=True, text=f"{len(slow)} long requests run, on every worker")

    screen.step("An operator closes the shop, and waits until the last one has ended")
    screen.command(stage, "on", "--message", MESSAGE, "--for", "20m", "--wait")
    closed = time.monotonic()
    show_slow_work(screen, slow, traffic.first(REFUSED), closed)

    screen.step("Closed: who gets what")
    show_answers(screen, everybody, [probe.ask(stage) for probe in everybody])

    screen.step("The migration: nothing is half-way, nothing can begin")
    screen.command(stage, "run", "--", sys.executable, "examples/shop/migrate.py")
    show_migration(screen, stage)
    before_off = time.monotonic()

    screen.step("Open again")
    screen.command(stage, "off")
    opened = time.monotonic()
    wait_until(
        lambda: len(traffic.between(opened + SLACK, time.monotonic())) > SOME,
        "was asked for",
    )
    show_open(screen, stage, everybody)
    show_traffic(screen, traffic, closed, before_off, opened)


def show_open(screen: Screen, stage: Stage, everybody: list[Probe]) -> None:
    """Show that everybody gets what they ask for."""
    wrong = [
        f"{probe.method} {probe.path}: {status}"
        for probe in everybody
        if (status := probe.ask(stage).status) != probe.opened
    ]
    what = f"instead of: {', '.join(wrong)}" if wrong else "everybody is answered"
    screen.check(not wrong, f"open, {what}")


def start_slow_work(stage: Stage) -> list[Slow]:
    """Start long requests until every worker has some."""
    # As long as it takes to look, to close, and to see that something is waited for.
    seconds = min(3 + 4 * stage.pace, LONGEST)

    def order(turn: int) -> Slow:
        body = {"product": 2, "payment_seconds": seconds + turn % 8 / 4}
        return Slow(
            "payment", lambda: stage.send("POST", "/orders", body=body, turn=turn), 201
        ).start()

    slow = [
        Slow(
            "export", lambda: stage.send("GET", f"/orders.csv?seconds={seconds}"), 200
        ).start(),
        Slow(
            "WebSocket", lambda: stage.listen(f"/prices?ticks={seconds * 10:.0f}"), 101
        ).start(),
    ]
    for turn in range(0, MOST, SOME):
        slow += [order(turn + number) for number in range(SOME)]
        # The customers' own requests are in flight for milliseconds only.
        long = [
            worker
            for worker in stage.status()
            if worker["oldest"] and worker["oldest"]["seconds"] > LONG
        ]
        if len(long) == stage.workers:
            return slow
    raise StageError("no long request reached some of the workers")


def show_slow_work(
    screen: Screen, slow: list[Slow], refused: float, closed: float
) -> None:
    """Show that long requests were served to their end, and waited for."""
    for work in slow:
        work.thread.join()
    kinds = ", ".join(
        f"{sum(work.served for work in slow if work.what == what)} {what}(s)"
        for what in dict.fromkeys(work.what for work in slow)
    )
    screen.check(all(work.served for work in slow), f"served to the end: {kinds}")
    last = max(work.ended for work in slow)
    screen.check(
        refused < last,
        f"the last one ended {last - refused:.1f} s after the first refusal, and",
    )
    screen.check(
        last <= closed + LATE,
        f"the wait returned after the last one ({max(0.0, closed - last):.1f} s)",
    )


def show_answers(screen: Screen, everybody: list[Probe], answers: list[Answer]) -> None:
    """Show what everybody gets while the shop is closed."""
    screen.say(f"        {'':20}{'':24}{'open':>6}{'closed':>8}  Retry-After")
    for probe, answer in zip(everybody, answers, strict=True):
        wait = answer.headers.get("retry-after", "")
        right = answer.status == probe.closed
        if probe.closed == REFUSED:
            right = right and wait.isdecimal() and 0 < int(wait) <= TWENTY_MINUTES
        line = f"{probe.who:20}{probe.method + ' ' + probe.path:24}"
        line += f"{probe.opened:>6}{answer.status:>8}  {wait and wait + ' s'}"
        screen.check(right, line.rstrip())
    read = answers[0].body.decode(errors="replace")
    screen.check(read == json.dumps({"detail": MESSAGE}, separators=(",", ":")), read)


def show_migration(screen: Screen, stage: Stage) -> None:
    """Show what the migration changed, as an admin sees it while closed."""
    admin = {"X-Admin-Key": stage.admin_key}
    answer = stage.send("GET", "/products", headers=admin)
    product = json.loads(answer.body)[0] if answer.status == SERVED else {}
    cents = product.get("price_cents")
    screen.check(
        cents is not None,
        f"an admin sees it first: an {product.get('name')} is {cents} cents",
    )
    still = stage.send("GET", "/products").status
    screen.check(still == REFUSED, "still closed: the operator's own `on` holds it")


def show_traffic(
    screen: Screen, traffic: Traffic, closed: float, before_off: float, opened: float
) -> None:
    """Show what the customers got all the time."""
    seen = sorted(traffic.seen)
    begin, end = seen[0][0], seen[-1][0]
    picture = ""
    for column in range(WIDTH):
        left = begin + (end - begin) * column / WIDTH
        got = set(traffic.between(left, left + (end - begin) / WIDTH))
        picture += " " if not got else "█" if got == {200} else "░"
    screen.step(f"What {len(seen)} requests of customers got, from left to right")
    screen.say(f"        {picture}", "cyan")
    screen.say("        █ all served   ░ 503 with Retry-After")
    every = set(traffic.between(begin, end))
    screen.check(
        every == {SERVED, REFUSED}, f"nothing but 200 and 503: {sorted(every)}"
    )
    while_closed = set(traffic.between(closed, before_off))
    screen.check(
        while_closed == {REFUSED}, "no customer was served while it was closed"
    )
    after = set(traffic.between(opened + SLACK, end))
    screen.check(after == {SERVED}, "everybody was served after it was opened")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
