"""The state: its checks, its clock arithmetic and its JSON form."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from fastapi_maintenance import MaintenanceState
from fastapi_maintenance._checks import check_aware, check_text, whole_seconds
from fastapi_maintenance.state import EPOCH_LIMIT, StateFormatError, next_epoch

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("fields", "in_force"),
    [
        ({}, False),
        ({"active": True}, True),
        ({"active": True, "since": NOW}, True),
        ({"active": True, "since": NOW + HOUR}, False),
        ({"active": True, "since": NOW + HOUR, "begun": True}, True),
        ({"active": True, "until": NOW - HOUR}, True),
        ({"active": True, "until": NOW, "auto_off": True}, False),
        ({"active": True, "until": NOW + HOUR, "auto_off": True}, True),
        ({"active": True, "version": 2, "since": NOW + HOUR}, True),
        ({"active": False, "version": 2}, False),
    ],
)
def test_force_is_judged_at_the_moment_that_is_asked_for(
    fields: dict[str, Any], in_force: bool
) -> None:
    """A state is in force from its start on, and past its end unless it opens."""
    assert MaintenanceState(**fields).in_force(NOW) is in_force


def test_a_moment_without_a_zone_is_no_answer() -> None:
    """A naive reading of the clock is refused, not taken for some zone's."""
    with pytest.raises(ValueError, match="now has no time zone"):
        MaintenanceState(active=True).in_force(NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 60),
        ({"until": NOW + timedelta(seconds=90.2)}, 91),
        ({"until": NOW + timedelta(days=9)}, 86_400),
        ({"until": NOW, "retry_after": 7}, 7),
        ({"retry_after": 0}, 1),
        ({"retry_after": 10**20}, 86_400),
    ],
)
def test_clients_are_asked_to_wait_for_the_end(
    fields: dict[str, Any], seconds: int
) -> None:
    """The wait leads to an end that is ahead, else it is the default, 1 s to a day."""
    assert MaintenanceState(active=True, **fields).wait_seconds(NOW, 60) == seconds


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"active": 1}, TypeError, "active must be True or False, not 1"),
        ({"read_only": None}, TypeError, "read_only must be True or False"),
        ({"epoch": -1}, ValueError, "epoch must be"),
        ({"epoch": EPOCH_LIMIT}, ValueError, "epoch must be"),
        ({"epoch": True}, TypeError, "epoch must be"),
        ({"epoch": 1.5}, TypeError, "epoch must be"),
        ({"retry_after": -1}, ValueError, "retry_after must not be negative"),
        ({"retry_after": 1.5}, TypeError, "retry_after must be whole seconds"),
        ({"since": datetime(2026, 1, 1)}, ValueError, "since has no time zone"),  # noqa: DTZ001  # the mistake
        ({"until": "tomorrow"}, TypeError, "until must be a datetime"),
        ({"message": "two\nlines"}, ValueError, "message must be one line"),
        ({"message": "\ud800"}, ValueError, "message must be one line"),
        ({"message": "   "}, ValueError, "1 to 2000 characters"),
        ({"message": "x" * 2001}, ValueError, "1 to 2000 characters"),
        ({"actor": 3}, TypeError, "actor must be a string"),
        ({"holders": ("a\tb",)}, ValueError, "holder must be one line"),
        ({"holders": "ab"}, TypeError, "holders must be a tuple of names, not 'ab'"),
        ({"holders": (None,)}, TypeError, "holders must be a tuple of names"),
        ({"holders": (3,)}, TypeError, "holder must be a string"),
        ({"since": NOW, "until": NOW}, ValueError, "must be later than the start"),
        ({"auto_off": True}, ValueError, "auto_off needs an end"),
    ],
)
def test_a_state_that_cannot_be_meant_is_refused(
    fields: dict[str, Any], error: type[Exception], says: str
) -> None:
    """What cannot be meant is refused when it is made, with the value."""
    with pytest.raises(error, match=says):
        MaintenanceState(**fields)


def test_it_survives_its_json_form() -> None:
    """Reading what was written gives the same state, in UTC."""
    east = timezone(timedelta(hours=2))
    state = MaintenanceState(
        epoch=7,
        active=True,
        since=NOW.astimezone(east),
        until=NOW + HOUR,
        message="Grüße 👋",
        retry_after=5,
        holders=("a", "b"),
        extra={"later": [1]},
    )
    assert MaintenanceState.from_json(state.to_json()) == state
    assert json.loads(state.to_json())["since"] == "2026-11-22T12:00:00Z"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'\xef\xbb\xbf{"active": true}',
        b'{"active": "false"}',
        b'{"active": true, "active": false}',
        b'{"active": true, "retry_after": NaN}',
        b'{"active": true, "version": "1"}',
        b'{"active": true, "version": true}',
        b'{"active": true, "epoch": 1.5}',
        b'{"active": true, "until": 5}',
        b'{"active": true, "until": "soon"}',
        b'{"active": true, "until": "2026-01-01T00:00:00"}',
        b'{"active": true, "until": "9999-12-31T23:59:59-14:00"}',
        b'{"active": true, "x": "\\ud800"}',
        b'{"active": true, "\\udc00": 1}',
        b'{"active": true, "x": 1e999}',
        b'{"active": true, "holders": "me"}',
        b'{"active": true, "holders": [1]}',
        b'{"active": true, "x": ' + b"9" * 5000 + b"}",
        b'{"active": true, "x": ' + b"[" * 60_000,
        b'{"active": true, "x": "' + b"x" * 70_000 + b'"}',
    ],
    ids=lambda document: repr(document[:40]),
)
def test_what_is_no_state_is_one_kind_of_error(document: bytes) -> None:
    """Whatever bytes are read, they are a state or a StateFormatError."""
    with pytest.raises(StateFormatError):
        MaintenanceState.from_json(document)


def test_a_newer_version_blocks_and_is_kept() -> None:
    """Of a version that is not known, only on and off count, and nothing is lost."""
    document = '{"version": 9, "active": true, "epoch": 3, "until": {"of": "day"}}'
    state = MaintenanceState.from_json(document)
    assert state.in_force(NOW)
    assert (state.epoch, state.version) == (3, 9)
    assert state.extra["until"] == {"of": "day"}


def test_what_a_state_was_made_from_may_change() -> None:
    """A state never changes, nor with the dictionary that it was made from."""
    extra: dict[str, object] = {"key": 1}
    state = MaintenanceState(extra=extra)
    extra["key"] = 2
    assert state.extra == {"key": 1}
    assert hash(state) == hash(MaintenanceState())


def test_epochs_grow() -> None:
    """The next epoch is larger than every known one, and than before."""
    assert next_epoch(EPOCH_LIMIT - 2) == EPOCH_LIMIT - 1
    assert next_epoch(1, 2) > 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1.2, 2), (timedelta(minutes=1), 60)],
)
def test_durations_become_whole_seconds(value: float | timedelta, seconds: int) -> None:
    """A duration is rounded up: asking a client to come too early helps nobody."""
    assert whole_seconds(value, "x") == seconds


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
    with pytest.raises(TypeError, match="seconds or a timedelta"):
        whole_seconds(value, "x")


def test_nothing_needs_no_check() -> None:
    """An absent text or time passes."""
    check_text(None, "x")
    check_aware(None, "x")
