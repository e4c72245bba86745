"""Budgets of the generated examples, and what every test may lean on."""

import os
import signal

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
settings.load_profile("long" if os.environ.get("TEST_BUDGET") == "long" else "short")


# A shell in the background has these ignored, and what tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio; those for Trio too name it themselves."""
    return "asyncio"
