"""``run``: on, wait, the command, and open again if that is safe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, NoReturn

import anyio

from ..changes import CannotDrainError, EnableOptions, new_holder
from ..fence import foresee
from ..state import OPERATOR, MaintenanceState
from ..stores import StoreError
from ..switch import DrainOptions, Publication
from .commands import interruptible, put_back
from .display import Display, WaitDisplay, why_not
from .exits import ExitCode, FailureError
from .signals import InterruptedBySignalError, Signals, signal_name

STAYS_ON: Final = "maintenance stays on; `fastapi-maintenance off` opens it"
STAYS_HELD: Final = (
    "maintenance stays on and held, `fastapi-maintenance off --force` opens it"
)


def run_command(
    display: Display,
    enable: EnableOptions,
    drain: DrainOptions,
    command: Sequence[str],
    *,
    init: bool,
    token: str | None,
    stay: bool,
) -> int:
    """Run a command under maintenance, when nothing else is running any more.

    Returns:
        The command's own exit code; 128 and the signal's number where one ended it.

    Raises:
        FailureError: If the command was not started, or the service not opened.
    """
    path = shutil.which(command[0])
    if path is None:
        raise FailureError(
            ExitCode.NO_COMMAND,
            f"there is no command {command[0]!r} that can be executed; nothing has"
            " changed",
        )
    try:
        with Signals() as signals:
            run = _Run(display, drain, signals, stay=stay)
            words = [path, *command[1:]]
            return anyio.run(run.execute, enable, words, init, token)
    except (StoreError, CannotDrainError) as error:
        raise FailureError(ExitCode.NOT_STARTED, str(error)) from error


class _Run:
    def __init__(
        self, display: Display, drain: DrainOptions, signals: Signals, *, stay: bool
    ) -> None:
        self._display = display
        self._switch = display.target.switch
        self._options = drain
        self._signals = signals
        self._stay = stay
        self._holder = new_holder()

    async def execute(
        self,
        enable: EnableOptions,
        words: Sequence[str],
        init: bool,  # anyio.run passes no keywords
        token: str | None,
    ) -> int:
        await interruptible(
            self._signals, lambda: self._foresee(init=init), "nothing has changed"
        )
        publication = await self._switch.publish_to_drain(
            self._options, enable, holder=self._holder
        )
        self._display.published(
            publication, publication.roster, token=token, drain=self._options
        )
        try:
            await self._drain(publication)
            self._signals.check()
        except InterruptedBySignalError as error:
            # To interrupt is not to open.
            code = ExitCode.of_signal(error.number)
            await self._fail(publication, code, str(error), stays_on=True)
        except StoreError as error:
            await self._not_started(publication, str(error))
        try:
            # What this process has inherited is passed on; what Python opens is not.
            child = subprocess.Popen(words, close_fds=False)  # noqa: ASYNC220, S603  # the user's own command
        except OSError as error:
            text = f"cannot start {words[0]}: {error.strerror}"
            await self._not_started(publication, text)
        with child:
            code = await self._signals.follow(child)
        return await self._finish(publication, code)

    async def _foresee(self, *, init: bool) -> None:
        """Refuse at once what no wait could end well, before anything has changed."""
        target = self._display.target
        await target.require(init=init, code=ExitCode.NOT_STARTED)
        roster = None if target.fixed else await self._switch.roster()
        if roster is None:
            return
        verdict = foresee(roster, self._options.workers)
        if verdict is not None:
            raise FailureError(
                ExitCode.NOT_STARTED,
                f"{why_not(verdict, roster.not_dead)}; nothing has changed",
            )

    async def _drain(self, publication: Publication) -> None:
        state = publication.state
        with WaitDisplay(self._display, state, self._options.timeout) as shown:
            report = await self._signals.watch(
                lambda: self._switch.wait_until_drained(
                    publication, self._options, progress=shown.update
                )
            )
        if not report.drained:
            text = self._display.not_drained(report, state)
            await self._not_started(publication, f"{text}; the command was not started")
        self._display.drained(report, state)

    async def _not_started(self, publication: Publication, text: str) -> NoReturn:
        await self._fail(publication, ExitCode.NOT_STARTED, text, stays_on=self._stay)

    async def _fail(
        self, publication: Publication, code: int, text: str, *, stays_on: bool
    ) -> NoReturn:
        try:
            if stays_on:
                state = await self._switch.release(self._holder, stays=True)
                stays = self._switch.in_force(state)
                then = STAYS_ON if stays else "the other state stands"
            else:
                now = self._switch.clock()
                then = put_back(publication, await self._switch.undo(publication), now)
        except StoreError as error:
            then = f"{STAYS_HELD}: {error}"
        raise FailureError(code, f"{text}; {then}")

    async def _finish(self, publication: Publication, code: int) -> int:
        out, received = self._display.out, list(self._signals.received)
        succeeded = code == 0 and not received
        final = code if code >= 0 else ExitCode.of_signal(-code)
        how = f"exit code {code}" if code >= 0 else signal_name(-code)
        try:
            present = await self._switch.read()
            if succeeded:
                state = await self._switch.undo(publication)
            else:
                state = await self._switch.release(self._holder, stays=True)
        except StoreError as error:
            out.emit("end", command_exit=code, signals=received, enabled=None)
            text = f"the command ended with {how}"
            if succeeded:
                text = (
                    "the command has succeeded, do not run it again; only opening"
                    " failed"
                )
            raise FailureError(
                final or ExitCode.NOT_STARTED, f"{text}; {STAYS_HELD}: {error}"
            ) from error
        enabled = state is not None and self._switch.in_force(state)
        out.emit("end", command_exit=code, signals=received, enabled=enabled)
        if self._holder not in present.holders:
            out.warn(
                f"the command ended with {how}, but had lost its hold:"
                f" {present.actor or 'another operator'} published another state"
            )
        elif not succeeded:
            names = ", ".join(signal_name(number) for number in received)
            after = f" after {names}" if names else ""
            out.warn(f"the command ended with {how}{after}; {STAYS_ON}")
        elif state is not None and enabled:
            out.say(f"The command succeeded; maintenance stays on: {_why_on(state)}.")
        else:
            out.say("The command succeeded; maintenance is off.")
        return final


def _why_on(state: MaintenanceState) -> str:
    others = [holder for holder in state.holders if holder != OPERATOR]
    if others:
        return f"held by {', '.join(others)}"
    return "it was on before, `fastapi-maintenance off` opens it"
