"""When the reports of workers mean *drained*."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fastapi_maintenance import DrainError, DrainReport, MaintenanceState, Roster
from fastapi_maintenance.fence import (
    LOST_AFTER,
    SETTLING,
    Fence,
    Liveness,
    Membership,
    Oldest,
    Outcome,
    Verdict,
    WorkerReport,
    blocks_drain,
    count_before,
    distinct_hosts,
    foresee,
    has_acknowledged,
    judge_number,
    shown_span,
    with_member,
    worker_status,
)

EPOCH = 100
STATE = MaintenanceState(epoch=EPOCH, tag="t", enabled=True)
CLOCK = 1000.0
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
OFF = STATE.replace(enabled=False)
PLANNED = STATE.replace(starts_at=NOW + HOUR)
CLOSING = STATE.replace(until=NOW + HOUR, auto_off=True)


def worker(
    name: str = "a",
    *,
    seen: int = EPOCH,
    tag: str = "t",
    liveness: Liveness = "alive",
    age: float = 0.0,
    **fields: Any,
) -> WorkerReport:
    """Return a listed report that blocks nothing, unless told otherwise."""
    report = WorkerReport(
        id=name,
        host=fields.pop("host", "web"),
        pid=ord(name[0]),
        seen=seen,
        tag=tag if seen else "",
        **fields,
    )
    return report.with_liveness(liveness, age)


def behind(name: str = "a", **fields: Any) -> WorkerReport:
    """Return the report of a worker that has not seen the publication."""
    return worker(name, seen=1, tag="before", **fields)


def roster(
    *workers: WorkerReport,
    generation: str = "g",
    complete: bool = True,
    age: float = SETTLING,
    also: frozenset[str] = frozenset(),
    uncounted: bool = False,
) -> Roster:
    """Return what a look finds; ``also`` have joined and have no report."""
    return Roster(
        generation=generation,
        complete=complete,
        age=age,
        members=frozenset(found.id for found in workers) | also,
        workers=workers,
        uncounted=uncounted,
    )


def fence(
    before: Roster | None = None,
    *,
    workers: int | None = None,
    in_process: bool = False,
) -> Fence:
    """Return the judge of one drain."""
    return Fence(
        state=STATE,
        roster_before=roster(behind()) if before is None else before,
        workers=workers,
        in_process=in_process,
    )


@pytest.mark.parametrize(
    ("found", "blocks"),
    [
        (worker(), False),
        (worker(current=3), False),
        (worker(old=1), True),
        (worker(tag="of another history"), True),
        (worker(seen=EPOCH + 1), True),
        (worker(seen=0), True),
        (behind(), True),
        (behind(current=1), True),
        (behind(current=5, liveness="dead"), False),
        (behind(liveness="silent"), True),
        (worker(liveness="silent"), False),
    ],
)
def test_worker_blocks_until_it_has_acknowledged_and_runs_nothing_older(
    found: WorkerReport, blocks: bool
) -> None:
    """Only the publication itself, with nothing older, or a proven death is enough."""
    assert blocks_drain(found, STATE) is blocks


def test_later_publication_acknowledges_too() -> None:
    """A worker that has adopted a later state acknowledges this one too.

    It is enough for the answer of ``enable``, and not for a drain.
    """
    assert has_acknowledged(worker(), STATE)
    assert has_acknowledged(worker(seen=EPOCH + 1, tag="x"), STATE)
    assert not has_acknowledged(worker(tag="x"), STATE)
    assert not has_acknowledged(behind(), STATE)
    assert count_before(worker(current=2, old=1), STATE) == 1
    assert count_before(behind(current=2, old=1), STATE) == 3


@pytest.mark.parametrize(
    ("workers", "outcome", "reason"),
    [
        ([worker()], "drained", ""),
        ([worker(), worker("b")], "drained", ""),
        ([worker(current=9)], "drained", ""),
        ([worker(liveness="silent")], "drained", ""),
        ([worker(old=2)], "busy", "still running on web/97 (2 in flight)"),
        (
            [worker(old=1, oldest=Oldest(route="POST /orders", seconds=41))],
            "busy",
            "still running on web/97: POST /orders, 41 s",
        ),
        (
            [worker(old=3, oldest=Oldest(route="POST /orders", seconds=2.25))],
            "busy",
            "web/97: POST /orders, 2.2 s (and 2 more)",
        ),
        ([behind()], "busy", "no answer yet from web/97"),
        ([behind(current=1), worker("b")], "busy", "web/97"),
        ([worker(uncounted=1)], "unknown", "see their logs"),
        ([worker(uncounted=1, old=1)], "busy", "in flight"),
        ([], "too_few", "no worker has joined"),
        ([behind(current=5, liveness="dead")], "too_few", "no worker has joined"),
        ([behind(current=5, liveness="dead"), worker("b")], "drained", ""),
    ],
)
def test_complete_roster_is_judged_by_its_reports(
    workers: list[WorkerReport], outcome: Outcome, reason: str
) -> None:
    """With all workers on the list, their reports decide."""
    verdict = fence().judge(roster(*workers), CLOCK)
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_workers_that_could_not_join_make_it_unknown() -> None:
    """No number of reports speaks for a worker that is not counted."""
    for workers in (None, 0, 1):
        verdict = fence(workers=workers).judge(roster(worker(), uncounted=True), CLOCK)
        assert (verdict.outcome, verdict.final) == ("unknown", True)
    assert fence(workers=0).judge(roster(uncounted=True), CLOCK).outcome == "unknown"


class TestSilence:
    """A worker that does not answer is lost after five seconds, and never drained."""

    def test_it_is_measured_by_the_coordinator_s_own_clock(self) -> None:
        """Five seconds without a new report are *lost*, however old the report is."""
        judge = fence()
        for second in range(5):
            found = roster(behind(age=float(second)))
            assert judge.judge(found, CLOCK + second).outcome == "busy"
        verdict = judge.judge(roster(behind(age=5.0)), CLOCK + 5)
        assert (verdict.outcome, verdict.final) == ("lost", True)
        assert "web/97 has not answered for 5.0 s" in verdict.reason
        assert verdict.reason.endswith("fastapi-maintenance forget a")

    def test_each_new_report_is_an_answer(self) -> None:
        """A worker that repeats itself at its heartbeat is only busy."""
        judge = fence()
        for tenth in range(100):
            found = roster(worker(old=1, age=tenth % 10 / 10))
            assert judge.judge(found, CLOCK + tenth / 10).outcome == "busy"

    @pytest.mark.parametrize("every", [0.25, 1.02, 2.1])
    def test_heartbeat_is_heard_however_seldom_one_looks(self, every: float) -> None:
        """A slow coordinator may see the same age, or a larger one, at each look."""
        judge = fence()
        for look in range(40):
            found = roster(worker(old=1, age=look * every % 1))
            assert judge.judge(found, CLOCK + look * every).outcome == "busy"

    def test_other_content_is_an_answer(self) -> None:
        """A report that says something else is new, whatever its age."""
        judge = fence()
        for second in range(10):
            found = roster(behind(age=1.0, current=second))
            assert judge.judge(found, CLOCK + second).outcome == "busy"

    def test_silence_from_before_counts(self) -> None:
        """A worker that was silent at the first look is given two heartbeats."""
        judge = fence()
        assert judge.judge(roster(behind(age=60.0)), CLOCK).outcome == "busy"
        assert judge.judge(roster(behind(age=61.0)), CLOCK + 1).outcome == "busy"
        verdict = judge.judge(roster(behind(age=62.0)), CLOCK + 2)
        assert (verdict.outcome, verdict.final) == ("lost", True)
        assert "for 1 min 2 s" in verdict.reason

    def test_one_that_answers_is_waited_for_first(self) -> None:
        """While another worker is busy, a lost one does not end the wait."""
        judge = fence()
        for second in range(3):
            found = roster(behind(age=60.0 + second), worker("b", old=1, age=0.1))
            verdict = judge.judge(found, CLOCK + second)
            assert (verdict.outcome, verdict.final) == ("busy", False)
        assert "web/98" in verdict.reason

    def test_one_that_has_nothing_left_to_say_may_be_silent(self) -> None:
        """A worker that has acknowledged with nothing older blocks nothing."""
        verdict = fence().judge(roster(worker(age=60.0, liveness="silent")), CLOCK)
        assert verdict.outcome == "drained"

    def test_it_begins_again_after_an_outage(self) -> None:
        """While the store could not be read, no worker could be heard."""
        judge = fence()
        judge.judge(roster(behind(age=0.0)), CLOCK)
        for second in range(1, 60):
            if second % 2:
                judge.pause()
            found = roster(behind(age=float(second)))
            assert judge.judge(found, CLOCK + second).outcome == "busy"

    def test_coordinator_that_was_stopped_starts_over(self) -> None:
        """A coordinator that was frozen blames no worker for its own silence."""
        judge = fence()
        judge.judge(roster(behind(age=0.0)), CLOCK)
        assert judge.judge(roster(behind(age=60.0)), CLOCK + 60).outcome == "busy"

    def test_proof_of_death_ends_it(self) -> None:
        """A drain stops waiting for a silent worker once its death is proven."""
        judge = fence()
        judge.judge(roster(behind(current=1), worker("b")), CLOCK)
        found = roster(behind(current=1, age=9.0, liveness="dead"), worker("b"))
        assert judge.judge(found, CLOCK + 1).outcome == "drained"


class TestMissingReports:
    """A worker on the list without a report is not absent."""

    def test_it_is_waited_for_and_then_lost(self) -> None:
        """Its report may be written at this moment; after five seconds it is lost."""
        judge = fence()
        found = roster(worker(), also=frozenset({"gone"}))
        for second in (0, 2, 4):
            verdict = judge.judge(found, CLOCK + second)
            assert (verdict.outcome, verdict.final) == ("lost", False)
        verdict = judge.judge(found, CLOCK + 6)
        assert (verdict.outcome, verdict.final) == ("lost", True)
        assert "fastapi-maintenance forget gone" in verdict.reason

    def test_it_may_come_back(self) -> None:
        """A report that appears is judged as any other."""
        judge = fence()
        judge.judge(roster(worker(), also=frozenset({"b"})), CLOCK)
        judged = judge.judge(roster(worker(), behind("b")), CLOCK + 1)
        assert judged.outcome == "busy"
        judged = judge.judge(roster(worker(), worker("b")), CLOCK + 2)
        assert judged.outcome == "drained"

    def test_number_does_not_replace_it(self) -> None:
        """As many others as asked for do not speak for a member without a report."""
        for workers in (0, 1):
            found = roster(worker(), also=frozenset({"gone"}))
            assert fence(workers=workers).judge(found, CLOCK).outcome == "lost"


class TestNumbers:
    """``workers=None``, ``0`` and ``N``."""

    @pytest.mark.parametrize(
        ("found", "workers", "verdict"),
        [
            (roster(worker()), None, ("drained", False)),
            (roster(), None, ("too_few", True)),
            (Roster(), None, ("too_few", True)),
            (Roster(complete=False), None, ("too_few", True)),
            (roster(worker(), complete=False), None, ("lost", True)),
            (roster(worker(), age=1.0), None, ("lost", False)),
            (roster(worker()), 2, ("too_few", False)),
            (roster(worker(), worker("b")), 2, ("drained", False)),
            (roster(worker(), worker("b"), complete=False), 2, ("drained", False)),
            (roster(worker(), worker("b"), age=1.0), 2, ("drained", False)),
            (roster(worker(), worker("b")), 1, ("drained", False)),
            (roster(worker(), worker("b"), complete=False), 1, ("lost", False)),
            (roster(worker(), worker("b"), age=1.0), 1, ("lost", False)),
            (roster(), 0, ("drained", False)),
            (Roster(), 0, ("drained", False)),
            (Roster(complete=False), 0, ("drained", False)),
            (roster(worker()), 0, ("drained", False)),
            (roster(worker(), complete=False), 0, ("lost", True)),
            (roster(worker(), age=1.0), 0, ("lost", False)),
            (
                roster(behind(liveness="dead"), complete=False),
                0,
                ("drained", False),
            ),
        ],
    )
    def test_number_decides_where_the_roster_cannot(
        self, found: Roster, workers: int | None, verdict: tuple[Outcome, bool]
    ) -> None:
        """At least N must have joined; exactly N completes a roster; None trusts it."""
        judged = judge_number(found, workers)
        assert (judged.outcome, judged.final) == verdict

    def test_too_few_says_how_many(self) -> None:
        """An operator reads how many are there, and of how many."""
        judged = fence(workers=3).judge(roster(worker(), worker("b")), CLOCK)
        assert judged == Verdict("too_few", "2 of 3 workers have joined")

    def test_all_that_joined_must_acknowledge(self) -> None:
        """More workers than asked for are waited for as well."""
        found = roster(worker(), worker("b"), behind("c"))
        assert fence(workers=2).judge(found, CLOCK).outcome == "busy"

    @pytest.mark.parametrize(
        ("workers", "outcome"),
        [(None, "drained"), (0, "drained"), (1, "drained"), (2, "too_few")],
    )
    def test_memory_of_a_process_is_complete(
        self, workers: int | None, outcome: Outcome
    ) -> None:
        """Where nothing can be elsewhere, no roster has to prove it."""
        found = roster(worker(), age=0.0)
        assert (
            fence(workers=workers, in_process=True).judge(found, CLOCK).outcome
            == outcome
        )

    def test_memory_without_a_worker_runs_nothing(self) -> None:
        """On a memory store, no worker means that nothing runs."""
        for found in (Roster(), roster(age=0.0)):
            assert fence(in_process=True).judge(found, CLOCK).outcome == "drained"


class TestGenerations:
    """A roster that was lost proves nothing by itself."""

    @pytest.mark.parametrize(
        ("before", "found"),
        [
            (roster(behind()), roster(worker(), generation="h", complete=False)),
            (roster(behind(), complete=False), roster(worker(), complete=False)),
            (roster(behind()), roster(worker(), complete=False)),
            (Roster(complete=False), roster(worker(), complete=False)),
        ],
    )
    def test_loss_before_the_first_look_is_not_completed_by_waiting(
        self, before: Roster, found: Roster
    ) -> None:
        """A coordinator that saw no complete roster cannot know who is missing.

        A roster from before the publication is not enough: a worker may have joined
        after it was read, under the state before.
        """
        judge = fence(before)
        for look in range(100):
            verdict = judge.judge(found, CLOCK + look / 100)
            assert (verdict.outcome, verdict.final) == ("lost", True)

    def test_loss_during_the_drain_needs_all_that_were_seen(self) -> None:
        """After a loss, each worker that was seen must be back, or proven dead."""
        judge = fence()
        both = roster(worker(old=1), worker("b"))
        assert judge.judge(both, CLOCK).outcome == "busy"
        one = roster(worker(), generation="h", complete=False)
        verdict = judge.judge(one, CLOCK + 1)
        assert verdict.outcome == "lost"
        assert "forget b" in verdict.reason
        back = roster(worker(), worker("b"), generation="h", complete=False)
        assert judge.judge(back, CLOCK + 2).outcome == "drained"

    def test_loss_and_a_proof_of_death(self) -> None:
        """A proof of death stands for a worker that does not come back."""
        judge = fence()
        both = roster(worker(old=1), behind("b", current=1))
        assert judge.judge(both, CLOCK).outcome == "busy"
        gone = behind("b", current=1, liveness="dead")
        after = roster(worker(), gone, generation="h", complete=False)
        assert judge.judge(after, CLOCK + 1).outcome == "drained"
        after = roster(worker(), generation="h", complete=False)
        assert judge.judge(after, CLOCK + 2).outcome == "drained"

    def test_worker_that_left_before_the_loss_is_not_missed(self) -> None:
        """Leaving a complete roster in order is no loss."""
        judge = fence()
        judge.judge(roster(worker(old=1), worker("b")), CLOCK)
        judge.judge(roster(worker(old=1)), CLOCK + 1)
        after = roster(worker(), generation="h", complete=False)
        assert judge.judge(after, CLOCK + 2).outcome == "drained"

    def test_worker_that_joins_after_the_loss_is_waited_for(self) -> None:
        """What appears on the new roster counts as well."""
        judge = fence()
        judge.judge(roster(worker(old=1)), CLOCK)
        after = roster(worker(), behind("c"), generation="h", complete=False)
        assert judge.judge(after, CLOCK + 1).outcome == "busy"
        after = roster(worker(), generation="h", complete=False)
        assert judge.judge(after, CLOCK + 2).outcome == "lost"

    def test_all_workers_of_a_lost_roster_may_be_gone(self) -> None:
        """When all that were seen are dead, nothing has joined any more."""
        judge = fence()
        judge.judge(roster(worker(old=1)), CLOCK)
        dead = roster(worker(old=1, liveness="dead"), generation="h", complete=False)
        assert judge.judge(dead, CLOCK + 1).outcome == "too_few"

    def test_number_completes_what_was_lost(self) -> None:
        """With a person's number, exactly as many workers must have acknowledged."""
        before = roster(behind())

        def judged(*workers: WorkerReport) -> Outcome:
            found = roster(*workers, generation="h", complete=False)
            return fence(before, workers=2).judge(found, CLOCK).outcome

        assert judged(worker()) == "too_few"
        assert judged(worker(), behind("b")) == "busy"
        assert judged(worker(), worker("b")) == "drained"
        assert judged(worker(), worker("b"), worker("c")) == "lost"

    def test_young_roster_is_waited_for(self) -> None:
        """A new roster is given three seconds for workers of an older one."""
        judge = fence(Roster(complete=False))
        for age in (0.0, 2.9):
            verdict = judge.judge(roster(worker(), age=age), CLOCK + age)
            assert (verdict.outcome, verdict.final) == ("lost", False)
        verdict = judge.judge(roster(worker(), age=3.0), CLOCK + 3)
        assert verdict.outcome == "drained"

    def test_young_roster_that_turns_incomplete_is_lost(self) -> None:
        """A worker that remembers an older roster testifies within those seconds."""
        judge = fence(Roster(complete=False))
        judge.judge(roster(worker(), age=1.0), CLOCK)
        found = roster(worker(), generation="h", complete=False, age=0.1)
        verdict = judge.judge(found, CLOCK + 1)
        assert (verdict.outcome, verdict.final) == ("lost", True)

    def test_no_roster_is_no_answer(self) -> None:
        """In the middle of a deletion, those that were seen are still waited for."""
        judge = fence()
        judge.judge(roster(worker(), worker("b", old=1)), CLOCK)
        verdict = judge.judge(Roster(complete=False), CLOCK + 1)
        assert (verdict.outcome, verdict.final) == ("lost", False)
        back = roster(worker(), generation="h", complete=False)
        assert judge.judge(back, CLOCK + 2).outcome == "lost"
        number = fence(workers=1)
        number.judge(roster(worker(), worker("b", old=1)), CLOCK)
        assert number.judge(Roster(complete=False), CLOCK + 1).outcome == "lost"

    def test_roster_that_a_person_completes_is_complete(self) -> None:
        """Another operator's number, given in the middle, counts for this drain."""
        judge = fence()
        lost = roster(worker(), generation="h", complete=False)
        assert judge.judge(lost, CLOCK).outcome == "lost"
        found = roster(worker(), generation="h")
        assert judge.judge(found, CLOCK + 1).outcome == "drained"


def test_own_requests_are_left_out() -> None:
    """A request inside which the drain runs is not waited for; others are."""

    def judged(*workers: WorkerReport) -> Outcome:
        return fence().judge(roster(*workers), CLOCK, "a").outcome

    assert judged(worker(old=1)) == "drained"
    assert judged(worker(old=2)) == "busy"
    assert judged(worker(current=1)) == "drained"
    assert judged(behind(current=1)) == "busy"
    assert judged(worker(), worker("b", old=1)) == "busy"


class TestForeseeing:
    """What no wait can change is said before anything is changed."""

    @pytest.mark.parametrize(
        ("found", "workers", "outcome"),
        [
            (roster(behind()), None, None),
            (roster(behind(current=4)), None, None),
            (roster(behind(age=LOST_AFTER)), None, "lost"),
            (roster(behind(age=60, liveness="dead"), behind("b")), None, None),
            (roster(behind(uncounted=1)), None, "unknown"),
            (roster(behind(), uncounted=True), None, "unknown"),
            (roster(), None, "too_few"),
            (roster(), 0, None),
            (roster(behind()), 2, None),
            (roster(behind(), complete=False), None, "lost"),
            (roster(behind(), complete=False), 1, None),
            (roster(behind(), complete=False), 2, None),
            (roster(behind(), complete=False), 0, "lost"),
            (roster(behind(), age=0.0), None, None),
        ],
    )
    def test_roster_tells(
        self, found: Roster, workers: int | None, outcome: Outcome | None
    ) -> None:
        """No worker, an incomplete roster, and long silence are known at once."""
        verdict = foresee(found, workers)
        assert (verdict and verdict.outcome) == outcome
        assert verdict is None or (verdict.final and verdict.reason)


class TestMembership:
    """The stored form of a roster."""

    def test_first_worker_makes_it(self) -> None:
        """It is complete if its maker remembers no older one."""
        first = with_member(None, worker(), 5.0)
        assert (first.complete, first.made) == (True, 5.0)
        assert first.members == {"a"}
        again = with_member(None, worker(generation="older"), 5.0)
        assert not again.complete
        assert again.generation != first.generation

    def test_others_join_it(self) -> None:
        """Joining changes the members and nothing else, once."""
        first = with_member(None, worker(), 5.0)
        both = with_member(first, worker("b"), 9.0)
        assert both == first.model_copy(update={"members": {"a", "b"}})
        assert with_member(both, worker("b"), 9.0) is both
        assert both.without("a").members == {"b"}

    def test_mark_holds_for_the_generation_that_was_judged(self) -> None:
        """A testimony makes a new generation; completing keeps the present one."""
        first = Membership(generation="g", complete=True, made=1.0)
        assert first.with_completeness("other", complete=False, now=2.0) is first
        lost = first.with_completeness("g", complete=False, now=2.0)
        assert (lost.complete, lost.made) == (False, 2.0)
        assert lost.generation != "g"
        assert not lost.with_completeness("g", complete=True, now=3.0).complete
        whole = lost.with_completeness(lost.generation, complete=True, now=3.0)
        assert (whole.complete, whole.generation) == (True, lost.generation)


@pytest.mark.parametrize(
    ("found", "state", "status"),
    [
        (worker(), OFF, "serving"),
        (behind(), OFF, "not acknowledged"),
        (worker(), PLANNED, "serving"),
        (worker(), CLOSING, "refusing"),
        (behind(), CLOSING, "not acknowledged"),
        (worker(current=1), STATE, "drained"),
        (worker(old=2), STATE, "draining (2 left)"),
        (behind(current=2), STATE, "draining (2 left)"),
        (behind(), STATE, "not acknowledged"),
        (worker(seen=STATE.epoch + 1, tag="later"), STATE, "drained"),
        (worker(uncounted=1), STATE, "cannot be counted"),
        (worker(liveness="silent", age=12), STATE, "drained, no answer for 12 s"),
        (behind(liveness="silent", age=12), STATE, "no answer for 12 s"),
    ],
)
def test_status_says_what_a_worker_does(
    found: WorkerReport, state: MaintenanceState, status: str
) -> None:
    """A few words for people, in which silence is never left out."""
    assert worker_status(found, state, NOW).text == status


def test_many_names_are_cut_short() -> None:
    """A reason stays one line, however many workers it is about."""
    workers = [worker(letter, old=1) for letter in "abcdefgh"]
    assert fence().judge(roster(*workers), CLOCK).reason.endswith("and 3 more")


def test_machines_are_counted_once() -> None:
    """Workers of one machine are one machine."""
    assert distinct_hosts([worker(), worker("b"), worker("c", host="db")]) == 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1.0, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (1199, "19 min 59 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (86_400, "1 d"),
        (100_000, "1 d 3 h"),
    ],
)
def test_a_span_is_shown_in_two_units(seconds: float, shown: str) -> None:
    """Two units are enough: a day has no seconds."""
    assert shown_span(seconds) == shown


def test_report_and_error_say_what_was_found() -> None:
    """The error carries the report, and reads as one line."""
    report = DrainReport(outcome="busy", epoch=EPOCH, reason="still running on web/1")
    assert not report.drained
    assert DrainReport(outcome="drained", epoch=EPOCH).drained
    error = DrainError(report)
    assert error.report is report
    assert str(error) == "not drained (busy): still running on web/1"


def test_report_sums_up_itself() -> None:
    """A report knows its requests in flight, its name, and how it is listed."""
    report = worker(current=2, old=1)
    assert (report.in_flight, report.name) == (3, "web/97")
    listed = report.with_liveness("silent", -0.5)
    assert (listed.liveness, listed.age) == ("silent", 0.0)
    assert roster(report, behind("b", liveness="dead")).not_dead == (report,)
