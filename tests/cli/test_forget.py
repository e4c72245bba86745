"""``forget``: workers of machines that are gone for good."""

from pathlib import Path

import pytest

from tests.cli.support import Member, invoke, lines, members, run_dir, silent


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("spelling", ["id", "web-2/77", "77"])
def test_a_silent_worker_is_forgotten(folder: Path, spelling: str) -> None:
    """By its id or its process; afterwards the service can be drained."""
    worker = silent(folder)
    assert invoke("on", "--wait").exit_code == 11
    result = invoke("forget", worker if spelling == "id" else spelling)
    assert result.exit_code == 0
    assert result.stdout == f"Forgot web-2/77 ({worker}).\n"
    assert invoke("on", "--wait").exit_code == 0


@pytest.mark.usefixtures("member")
def test_several_workers_are_forgotten_at_once(folder: Path) -> None:
    """The line of an error names all of them, and can be pasted."""
    first, second = silent(folder), silent(folder, pid=78)
    (line,) = lines(invoke("forget", first, second, "--json"))
    assert line == {"event": "forgotten", "workers": [first, second]}


@pytest.mark.usefixtures("member")
def test_a_worker_without_a_report_is_forgotten(folder: Path) -> None:
    """What is only on the list can be taken off it."""
    path = run_dir(folder)
    worker = silent(folder)
    (path / f"{worker}.json").unlink()
    assert worker in invoke("forget", "nothing").stderr
    assert invoke("forget", worker).exit_code == 0
    assert worker not in members(folder)


@pytest.mark.usefixtures("member")
def test_those_that_are_silent_for_long_are_forgotten(folder: Path) -> None:
    """``--lost-for`` leaves alone what answered a moment ago."""
    young, old = silent(folder), silent(folder, pid=78, seconds=7200)
    (line,) = lines(invoke("forget", "--lost-for", "1h", "--json"))
    assert line == {"event": "forgotten", "workers": [old]}
    shown = invoke("status").stdout
    assert young in shown
    assert old not in shown
    result = invoke("forget", "--lost-for", "1h")
    assert result.exit_code == 0
    assert result.stdout == ("No worker has been silent for 1 h; none was forgotten.\n")


def test_a_living_worker_is_not_forgotten(folder: Path, member: Member) -> None:
    """Its requests would no longer be waited for: exit code 2."""
    result = invoke("forget", member.switch.worker.id)
    assert result.exit_code == 2
    assert "answers: its process is there" in result.stderr
    assert (run_dir(folder) / f"{member.switch.worker.id}.json").exists()


@pytest.mark.usefixtures("member")
def test_an_unknown_worker_names_the_silent(folder: Path) -> None:
    """A misspelt name is exit code 2, with those that can be forgotten."""
    assert "those that do not answer: none" in invoke("forget", "x").stderr
    silent(folder)
    result = invoke("forget", "x")
    assert result.exit_code == 2
    assert "no worker 'x'; those that do not answer: web-2/77" in result.stderr


@pytest.mark.usefixtures("member")
def test_a_name_that_means_several_is_refused(folder: Path) -> None:
    """Pids repeat between machines: the ids are offered instead."""
    first, second = silent(folder), silent(folder)
    result = invoke("forget", "77")
    assert result.exit_code == 2
    assert first in result.stderr
    assert second in result.stderr


@pytest.mark.usefixtures("member")
@pytest.mark.parametrize("words", [(), ("x", "--lost-for", "1m"), ("--lost-for", "1")])
def test_forget_needs_one_way_to_say_whom(words: tuple[str, ...]) -> None:
    """Nothing, both, or no duration is a mistake."""
    result = invoke("forget", *words)
    assert result.exit_code == 2
    assert "10m" in result.stderr or "20m" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_store_without_workers_has_none_to_forget() -> None:
    """A list that was never made is an empty one."""
    invoke("on", "--init")
    assert invoke("forget", "--lost-for", "1s").exit_code == 0
