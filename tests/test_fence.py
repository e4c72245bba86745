"""When worker rows mean drained."""

import pytest

from fastapi_maintenance import DrainError, DrainReport
from fastapi_maintenance.fence import (
    Fence,
    Liveness,
    Outcome,
    Roster,
    WorkerRow,
    distinct_hosts,
    holds_up,
)

EPOCH = 100


def row(
    name: str = "a",
    *,
    seen: int = EPOCH,
    current: int = 0,
    old: int = 0,
    liveness: Liveness = "alive",
    counts_first: bool = True,
    host: str = "web",
) -> WorkerRow:
    """Return a row that holds nothing up, unless told otherwise."""
    return WorkerRow(
        id=name,
        host=host,
        pid=ord(name[0]),
        seen=seen,
        current=current,
        old=old,
        liveness=liveness,
        counts_first=counts_first,
    )


def roster(
    *rows: WorkerRow,
    generation: str = "g",
    whole: bool = True,
    uncounted: bool = False,
) -> Roster:
    """Return what a look finds."""
    return Roster(
        generation=generation,
        rows=rows,
        epoch=EPOCH,
        whole=whole,
        uncounted=uncounted,
    )


def fence(
    before: Roster | None = None, *, workers: int = 1, vouched: bool = False
) -> Fence:
    """Return the judge of one drain."""
    return Fence(
        epoch=EPOCH,
        workers=workers,
        vouched=vouched,
        before=roster(row(seen=1)) if before is None else before,
    )


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (row(seen=EPOCH, old=0, current=3), False),
        (row(seen=EPOCH, old=1), True),
        (row(seen=EPOCH + 1, old=1), True),
        (row(seen=EPOCH + 1), False),
        (row(seen=1, current=1), True),
        (row(seen=1, old=1), True),
        (row(seen=1), False),
        (row(seen=1, counts_first=False), True),
        (row(seen=1, current=5, liveness="dead"), False),
        (row(seen=1, current=5, liveness="lost"), True),
        (row(seen=1, liveness="lost"), False),
        (row(seen=EPOCH, liveness="lost"), False),
        (row(seen=1, liveness="lost", counts_first=False), True),
    ],
)
def test_row_holds_up_what_may_still_run(found: WorkerRow, held: bool) -> None:
    """A row holds up unless nothing older runs on it, or its death is proven."""
    assert holds_up(found, EPOCH) is held


@pytest.mark.parametrize(
    ("rows", "outcome", "reason"),
    [
        ([row()], "drained", ""),
        ([row(), row("b")], "drained", ""),
        ([row(current=9)], "drained", ""),
        ([row(old=2)], "busy", "still running on web/97 (2 in flight)"),
        ([row(seen=1, counts_first=False)], "busy", "no answer yet from web/97"),
        ([row(seen=1, current=1), row("b")], "busy", "web/97"),
        ([row(seen=1, current=1, liveness="lost")], "lost", "not proven dead: web/97"),
        (
            [row(seen=1, current=1, liveness="lost"), row("b", old=1)],
            "busy",
            "web/98 (1 in flight)",
        ),
        ([], "too_few", "0 of 1"),
        ([row(seen=1, current=5, liveness="dead")], "too_few", "0 of 1"),
        ([row("b")], "drained", ""),
    ],
)
def test_roster_that_stands_is_judged_by_its_rows(
    rows: list[WorkerRow], outcome: Outcome, reason: str
) -> None:
    """A roster that was not lost is complete: a row leaves it only with a proof."""
    judged = fence().judge(roster(*rows))
    assert judged[0] == outcome
    assert reason in judged[1]


def test_as_many_workers_as_asked_must_be_there() -> None:
    """Fewer workers than were asked for are too few, however idle they are."""
    judge = fence(workers=3)
    assert judge.judge(roster(row(), row("b"))) == (
        "too_few",
        "2 of 3 worker(s) have joined",
    )
    assert judge.judge(roster(row(), row("b"), row("c")))[0] == "drained"


def test_workers_that_cannot_be_counted_make_it_unknown() -> None:
    """Nobody can vouch for what is not counted, however many rows there are."""
    assert fence().judge(roster(row(), uncounted=True))[0] == "unknown"
    assert fence().judge(roster(uncounted=True))[0] == "unknown"
    assert fence().judge(roster(row(old=1), uncounted=True))[0] == "busy"
    vouched = fence(vouched=True)
    assert vouched.judge(roster(row(), uncounted=True))[0] == "unknown"


def test_roster_that_was_lost_before_is_never_completed_by_waiting() -> None:
    """A coordinator that never saw a whole roster cannot know who is missing."""
    for before, found in (
        (roster(row(seen=1)), roster(row(), generation="h")),
        (roster(row(seen=1), whole=False), roster(row())),
        (roster(row(seen=1)), roster(row(), whole=False)),
    ):
        judge = fence(before)
        for _ in range(100):
            assert judge.judge(found)[0] == "lost"


def test_person_can_complete_a_roster_that_was_lost() -> None:
    """With a person's word, as many workers as named must have acknowledged."""
    before, lost = roster(row(seen=1)), "h"
    judge = fence(before, workers=2, vouched=True)
    assert judge.judge(roster(row(), generation=lost))[0] == "too_few"
    found = roster(row(), row("b", seen=1), generation=lost)
    assert judge.judge(found)[0] == "lost"
    assert judge.judge(roster(row(), row("b"), generation=lost))[0] == "drained"


def test_roster_that_is_lost_meanwhile_needs_the_rows_that_were_seen() -> None:
    """After a loss, each row that was seen must be back, or proven dead."""
    judge = fence(roster(row(seen=1), row("b", seen=1)))
    assert judge.judge(roster(row(old=1), row("b")))[0] == "busy"
    outcome, reason = judge.judge(roster(row(), generation="h"))
    assert outcome == "lost"
    assert "1 worker(s) seen before" in reason
    assert judge.judge(roster(row(), row("b"), generation="h"))[0] == "drained"


def test_row_that_was_seen_may_be_proven_dead_after_a_loss() -> None:
    """A proof of death stands for a row that does not come back."""
    judge = fence(roster(row(seen=1), row("b", seen=1)))
    assert judge.judge(roster(row(old=1), row("b", seen=1, current=1)))[0] == "busy"
    gone = row("b", seen=1, current=1, liveness="dead")
    assert judge.judge(roster(row(), gone, generation="h"))[0] == "drained"
    assert judge.judge(roster(row(), generation="h"))[0] == "drained"


def test_row_that_left_a_standing_roster_is_not_missed_after_a_loss() -> None:
    """A clean leave before the loss is no missing worker."""
    judge = fence(roster(row(seen=1), row("b", seen=1)))
    assert judge.judge(roster(row(old=1)))[0] == "busy"
    assert judge.judge(roster(row(), generation="h"))[0] == "drained"


def test_first_roster_of_a_store_is_no_loss() -> None:
    """A store that never had a roster, and has lost none, gets its first one."""
    judge = fence(roster(generation=""))
    assert judge.judge(roster(generation=""))[0] == "too_few"
    judge = fence(roster(generation=""))
    assert judge.judge(roster(row(), generation="h"))[0] == "drained"


def test_requests_that_wait_for_the_fence_itself_are_left_out() -> None:
    """A request inside which the drain runs is not waited for; others are."""
    judge = fence()
    judge.own = {"a": 1}
    assert judge.judge(roster(row(old=1)))[0] == "drained"
    assert judge.judge(roster(row(old=2)))[0] == "busy"
    assert judge.judge(roster(row(seen=1, current=1)))[0] == "drained"
    assert judge.judge(roster(row(seen=1, current=1, old=1)))[0] == "busy"
    assert judge.judge(roster(row(), row("b", old=1)))[0] == "busy"


def test_many_names_are_cut_short() -> None:
    """A reason stays one line, however many workers it is about."""
    rows = [row(letter, old=1) for letter in "abcdefgh"]
    reason = fence().judge(roster(*rows))[1]
    assert reason.endswith("and 3 more")


def test_machines_are_counted_once() -> None:
    """Workers of one machine are one machine."""
    rows = [row(), row("b"), row("c", host="db")]
    assert distinct_hosts(rows) == 2


def test_report_and_error_say_what_was_found() -> None:
    """The error carries the report, and reads as one line."""
    report = DrainReport(outcome="busy", epoch=EPOCH, reason="still running on web/1")
    assert not report.drained
    assert DrainReport(outcome="drained", epoch=EPOCH).drained
    error = DrainError(report)
    assert error.report is report
    assert str(error) == "not drained (busy): still running on web/1"


def test_row_sums_up_itself() -> None:
    """A row knows its requests in flight and whether it is lost."""
    assert row(current=2, old=1).in_flight == 3
    assert row(liveness="lost").lost
    assert not row().lost
