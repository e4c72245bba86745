"""Laws of the state: its JSON form, its times, and what a file may hold."""

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_maintenance import (
    FileStore,
    MaintenanceGuard,
    MaintenanceState,
)
from fastapi_maintenance.refusal import seconds_to_wait
from fastapi_maintenance.state import StateFormatError

pytestmark = pytest.mark.property

KNOWN = set(json.loads(MaintenanceState().to_json()))

lines = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=40
).filter(lambda text: bool(text.strip()))
# Whole microseconds of UTC are what the JSON form keeps.
moments = st.datetimes(
    min_value=datetime(1970, 1, 2),  # noqa: DTZ001  # strategies add the zone
    max_value=datetime(9990, 1, 1),  # noqa: DTZ001  # strategies add the zone
    timezones=st.just(UTC),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def states(draw: st.DrawFn) -> MaintenanceState:
    """Draw a state that is allowed."""
    since = draw(st.none() | moments)
    starts_at = draw(st.none() | moments)
    length = draw(st.timedeltas(timedelta(microseconds=1), timedelta(days=300)))
    begin = starts_at or since or datetime(2000, 1, 1, tzinfo=UTC)
    until = draw(st.none() | st.just(begin + length))
    extra = draw(st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=3))
    fields: dict[str, Any] = {
        "epoch": draw(st.integers(0, 2**53 - 1)),
        "tag": draw(st.text("0123456789abcdef", max_size=16)),
        "enabled": draw(st.booleans()),
        "since": since,
        "starts_at": starts_at,
        "until": until,
        "auto_off": until is not None and draw(st.booleans()),
        "message": draw(st.none() | lines),
        "retry_after": draw(st.none() | st.integers(0, 10**9)),
        "read_only": draw(st.booleans()),
        "actor": draw(st.none() | lines),
        "holders": tuple(draw(st.lists(lines, max_size=3))),
        "close_after": draw(st.none() | st.floats(0, 10**9)),
        "bypass": draw(st.none() | lines),
    }
    return MaintenanceState.model_validate(
        {key: value for key, value in extra.items() if key not in KNOWN} | fields
    )


@given(state=states())
def test_json_keeps_everything(state: MaintenanceState) -> None:
    """What is written is read again, unknown keys included."""
    assert MaintenanceState.from_json(state.to_json()) == state
    assert MaintenanceState.from_json(state.to_json().encode()) == state


@given(state=states(), epoch=st.integers(0, 2**53 - 1))
def test_replacing_changes_nothing_else(state: MaintenanceState, epoch: int) -> None:
    """A state with another epoch is the same state otherwise."""
    other = state.replace(epoch=epoch)
    assert other.epoch == epoch
    assert other.replace(epoch=state.epoch) == state


@given(state=states(), version=st.integers(2, 9), enabled=st.booleans())
def test_json_of_a_newer_release_is_kept_and_obeyed(
    state: MaintenanceState, version: int, enabled: bool
) -> None:
    """A version of the future blocks while enabled, and is written back unchanged."""
    document = json.loads(state.to_json()) | {"version": version, "enabled": enabled}
    read = MaintenanceState.from_json(json.dumps(document))
    assert read.in_force(datetime(2000, 1, 1, tzinfo=UTC)) is enabled
    assert json.loads(read.to_json()) == document


@example(document='{"enabled": true}')
@given(document=st.binary(max_size=80) | st.text(max_size=80) | values.map(json.dumps))
def test_any_document_is_a_state_or_no_state(document: bytes | str) -> None:
    """Reading a document gives a state or the one error, and nothing else."""
    try:
        state = MaintenanceState.from_json(document)
    except StateFormatError:
        pass  # The one error there is.
    else:
        assert isinstance(state, MaintenanceState)


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SOON = MaintenanceState(enabled=True, until=NOON + timedelta(hours=1))

documents = states().map(lambda state: json.loads(state.to_json()))


@given(document=documents, key=st.sampled_from(sorted(KNOWN)), value=values)
def test_any_value_of_a_key_is_a_state_or_no_state(
    document: dict[str, Any], key: str, value: object
) -> None:
    """A key with any value gives a state that can be used, or the one error."""
    try:
        state = MaintenanceState.from_json(json.dumps(document | {key: value}))
    except StateFormatError:
        return
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert state.in_force(now) in {True, False}
    assert 1 <= seconds_to_wait(state, now, 60) <= 86_400
    assert MaintenanceState.from_json(state.to_json()) == state


@example(state=SOON, now=NOON, default=60)
@given(state=states(), now=moments, default=st.integers(0, 10**12))
def test_wait_is_digits_from_a_second_to_a_day(
    state: MaintenanceState, now: datetime, default: int
) -> None:
    """Clients are never asked to hammer, nor to sleep for longer than a day."""
    wait = seconds_to_wait(state, now, default)
    assert type(wait) is int
    assert 1 <= wait <= 86_400
    if state.until is not None and timedelta(0) < state.until - now <= timedelta(1):
        # Not before the end, and no more than the second that is rounded up.
        assert timedelta(0) <= timedelta(seconds=wait) - (state.until - now)
        assert timedelta(seconds=wait - 1) < state.until - now


@given(state=states(), now=moments)
def test_phases_agree_with_what_is_refused(
    state: MaintenanceState, now: datetime
) -> None:
    """A state refuses requests in the phases that say so, and in no other."""
    refused = state.phase(now) in {"in force", "overdue"}
    assert state.in_force(now) is refused
    if not state.needs_clock:
        assert state.in_force(now) is state.enabled


contents = (
    st.none() | st.binary(max_size=200) | documents.map(json.dumps).map(str.encode)
)


@given(first=contents, then=contents)
def test_any_file_gives_a_state_or_the_last_one(
    first: bytes | None, then: bytes | None
) -> None:
    """Whatever a state file holds, requests get 200 or 503, never an error."""
    # The keeper may write a report while the directory is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        guard = MaintenanceGuard(FileStore(folder))
        app = FastAPI(dependencies=[Depends(guard)])

        @app.post("/target")
        async def target() -> None: ...

        client = TestClient(app)
        file = Path(folder) / "default.json"
        _write(file, first)
        before = _asked(client, guard, first, cold=True)
        _write(file, then)
        guard._switch.keeper.look()
        after = _asked(client, guard, then, cold=before is None)
        if before is not None and _read(then) is None:
            assert after == before


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(content)


def _read(content: bytes | None) -> MaintenanceState | None:
    try:
        return None if content is None else MaintenanceState.from_json(content)
    except StateFormatError:
        return None


def _asked(
    client: TestClient, guard: MaintenanceGuard, content: bytes | None, *, cold: bool
) -> int | None:
    """Return the status, or None if this worker has known no state."""
    status = client.post("/target").status_code
    assert status in {200, 503}
    if not guard._switch.worker.joined:
        assert status == 503
        return None
    state = _read(content)
    if cold and content is None:
        assert status == 200
    assert (status == 503) is guard.is_active
    if cold and state is not None:
        assert (status == 503) is state.in_force(datetime.now(UTC))
    return status
