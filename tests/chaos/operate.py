"""Drains a store from a process of its own, and prints what it was told as JSON."""

import argparse
import asyncio
import json
import os
import sys

import anyio.to_thread

from fastapi_maintenance.changes import EnableOptions
from fastapi_maintenance.stores import StoreError, open_store
from fastapi_maintenance.switch import DrainOptions, Switch


def main() -> None:
    """Drain once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--timeout", type=float)
    options = parser.parse_args()
    switch = Switch(open_store(options.url), "default")
    if "CHAOS_USER" in os.environ:
        # After all imports: that user may not be able to read the files.
        asyncio.run(anyio.to_thread.run_sync(int))
        os.setgroups([])
        os.setgid(int(os.environ["CHAOS_USER"]))
        os.setuid(int(os.environ["CHAOS_USER"]))
    try:
        report = asyncio.run(
            switch.drain(
                DrainOptions(timeout=options.timeout),
                enable=EnableOptions(message="chaos"),
            )
        )
    except StoreError as error:
        told = {"error": str(error)}
    else:
        told = {"outcome": report.outcome, "reason": report.reason}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
