"""Runs each fault once, or many times: ``pytest -m chaos --repeat 20``."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import Operator, Service
from tests.conftest import LONG


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each test of one fault; those that switch many times run once."""
    if "flips" in metafunc.fixturenames:
        return
    repeat: int = metafunc.config.getoption("--repeat")
    ids = None if repeat > 1 else [pytest.HIDDEN_PARAM]
    metafunc.fixturenames.append("repetition")
    metafunc.parametrize("repetition", range(repeat), ids=ids)


@pytest.fixture
def flips() -> int:
    """How often a test switches under load: 400 times on the long budget.

    Half as often beside a stopped worker, and with two operators.
    """
    return 400 if LONG else 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the service lives; other users can enter it, unlike pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def state(folder: Path) -> Path:
    """The directory under attack."""
    return folder / "state"


@pytest.fixture
def url(state: Path) -> str:
    """The store under attack; files about servers have their own."""
    return f"file:{state}"


@pytest.fixture
def service(folder: Path, url: str) -> Iterator[Service]:
    """A service that has no workers yet; none survives the test.

    Whatever a test does, no counted work may have run after *drained*.
    """
    with Service(folder / "service", url) as made:
        yield made
        assert made.violations() == []


@pytest.fixture
def operator(service: Service) -> Operator:
    """An operator who has not drained before."""
    return Operator(service)
