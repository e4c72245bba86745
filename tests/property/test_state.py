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
    MemoryStore,
)
from fastapi_maintenance.state import StateFormatError
from fastapi_maintenance.stores._member import FileLink
from tests.guard.support import Ran, publish

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
    length = draw(st.timedeltas(timedelta(microseconds=1), timedelta(days=300)))
    until = draw(
        st.none() | st.just((since or datetime(2000, 1, 1, tzinfo=UTC)) + length)
    )
    extra = draw(st.dictionaries(st.text(max_size=8), values, max_size=3))
    return MaintenanceState(
        epoch=draw(st.integers(0, 2**53 - 1)),
        active=draw(st.booleans()),
        since=since,
        begun=draw(st.booleans()),
        until=until,
        auto_off=until is not None and draw(st.booleans()),
        message=draw(st.none() | lines),
        retry_after=draw(st.none() | st.integers(0, 10**9)),
        read_only=draw(st.booleans()),
        actor=draw(st.none() | lines),
        holders=tuple(draw(st.lists(lines, max_size=3))),
        bypass=draw(st.none() | lines),
        extra={key: value for key, value in extra.items() if key not in KNOWN},
    )


@given(state=states())
def test_json_keeps_everything(state: MaintenanceState) -> None:
    """What is written is read again, unknown keys included."""
    assert MaintenanceState.from_json(state.to_json()) == state
    assert MaintenanceState.from_json(state.to_json().encode()) == state


@given(state=states(), version=st.integers(2, 9), active=st.booleans())
def test_json_of_a_newer_release_is_kept_and_obeyed(
    state: MaintenanceState, version: int, active: bool
) -> None:
    """A version of the future blocks while active, and is written back unchanged."""
    document = json.loads(state.to_json()) | {"version": version, "active": active}
    read = MaintenanceState.from_json(json.dumps(document))
    assert read.in_force(datetime(2000, 1, 1, tzinfo=UTC)) is active
    assert json.loads(read.to_json()) == document


@example(document='{"active": true}')
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
SOON = MaintenanceState(active=True, until=NOON + timedelta(hours=1))

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
    assert 1 <= state.wait_seconds(now, 60) <= 86_400
    assert MaintenanceState.from_json(state.to_json()) == state


@example(state=SOON, now=NOON, default=60)
@given(state=states(), now=moments, default=st.integers(0, 10**12))
def test_wait_is_digits_from_a_second_to_a_day(
    state: MaintenanceState, now: datetime, default: int
) -> None:
    """Clients are never asked to hammer, nor to sleep for longer than a day."""
    wait = state.wait_seconds(now, default)
    assert type(wait) is int
    assert 1 <= wait <= 86_400
    if state.until is not None and timedelta(0) < state.until - now <= timedelta(1):
        # Not before the end, and no more than the second that is rounded up.
        assert timedelta(0) <= timedelta(seconds=wait) - (state.until - now)
        assert timedelta(seconds=wait - 1) < state.until - now


@given(state=states(), now=moments)
def test_retry_after_is_always_digits(state: MaintenanceState, now: datetime) -> None:
    """The header of a refusal is ASCII digits in range, whatever the state."""
    guard = MaintenanceGuard(MemoryStore())
    guard._switch.clock = lambda: now
    app = FastAPI(dependencies=[Depends(guard)])
    app.add_api_route("/target", Ran().endpoint, methods=["POST"])
    publish(guard, **{**_fields(state), "active": True})
    answer = TestClient(app).post("/target")
    assert answer.status_code == (503 if guard.is_active else 200)
    if answer.status_code == 503:
        text = answer.headers["Retry-After"]
        assert text.isascii()
        assert text.isdigit()
        assert 1 <= int(text) <= 86_400


def _fields(state: MaintenanceState) -> dict[str, Any]:
    return {
        name: getattr(state, name)
        for name in state.__dataclass_fields__
        if name != "epoch"
    }


@given(
    first=st.none()
    | st.binary(max_size=200)
    | documents.map(json.dumps).map(str.encode),
    then=st.none()
    | st.binary(max_size=200)
    | documents.map(json.dumps).map(str.encode),
)
def test_any_file_gives_a_state_or_the_last_one(
    first: bytes | None, then: bytes | None
) -> None:
    """Whatever a state file holds, requests get 200 or 503, never an error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "default.json"
        guard = MaintenanceGuard(FileStore(folder))
        app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
        app.add_api_route("/target", Ran().endpoint, methods=["POST"])
        _write(file, first)
        with TestClient(app) as client:
            before = _asked(client, guard, first, cold=True)
            _write(file, then)
            look_as_a_keeper(guard)
            after = _asked(client, guard, then, cold=False)
            if _read(then) is None:
                assert after == before


def look_as_a_keeper(guard: MaintenanceGuard) -> None:
    """Look twice: at the first one, a missing file may belong to a vanishing folder."""
    link = guard._switch.worker.link
    assert isinstance(link, FileLink)
    for _ in range(2):
        link.tend(None)


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(content)


def _read(content: bytes | None) -> MaintenanceState | None:
    try:
        return (
            MaintenanceState()
            if content is None
            else MaintenanceState.from_json(content)
        )
    except StateFormatError:
        return None


def _asked(
    client: TestClient, guard: MaintenanceGuard, content: bytes | None, *, cold: bool
) -> int:
    status = client.post("/target").status_code
    state = _read(content)
    if state is not None:
        assert status == (503 if state.in_force(datetime.now(UTC)) else 200)
    elif cold:
        assert status == 503
    assert status in {200, 503}
    assert guard.is_active in {True, False}
    return status
