"""The state: its checks, its clock arithmetic and its JSON form."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance.checks import (
    check_listener,
    check_text,
    seconds,
    whole_seconds,
)
from fastapi_maintenance.state import EPOCH_LIMIT, Phase, StateFormatError, next_epoch

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("fields", "in_force", "phase"),
    [
        ({}, False, "off"),
        ({"enabled": True}, True, "in force"),
        ({"enabled": True, "since": NOW + HOUR}, True, "in force"),
        ({"enabled": True, "starts_at": NOW}, True, "in force"),
        ({"enabled": True, "starts_at": NOW + HOUR}, False, "scheduled"),
        ({"enabled": True, "until": NOW - HOUR}, True, "overdue"),
        ({"enabled": True, "until": NOW}, True, "overdue"),
        ({"enabled": True, "until": NOW, "auto_off": True}, False, "ended"),
        ({"enabled": True, "until": NOW + HOUR, "auto_off": True}, True, "in force"),
        (
            {"enabled": True, "version": 2, "starts_at": NOW + HOUR},
            True,
            "in force",
        ),
        ({"enabled": False, "version": 2}, False, "off"),
    ],
)
def test_state_is_judged_at_the_moment_that_is_asked_for(
    fields: dict[str, Any], in_force: bool, phase: Phase
) -> None:
    """A state is in force from its start on, and past its end unless it opens."""
    state = MaintenanceState(**fields)
    assert state.in_force(NOW) is in_force
    assert state.phase(NOW) == phase


@pytest.mark.parametrize("fields", [{}, {"until": NOW}, {"starts_at": NOW}])
def test_moment_without_a_zone_is_refused(fields: dict[str, Any]) -> None:
    """A naive reading of the clock is refused, not taken for some zone's."""
    naive = NOW.replace(tzinfo=None)
    state = MaintenanceState(enabled=True, **fields)
    for judge in (state.in_force, state.phase):
        with pytest.raises(ValueError, match="now has no time zone"):
            judge(naive)


def test_only_plans_and_automatic_ends_need_a_clock() -> None:
    """An announced end opens nothing, so no clock decides about it."""
    assert not MaintenanceState(enabled=True, until=NOW).needs_clock
    assert MaintenanceState(enabled=True, starts_at=NOW).needs_clock
    assert MaintenanceState(enabled=True, until=NOW, auto_off=True).needs_clock


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"enabled": 1}, "enabled"),
        ({"read_only": None}, "read_only"),
        ({"epoch": -1}, "greater than or equal to 0"),
        ({"epoch": EPOCH_LIMIT}, "less than"),
        ({"epoch": True}, "epoch"),
        ({"epoch": 1.5}, "epoch"),
        ({"retry_after": -1}, "retry_after"),
        ({"retry_after": 1.5}, "retry_after"),
        ({"close_after": -1.0}, "close_after"),
        ({"close_after": float("nan")}, "close_after"),
        ({"since": datetime(2026, 1, 1)}, "timezone"),  # noqa: DTZ001  # the mistake
        ({"since": datetime.max.replace(tzinfo=timezone(-HOUR))}, "calendar"),
        ({"until": "tomorrow"}, "until"),
        ({"message": "two\nlines"}, "one line"),
        ({"message": "\ud800"}, "one line"),
        ({"message": "   "}, "must not be blank"),
        ({"message": "x" * 2001}, "1 to 2000 characters"),
        ({"actor": 3}, "actor"),
        ({"holders": ("a\tb",)}, "one line"),
        ({"holders": "ab"}, "holders"),
        ({"holders": (None,)}, "holders"),
        ({"enabled": True, "since": NOW, "until": NOW}, "must be later than the start"),
        (
            {"enabled": True, "since": NOW, "starts_at": NOW + HOUR, "until": NOW},
            "must be later than the start",
        ),
        ({"auto_off": True}, "auto_off needs an end"),
    ],
)
def test_state_that_cannot_be_meant_is_refused(
    fields: dict[str, Any], says: str
) -> None:
    """What cannot be meant is refused when it is made."""
    with pytest.raises(ValidationError, match=says):
        MaintenanceState(**fields)


def test_state_of_the_past_may_have_ended_before_it_began() -> None:
    """A state that is off keeps an old end beside the time of its switching off."""
    assert not MaintenanceState(since=NOW, until=NOW - HOUR).enabled


def test_state_survives_its_json_form() -> None:
    """Reading what was written gives the same state, in UTC, with unknown keys."""
    east = timezone(timedelta(hours=2))
    state = MaintenanceState(
        epoch=7,
        tag="t",
        enabled=True,
        since=NOW.astimezone(east),
        until=NOW + HOUR,
        message="Grüße 👋",
        retry_after=5,
        holders=("a", "b"),
        close_after=2.5,
        bypass="sha256:0",
        later=[1],  # type: ignore[call-arg]  # a newer release's key
    )
    read = MaintenanceState.from_json(state.to_json())
    assert read == state
    assert read.model_extra == {"later": [1]}
    assert json.loads(state.to_json())["since"] == "2026-11-22T12:00:00Z"


def test_bypass_stays_inside() -> None:
    """The hash of the operators' token is in the stored form and nowhere else."""
    state = MaintenanceState(enabled=True, bypass="sha256:0")
    assert "bypass" not in state.model_dump()
    assert "bypass" not in state.model_dump_json()
    assert MaintenanceState.from_json(state.to_json()).bypass == "sha256:0"
    assert state.replace(message="m").bypass == "sha256:0"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b'\xef\xbb\xbf{"enabled": true}',
        b'{"active": true}',
        b'{"enabled": "false"}',
        b'{"enabled": true, "enabled": false}',
        b'{"enabled": true, "retry_after": NaN}',
        b'{"enabled": true, "version": "1"}',
        b'{"enabled": true, "version": true}',
        b'{"enabled": true, "version": 2, "epoch": -1}',
        b'{"enabled": true, "epoch": 1.5}',
        b'{"enabled": true, "until": 5}',
        b'{"enabled": true, "until": "soon"}',
        b'{"enabled": true, "until": "2026-01-01T00:00:00"}',
        b'{"enabled": true, "until": "9999-12-31T23:59:59-14:00"}',
        b'{"enabled": true, "x": "\\ud800"}',
        b'{"enabled": true, "\\udc00": 1}',
        b'{"enabled": true, "x": 1e999}',
        b'{"enabled": true, "holders": "me"}',
        b'{"enabled": true, "holders": [1]}',
        b'{"enabled": true, "x": ' + b"9" * 5000 + b"}",
        b'{"enabled": true, "x": ' + b"[" * 60_000,
        b'{"enabled": true, "x": ' + b"[" * 952 + b"]" * 952 + b"}",
        b'{"enabled": true, "x": "' + b"x" * 70_000 + b'"}',
    ],
    ids=lambda document: f"{len(document)} {document[:40]!r}",
)
def test_what_is_no_state_is_one_kind_of_error(document: bytes) -> None:
    """Whatever bytes are read, they are a state or a StateFormatError."""
    with pytest.raises(StateFormatError):
        MaintenanceState.from_json(document)


def test_smallest_document_is_one_that_a_person_writes() -> None:
    """The key "enabled" alone is a state."""
    assert MaintenanceState.from_json('{"enabled": true}').enabled


def test_newer_version_blocks_and_is_kept() -> None:
    """Of a version that is not known, only on and off count, and nothing is lost."""
    document = '{"version": 9, "enabled": true, "epoch": 3, "until": {"of": "day"}}'
    state = MaintenanceState.from_json(document)
    assert state.in_force(NOW)
    assert (state.epoch, state.version) == (3, 9)
    assert state.to_json() == document


def test_state_never_changes() -> None:
    """A state is a value: it is equal by what it says, and cannot be set."""
    state = MaintenanceState(enabled=True)
    with pytest.raises(ValidationError):
        state.enabled = False
    assert state == MaintenanceState(enabled=True)
    assert hash(MaintenanceState()) == hash(MaintenanceState())
    with pytest.raises(ValidationError):
        state.replace(message="")


def test_epochs_grow() -> None:
    """The next epoch is larger than every known one, and never too large to read."""
    assert next_epoch(EPOCH_LIMIT - 2) == EPOCH_LIMIT - 1
    assert next_epoch(1, 2) > 2
    with pytest.raises(ValueError, match="no epoch is larger"):
        next_epoch(EPOCH_LIMIT - 1)


@pytest.mark.parametrize(
    ("value", "whole"),
    [(0, 0), (1.2, 2), (timedelta(minutes=1), 60)],
)
def test_durations_become_whole_seconds(value: float | timedelta, whole: int) -> None:
    """A duration is rounded up: asking a client to come too early helps no one."""
    assert whole_seconds(value, "x") == whole


@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), timedelta(seconds=-1), 10**20]
)
def test_durations_can_be_waited_for(value: float | timedelta) -> None:
    """A duration that no clock can wait for is refused with its value."""
    with pytest.raises(ValueError, match="x must be 0 to 1000000000 seconds"):
        whole_seconds(value, "x")


@pytest.mark.parametrize("value", [True, "5", None])
def test_durations_are_numbers(value: Any) -> None:
    """What is no duration is refused, a boolean too."""
    with pytest.raises(TypeError, match="number of seconds"):
        whole_seconds(value, "x")
    with pytest.raises(TypeError, match="number of seconds"):
        seconds(value, "x")


def test_texts_are_texts() -> None:
    """What is no text is refused with its name."""
    with pytest.raises(TypeError, match="x must be a string, not 3"):
        check_text(3, "x")


def test_listeners_are_plain_functions() -> None:
    """What cannot be called, or would have to be awaited, hears of no change."""

    async def listener() -> None:
        raise AssertionError

    check_listener(print, "x")
    with pytest.raises(TypeError, match="x must be callable"):
        check_listener(3, "x")
    with pytest.raises(TypeError, match="x must be a plain function"):
        check_listener(listener, "x")
