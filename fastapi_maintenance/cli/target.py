"""The switch that a command is about, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..fence import DrainReport, Outcome, Roster, distinct_hosts
from ..state import MaintenanceState, phase
from ..stores import StoreError, describe, open_store
from ..stores.env import EnvStore
from ..stores.memory import MemoryStore
from ..switch import Switch
from .output import Output, clean
from .phases import (
    crowd,
    document,
    facts,
    headcount,
    headline,
    living,
    row_document,
)
from .times import show_span

USAGE: Final = 2
UNREACHABLE: Final = 14
EXIT_CODES: Final[dict[Outcome, int]] = {
    "drained": 0,
    "busy": 10,
    "lost": 11,
    "superseded": 12,
    "too_few": 13,
    "unknown": 15,
}

NOT_WAITED_FOR: Final = (
    "Not waited for: routes marked exempt, requests let in during maintenance, and"
    " mounts that nothing covers; `fastapi-maintenance routes MODULE:APP` lists them."
)


class FailureError(Exception):
    """A command ends here, with an exit code and one line.

    Attributes:
        code: The exit code.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Target:
    """One switch of one store, and where to write about it.

    Args:
        url: The store, as ``open_store`` takes it.
        name: The switch.
        out: Where to write.

    Attributes:
        interrupted: What to say when a signal ends the command now; None where that
            is how it ends.

    Raises:
        ValueError: If the name or the store URL is none.
        FailureError: If the store lives in the service's own process.
    """

    def __init__(self, url: str | None, name: str, out: Output) -> None:
        store = open_store(url)
        self.fixed: bool = isinstance(store, EnvStore)
        if isinstance(store, MemoryStore) and not self.fixed:
            raise FailureError(
                USAGE,
                "memory: is a store inside the service's own process, which no command"
                " reaches; give the service and --store a file: or redis: store",
            )
        self.switch: Switch = Switch(store, name)
        self.out = out
        self.place: str = describe(store)
        self.interrupted: str | None = (
            "`fastapi-maintenance status` tells whether it was published"
        )

    def __str__(self) -> str:
        return f"{self.switch.name!r} in {self.place}"

    def require(self, *, init: bool = False) -> None:
        """Refuse a store that is not there: the service talks to another one.

        Raises:
            FailureError: If it is not there and is not to be made.
        """
        if init or getattr(self.switch.store, "exists", True):
            return
        raise FailureError(
            UNREACHABLE,
            f"no store at {self.place}: start the service first, name its store with"
            " --store or FASTAPI_MAINTENANCE_STORE, or make one with `on --init`",
        )

    async def roster(self) -> Roster | None:
        """Return the workers, or None with a warning where they cannot be read."""
        try:
            return await self.switch.source.roster(self.switch.name)
        except StoreError as error:
            self.out.warn(f"the workers are not known: {error}")
            return None

    def now(self) -> datetime:
        """Return the present moment."""
        return self.switch.clock()

    def report(
        self,
        event: str,
        state: MaintenanceState,
        roster: Roster | None,
        **more: object,
    ) -> None:
        """Write for scripts what a state is, where it lives and for whom it speaks."""
        rows = [] if roster is None else living(roster)
        self.out.emit(
            event,
            store=self.place,
            name=self.switch.name,
            phase=phase(state, self.now()),
            in_force=state.in_force(self.now()),
            state=document(state),
            workers=None
            if roster is None
            else [row_document(row, state.epoch) for row in rows],
            machines=distinct_hosts(rows),
            uncounted=roster is not None and roster.uncounted,
            **more,
        )

    def describe(
        self,
        event: str,
        state: MaintenanceState,
        roster: Roster | None,
        token: str | None = None,
    ) -> None:
        """Write what a state is, where it lives and for whom it speaks."""
        more = {} if token is None else {"bypass_token": token}
        self.report(event, state, roster, **more)
        if self.out.live:
            self.out.show(self.view(state, roster, token))
            return
        self.out.say(headline(state, self.now()))
        for label, value in self._facts(state, roster, token):
            self.out.say(f"  {label:<10} {value}".rstrip())

    def view(
        self, state: MaintenanceState, roster: Roster | None, token: str | None = None
    ) -> RenderableType:
        """Return the same for a terminal, where long values keep their column."""
        on = state.in_force(self.now())
        head = Text(
            headline(state, self.now()), style="bold yellow" if on else "bold green"
        )
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, min_width=12)
        table.add_column(overflow="fold")
        for label, value in self._facts(state, roster, token):
            table.add_row(Text(f"  {label}", style="dim"), Text(clean(value)))
        return Group(head, table)

    def _facts(
        self, state: MaintenanceState, roster: Roster | None, token: str | None
    ) -> Iterator[tuple[str, str]]:
        yield "store", self.place
        yield "switch", self.switch.name
        if not self.fixed:
            yield "workers", "not known" if roster is None else crowd(roster)
        yield from facts(state, self.now())
        if token is not None:
            yield "token", token
            yield "", "shown once: the header X-Maintenance-Bypass carries it, or"
            yield "", "the cookie maintenance_bypass"

    def warn_if_alone(self, roster: Roster | None) -> None:
        """Warn when no worker has joined: the commonest mistake is another store."""
        if roster is None or roster.uncounted or living(roster) or self.fixed:
            return
        self.out.warn(
            f"no worker has joined {self}: is the service running, and does it use"
            " this store and name?"
        )

    def published(
        self, state: MaintenanceState, roster: Roster | None, token: str | None = None
    ) -> None:
        """Say what was set."""
        self.describe("published", state, roster, token)
        self.warn_if_alone(roster)

    def drained(self, report: DrainReport) -> None:
        """Say that the wait is over, and what it was not for."""
        self._result(report)
        rows = [row for row in report.workers if row.liveness != "dead"]
        self.out.say(
            f"Drained after {show_span(report.seconds)}: {headcount(rows)}; nothing"
            " from before is running."
        )
        self.out.say(NOT_WAITED_FOR)
        if report.read_only:
            self.out.say(
                "Reads continue (read-only): they were not waited for, either."
            )

    def not_drained(self, report: DrainReport) -> str:
        """Say why the wait failed.

        Returns:
            The same for the error's line, which has to say how the state is left.
        """
        self._result(report)
        return (
            f"not drained after {show_span(report.seconds)} ({report.outcome}):"
            f" {report.reason}"
        )

    def _result(self, report: DrainReport) -> None:
        self.out.emit(
            "result",
            outcome=report.outcome,
            drained=report.drained,
            reason=report.reason,
            epoch=report.epoch,
            seconds=round(report.seconds, 3),
            read_only=report.read_only,
            workers=[row_document(row, report.epoch) for row in report.workers],
            not_waited_for=NOT_WAITED_FOR if report.drained else None,
        )
