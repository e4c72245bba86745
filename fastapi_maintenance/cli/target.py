"""The switch that a command is about, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio
import anyio.to_thread

from ..fence import (
    DrainReport,
    Roster,
    WorkerReport,
    has_acknowledged,
    shown_span,
    worker_status,
)
from ..files import foreign_owner
from ..state import MaintenanceState
from ..stores import StoreError, TemporaryStoreError, location, open_store
from ..stores.env import EnvStore
from ..stores.file import FileStore
from ..stores.memory import MemoryStore
from ..switch import Publication, Switch
from .exits import ExitCode, FailureError
from .facts import View
from .options import Where
from .output import Output
from .times import show_moment
from .workers import acknowledged_by, worker_document

PATIENCE: Final = 3.0
"""Seconds for which a command waits for a store that does not answer."""

NOT_WAITED_FOR: Final = (
    "Not waited for: routes marked exempt, requests let in during maintenance, and"
    " mounts that nothing covers; `fastapi-maintenance routes MODULE:APP` lists them."
)


class Target:
    """One switch of one store, and where to write about it.

    Args:
        where: The store and the switch.
        aside: Write to standard error.

    Attributes:
        switch: The switch.
        out: Where to write.
        place: Where its state lives, for people.
        fixed: Whether it is set when a service starts.
        interrupted: What to say when a signal ends the command now; None where that
            is how it ends.

    Raises:
        ValueError: If the name or the store URL cannot be used.
        FailureError: If the store lives in the service's own process.
    """

    def __init__(self, where: Where, *, aside: bool = False) -> None:
        self.out: Output = Output(as_json=where.as_json, aside=aside)
        store = open_store(where.store)
        self.fixed: bool = isinstance(store, EnvStore)
        if isinstance(store, MemoryStore) and not self.fixed:
            raise FailureError(
                ExitCode.USAGE,
                "memory: is a store inside the service's own process, which no command"
                " reaches; give the service and --store a file: or redis: store",
            )
        self.switch: Switch = Switch(store, where.name)
        self.place: str = location(store)
        self.interrupted: str | None = (
            "`fastapi-maintenance status` tells whether it was published"
        )

    def __str__(self) -> str:
        return f"{self.switch.name!r} in {self.place}"

    async def require(
        self, *, init: bool = False, code: int = ExitCode.UNREACHABLE
    ) -> None:
        """Refuse a store that is not there, or that cannot be used from here.

        Args:
            init: Whether it is to be made.
            code: The exit code then.

        Raises:
            FailureError: If it is missing, another user's, or does not answer.
        """
        store = self.switch.store
        if isinstance(store, FileStore):
            self._keep_out(store, code)
            if not (init or store.exists):
                raise FailureError(
                    code,
                    f"no store at {self.place}: start the service first, with"
                    " FastAPI(lifespan=guard.lifespan); name its store with --store or"
                    " FASTAPI_MAINTENANCE_STORE; or make one with `on --init`",
                )
        try:
            with anyio.fail_after(PATIENCE):
                await anyio.to_thread.run_sync(self._reach, abandon_on_cancel=True)
        except TimeoutError:
            raise FailureError(
                code,
                f"{self.place} has not answered for {PATIENCE:g} s; check that it is"
                " running and that --store names it",
            ) from None
        except TemporaryStoreError as error:
            raise FailureError(code, str(error)) from error

    def _reach(self) -> None:
        """Read the state, whatever it is.

        Raises:
            TemporaryStoreError: If the store does not answer.
        """
        try:
            self.switch.store.read(self.switch.name)
        except TemporaryStoreError:
            raise
        except StoreError:
            pass  # Damaged: ``on`` and ``off`` repair it, the others say so.

    def _keep_out(self, store: FileStore, code: int) -> None:
        """Refuse, as root, a directory in which another user could have put links."""
        for path in (store.path, store.run_dir):
            owner = foreign_owner(path)
            if owner is not None:
                raise FailureError(
                    code,
                    f"{path} or its parent directory belongs to {owner}, and root stays"
                    " out of it; use",
                    run_as=owner,
                )

    async def roster(self) -> Roster | None:
        """Return the workers, or None with a warning where they cannot be read."""
        try:
            return await self.switch.roster()
        except StoreError as error:
            self.out.warn(f"the workers are not known: {error}")
            return None

    def view(self, state: MaintenanceState, roster: Roster | None) -> View:
        """Return the switch at this moment."""
        return View(
            place=self.place,
            name=self.switch.name,
            state=state,
            roster=roster,
            now=self.switch.clock(),
            fixed=self.fixed,
        )

    def warn_if_alone(self, roster: Roster | None) -> None:
        """Warn when no worker has joined: the commonest mistake is another store."""
        if roster is None or roster.living or self.fixed:
            return
        if roster.uncounted:
            self.out.warn(
                f"a service uses {self} and could not join, so it is not counted; its"
                " log says why"
            )
            return
        self.out.warn(
            f"no worker has joined {self}: is the service running, does it use this"
            " store and name, and FastAPI(lifespan=guard.lifespan)?"
        )

    def published(
        self,
        publication: Publication,
        roster: Roster | None,
        *,
        token: str | None = None,
        acknowledged: bool = False,
    ) -> None:
        """Say what was set.

        Args:
            publication: What was published.
            roster: The workers.
            token: The bypass token that was made, which is shown this once.
            acknowledged: Whether to say how many workers have acknowledged it.
        """
        state = publication.state
        view, notes = self.view(state, roster), list(_notes(publication))
        extra: dict[str, object] = {"notes": notes} if notes else {}
        if token is not None:
            extra["bypass_token"] = token
        if acknowledged and roster is not None:
            seen = [
                worker for worker in view.workers if has_acknowledged(worker, state)
            ]
            extra |= {"acknowledged": len(seen), "joined": len(view.workers)}
        self.out.emit("published", **view.document(), **extra)
        view.show(self.out)
        if token is not None:
            self.out.say(f"  token      {token}")
            self.out.say("             shown once: send it in the header")
            self.out.say("             X-Maintenance-Bypass or the cookie")
            self.out.say("             maintenance_bypass")
        for note in notes:
            self.out.say(note)
        self.warn_if_alone(roster)
        if acknowledged and view.workers:
            self._say_acknowledged(view)

    def _say_acknowledged(self, view: View) -> None:
        text = acknowledged_by(view.workers, view.state)
        self.out.say(f"{text[0].upper()}{text[1:]}.")
        missing = [
            f"{worker.name} ({worker_status(worker, view.state, view.now)})"
            for worker in view.workers
            if not has_acknowledged(worker, view.state)
        ]
        if missing:
            self.out.warn(
                f"not acknowledged by {', '.join(missing)}; look again with"
                " `fastapi-maintenance status`"
            )

    def drained(self, report: DrainReport, state: MaintenanceState) -> None:
        """Say that the wait is over, and what it was not for."""
        self._result(report, state)
        # Each of them has acknowledged, or it would not be drained.
        who = acknowledged_by(report.workers, state)
        self.out.say(
            f"Drained after {shown_span(report.seconds)}: {who}; nothing from before is"
            " running."
        )
        self.out.say(NOT_WAITED_FOR)
        if report.read_only:
            self.out.say("Reads continue (read-only): they were not waited for either.")

    def not_drained(self, report: DrainReport, state: MaintenanceState) -> str:
        """Say why the wait failed.

        Returns:
            The same for the error's line, which has to say how the state is left.
        """
        self._result(report, state)
        outcome = report.outcome.replace("_", " ")
        return (
            f"not drained after {shown_span(report.seconds)} ({outcome}):"
            f" {report.reason}"
        )

    def _result(self, report: DrainReport, state: MaintenanceState) -> None:
        self.out.emit(
            "result",
            outcome=report.outcome,
            drained=report.drained,
            reason=report.reason,
            epoch=report.epoch,
            seconds=round(report.seconds, 3),
            read_only=report.read_only,
            workers=self.documents(report.workers, state),
            not_waited_for=NOT_WAITED_FOR if report.drained else None,
        )

    def documents(
        self, workers: Sequence[WorkerReport], state: MaintenanceState
    ) -> list[dict[str, object]]:
        """Return workers for scripts."""
        now = self.switch.clock()
        return [worker_document(worker, state, now) for worker in workers]


def _notes(publication: Publication) -> list[str]:
    """Return what a publication has changed that its author may not expect."""
    before, state = publication.before, publication.state
    if before is None or not before.enabled or not state.enabled:
        return []
    notes = []
    if before.starts_at is not None and (state.starts_at or state.since) != (
        before.starts_at
    ):
        notes.append(f"The window planned for {show_moment(before.starts_at)} is gone.")
    if before.read_only and not state.read_only:
        notes.append("Reads are refused now: it was read-only before.")
    return notes
