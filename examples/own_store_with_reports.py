"""A store of your own that keeps the workers' reports too, so that drains work."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from fastapi import Depends, FastAPI

from fastapi_maintenance import (
    Change,
    MaintenanceGuard,
    MaintenanceState,
    Receipt,
    Roster,
    StoreError,
    WorkerReport,
)
from fastapi_maintenance.fence import Membership, with_member
from fastapi_maintenance.processes import is_gone

TABLE = """CREATE TABLE IF NOT EXISTS maintenance
    (key TEXT PRIMARY KEY, value TEXT, written REAL)"""
SILENT_AFTER = 3.0


class Documents:
    """Documents by key, for the time of one transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def get(self, key: str) -> str | None:
        """Return a document."""
        query = "SELECT value FROM maintenance WHERE key = ?"
        found = self.database.execute(query, [key]).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, value: str) -> None:
        """Save a document."""
        values = [key, value, time.time()]
        self.database.execute("REPLACE INTO maintenance VALUES (?, ?, ?)", values)

    def delete(self, key: str) -> None:
        """Remove a document."""
        self.database.execute("DELETE FROM maintenance WHERE key = ?", [key])

    def below(self, folder: str) -> list[tuple[str, float]]:
        """Return the documents below a key, and when each was written."""
        query = "SELECT value, written FROM maintenance WHERE substr(key, 1, ?) = ?"
        return self.database.execute(query, [len(folder), folder]).fetchall()

    def membership(self, name: str) -> Membership | None:
        """Return who has joined."""
        found = self.get(f"members/{name}")
        return None if found is None else Membership.model_validate_json(found)


class ReportingStore:
    """Keeps states, rosters and reports as documents of one table."""

    poll_interval = 0.2

    def __init__(self, path: str) -> None:
        self.path = path
        self.location = f"documents of {path}"

    def read(self, name: str) -> MaintenanceState | None:
        """Return the stored state; None where nothing is stored."""
        with self.transaction() as documents:
            found = documents.get(f"state/{name}")
        return None if found is None else MaintenanceState.from_json(found)

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Save what follows from the stored state."""
        with self.transaction() as documents:
            found = documents.get(f"state/{name}")
            before = None if found is None else MaintenanceState.from_json(found)
            state = change(before)
            if before is not None and state.epoch <= before.epoch:
                raise StoreError("another state was published; publish again")
            documents.put(f"state/{name}", state.to_json())
        return state

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report, and list its worker. The first one makes the roster."""
        with self.transaction() as documents:
            before = documents.membership(name)
            after = with_member(before, report, now=time.time())
            if after != before:
                documents.put(f"members/{name}", after.model_dump_json())
            key = f"report/{name}/{report.id}"
            replaced = documents.get(key) is not None
            documents.put(key, report.model_dump_json())
        return Receipt(after.generation, after.complete, replaced)

    def roster(self, name: str) -> Roster:
        """Return who has joined. Does not create a roster."""
        with self.transaction() as documents:
            membership = documents.membership(name)
            reports = documents.below(f"report/{name}/")
        if membership is None:
            return Roster(complete=False)
        return Roster(
            generation=membership.generation,
            complete=membership.complete,
            age=time.time() - membership.made,
            members=membership.members,
            workers=tuple(_judge(value, written) for value, written in reports),
        )

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark a roster as complete, or replace it by one that is not."""
        with self.transaction() as documents:
            before = documents.membership(name)
            if before is None:
                return ""
            after = before.with_completeness(
                generation, complete=complete, now=time.time()
            )
            documents.put(f"members/{name}", after.model_dump_json())
            return after.generation

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, and remove its report."""
        with self.transaction() as documents:
            before = documents.membership(name)
            if before is not None:
                after = before.without(worker)
                documents.put(f"members/{name}", after.model_dump_json())
            documents.delete(f"report/{name}/{worker}")

    @contextmanager
    def transaction(self) -> Iterator[Documents]:
        """Yield the documents; what a block has written is lost when it fails."""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
                database.execute(TABLE)
                database.execute("BEGIN IMMEDIATE")
                yield Documents(database)
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used: {error}") from error


def _judge(value: str, written: float) -> WorkerReport:
    report = WorkerReport.model_validate_json(value)
    age = time.time() - written
    if is_gone(report.process, report.pid):
        return report.with_liveness("dead", age)
    return report.with_liveness("silent" if age > SILENT_AFTER else "alive", age)


guard = MaintenanceGuard(ReportingStore("shop.sqlite"))
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)


@app.get("/")
async def home() -> str:
    """Say hello."""
    return "hello"
