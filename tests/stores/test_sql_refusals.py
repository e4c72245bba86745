"""What the store refuses, and what a database refuses: one line with the remedy."""

import importlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from fastapi_maintenance import StoreError
from fastapi_maintenance.changes import with_new_epoch
from fastapi_maintenance.stores import TemporaryStoreError
from fastapi_maintenance.stores.sql import SQLStore, schema
from tests.stores.children import NOBODY, in_child, needs_root
from tests.stores.sql_server import PASSWORD, fresh_url, shared_server
from tests.stores.test_sql import NAME, Open, on, opened, report

__all__ = ["opened"]  # a fixture


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://h/d", "use postgresql\\+psycopg:// here"),
        ("mysql+aiomysql://h/d", "use mysql\\+pymysql:// here"),
        ("mariadb+aiomysql://h/d", "use mariadb\\+pymysql:// here"),
        ("sqlite+aiosqlite:///shop.db", "use sqlite:/// here"),
        ("postgres://h/d", "unknown database 'postgres'; use postgresql\\+psycopg://"),
        ("mssql+pyodbc://h/d", "mssql is not supported; use PostgreSQL"),
        ("oracle://h/d", "oracle is not supported; use PostgreSQL"),
        ("sqlite://", "in memory is seen by no other worker"),
        ("sqlite:///:memory:", "in memory is seen by no other worker"),
        ("sqlite:///file:x?mode=memory&uri=true", "is seen by no other worker"),
        ("postgresql+psycopg://u:hidden@h:x/d", "^not a database URL"),
        ("nonsense", "^not a database URL"),
        ("postgresql+psycopg://h/d?prefix=A", "prefix must be 1 to 40 of a-z"),
        ("postgresql+psycopg://h/d?prefix=a&prefix=b", "more than once in the URL"),
    ],
)
def test_url_that_cannot_work(url: str, said: str) -> None:
    """A URL that cannot work is refused with the one to use, and shows no password."""
    with pytest.raises(ValueError, match=said) as caught:
        SQLStore.from_url(url)
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match=said):
        schema(url)


@pytest.mark.parametrize("prefix", ["", "Shop", "1a", "a-b", "a" * 41, 7])
def test_prefix_that_cannot_work(tmp_path: Path, prefix: object) -> None:
    """Tables are named in plain lower case, so that no database needs quotes."""
    with pytest.raises(ValueError, match="prefix must be 1 to 40 of a-z"):
        SQLStore(f"sqlite:///{tmp_path}/x", prefix=prefix)  # type: ignore[arg-type]  # what is refused


def test_prefix_is_given_once(tmp_path: Path) -> None:
    """A prefix in the URL counts; another one beside it is refused."""
    url = f"sqlite:///{tmp_path}/x?prefix=shop"
    assert SQLStore(url).prefix == SQLStore(url, prefix="shop").prefix == "shop"
    assert SQLStore(f"sqlite:///{tmp_path}/x").prefix == "fastapi_maintenance"
    for other in ("other", "fastapi_maintenance"):
        with pytest.raises(ValueError, match=f"'{other}', and 'shop' in the URL"):
            SQLStore(url, prefix=other)


def test_neither_url_nor_engine() -> None:
    """Something else is refused by its type, an asynchronous engine by name."""
    with pytest.raises(TypeError, match="AsyncEngine cannot be used from a thread"):
        SQLStore(7)  # type: ignore[arg-type]  # what is refused


def test_engine_that_cannot_work() -> None:
    """An engine in memory is refused as its URL is."""
    with pytest.raises(ValueError, match="in memory is seen by no other worker"):
        SQLStore(create_engine("sqlite://"))


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("postgresql+psycopg://h/d", '"psycopg\\[binary\\]"'),
        ("postgresql+psycopg2://h/d", "psycopg2-binary"),
        ("mysql+pymysql://h/d", "pymysql"),
        ("mysql+mysqldb://h/d", "mysqlclient"),
    ],
)
def test_missing_driver(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    """A driver that is not installed is named with the line that installs it."""
    for module in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs its driver: pip install {package}$"):
        SQLStore(url)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SQLAlchemy the error is the line that installs it."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delitem(sys.modules, "fastapi_maintenance.stores.sql")
    with pytest.raises(ImportError, match=r'"fastapi-maintenance-guard\[sql\]"'):
        importlib.import_module("fastapi_maintenance.stores.sql")


def test_location_has_no_secret() -> None:
    """The place is shown with user and options, never with a password."""
    store = SQLStore(
        "postgresql+psycopg://shop:hidden@db:5433/orders"
        "?sslmode=require&sslpassword=hidden&passfile=hidden&prefix=shop"
    )
    assert store.location == (
        "postgresql+psycopg://shop@db:5433/orders?prefix=shop&sslmode=require"
    )
    assert "hidden" not in repr(store)


def test_sqlite_path_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of the working directory does not move the switch."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/shop.db?prefix=shop"
    assert SQLStore("sqlite:///shop.db?prefix=shop").location == url
    uri = "sqlite:///file:shop.db?uri=true"
    assert str(tmp_path) not in SQLStore(uri).location


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb"])
def test_time_outs_of_mysql(driver: str) -> None:
    """Both drivers of MySQL give up on a server that does not answer."""
    from sqlalchemy.engine import make_url

    from fastapi_maintenance.stores.sql import _connect_args

    url = make_url(f"mysql+{driver}://h/d?read_timeout=9")
    assert _connect_args(url) == {"connect_timeout": 3, "write_timeout": 5}
    assert _connect_args(make_url("mysql+mysqlconnector://h/d")) == {}


@pytest.mark.parametrize(
    ("url", "lines"),
    [
        (
            "postgresql+psycopg://h/d",
            ["CREATE TABLE fastapi_maintenance_switches (", "    state TEXT,"],
        ),
        ("postgresql+psycopg2://h/d", ["    reported_at DOUBLE PRECISION NOT NULL,"]),
        ("mariadb+pymysql://h/d?prefix=shop", ["CREATE TABLE shop_reports ("]),
        ("mysql+pymysql://h/d", ["    state MEDIUMTEXT,"]),
        ("sqlite:///shop.db", ["    reported_at DOUBLE NOT NULL,"]),
    ],
)
def test_schema_is_that_of_the_dialect(url: str, lines: list[str]) -> None:
    """The DDL is the dialect's own, also where its driver is not installed."""
    found = schema(url)
    assert set(lines) <= set(found.splitlines())
    assert found.count("CREATE TABLE") == found.count(";") == 2
    if "mysql" in url or "mariadb" in url:
        assert found.count("ENGINE=InnoDB") == found.count("utf8mb4") == 2


@pytest.mark.sql
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "wrong-1"}, "refuses the login: .*password authentication"),
        ({"user": "unknown"}, "refuses the login: .*password authentication"),
        ({"database": "unknown"}, 'refuses the login: .*"unknown" does not exist'),
        ({"query": "bogus=1"}, "cannot connect .*bogus.*; correct the URL"),
    ],
)
def test_login_is_refused(opened: Open, wrong: dict[str, Any], said: str) -> None:
    """What waiting cannot repair is no outage, and no password is shown."""
    store = opened(shared_server().url(**wrong))
    for call in (
        lambda: store.read(NAME),
        lambda: store.publish(NAME, with_new_epoch(on)),
        lambda: store.report(NAME, report("a")),
        lambda: store.roster(NAME),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            call()
        assert not isinstance(caught.value, TemporaryStoreError)
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert "wrong-1" not in str(caught.value)


@pytest.mark.sql
def test_nothing_listens(opened: Open) -> None:
    """A server that cannot be reached is an outage, which may be over in a moment."""
    store = opened(shared_server().url(port=1))
    with pytest.raises(TemporaryStoreError, match=r"does not answer: .*refused"):
        store.read(NAME)


@pytest.mark.sql
def test_user_that_may_not_make_tables(opened: Open) -> None:
    """It is told about ``schema``, and needs nothing more than what that makes."""
    server = shared_server()
    user = server.add_user()
    url = server.url(user=user)
    store = opened(url)
    assert store.read(NAME) is None
    for call in (
        lambda: store.publish(NAME, with_new_epoch(on)),
        lambda: store.report(NAME, report("a")),
    ):
        with pytest.raises(StoreError, match="`fastapi-maintenance schema`") as caught:
            call()
        assert "permission denied for schema" in str(caught.value)
    for statement in schema(url).split(";")[:-1]:
        server.run(statement.replace("CREATE TABLE ", f"CREATE TABLE {user}."))
    with pytest.raises(StoreError, match="grant SELECT, INSERT, UPDATE and DELETE"):
        store.read(NAME)
    for table in ("switches", "reports"):
        server.run(
            "GRANT SELECT, INSERT, UPDATE, DELETE"
            f" ON {user}.fastapi_maintenance_{table} TO {user}"
        )
    store.report(NAME, report("a"))
    assert store.publish(NAME, with_new_epoch(on)) == store.read(NAME)
    assert store.roster(NAME).members == {"a"}


@pytest.mark.sql
@pytest.mark.parametrize(
    "columns", ["(id int)", "(name int, state int, members int)"], ids=["few", "types"]
)
def test_table_of_another_shape(opened: Open, columns: str) -> None:
    """A table that something else has made is left as it is."""
    server = shared_server()
    store = opened(fresh_url(server))
    table = f"{store.prefix}_switches"
    server.run(f"CREATE TABLE {table} {columns}")
    for call in (
        lambda: store.read(NAME),
        lambda: store.publish(NAME, with_new_epoch(on)),
        lambda: store.report(NAME, report("a")),
    ):
        with pytest.raises(StoreError, match="choose another prefix") as caught:
            call()
        assert not isinstance(caught.value, TemporaryStoreError)
        assert "\n" not in str(caught.value)
    assert server.run(f"SELECT count(*) FROM {table}") == [(0,)]


def test_sqlite_table_of_another_shape(tmp_path: Path, opened: Open) -> None:
    """The same for SQLite, which has but one code for all of it."""
    store = opened(f"sqlite:///{tmp_path}/shop.db")
    with store._engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE fastapi_maintenance_switches (id)")
    with pytest.raises(StoreError, match=r"no such column.*choose another prefix"):
        store.read(NAME)
    with pytest.raises(StoreError, match=r"no such column.*choose another prefix"):
        store.publish(NAME, with_new_epoch(on))


def test_sqlite_table_that_takes_no_new_switch(tmp_path: Path, opened: Open) -> None:
    """What the table refuses for another reason is said, and not tried for ever."""
    place = f"sqlite:///{tmp_path}/shop.db"
    switches = "CREATE TABLE fastapi_maintenance_switches"
    shape = "name TEXT PRIMARY KEY, state TEXT, members TEXT, owner TEXT NOT NULL"
    opened(place).publish("another", with_new_epoch(on))
    with create_engine(place).begin() as connection:
        connection.exec_driver_sql("DROP TABLE fastapi_maintenance_switches")
        connection.exec_driver_sql(f"{switches} ({shape})")
    with pytest.raises(StoreError, match="NOT NULL constraint failed"):
        opened(place).publish(NAME, with_new_epoch(on))


def test_file_that_is_no_database(tmp_path: Path, opened: Open) -> None:
    """A file of another kind is left as it is."""
    path = tmp_path / "shop.db"
    path.write_bytes(b"not a database" * 100)
    store = opened(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="file is not a database") as caught:
        store.publish(NAME, with_new_epoch(on))
    assert not isinstance(caught.value, TemporaryStoreError)
    assert path.read_bytes() == b"not a database" * 100


def test_sqlite_file_that_cannot_be_made(tmp_path: Path, opened: Open) -> None:
    """A folder that does not exist is no outage."""
    store = opened(f"sqlite:///{tmp_path}/none/shop.db")
    with pytest.raises(StoreError, match="unable to open database file") as caught:
        store.read(NAME)
    assert not isinstance(caught.value, TemporaryStoreError)


@needs_root
def test_sqlite_file_that_may_not_be_written(tmp_path: Path, opened: Open) -> None:
    """A user that may only read is told which rights are missing."""
    folder = Path("/tmp") / f"sqlite-{secrets.token_hex(6)}"
    folder.mkdir(0o755)
    store = opened(f"sqlite:///{folder}/shop.db")
    state = store.publish(NAME, with_new_epoch(on))

    def child() -> bool:
        assert store.read(NAME) == state
        with pytest.raises(StoreError, match="may not use the tables"):
            store.publish(NAME, with_new_epoch(on))
        return True

    try:
        assert in_child(child, user=NOBODY)
    finally:
        os.unlink(folder / "shop.db")  # noqa: PTH108
        folder.rmdir()


@pytest.mark.parametrize(
    ("code", "temporary", "said"),
    [
        (1146, False, "has no tables"),
        (1045, False, "refuses the login"),
        (1142, False, "grant SELECT"),
        (1054, False, "choose another prefix"),
        (1836, True, "must lead to the primary"),
        (1205, True, "does not answer"),
        (1213, True, "is busy"),
        (2006, True, "does not answer"),
    ],
)
def test_numbers_of_mysql(
    tmp_path: Path, opened: Open, code: int, temporary: bool, said: str
) -> None:
    """What MySQL's numbers mean, all of which its drivers call operational."""
    store = opened(f"sqlite:///{tmp_path}/shop.db")
    error = OperationalError("SELECT", {}, RuntimeError(code, "said MySQL"))
    translated = store._translate(error)
    assert said in str(translated)
    assert isinstance(translated, TemporaryStoreError) is temporary
