"""The shop's SQLite database."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

SCHEMA = """
CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name TEXT, price TEXT);
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, product INTEGER, state TEXT);
INSERT OR IGNORE INTO products VALUES
    (1, 'Espresso machine', '249.00'), (2, 'Coffee grinder', '79.50');
"""


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction."""
    path = os.environ.get("SHOP_DATABASE", "shop.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.row_factory = sqlite3.Row
        yield connection


def create() -> None:
    """Make the tables, unless they are there."""
    with connect() as database:
        database.executescript(SCHEMA)
