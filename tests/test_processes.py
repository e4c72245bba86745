"""Which process this is, and what proves that another one is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastapi_maintenance.processes import (
    ProcessIdentity,
    _machine,
    is_gone,
    may_share_kernel,
)
from tests.stores.children import ended, in_child


def own(**changes: str) -> str:
    """Return this process's identity with some parts replaced."""
    return str(ProcessIdentity.own()._replace(**changes))


def table(folder: Path, *, status: str | None = None, stat: str | None = None) -> Path:
    """Make a process table by hand, with the boot and namespaces of this process."""
    real = ProcessIdentity.own()
    (folder / "sys/kernel/random").mkdir(parents=True)
    (folder / "sys/kernel/random/boot_id").write_text(real.boot)
    (folder / "self/ns").mkdir(parents=True)
    # Not every kernel has namespaces of time.
    for kind, target in zip(("pid", "time"), real.namespace.split(), strict=False):
        (folder / "self/ns" / kind).symlink_to(target)
    if status is not None:
        (folder / "self/status").write_text(status)
    if stat is not None:
        (folder / str(os.getpid())).mkdir()
        (folder / str(os.getpid()) / "stat").write_text(stat)
    return folder


def test_own_identity_can_be_read() -> None:
    """A process knows when, where and under which boot it started."""
    found = ProcessIdentity.own()
    assert found.started.isdigit()
    assert found.boot
    assert found.namespace.startswith("pid:[")
    assert ProcessIdentity.parse(str(found)) == found


def test_id_of_the_machine_is_never_told(tmp_path: Path) -> None:
    """Reports go over networks: they hold a hash that only this package makes."""
    path = tmp_path / "machine-id"
    assert _machine(path) == ""
    path.write_text("b08dfa6083e7567a1921a715000001fb\n")
    assert _machine(path) == "fae940fcdeae2c47"
    path.write_text("another\n")
    assert _machine(path) != "fae940fcdeae2c47"


def test_descendant_of_the_same_number_is_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a parent has read of itself says nothing about its child."""
    found, number = ProcessIdentity.own(), os.getpid()

    def differs() -> bool:
        monkeypatch.setattr(os, "getpid", lambda: number)
        return ProcessIdentity.own().started != found.started

    assert in_child(differs)


@pytest.mark.parametrize("text", ["", "a|b", "a|b|c|d|e"])
def test_text_that_is_no_identity_says_nothing(text: str) -> None:
    """A report of another release proves nothing about its process."""
    assert ProcessIdentity.parse(text) == ProcessIdentity()
    assert not is_gone(text, ended())


def test_own_process_is_not_gone() -> None:
    """A process that asks is there."""
    assert not is_gone(own(), os.getpid())


def test_ended_process_is_gone() -> None:
    """A number that no process has proves an end, on the same boot and namespace."""
    assert is_gone(own(), ended())


def test_process_that_nothing_has_waited_for_is_gone() -> None:
    """It has ended, though its parent has not asked how."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    table = Path(f"/proc/{process.pid}/stat")
    started = table.read_text().rpartition(")")[2].split()[19]
    try:
        assert not is_gone(own(started=started), process.pid)
        process.kill()
        while table.read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()
        assert is_gone(own(started=started), process.pid)
    finally:
        process.communicate()


def test_thread_that_outlives_the_first_one_is_not_gone(tmp_path: Path) -> None:
    """A process whose first thread has ended looks like one that has ended."""
    stat = f"1 (x) Z {' '.join(['4'] * 16)} 2 0 7 0"
    read = table(tmp_path, status=f"NSpid:\t{os.getpid()}\n", stat=stat)
    assert not is_gone(own(started="7"), os.getpid(), read)


def test_reused_number_is_gone() -> None:
    """Another start time under the same number is another process."""
    assert is_gone(own(started="1"), os.getpid())


def test_process_of_another_user_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that must not be signalled is there all the same."""

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr(os, "kill", forbidden)
    assert not is_gone(own(), os.getpid())
    assert is_gone(own(started="1"), os.getpid())


@pytest.mark.parametrize("part", ["boot", "namespace"])
@pytest.mark.parametrize("value", ["", "another"])
def test_other_kernels_and_namespaces_prove_nothing(part: str, value: str) -> None:
    """A number means nothing where another table counts, or where that is unknown."""
    assert not is_gone(own(**{part: value}), ended())


@pytest.mark.parametrize("pid", [0, -1, 2**80])
def test_number_of_no_process_proves_nothing(pid: int) -> None:
    """A hostile report cannot have a group of processes signalled."""
    assert not is_gone(own(), pid)


def test_windows_is_never_asked_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, signal 0 would interrupt the other process."""

    def kills(pid: int, number: int) -> None:
        raise AssertionError((pid, number))

    gone = ended()
    monkeypatch.setattr(os, "kill", kills)
    monkeypatch.setattr(sys, "platform", "win32")
    assert not is_gone(own(), gone)


def test_hidden_table_proves_nothing(tmp_path: Path) -> None:
    """A start time that cannot be read is no other start time."""
    hidden = table(tmp_path, status=f"Name:\tpython\nNSpid:\t{os.getpid()}\n")
    assert not is_gone(own(started="1"), os.getpid(), hidden)


def test_damaged_table_proves_nothing(tmp_path: Path) -> None:
    """A line that is cut short has no start time."""
    damaged = table(tmp_path, status=f"NSpid:\t{os.getpid()}\n", stat="1 (x) S 1")
    assert not is_gone(own(started="1"), os.getpid(), damaged)


STAT = "1 (a (b) c) S " + " ".join(["4"] * 40)


def test_names_with_brackets_and_spaces_are_read(tmp_path: Path) -> None:
    """The start time stands behind a name that may hold anything."""
    read = table(tmp_path, status=f"NSpid:\t{os.getpid()}\n", stat=STAT)
    assert is_gone(own(started="5"), os.getpid(), read)
    assert not is_gone(own(started="4"), os.getpid(), read)


@pytest.mark.parametrize("status", ["NSpid:\t7\t8\n", "NSpid:\n", "NSpid:\t7\n", None])
def test_foreign_table_proves_nothing(tmp_path: Path, status: str | None) -> None:
    """In the table of an outer namespace, a number is that of another process."""
    foreign = table(tmp_path, status=status, stat=STAT)
    assert not is_gone(own(started="1"), os.getpid(), foreign)


def test_identity_without_table_is_empty(tmp_path: Path) -> None:
    """Without a process table nothing is known, and nothing proven by it."""
    blind = ProcessIdentity.own(tmp_path)
    assert (blind.started, blind.boot, blind.namespace) == ("", "", "")
    assert not is_gone(str(blind), ended(), tmp_path)
    assert may_share_kernel(str(blind), tmp_path)


def test_kernel_without_time_namespaces(tmp_path: Path) -> None:
    """A kernel that has no time namespaces shifts no start times."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[1]")
    assert ProcessIdentity.own(tmp_path).namespace == "pid:[1]"


def test_locks_of_another_kernel_are_not_seen() -> None:
    """Only a lock on the same boot, or before a reboot of this machine, can be seen."""
    assert may_share_kernel(own())
    assert may_share_kernel("")
    machine = ProcessIdentity.own().machine
    before = own(boot="before", machine=machine)
    assert may_share_kernel(before) is bool(machine)
    assert not may_share_kernel(own(boot="before", machine="clone"))
    assert not may_share_kernel(own(boot="before", machine=""))
