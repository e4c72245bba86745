"""Who a process is, and what proves that it is gone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastapi_maintenance.stores._process import ProcessIdentity
from tests.stores.children import NOBODY, in_child, needs_root


def ended() -> int:
    """Return the number of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def but(**changes: object) -> ProcessIdentity:
    """Return this process's identity with some parts replaced."""
    return dataclasses.replace(ProcessIdentity.own(), **changes)  # type: ignore[arg-type]  # the parts of any test


def table(folder: Path, *, status: str = "", pid: int = 0, stat: str = "") -> Path:
    """Make a process table by hand."""
    (folder / "self").mkdir()
    (folder / "self/status").write_text(status)
    if pid:
        (folder / str(pid)).mkdir()
        (folder / str(pid) / "stat").write_text(stat)
    return folder


def test_own_identity_can_be_read() -> None:
    """A process knows when, where and under which boot it started."""
    own = ProcessIdentity.own()
    assert own.pid == os.getpid()
    assert own.started.isdigit()
    assert own.boot
    assert own.namespace.startswith("pid:[")


def test_own_process_is_not_gone() -> None:
    """Who asks is there."""
    own = ProcessIdentity.own()
    assert own.same_boot(own)
    assert not own.gone(own)


def test_ended_process_is_gone() -> None:
    """A number that nobody has proves an end, under the same boot and namespace."""
    assert but(pid=ended()).gone(ProcessIdentity.own())


def test_reused_number_is_gone() -> None:
    """Another start time under the same number is another process."""
    assert but(started="1").gone(ProcessIdentity.own())


@needs_root
def test_process_of_another_user_is_not_gone() -> None:
    """A process that must not be signalled is there all the same."""
    first = but(pid=1, started="")
    assert in_child(lambda: not first.gone(ProcessIdentity.own()), user=NOBODY)


@pytest.mark.parametrize("part", ["boot", "namespace"])
@pytest.mark.parametrize("value", ["", "another"])
def test_other_kernels_and_namespaces_prove_nothing(part: str, value: str) -> None:
    """A number means nothing where another one counts, or where that is unknown."""
    identity = but(pid=ended(), **{part: value})
    assert not identity.gone(ProcessIdentity.own())
    assert not but(pid=ended()).gone(but(**{part: value}))


def test_hidden_table_proves_nothing(tmp_path: Path) -> None:
    """A start time that cannot be read is no other start time."""
    own = f"Name:\tpython\nNSpid:\t{os.getpid()}\n"
    hidden = table(tmp_path, status=own)
    assert not but(started="1").gone(ProcessIdentity.own(), hidden)


def test_damaged_table_proves_nothing(tmp_path: Path) -> None:
    """A line that is cut short has no start time."""
    own = f"NSpid:\t{os.getpid()}\n"
    damaged = table(tmp_path, status=own, pid=os.getpid(), stat="1 (x) S 1")
    assert not but(started="1").gone(ProcessIdentity.own(), damaged)


@pytest.mark.parametrize("numbers", ["7\t8", "", "7"])
def test_foreign_table_proves_nothing(tmp_path: Path, numbers: str) -> None:
    """In the table of an outer namespace, a number is that of another process."""
    stat = "1 (a (b) c) S " + " ".join(["4"] * 40)
    foreign = table(tmp_path, status=f"NSpid:\t{numbers}\n", pid=os.getpid(), stat=stat)
    assert not ProcessIdentity.own().gone(ProcessIdentity.own(), foreign)


def test_table_without_status_proves_nothing(tmp_path: Path) -> None:
    """A table that does not say whose it is, is nobody's."""
    assert not but(started="1").gone(ProcessIdentity.own(), tmp_path)


def test_identity_without_table_is_empty(tmp_path: Path) -> None:
    """Without a process table nothing is known, and nothing proven by it."""
    blind = ProcessIdentity.own(tmp_path)
    assert (blind.started, blind.boot, blind.namespace) == ("", "", "")
    assert not blind.same_boot(blind)
    assert not blind.gone(blind)


def test_identity_without_time_namespaces(tmp_path: Path) -> None:
    """A kernel that has no time namespaces shifts no start times."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[1]")
    assert ProcessIdentity.own(tmp_path).namespace == "pid:[1]"


def test_restart_of_the_same_installation() -> None:
    """Another boot of the same machine has ended what ran before it."""
    before = but(boot="before", machine="m")
    assert before.restarted(but(machine="m"))
    assert not before.restarted(but(machine="clone"))
    assert not but(boot="before", machine="").restarted(but(machine=""))
    assert not but(boot="", machine="m").restarted(but(machine="m"))
    assert not but(machine="m").restarted(but(machine="m"))
    assert not before.gone(but(machine="m"))
