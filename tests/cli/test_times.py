"""Durations and moments, as people type and read them."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from fastapi_maintenance.cli.times import (
    clock,
    parse_duration,
    parse_moment,
    show_moment,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

Zone = Callable[[str], None]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """Set the local time zone."""

    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45),
        ("20m", 1200),
        ("1h30m", 5400),
        (" 2D ", 172_800),
        ("1d2h3m4.5s", 93_784.5),
        ("0s", 0),
    ],
)
def test_durations_are_read_in_common_units(text: str, seconds: float) -> None:
    """Days, hours, minutes and seconds add up."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "-5m",
        "5x",
        "m",
        "1m1h",
        "1.5h",
        "inf",
        "nan",
        "\u0661m",
        "9" * 30 + "d",
    ],
)
def test_what_is_no_duration_is_refused_with_its_value(text: str) -> None:
    """A duration without a unit, or one no calendar holds, names the spellings."""
    with pytest.raises(ValueError, match=r"45s, 20m, 1h30m or 2d") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


def test_a_bare_number_is_seconds_only_where_it_says_so() -> None:
    """``--timeout 60`` is a minute, ``--for 60`` is refused."""
    assert parse_duration("60", bare=True) == timedelta(minutes=1)
    assert parse_duration("1m", bare=True) == timedelta(minutes=1)
    with pytest.raises(ValueError, match="or a number of seconds"):
        parse_duration("-1", bare=True)


@pytest.mark.parametrize(
    "text", ["2026-06-01T18:00Z", "2026-06-01T20:00+02:00", "2026-06-01 20:00"]
)
def test_a_time_without_an_offset_is_local(zone: Zone, text: str) -> None:
    """Naive times are read by the clock of the machine."""
    zone(BERLIN)
    assert parse_moment(text, after=NOON) == datetime(2026, 6, 1, 18, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "day", "hour"), [("15:00", 1, 13), ("14:00", 2, 12), ("07:30:00", 2, 5)]
)
def test_a_time_of_day_is_the_next_one(
    zone: Zone, text: str, day: int, hour: int
) -> None:
    """``18:00`` means the next time that local clocks show it."""
    zone(BERLIN)
    found = parse_moment(text, after=NOON)
    assert found.replace(minute=0) == datetime(2026, 6, day, hour, tzinfo=UTC)


def test_a_local_time_that_clocks_skip_is_refused(zone: Zone) -> None:
    """In the gap of a clock change there is no such moment; the remedy names one."""
    zone(BERLIN)
    with pytest.raises(ValueError, match=r"does not exist.*2026-03-29T03:30\+02:00"):
        parse_moment("2026-03-29T02:30", after=NOON)
    with pytest.raises(ValueError, match="does not exist"):
        parse_moment("02:30", after=datetime(2026, 3, 28, 23, tzinfo=UTC))


def test_a_local_time_that_clocks_repeat_is_refused(zone: Zone) -> None:
    """In the fold of a clock change both moments are named with their offsets."""
    zone(BERLIN)
    with pytest.raises(ValueError, match="happens twice") as refused:
        parse_moment("2026-10-25T02:30", after=NOON)
    assert "2026-10-25T02:30+02:00 or 2026-10-25T02:30+01:00" in str(refused.value)
    early = parse_moment("2026-10-25T02:30+02:00", after=NOON)
    late = parse_moment("2026-10-25T02:30+01:00", after=NOON)
    assert late - early == timedelta(hours=1)


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "25:00", "2026-13-01T00:00", "2026-06-01T18:00+99:00"]
)
def test_what_is_no_time_is_refused_with_its_value(text: str) -> None:
    """A time that cannot be read names the spellings."""
    with pytest.raises(ValueError, match="not a time") as refused:
        parse_moment(text, after=NOON)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["0001-01-01T00:00+10:00", "0001-01-01T00:00"])
def test_a_time_before_all_calendars_is_refused(zone: Zone, text: str) -> None:
    """The first hours of year one have no UTC."""
    zone(BERLIN)
    with pytest.raises(ValueError, match="outside of the calendar"):
        parse_moment(text, after=NOON)


@pytest.mark.parametrize(
    ("name", "moment", "shown"),
    [
        ("UTC0", NOON, "2026-06-01 12:00 UTC"),
        (BERLIN, NOON, "2026-06-01 14:00 CEST (12:00 UTC)"),
        (
            BERLIN,
            NOON + timedelta(seconds=5),
            "2026-06-01 14:00:05 CEST (12:00:05 UTC)",
        ),
        (
            BERLIN,
            NOON.replace(hour=23),
            "2026-06-02 01:00 CEST (2026-06-01 23:00 UTC)",
        ),
    ],
)
def test_a_moment_is_shown_in_both_times(
    zone: Zone, name: str, moment: datetime, shown: str
) -> None:
    """Local time and UTC stand side by side, and once where they are the same."""
    zone(name)
    assert show_moment(moment) == shown


def test_the_clock_is_local(zone: Zone) -> None:
    """Lines in a log carry the time of day that the reader's clock shows."""
    zone("XXX-05:30")
    hours, minutes, _ = clock().split(":")
    now = datetime.now(UTC) + timedelta(hours=5, minutes=30)
    assert abs(int(hours) * 60 + int(minutes) - now.hour * 60 - now.minute) in {
        0,
        1,
        1439,
    }
