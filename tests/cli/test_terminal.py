"""In a terminal, in a pipe, and when either is closed."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fastapi_maintenance.cli.output import clean
from tests.cli.support import ENVIRONMENT, Member, call, invoke, program, started, state
from tests.stores.redis_server import serving
from tests.waiting import PATIENCE, until

COUNTING = """
import pathlib, signal, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
pathlib.Path("ready").touch()
while not heard:
    time.sleep(0.02)
time.sleep(0.5)
pathlib.Path("heard").write_text(str(len(heard)))
"""


class Terminal:
    """A terminal of 80 columns, and the session that runs in it."""

    def __init__(self, words: Sequence[str], folder: Path, **env: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEADER, *words],
            cwd=folder,
            env=ENVIRONMENT | {"TERM": "xterm-256color"} | env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read(self) -> None:
        """Take what is there to read."""
        if select.select([self.master], [], [], 0.02)[0]:
            with contextlib.suppress(OSError):  # EIO: it is open nowhere any more.
                self.seen += os.read(self.master, 65_536).decode(errors="replace")

    def until(self, text: str) -> None:
        """Read until a text has appeared."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.read()

    def end(self) -> int:
        """Read until the program has ended, and return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self.read()
        self.read()
        return self.process.returncode

    @property
    def text(self) -> str:
        """What was written, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)


# The first process of a session gets its controlling terminal by asking for it.
LEADER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@contextlib.contextmanager
def terminal(words: Sequence[str], folder: Path, **env: str) -> Iterator[Terminal]:
    """Run a program in a terminal; both are gone when the block ends."""
    opened = Terminal(words, folder, **env)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        with contextlib.suppress(OSError):
            os.close(opened.master)


def test_a_wait_in_a_terminal_is_a_live_table(folder: Path, member: Member) -> None:
    """One line for each worker, the time left, and a last table when it is drained."""
    words = program("on", "--wait", "--message", "Back soon")
    with contextlib.ExitStack() as slow, terminal(words, folder) as screen:
        slow.enter_context(member.busy("GET /" + "very/" * 30 + "long"))
        screen.until("draining (1 left)")
        screen.until("59 s to go")
        slow.close()
        assert screen.end() == 0
    assert "0 of 1 worker drained, 1 request left" in screen.text
    assert "1 of 1 worker drained" in screen.text
    assert "GET /very/very" in screen.text
    assert "Not waited for: routes marked exempt" in screen.text
    assert max(len(line) for line in screen.text.replace("\r", "\n").split("\n")) <= 80
    # The cursor that was hidden is there again.
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rindex("\x1b[?25l")


def test_a_wait_that_cannot_end_shows_why_in_the_table(
    folder: Path, member: Member
) -> None:
    """Too few workers are explained below the table."""
    words = program("on", "--wait", "--timeout", "0.3", "--workers", "3")
    with terminal(words, folder) as screen:
        assert screen.end() == 13
    assert screen.text.count("1 of 3 workers have joined") >= 2
    member.leave()
    with terminal(program("wait"), folder) as screen:
        assert screen.end() == 13


@pytest.mark.usefixtures("member")
def test_status_is_watched_in_a_terminal(folder: Path) -> None:
    """The table is redrawn until Ctrl-C is typed, which ends it with 0."""
    with terminal(program("status", "--watch"), folder) as screen:
        screen.until("HOST")
        os.write(screen.master, b"\x03")
        assert screen.end() == 0
    assert "Maintenance is off." in screen.text


@pytest.mark.redis
def test_an_outage_is_watched_in_a_terminal(folder: Path) -> None:
    """What was known stays to be seen, with since when the store has not answered."""
    with serving(folder / "redis") as server:
        words = program("status", "--watch", "--store", server.url())
        with terminal(words, folder) as screen:
            screen.until("HOST")
            server.kill()
            screen.until("the store has not answered since ")
            assert "Maintenance is off." in screen.text.rpartition("not answered")[0]
            server.start()
            os.write(screen.master, b"\x03")
            assert screen.end() == 0


@pytest.mark.usefixtures("member")
def test_colours_are_for_those_who_want_them(folder: Path) -> None:
    """``NO_COLOR`` leaves no colour in a terminal; a pipe never has any."""
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    with terminal(program("status"), folder) as screen:
        assert screen.end() == 0
    assert coloured.search(screen.seen)
    with terminal(program("status"), folder, NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert not coloured.search(screen.seen)
    assert "\x1b" not in call("status", cwd=folder).stdout


def test_a_terminal_that_cannot_redraw_gets_lines(folder: Path, member: Member) -> None:
    """``TERM=dumb`` is treated as a log."""
    words = program("on", "--wait", "--timeout", "0.7")
    with member.busy(), terminal(words, folder, TERM="dumb") as screen:
        assert screen.end() == 10
    assert "0 of 1 worker drained, 1 request left; 0." in screen.text
    assert "\x1b" not in screen.seen


@pytest.mark.usefixtures("member")
def test_a_key_interrupts_the_command_once(folder: Path) -> None:
    """Ctrl-C reaches the command from the terminal; it is not handed on as well."""
    (folder / "counting.py").write_text(COUNTING)
    words = program("run", sys.executable, "counting.py")
    with terminal(words, folder) as screen:
        until((folder / "ready").exists)
        os.write(screen.master, b"\x03")
        assert screen.end() == 0
    assert (folder / "heard").read_text() == "1"
    assert "exit code 0 after SIGINT; maintenance stays on" in screen.text
    assert state(folder).in_force(datetime.now(UTC))


@pytest.mark.usefixtures("member")
def test_a_signal_reaches_a_command_in_a_group_of_its_own(folder: Path) -> None:
    """A command that left the foreground hears Ctrl-C through the program."""
    (folder / "counting.py").write_text("import os\nos.setpgid(0, 0)\n" + COUNTING)
    words = program("run", sys.executable, "counting.py")
    with terminal(words, folder) as screen:
        until((folder / "ready").exists)
        os.write(screen.master, b"\x03")
        assert screen.end() == 0
    assert (folder / "heard").read_text() == "1"


@pytest.mark.usefixtures("member")
def test_run_survives_a_terminal_that_closes(folder: Path) -> None:
    """The command ends in peace, and nothing opens behind the operator's back."""
    text = (
        "trap '' HUP; touch ready; while ! test -e go; do sleep 0.02; done; touch ran"
    )
    with terminal(program("run", "sh", "-c", text), folder) as screen:
        until((folder / "ready").exists)
        os.close(screen.master)
        (folder / "go").touch()
        assert screen.process.wait(PATIENCE) == 0
    assert (folder / "ran").exists()
    assert state(folder).in_force(datetime.now(UTC))
    assert invoke("off").exit_code == 0


def test_a_wait_in_a_terminal_that_closes_leaves_it_on(
    folder: Path, member: Member
) -> None:
    """A lost connection ends the wait with the code of a hang-up, and opens nothing."""
    with member.busy(), terminal(program("on", "--wait"), folder) as screen:
        screen.until("draining (1 left)")
        os.close(screen.master)
        assert screen.process.wait(PATIENCE) == 129
    assert state(folder).in_force(datetime.now(UTC))


def test_a_reader_that_has_gone_ends_nothing(folder: Path, member: Member) -> None:
    """A closed pipe costs the lines, not the wait, and leaves no traceback."""
    with (
        contextlib.ExitStack() as slow,
        started(program("on", "--wait"), folder) as ran,
    ):
        slow.enter_context(member.busy())
        assert ran.stdout is not None
        ran.stdout.readline()
        ran.stdout.close()
        slow.close()
        assert ran.stderr is not None
        assert ran.stderr.read() == ""
        assert ran.wait(PATIENCE) == 0


@pytest.mark.usefixtures("member")
def test_without_standard_output_commands_work(folder: Path) -> None:
    """A daemon may have closed all three streams."""
    words = " ".join(program("on"))
    result = subprocess.run(
        ["sh", "-c", f"{words} <&- >&- 2>&-"],
        cwd=folder,
        env=ENVIRONMENT,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0
    assert state(folder).enabled


@pytest.mark.usefixtures("member")
def test_an_encoding_without_the_letters_gets_escapes(folder: Path) -> None:
    """A message is shown as far as the terminal's encoding goes."""
    invoke("on", "--message", "Wartung — gleich zurück")
    result = call("status", cwd=folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "Wartung \\u2014 gleich zur\\xfcck" in result.stdout


def test_foreign_texts_move_no_cursor() -> None:
    """What a worker reports cannot write over what an operator reads."""
    assert clean("GET /\x1b[2Jx\r\ny\u202e") == "GET /?[2Jx  y?"
