"""The logger of the package."""

import logging

import pytest

from fastapi_maintenance.log import logger


def test_record_names_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    """A record, and what groups records by their place, shows who has logged it."""
    caplog.set_level(logging.INFO)
    logger.info("a")
    try:
        raise ValueError("b")
    except ValueError:
        logger.exception("c")
    assert [record.filename for record in caplog.records] == ["test_log.py"] * 2
    assert "ValueError: b" in caplog.text


def test_handler_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A filter of the application that raises costs the record, and nothing else."""

    def fails(record: logging.LogRecord) -> bool:
        raise RuntimeError("a broken filter")

    logger.logger.addFilter(fails)
    try:
        logger.warning("lost")
    finally:
        logger.logger.removeFilter(fails)
    assert not caplog.records
