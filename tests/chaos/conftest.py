"""Each fault once, or many times: ``pytest -m chaos --repeat 20``."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import Operator, Service
from tests.conftest import LONG


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat every test: each brings a service down."""
    repeat: int = metafunc.config.getoption("--repeat")
    ids = None if repeat > 1 else [pytest.HIDDEN_PARAM]
    metafunc.fixturenames.append("repetition")
    metafunc.parametrize("repetition", range(repeat), ids=ids)


@pytest.fixture
def flips(request: pytest.FixtureRequest) -> int:
    """How often to switch under load: many times in one test on the long budget.

    Its other repetitions start new workers, which shows more than going on does.
    """
    first: bool = request.node.callspec.params["repetition"] == 0
    return 400 if LONG and first else 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the service lives; other users can enter it, unlike pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def state(folder: Path) -> Path:
    """Where the state of the service under attack lives."""
    return folder / "state"


@pytest.fixture
def service(folder: Path, state: Path) -> Iterator[Service]:
    """A service without workers yet; none survives the test.

    Whatever a test does, no counted work may have run after *drained*.
    """
    with Service(folder / "service", f"file:{state}") as made:
        yield made
        assert made.violations() == []


@pytest.fixture
def operator(service: Service) -> Operator:
    """Who switches it."""
    return Operator(service)
