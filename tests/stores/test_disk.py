"""Files that are never half-written, and locks that prove something."""

import contextlib
import os
import platform
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastapi_maintenance.stores import _descriptors, _disk
from fastapi_maintenance.stores._barrier import membarrier, pass_barrier
from tests.stores.children import NOBODY, in_child, needs_root


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of another user."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    return folder


def is_closed(descriptor: int) -> bool:
    """Tell whether a descriptor is not open."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    return True


def inside(
    mount: str, code: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run code in a mount namespace of its own."""
    line = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    return subprocess.run(
        [*line, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_read_small_reads_files_and_links(tmp_path: Path) -> None:
    """A regular file is read whole, through links as ConfigMaps are made of."""
    (tmp_path / "data").write_bytes(b"x")
    (tmp_path / "link").symlink_to("data")
    found = _disk.read_small(tmp_path / "link")
    assert found is not None
    assert found[0] == b"x"
    assert _disk.read_small(tmp_path / "none") is None


def test_read_small_refuses_what_is_no_state(tmp_path: Path) -> None:
    """Pipes, folders, dangling links, giants and what all can write are refused."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "giant").write_bytes(b"x" * (_disk.SIZE_LIMIT + 1))
    (tmp_path / "public").write_bytes(b"x")
    (tmp_path / "public").chmod(0o666)
    for name in ("pipe", "folder", "dangling", "giant", "public"):
        with pytest.raises(_disk.UntrustedFileError, match=name):
            _disk.read_small(tmp_path / name)


def test_write_atomic_replaces_a_link(tmp_path: Path) -> None:
    """What a link points to is not touched."""
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    _disk.write_atomic(tmp_path / "link", b"new", 0o640)
    assert (tmp_path / "target").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o640


def test_write_atomic_leaves_nothing_behind(tmp_path: Path) -> None:
    """What cannot be written whole is not written at all."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        _disk.write_atomic(tmp_path / "folder", b"x", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@needs_root
def test_write_atomic_on_a_full_disk(tmp_path: Path) -> None:
    """On a full disk the old file stands."""
    code = """
import os, sys, pathlib
from fastapi_maintenance.stores._disk import write_atomic
path = pathlib.Path(sys.argv[1]) / "file"
write_atomic(path, b"old", 0o600)
try:
    write_atomic(path, b"x" * 60000, 0o600)
except OSError as error:
    print(error.strerror, path.read_bytes(), os.listdir(path.parent))
"""
    mount = f"mount -t tmpfs -o size=32k none {tmp_path}"
    done = inside(mount, code, tmp_path)
    assert done.stdout == "No space left on device b'old' ['file']\n", done.stderr


def test_sync_directory_forgives(tmp_path: Path) -> None:
    """A directory that cannot be synchronised is no error."""
    _disk.sync_directory(tmp_path / "none")


def test_make_directory(tmp_path: Path) -> None:
    """The mode is exact; one that is there is kept; another file is an error."""
    before = os.umask(0o077)
    try:
        _disk.make_directory(tmp_path / "new", 0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755
    _disk.make_directory(tmp_path / "new", 0o700)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="another file"):
        _disk.make_directory(tmp_path / "file", 0o700)


@needs_root
def test_what_root_makes_belongs_to_its_surroundings(elsewhere: Path) -> None:
    """The service can use what root's command made for it."""
    _disk.make_directory(elsewhere / "folder", 0o700)
    _disk.write_atomic(elsewhere / "folder/file", b"", 0o600)
    with _disk.locked(elsewhere / "folder/lock"):
        pass
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in elsewhere.rglob("*")}
    assert owners == {(65534, 65534)}


@needs_root
def test_root_of_a_container_that_knows_no_owner(elsewhere: Path) -> None:
    """Root of a user namespace keeps what it cannot give away."""
    code = """
import sys, pathlib
from fastapi_maintenance.stores._disk import write_atomic
write_atomic(pathlib.Path(sys.argv[1]) / "file", b"x", 0o644)
"""
    elsewhere.chmod(0o777)
    line = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    subprocess.run([*line, str(elsewhere)], check=True)
    assert (elsewhere / "file").read_bytes() == b"x"


@needs_root
def test_what_others_make_stays_theirs(elsewhere: Path) -> None:
    """Only root gives files away."""
    with (elsewhere / "file").open("w") as file:
        os.fchown(file.fileno(), NOBODY + 1, NOBODY + 1)

        def give() -> bool:
            _disk.give_to_owner_of(elsewhere, file.fileno())
            return os.fstat(file.fileno()).st_uid == NOBODY + 1

        assert in_child(give, user=NOBODY + 1)


def test_locked_keeps_others_out(tmp_path: Path) -> None:
    """One holds it at a time; who waits too long is told who is in the way."""
    lock = tmp_path / "lock"
    with (
        _disk.locked(lock),
        contextlib.ExitStack() as stack,
        pytest.raises(TimeoutError, match="another process"),
    ):
        stack.enter_context(_disk.locked(lock, patience=0.02))
    with _disk.locked(lock, patience=0):
        pass


def test_locked_waits_for_its_turn(tmp_path: Path) -> None:
    """Who waits gets it when the other one is done."""
    lock = tmp_path / "lock"
    order: list[str] = []

    def second() -> None:
        with _disk.locked(lock):
            order.append("second")

    thread = threading.Thread(target=second)
    with _disk.locked(lock):
        thread.start()
        time.sleep(0.02)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_locked_notices_a_replaced_file(tmp_path: Path) -> None:
    """A lock on a file that was deleted meanwhile is not taken for one."""
    lock = tmp_path / "lock"
    held = threading.Event()
    inodes: list[int] = []

    def second() -> None:
        held.set()
        with _disk.locked(lock):
            inodes.append(lock.stat().st_ino)

    thread = threading.Thread(target=second)
    with _disk.locked(lock):
        thread.start()
        held.wait()
        time.sleep(0.02)
        lock.unlink()
        lock.touch(0o600)
        now = lock.stat().st_ino
    thread.join()
    assert inodes == [now]


def test_fork_does_not_share_a_lock(tmp_path: Path) -> None:
    """A child that was forked while a lock was held does not keep it."""
    lock = tmp_path / "lock"
    there, forked = os.pipe()
    here, end = os.pipe()

    def outlive() -> bytes:
        os.write(forked, b"x")
        return os.read(here, 1)

    with _disk.locked(lock):
        child = threading.Thread(target=in_child, args=(outlive,))
        child.start()
        assert os.read(there, 1)
    with _disk.locked(lock, patience=0):
        os.write(end, b"x")
    child.join()
    for descriptor in (there, forked, here, end):
        os.close(descriptor)


def test_forked_child_closes_what_is_kept(tmp_path: Path) -> None:
    """What speaks for one process is open in no other."""
    path = tmp_path / "kept"
    descriptor = _descriptors.keep(lambda: os.open(path, os.O_RDWR | os.O_CREAT))
    gone = _descriptors.keep(lambda: os.open(path, os.O_RDWR))
    os.close(gone)  # Closed behind our back: a fork forgives it.
    assert in_child(lambda: is_closed(descriptor))
    os.fstat(descriptor)
    _descriptors.drop(descriptor)
    _descriptors._ours.discard(gone)


def test_same_file(tmp_path: Path) -> None:
    """A path leads to an open file until it is replaced or removed."""
    path = tmp_path / "file"
    path.touch()
    with path.open() as file:
        assert _disk.same_file(path, file.fileno())
        path.unlink()
        assert not _disk.same_file(path, file.fileno())


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/a rw
21 20 0:5 / /srv/a\\040b rw,shared:1 master:2 - tmpfs none rw
22 20 0:6 / /net rw - nfs4 host:/ rw
23 20 0:7 / /over rw - nfs4 host:/ rw
24 20 0:8 / /over rw - xfs /dev/b rw
damaged line
25 - short
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home", ""),
        ("/srv/a b/state", ""),
        ("/net", "nfs4"),
        ("/net/state", "nfs4"),
        ("/network", ""),
        ("/over/state", ""),
    ],
)
def test_foreign_file_system(tmp_path: Path, path: str, kind: str) -> None:
    """Locks are believed on the file systems of one kernel, and nowhere else."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert _disk.foreign_file_system(Path(path), mounts) == kind


def test_foreign_file_system_without_mounts(tmp_path: Path) -> None:
    """Where mounts cannot be read, or none fits, nothing is believed."""
    assert _disk.foreign_file_system(tmp_path, tmp_path / "none") == "unknown"
    (tmp_path / "empty").touch()
    assert _disk.foreign_file_system(tmp_path, tmp_path / "empty") == "unknown"


def test_barrier() -> None:
    """The kernel is asked for the barrier in a way that it understands."""
    assert membarrier(platform.machine())
    assert not membarrier("a machine of the future")
    assert not membarrier("s390x")  # Another machine's number, unknown here.


def test_barrier_that_cannot_be_had_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A premise of the proof that does not hold is said where it matters."""
    pass_barrier()
    assert caplog.text == ""
    pass_barrier("a machine of the future")
    assert "on this a machine of the future machine: a drain may miss" in caplog.text


def test_barrier_needs_no_ctypes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python without it can publish: x86 has its barrier, others say so."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    pass_barrier("x86_64")
    assert caplog.text == ""
    pass_barrier("aarch64")
    assert "use a Python that has ctypes" in caplog.text
