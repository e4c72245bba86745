"""The state in a SQL database that is there anyway: every worker on every machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

from ..fence import Receipt, Roster, WorkerReport, roster_of
from ..state import MaintenanceState
from . import (
    Change,
    Members,
    MembersChange,
    StoreError,
    TemporaryStoreError,
    add_member,
    judge_liveness,
    mark_members,
    next_state,
    parse,
    parse_membership,
    parse_state,
    remove_member,
    retry,
    split_prefix,
)

try:
    from sqlalchemy import (
        Column,
        Connection,
        Double,
        Engine,
        MetaData,
        String,
        Table,
        Text,
        create_engine,
        delete,
        exc,
        insert,
        inspect,
        literal_column,
        select,
        union_all,
        update,
    )
    from sqlalchemy.dialects import mysql
    from sqlalchemy.engine import URL, Dialect, make_url
    from sqlalchemy.pool import NullPool
    from sqlalchemy.schema import CreateTable
except ImportError as _error:
    raise ImportError(
        'SQLStore needs SQLAlchemy: pip install "fastapi-maintenance-guard[sql]"'
    ) from _error

DEFAULT_PREFIX: Final = "fastapi_maintenance"

PATIENCE: Final = 3.0
"""Seconds for which a publication tries to connect, and for which a transaction is
repeated that the database has rolled back."""

CONNECT_TIMEOUT: Final = 3
ANSWER_TIMEOUT: Final = 5
"""Seconds for one statement, or for a connection of the pool."""

# The database's clock in seconds since 1970, so that no time zone plays a part.
_CLOCKS: Final = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000.0",
    "mariadb": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000.0",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}
_SYNCHRONOUS: Final = {
    "postgresql": "postgresql+psycopg://",
    "mysql": "mysql+pymysql://",
    "mariadb": "mariadb+pymysql://",
    "sqlite": "sqlite:///",
}
_PREFIX: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SECRET: Final = re.compile(r"pass|secret|token|pwd", re.IGNORECASE)

# SQLSTATE of PostgreSQL, numbers of MySQL, names of SQLite.
_NO_TABLE: Final = {"42P01", "1146"}
_NO_LOGIN: Final = {"28000", "28P01", "3D000", "1044", "1045", "1049", "1698"}
_NO_RIGHT: Final = ("42501", "1142", "1143", "1227", "SQLITE_READONLY", "SQLITE_PERM")
_READ_ONLY: Final = {"25006", "1290", "1836"}
_ROLLED_BACK: Final = {"40001", "40P01", "1213"}
_TEMPORARY: Final = ("08", "40", "53", "55", "57", "58")
_SHAPE: Final = {"1054", "1364"}
_BUSY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
# A connection that PostgreSQL refuses has no code, only a text.
_NO_LOGIN_TEXT: Final = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied"
    r"|(?:role|database) .* does not exist|not permitted to log in"
    r"|permission denied for database"
)

T = TypeVar("T")


class _NoTablesError(StoreError):
    """The tables are not there."""


class _RolledBackError(TemporaryStoreError):
    """The database has certainly not carried out a transaction."""


class _Record(NamedTuple):
    """What is stored of a switch, and the database's time."""

    state: str | None
    members: str | None
    now: float


class SQLStore:
    """Keeps all switches in two tables of a PostgreSQL, MySQL, MariaDB or SQLite.

    The tables are made on first use if the user may; ``schema`` has their DDL.

    Args:
        url_or_engine: A SQLAlchemy URL with a synchronous driver, for which the store
            makes an engine with one connection; or a ``sqlalchemy.Engine``, which is
            used as it is. ``?prefix=NAME`` in a URL does the same as ``prefix``.
        prefix: The tables are ``<prefix>_switches`` and ``<prefix>_reports``. Two
            applications in one schema need two prefixes. Default: that of the URL,
            else ``fastapi_maintenance``.

    Raises:
        ValueError: If the URL names an unknown or asynchronous driver or a database in
            memory, or the prefix is not 1 to 40 of ``a-z 0-9 _`` or not that of the
            URL.
        TypeError: If it is neither a URL nor an engine.
        ImportError: If the driver is not installed.
    """

    poll_interval: float = 1.0

    def __init__(
        self, url_or_engine: str | Engine, *, prefix: str | None = None
    ) -> None:
        if isinstance(url_or_engine, str):
            text, prefix = split_prefix(url_or_engine, prefix)
            url = _parse(text)
            self._engine = _make_engine(url)
            self._is_own = True
        elif isinstance(url_or_engine, Engine):
            self._engine = url_or_engine
            self._is_own = False
            url = self._engine.url
            _check_dialect(url, self._engine.dialect)
        else:
            raise TypeError(
                f"SQLStore takes a URL or a sqlalchemy.Engine, not {url_or_engine!r};"
                " an AsyncEngine cannot be used from a thread"
            )
        self.prefix: str = check_prefix(DEFAULT_PREFIX if prefix is None else prefix)
        self._tables = _Tables(self.prefix)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._now = literal_column(_CLOCKS[self._engine.dialect.name], Double)
        self._location = _location(url, self.prefix)
        if not self._is_own:
            # Where an engine leads is not in its URL alone: it can have a ``creator``,
            # or another ``search_path``.
            self._location += f" (engine {id(self._engine):#x})"

    @classmethod
    def from_url(cls, url: str) -> SQLStore:
        """Return the store that a URL names, ``?prefix=NAME`` included.

        Raises:
            ValueError: If the URL cannot work.
            ImportError: If the driver is not installed.
        """
        return cls(url)

    def __repr__(self) -> str:
        return f"SQLStore({self._location!r})"

    @property
    def location(self) -> str:
        """The URL and the prefix, without the password."""
        return self._location

    def read(self, name: str) -> MaintenanceState | None:
        """Read the state; None when nothing is stored."""
        switches = self._tables.switches
        query = select(switches.c.state).where(switches.c.name == name)
        try:
            with self._connect_to_read() as connection:
                text = connection.execute(query).scalar()
        except _NoTablesError:
            return None
        return parse_state(text, f"{name!r} in {switches} in {self._location}")

    def publish(self, name: str, change: Change) -> MaintenanceState:
        """Replace the state, in a transaction that locks it first.

        Raises:
            StoreError: If it cannot be set. If the connection breaks during the commit,
                the state may have been set all the same.
        """

        def work(connection: Connection) -> MaintenanceState:
            state = next_state(self._make_and_lock(connection, name).state, change)
            self._set(connection, name, state=state.to_json())
            return state

        # Tried again until there is a connection. A commit that fails may have been
        # carried out.
        retry(self._reach, PATIENCE)
        return self._write(work)

    def report(self, name: str, report: WorkerReport) -> Receipt:
        """Keep a report; committed when this returns."""
        switches = self._tables.switches
        query = select(switches.c.members).where(switches.c.name == name)

        def work(connection: Connection) -> Receipt:
            membership = parse_membership(connection.execute(query).scalar())
            if (
                membership is not None
                and report.id in membership.members
                and self._replace_report(connection, name, report)
            ):
                return Receipt(
                    membership.generation, membership.complete, replaced=True
                )
            return self._join(connection, name, report)

        return self._write(work)

    def roster(self, name: str) -> Roster:
        """Read the list of workers and every report, as of one moment."""
        switches, reports = self._tables.switches, self._tables.reports
        # One statement sees one moment.
        query = union_all(
            select(
                literal_column("''", String).label("worker"),
                switches.c.members.label("document"),
                self._now.label("reported_at"),
                self._now.label("now"),
            ).where(switches.c.name == name),
            select(
                reports.c.worker, reports.c.document, reports.c.reported_at, self._now
            ).where(reports.c.name == name),
        )
        try:
            with self._connect_to_read() as connection:
                found = connection.execute(query).all()
        except _NoTablesError:
            found = []
        membership, workers, clock = None, [], 0.0
        for worker, document, reported_at, now in found:
            clock = float(now)
            if worker:  # The list of workers stands under no worker's id.
                report = parse(WorkerReport, document)
                workers.append(judge_liveness(worker, report, clock - reported_at))
            else:
                membership = parse_membership(document)
        workers.sort(key=lambda report: report.id)
        return roster_of(membership, workers, clock)

    def confirm(self, name: str, generation: str, *, complete: bool) -> str:
        """Mark the roster."""

        def work(connection: Connection) -> str:
            after = self._change_members(
                connection, name, mark_members(generation, complete=complete)
            )
            return "" if after is None else after.generation

        try:
            return self._transaction(work)
        except _NoTablesError:
            return ""

    def remove(self, name: str, worker: str) -> None:
        """Take a worker off the list, and remove its report."""
        reports = self._tables.reports
        its_report = delete(reports).where(
            reports.c.name == name, reports.c.worker == worker
        )

        def work(connection: Connection) -> None:
            self._change_members(connection, name, remove_member(worker))
            connection.execute(its_report)

        with suppress(_NoTablesError):
            self._transaction(work)

    def close(self) -> None:
        """Close the connections, unless the engine is the application's."""
        if self._is_own:
            self._engine.dispose()

    def forked(self) -> None:
        """Begin again in a child: the connections are the parent's."""
        self._engine.dispose(close=False)

    def _join(self, connection: Connection, name: str, report: WorkerReport) -> Receipt:
        """Keep the first report of a worker, or one that was lost, and list it."""
        membership = self._change_members(connection, name, add_member(report))
        replaced = self._replace_report(connection, name, report)
        if not replaced:
            connection.execute(
                insert(self._tables.reports).values(
                    name=name, worker=report.id, **self._columns(report)
                )
            )
        return Receipt(membership.generation, membership.complete, replaced)

    def _change_members(
        self,
        connection: Connection,
        name: str,
        change: MembersChange[Members],
    ) -> Members:
        record = self._make_and_lock(connection, name)
        before = parse_membership(record.members)
        after = change(before, record.now)
        if after is not None and after != before:
            self._set(connection, name, members=after.model_dump_json())
        return after

    def _lock(self, connection: Connection, name: str) -> _Record | None:
        """Return a switch that nothing else can change until the transaction ends."""
        switches = self._tables.switches
        query = select(switches.c.state, switches.c.members, self._now.label("now"))
        query = query.where(switches.c.name == name)
        found = connection.execute(query.with_for_update()).one_or_none()
        return None if found is None else _Record(found[0], found[1], float(found[2]))

    def _make_and_lock(self, connection: Connection, name: str) -> _Record:
        found = self._lock(connection, name)
        while found is None:
            try:
                with connection.begin_nested():
                    connection.execute(insert(self._tables.switches).values(name=name))
            except exc.IntegrityError:
                found = self._lock(connection, name)
                if found is None:
                    raise  # No other one was faster: the table refuses it.
            else:
                found = self._lock(connection, name)
        return found

    def _set(self, connection: Connection, name: str, **values: str) -> None:
        switches = self._tables.switches
        connection.execute(
            update(switches).where(switches.c.name == name).values(**values)
        )

    def _replace_report(
        self, connection: Connection, name: str, report: WorkerReport
    ) -> bool:
        reports = self._tables.reports
        done = connection.execute(
            update(reports)
            .where(reports.c.name == name, reports.c.worker == report.id)
            .values(**self._columns(report))
        )
        return done.rowcount == 1

    def _columns(self, report: WorkerReport) -> dict[str, Any]:
        return {"document": report.model_dump_json(), "reported_at": self._now}

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction; make the tables if there are none."""
        try:
            return self._transaction(work)
        except _NoTablesError:
            self._make_tables()
        return self._transaction(work)

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction, again if the database says that it was rolled back."""
        # After any other failure of a commit, its outcome is unknown.
        return retry(lambda: self._attempt(work), PATIENCE, _RolledBackError)

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        # An engine of the application's may commit each statement by itself.
        isolation = None if self._is_sqlite else "READ COMMITTED"
        with self._connect(isolation) as connection, connection.begin():
            if self._is_sqlite and not _in_transaction(connection):
                # One that reads first could not write beside another one.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            return work(connection)

    def _connect_to_read(self) -> AbstractContextManager[Connection]:
        # Nothing is begun that would have to be ended.
        return self._connect(None if self._is_sqlite else "AUTOCOMMIT")

    @contextmanager
    def _connect(self, isolation: str | None = None) -> Iterator[Connection]:
        try:
            connection = self._engine.connect()
        except (exc.SQLAlchemyError, TypeError) as error:
            # A driver raises TypeError for an option that it does not know.
            raise self._translate(error, connecting=True) from error
        try:
            with connection:
                if isolation is not None:
                    connection = connection.execution_options(isolation_level=isolation)
                yield connection
        except (exc.SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error) as error:
            raise self._translate(error) from error

    def _reach(self) -> None:
        with self._connect():
            pass

    def _make_tables(self) -> None:
        try:
            self._transaction(self._tables.make)
        except StoreError as error:
            if self._has_tables():
                return  # Another worker has made them at the same moment.
            raise StoreError(
                f"{self._location} has no tables {self.prefix}_*, and they cannot be"
                f" made: {_text(error.__cause__ or error)}; if this user may not make"
                " them, run what `fastapi-maintenance schema` prints as one who may"
            ) from error

    def _has_tables(self) -> bool:
        with self._connect() as connection:
            inspector = inspect(connection)
            return all(inspector.has_table(table.name) for table in self._tables.all)

    def _translate(  # noqa: PLR0911  # one for each kind
        self, error: Exception, *, connecting: bool = False
    ) -> StoreError:
        """Return an error of the driver as one sentence with the remedy."""
        code, text = _code(error), _text(error)
        place, tables = self._location, f"{self.prefix}_*"
        if code in _NO_TABLE or text.startswith("no such table"):
            return _NoTablesError(
                f"{place} has no tables {tables}; they are made by the first worker, or"
                " by what `fastapi-maintenance schema` prints"
            )
        if code in _NO_LOGIN or (connecting and _NO_LOGIN_TEXT.search(text)):
            return StoreError(
                f"{place} refuses the login: {text}; correct the user, the password or"
                " the database in the URL"
            )
        if code.startswith(_NO_RIGHT):
            return StoreError(
                f"this user may not use the tables {tables} in {place}: {text}; grant"
                " SELECT, INSERT, UPDATE and DELETE"
            )
        if code in _READ_ONLY:
            # A primary that became a replica: the next connection may find the new one.
            if self._is_own:
                self._engine.dispose()
            return TemporaryStoreError(
                f"{place} is read-only: {text}; the URL must lead to the primary"
            )
        if code in _ROLLED_BACK or code.startswith(_BUSY):
            return _RolledBackError(f"{place} is busy: {text}; try again")
        if _is_temporary(error, code):
            return TemporaryStoreError(f"{place} does not answer: {text}")
        if connecting:
            return StoreError(f"cannot connect to {place}: {text}; correct the URL")
        return StoreError(
            f"cannot use the tables {tables} in {place}: {text}; if they were made by"
            " something else, choose another prefix with ?prefix=NAME"
        )


class _Tables:
    """The two tables of a prefix."""

    def __init__(self, prefix: str) -> None:
        metadata = MetaData()
        long_text = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
        options: dict[str, Any] = {
            f"{dialect}_{option}": value
            for dialect in ("mysql", "mariadb")
            for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
        }
        self.switches = Table(
            f"{prefix}_switches",
            metadata,
            Column("name", String(64), primary_key=True),
            Column("state", long_text),
            Column("members", long_text),
            **options,
        )
        self.reports = Table(
            f"{prefix}_reports",
            metadata,
            Column("name", String(64), primary_key=True),
            Column("worker", String(80), primary_key=True),
            Column("document", long_text, nullable=False),
            Column("reported_at", Double, nullable=False),
            **options,
        )
        self.all = (self.switches, self.reports)

    def make(self, connection: Connection) -> None:
        """Make the tables that are not there."""
        for table in self.all:
            connection.execute(CreateTable(table, if_not_exists=True))


def schema(url: str) -> str:
    """Return the DDL of the tables, for a database administrator or a migration.

    Args:
        url: The store's URL; only its dialect and ``?prefix=`` matter, and the driver
            need not be installed.

    Raises:
        ValueError: If no store has such a URL.

    Examples:
        >>> print(schema("sqlite:///shop.db?prefix=shop").splitlines()[0])
        CREATE TABLE shop_switches (
    """
    text, prefix = split_prefix(url)
    parsed = _parse(text)
    dialect = parsed.get_dialect()()
    tables = _Tables(check_prefix(DEFAULT_PREFIX if prefix is None else prefix))
    statements = (
        str(CreateTable(table).compile(dialect=dialect)).strip() for table in tables.all
    )
    text = "\n\n".join(f"{statement};" for statement in statements)
    lines = (line.rstrip() for line in text.replace("\t", "    ").splitlines())
    return "\n".join(lines) + "\n"


def _parse(text: str) -> URL:
    """Return a URL, which has no prefix any more.

    Raises:
        ValueError: If it is not the URL of a database that can be used.
    """
    try:
        url = make_url(text)
        dialect = url.get_dialect()
    except exc.NoSuchModuleError:
        raise ValueError(
            f"unknown database {url.drivername!r}; use postgresql+psycopg://,"
            " mysql+pymysql:// or sqlite:///PATH"
        ) from None
    except (exc.ArgumentError, ValueError):
        # The text itself is not shown, as it may hold a password.
        raise ValueError(
            "not a database URL; use postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    _check_dialect(url, dialect)
    path = url.database or ""
    if dialect.name == "sqlite" and not path.startswith("file:"):
        # A later change of the working directory must not move the switch.
        url = url.set(database=os.path.abspath(path))  # noqa: PTH100  # links stay
    return url


def _check_dialect(url: URL, dialect: type[Dialect] | Dialect) -> None:
    backend = url.get_backend_name()
    if dialect.name not in _CLOCKS:
        raise ValueError(
            f"{backend} is not supported; use PostgreSQL, MySQL, MariaDB or SQLite"
        )
    if dialect.is_async:
        raise ValueError(
            f"{url.drivername} is asynchronous, and the store runs in threads; use"
            f" {_SYNCHRONOUS[dialect.name]} here, the application may keep its own"
        )
    database = url.database or ":memory:"
    if dialect.name == "sqlite" and (
        ":memory:" in database or url.query.get("mode") == "memory"
    ):
        raise ValueError(
            "a SQLite database in memory is seen by no other worker; use"
            " sqlite:///PATH, or memory: for a single process"
        )


def check_prefix(prefix: object) -> str:
    """Return a prefix that names tables without quotes in every database.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"prefix must be 1 to 40 of a-z, 0-9 and '_' and begin with a letter, not"
            f" {prefix!r}; for example 'shop'"
        )
    return prefix


def _make_engine(url: URL) -> Engine:
    options: dict[str, object] = (
        # A file is opened by its name each time: it may have been deleted.
        {"poolclass": NullPool}
        if url.get_backend_name() == "sqlite"
        else {
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": ANSWER_TIMEOUT,
            "pool_pre_ping": True,
        }
    )
    try:
        return create_engine(
            url, connect_args=_connect_args(url), hide_parameters=True, **options
        )
    except ModuleNotFoundError as error:
        package = {
            "psycopg": '"psycopg[binary]"',
            "psycopg2": "psycopg2-binary",
            "MySQLdb": "mysqlclient",
        }.get(str(error.name), error.name)
        raise ImportError(
            f"{url.drivername} needs its driver: pip install {package}"
        ) from error


def _connect_args(url: URL) -> dict[str, object]:
    """Return short time-outs, where the driver has them and the URL has none."""
    driver = url.get_driver_name()
    arguments: dict[str, object] = {}
    if driver in {"psycopg", "psycopg2"}:
        arguments = {
            "application_name": "fastapi-maintenance",
            "connect_timeout": CONNECT_TIMEOUT,
            "tcp_user_timeout": ANSWER_TIMEOUT * 1000,
            # A worker that is stopped inside of a transaction must not lock out others.
            "options": f"-c statement_timeout={ANSWER_TIMEOUT}s"
            f" -c idle_in_transaction_session_timeout={ANSWER_TIMEOUT}s",
            # A report and the read that follows it must meet the same server.
            "target_session_attrs": "read-write",
        }
    if driver == "psycopg":
        # Poolers such as PgBouncer know no prepared statements of a session.
        arguments["prepare_threshold"] = None
    if driver in {"pymysql", "mysqldb"}:
        arguments = {
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": ANSWER_TIMEOUT,
            "write_timeout": ANSWER_TIMEOUT,
        }
    if driver == "pysqlite":
        arguments = {"timeout": CONNECT_TIMEOUT}
    return {name: arguments[name] for name in arguments.keys() - url.query.keys()}


def _location(url: URL, prefix: str) -> str:
    query = {
        option: value
        for option, value in url.query.items()
        if not _SECRET.search(option)
    }
    # ``URL.set`` cannot take a password away.
    shown = URL.create(
        url.drivername,
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query={**query, "prefix": prefix},
    )
    return shown.render_as_string()


def _in_transaction(connection: Connection) -> bool:
    # Engines of applications often begin one by themselves.
    return bool(
        getattr(connection.connection.dbapi_connection, "in_transaction", False)
    )


def _is_temporary(error: Exception, code: str) -> bool:
    if code in _SHAPE or code.startswith("SQLITE") or isinstance(error, TypeError):
        return False
    if not isinstance(error, exc.DBAPIError):
        # The pool has no free connection, or a driver's error that was not translated.
        return not isinstance(error, exc.SQLAlchemyError) or isinstance(
            error, exc.TimeoutError
        )
    return (
        isinstance(error, exc.OperationalError | exc.InterfaceError)
        or error.connection_invalidated
        or code.startswith(_TEMPORARY)
    )


def _code(error: Exception) -> str:
    """Return the code of a driver's error, or ``""``."""
    original = getattr(error, "orig", None) or error
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        found = getattr(original, attribute, None)
        if found:
            return str(found)
    first = original.args[0] if original.args else None
    return str(first) if isinstance(first, int) else ""


def _text(error: BaseException) -> str:
    """Return what a driver says, in one line."""
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split())[:300] or type(original).__name__
