"""What an operator asks for, and the state that follows."""

import getpass
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from fastapi_maintenance import MaintenanceState, StoreError
from fastapi_maintenance.changes import (
    CannotDrainError,
    Changes,
    EnableOptions,
    HeldError,
    default_actor,
    is_at_least_as_strict,
    new_holder,
    new_token,
    others_holding,
    token_digest,
    validated_token_digest,
    with_new_epoch,
)
from fastapi_maintenance.state import OPERATOR

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CHANGES = Changes(now=NOW)
ON = MaintenanceState(enabled=True, since=NOW - HOUR)
HELD = ON.replace(holders=("job#1",))


def turned_on(before: MaintenanceState | None = None, **options: Any) -> Any:
    """Return the state that follows from options."""
    return CHANGES.turn_on(before, EnableOptions(**options))


class TestEndedWindow:
    """A window that ``auto_off`` has ended is off, though nothing was published."""

    ENDED = MaintenanceState.model_validate(
        {
            "enabled": True,
            "since": NOW - 2 * HOUR,
            "until": NOW - HOUR,
            "auto_off": True,
            "bypass": validated_token_digest("t" * 16),
            "kept": 1,
        }
    )

    def test_on_begins_again(self) -> None:
        """Its token lets no request in any more, and its beginning is over."""
        state = turned_on(self.ENDED)
        assert (state.since, state.bypass, state.auto_off) == (NOW, None, False)
        assert state.model_extra == {"kept": 1}

    def test_hold_begins_again(self) -> None:
        """``run`` and ``maintenance()`` work on the day after."""
        state = CHANGES.add_hold(self.ENDED, EnableOptions(), "job#1")
        assert CHANGES.make_drainable(state).holders == ("job#1",)

    def test_it_cannot_be_drained(self) -> None:
        """It is open, and the error says so."""
        with pytest.raises(CannotDrainError, match="maintenance is off"):
            CHANGES.make_drainable(self.ENDED)


class TestTurningOn:
    """``on`` and ``enable``."""

    def test_plain_one_is_in_force_at_once(self) -> None:
        """Without a start, no clock decides whether it is on."""
        state = turned_on(message="m", actor="a")
        assert (state.enabled, state.starts_at, state.since) == (True, None, NOW)
        assert (state.message, state.actor, state.holders) == ("m", "a", ())
        assert not state.needs_clock

    def test_planned_window_that_has_begun_goes_on(self) -> None:
        """It began when it was planned, and not at this moment."""
        planned = MaintenanceState(enabled=True, starts_at=NOW - HOUR)
        assert turned_on(planned, message="m").since == NOW - HOUR
        planned = MaintenanceState(enabled=True, starts_at=NOW + HOUR)
        assert turned_on(planned, message="m").since == NOW

    def test_start_ahead_is_a_plan(self) -> None:
        """With a start ahead it begins then, and its length counts from there."""
        state = turned_on(at=NOW + HOUR, until=HOUR, auto_off=True)
        assert (state.since, state.starts_at, state.until) == (
            None,
            NOW + HOUR,
            NOW + 2 * HOUR,
        )
        moments = [NOW, NOW + HOUR, NOW + 2 * HOUR]
        assert [state.in_force(moment) for moment in moments] == [False, True, False]

    def test_end_may_be_a_moment(self) -> None:
        """An end is a moment or a length, and the length counts from now."""
        assert turned_on(until=NOW + HOUR).until == turned_on(until=HOUR).until

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"at": NOW}, "has passed; leave it out to begin now"),
            ({"until": NOW}, "must be later than the start"),
            ({"at": NOW + HOUR, "until": NOW + HOUR}, "must be later than the start"),
            ({"until": timedelta.max}, "outside of the calendar"),
        ],
    )
    def test_times_that_have_passed_are_refused(
        self, options: dict[str, Any], says: str
    ) -> None:
        """A start or an end that has passed is a mistake, and says the remedy."""
        with pytest.raises(ValueError, match=says):
            turned_on(**options)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"until": timedelta(0)}, "longer than 0 seconds"),
            ({"until": -HOUR}, "longer than 0 seconds"),
            ({"at": datetime(2031, 1, 1)}, "timezone"),  # noqa: DTZ001  # the mistake
            ({"message": ""}, "must not be blank"),
            ({"message": "x" * 2001}, "1 to 2000"),
            ({"retry_after": True}, "must be seconds or a timedelta"),
            ({"retry_after": -1}, "must be 0 to"),
            ({"bypass_token": "short"}, "at least 16 characters"),
            ({"bypass_token": "with space in it"}, "visible ASCII"),
            ({"reason": "x"}, "reason"),
        ],
    )
    def test_options_that_cannot_work_are_refused(
        self, options: dict[str, Any], says: str
    ) -> None:
        """What cannot work is refused before anything is stored."""
        with pytest.raises(ValidationError, match=says):
            EnableOptions(**options)

    def test_second_one_keeps_since_when_it_has_been_on(self) -> None:
        """Changing the message does not change since when it has been on."""
        after = turned_on(ON, message="b", retry_after=HOUR)
        assert (after.since, after.message, after.retry_after) == (
            NOW - HOUR,
            "b",
            3600,
        )

    @pytest.mark.parametrize(
        "before",
        [
            None,
            MaintenanceState(since=NOW - HOUR),
            MaintenanceState(enabled=True, starts_at=NOW + HOUR),
            MaintenanceState(enabled=True),
        ],
    )
    def test_otherwise_it_begins_now(self, before: MaintenanceState | None) -> None:
        """What was off, planned, or has no beginning begins now."""
        assert turned_on(before).since == NOW

    def test_token_lasts_until_it_is_off(self) -> None:
        """A token outlives later changes, and neither a new one nor switching off."""
        token, other = "t" * 16, "u" * 16
        first = turned_on(bypass_token=token)
        assert first.bypass == validated_token_digest(token)
        assert token not in first.to_json()
        assert turned_on(first).bypass == validated_token_digest(token)
        assert turned_on(first, bypass_token=other).bypass == validated_token_digest(
            other
        )
        assert turned_on(CHANGES.turn_off(first)).bypass is None

    def test_unknown_keys_are_kept_and_those_of_a_drain_are_not(self) -> None:
        """Keys of newer releases survive; what a drain asked for ends with it."""
        before = MaintenanceState.from_json(
            '{"enabled": true, "new": 1, "close_after": 5.0}'
        )
        after = turned_on(before)
        assert (after.model_extra, after.close_after) == ({"new": 1}, None)
        assert CHANGES.turn_off(before).model_extra == {"new": 1}

    @pytest.mark.parametrize(
        "options",
        [{"at": NOW + HOUR}, {"until": HOUR, "auto_off": True}, {"read_only": True}],
    )
    def test_nothing_may_open_under_the_work_of_others(
        self, options: dict[str, Any]
    ) -> None:
        """While others hold it, no change may let in what they shut out."""
        with pytest.raises(HeldError, match="job#1"):
            turned_on(HELD, **options)
        assert turned_on(HELD.replace(enabled=False), **options).enabled
        assert turned_on(HELD.replace(read_only=True), read_only=True).read_only

    def test_operator_gets_a_name_beside_other_holders(self) -> None:
        """An operator's own ``on`` survives the end of the others' work."""
        after = turned_on(HELD)
        assert after.holders == ("job#1", OPERATOR)
        assert turned_on(after).holders == ("job#1", OPERATOR)


class TestTurningOff:
    """``off`` and ``disable``."""

    def test_it_is_refused_while_others_hold_it(self) -> None:
        """Opening under the work of others needs force."""
        with pytest.raises(HeldError, match=r"held by job#1.*off --force"):
            CHANGES.turn_off(HELD)
        state = CHANGES.turn_off(HELD, actor="ada", force=True)
        assert (state.enabled, state.actor, state.since) == (False, "ada", NOW)
        assert state.holders == ()

    def test_operator_alone_needs_no_force(self) -> None:
        """A person's own hold is a person's to end, and nothing stored is off too."""
        for before in (None, ON.replace(holders=(OPERATOR,))):
            assert not CHANGES.turn_off(before).enabled

    def test_holders_of_a_state_that_is_off_hold_nothing(self) -> None:
        """Only an enabled state can be held."""
        assert others_holding(HELD) == ["job#1"]
        assert others_holding(HELD.replace(enabled=False)) == []
        assert others_holding(None) == []


class TestHolding:
    """``run`` and ``maintenance()``."""

    def test_first_holder_switches_on(self) -> None:
        """Where it is off, a hold switches it on for its holder alone."""
        for before in (None, MaintenanceState(since=NOW)):
            state = CHANGES.add_hold(before, EnableOptions(message="m"), "job#1")
            assert (state.enabled, state.holders, state.message) == (
                True,
                ("job#1",),
                "m",
            )

    def test_hold_leaves_what_an_operator_has_set(self) -> None:
        """A hold keeps what it does not ask for, and the operator beside it."""
        before = ON.replace(
            message="mine", retry_after=5, read_only=True, bypass="sha256:0"
        )
        state = CHANGES.add_hold(before, EnableOptions(), "job#1")
        assert state.holders == (OPERATOR, "job#1")
        assert (state.message, state.retry_after) == ("mine", 5)
        assert (state.since, state.bypass) == (NOW - HOUR, "sha256:0")
        assert not state.read_only

    def test_hold_may_say_more(self) -> None:
        """What a holder asks for is published."""
        asked = EnableOptions(
            message="m",
            actor="ada",
            until=HOUR,
            retry_after=9,
            bypass_token="t" * 16,
            read_only=True,
        )
        state = CHANGES.add_hold(HELD.replace(read_only=True), asked, "job#2")
        assert (state.message, state.actor, state.until) == ("m", "ada", NOW + HOUR)
        assert (state.retry_after, state.bypass) == (
            9,
            validated_token_digest("t" * 16),
        )
        assert (state.holders, state.read_only) == (("job#1", "job#2"), True)

    def test_last_one_to_leave_opens(self) -> None:
        """It stays on as long as one holder is left."""
        both = HELD.replace(holders=("ada#1", "bob#2"), close_after=3.0)
        one = CHANGES.release_hold(both, "ada#1", stays=False)
        assert (one.enabled, one.holders, one.actor) == (True, ("bob#2",), "ada")
        assert one.close_after is None
        none = CHANGES.release_hold(one, "bob#2", stays=False)
        assert (none.enabled, none.actor) == (False, "bob")

    def test_one_that_fails_leaves_it_to_a_person(self) -> None:
        """What stays on after a failure is a person's to open, without force."""
        for before in (HELD, HELD.replace(holders=("job#1", OPERATOR))):
            state = CHANGES.release_hold(before, "job#1", stays=True)
            assert (state.enabled, state.holders) == (True, (OPERATOR,))


class TestConfirming:
    """The form that can be drained."""

    @pytest.mark.parametrize(
        ("state", "says"),
        [
            (MaintenanceState(), "maintenance is off; switch it on first"),
            (ON.replace(since=None, starts_at=NOW + HOUR), "the window begins at"),
            (ON.replace(until=NOW + HOUR, auto_off=True), "auto_off could open"),
        ],
    )
    def test_what_could_open_by_itself_is_refused(
        self, state: MaintenanceState, says: str
    ) -> None:
        """A state that is off, planned, or ends by a clock cannot be drained."""
        with pytest.raises(CannotDrainError, match=says):
            CHANGES.make_drainable(state)

    def test_window_that_has_begun_loses_its_clock(self) -> None:
        """Once it has begun, no worker's clock can doubt it any more."""
        begun = MaintenanceState(enabled=True, starts_at=NOW - HOUR)
        state = CHANGES.make_drainable(begun, 3.0)
        assert (state.since, state.starts_at, state.close_after) == (
            NOW - HOUR,
            None,
            3.0,
        )
        assert CHANGES.make_drainable(state).close_after is None


def test_publication_has_an_epoch_above_all_that_is_known() -> None:
    """An epoch is above the stored one and those of workers; its tag is new."""
    stored = MaintenanceState(epoch=2**51)
    change = with_new_epoch(lambda _: ON, above=[2**52, 3])
    state = change(stored)
    assert (state.epoch, len(state.tag)) == (2**52 + 1, 16)
    # A store that tries again publishes the same thing.
    assert change(stored) == state
    assert change(None).tag == state.tag
    assert with_new_epoch(lambda _: ON)(stored).epoch == 2**51 + 1
    assert with_new_epoch(lambda _: ON)(stored).tag != state.tag


def test_state_of_a_newer_release_is_left_alone() -> None:
    """What this release does not understand, it does not replace."""
    newer = MaintenanceState.from_json('{"version": 2, "enabled": true}')
    with pytest.raises(StoreError, match="upgrade fastapi-maintenance-guard here"):
        with_new_epoch(lambda _: ON)(newer)


@pytest.mark.parametrize(
    ("after", "no_looser"),
    [
        ({}, True),
        ({"message": "m"}, True),
        ({"read_only": True}, False),
        ({"starts_at": NOW}, False),
        ({"until": NOW, "auto_off": True}, False),
        ({"enabled": False}, False),
    ],
)
def test_state_that_lets_more_in_is_looser(
    after: dict[str, Any], no_looser: bool
) -> None:
    """A state is looser if it lets in anything that the other one refuses."""
    assert is_at_least_as_strict(ON.replace(**after), ON) is no_looser
    assert is_at_least_as_strict(ON.replace(read_only=True), ON.replace(read_only=True))
    assert is_at_least_as_strict(ON, ON.replace(read_only=True))


def test_tokens_are_stored_as_digests() -> None:
    """A token is random, and what is stored does not give it away."""
    token = new_token()
    assert token != new_token()
    assert validated_token_digest(token) == token_digest(token.encode())
    assert token not in validated_token_digest(token)
    with pytest.raises(ValueError, match="visible ASCII"):
        validated_token_digest("semicolon;semicolon")


def test_actor_is_who_runs_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """People can tell who holds it: the user, the machine and the process."""
    assert default_actor().endswith(f"/{os.getpid()}")
    assert default_actor().startswith(f"{getpass.getuser()}@")
    assert new_holder("ada") != new_holder("ada")
    assert new_holder("ada").startswith("ada#")
    assert new_holder().startswith(f"{default_actor()}#")

    def nameless() -> str:
        raise KeyError("uid without a name")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert default_actor().startswith("unknown@")
