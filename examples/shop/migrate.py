"""Turn prices into cents, which no running order survives.

$ fastapi-maintenance run -- python examples/shop/migrate.py
"""

import os
import sqlite3
import sys
from contextlib import closing

STATEMENTS = """
BEGIN;
ALTER TABLE products ADD COLUMN price_cents INTEGER;
UPDATE products SET price_cents = CAST(ROUND(price * 100) AS INTEGER);
ALTER TABLE products DROP COLUMN price;
COMMIT;
"""


def main() -> int:
    """Migrate, unless an order is half-way: that one was written for the old table."""
    path = os.environ.get("SHOP_DATABASE", "shop.sqlite")
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT count(*) FROM orders WHERE state = 'half-way'"
        (running,) = database.execute(query).fetchone()
        if running:
            print(f"migrate: {running} order(s) are half-way", file=sys.stderr)
            return 1
        database.executescript(STATEMENTS)
    print("migrate: 0 orders half-way, prices are in cents now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
