"""A store of its own for each test, and a worker that has joined it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Member


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


@pytest.fixture
def member(folder: Path) -> Iterator[Member]:
    """A worker that has joined the store of the working directory."""
    worker = Member(folder)
    yield worker
    worker.leave()
