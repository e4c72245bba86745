"""Budgets of the generated examples, and what every test may lean on."""

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A change is judged by the same examples everywhere; the `property` session looks for
# new ones. `--hypothesis-profile=long` does the same for a few tests.
settings.register_profile(
    "short", deadline=None, database=None, derandomize=True, max_examples=60
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=5_000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
LONG = os.environ.get("TEST_BUDGET") == "long"
settings.load_profile("long" if LONG else "short")


# A shell in the background has these ignored, and what tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio; those for Trio too name it themselves."""
    return "asyncio"


PROGRAMS = ("browser", "chaos", "redis", "servers", "sql")
"""Kinds of tests that start programs, and share a machine with whatever runs there."""

STARTING = (
    *("test_demo", "test_docs", "test_file", "test_keeper", "test_lifespan"),
    *("test_portability", "test_run", "test_switch", "test_threads", "test_waiting"),
)
"""Files of tests that start programs, or wait for threads, without such a kind."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what nox asks for."""
    parser.addoption(
        "--again",
        action="store_true",
        help="try tests that start programs once more when they fail",
    )
    parser.addoption(
        "--repeat",
        type=int,
        default=20 if LONG else 1,
        help="run each test of chaos so often",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Try some kinds once more; for all, the plugin would cost a minute of waiting."""
    for item in items if config.getoption("--again") else ():
        marked = any(item.get_closest_marker(kind) for kind in PROGRAMS)
        if marked or item.path.stem in STARTING:
            item.add_marker(pytest.mark.flaky(reruns=1))


MEASURING = "COVERAGE_PROCESS_CONFIG"
"""Where coverage tells the processes that it follows what to measure."""

UNTRACED = ("browser", "chaos", "servers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Start the programs of some kinds of tests without measuring them.

    What these show is time, faults and counts, not lines, which others cover; tracing
    would make every server of theirs three times as slow.
    """
    kept = os.environ.get(MEASURING)
    if kept and any(item.get_closest_marker(kind) for kind in UNTRACED):
        del os.environ[MEASURING]
    try:
        return (yield)
    finally:
        if kept:
            os.environ[MEASURING] = kept
