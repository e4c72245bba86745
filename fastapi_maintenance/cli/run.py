"""``run``: on, wait, the command, and open again if that is safe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, NoReturn

import anyio

from ..changes import CannotDrainError, EnableOptions, new_holder
from ..fence import foresee
from ..stores import StoreError
from ..switch import DrainOptions, Publication
from .commands import put_back
from .display import WaitDisplay
from .exits import ExitCode, FailureError
from .signals import InterruptedBySignalError, Signals, signal_name
from .target import Target

STAYS_ON: Final = "maintenance stays on; `fastapi-maintenance off` opens it"


def run_command(
    target: Target,
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
            run = _Run(target, drain, signals, stay=stay)
            words = [path, *command[1:]]
            return anyio.run(run.take, enable, words, init, token)
    except (StoreError, CannotDrainError, OSError) as error:
        raise FailureError(ExitCode.NOT_STARTED, str(error)) from error


class _Run:
    def __init__(
        self, target: Target, drain: DrainOptions, signals: Signals, *, stay: bool
    ) -> None:
        self._target = target
        self._switch = target.switch
        self._options = drain
        self._signals = signals
        self._stay = stay
        self._holder = new_holder()

    async def take(
        self,
        enable: EnableOptions,
        words: Sequence[str],
        init: bool,  # anyio.run passes no keywords
        token: str | None,
    ) -> int:
        try:
            await self._signals.watch(lambda: self._foresee(init=init))
        except InterruptedBySignalError as error:
            raise FailureError(
                ExitCode.of_signal(error.number), f"{error}; nothing has changed"
            ) from None
        publication = await self._switch.publish_to_drain(
            self._options, enable, holder=self._holder
        )
        self._target.published(publication, publication.roster, token=token)
        try:
            await self._drain(publication)
            self._signals.check()
        except InterruptedBySignalError as error:
            # To interrupt is not to open.
            code = ExitCode.of_signal(error.number)
            await self._fail(publication, code, str(error), stays=True)
        except StoreError as error:
            await self._fail(publication, ExitCode.NOT_STARTED, str(error))
        try:
            # What this process has inherited is passed on; what Python opens is not.
            child = subprocess.Popen(words, close_fds=False)  # noqa: ASYNC220, S603  # the user's own command
        except OSError as error:
            text = f"cannot start {words[0]}: {error.strerror}"
            await self._fail(publication, ExitCode.NOT_STARTED, text)
        with child:
            code = await self._signals.follow(child)
        return await self._finish(publication, code)

    async def _foresee(self, *, init: bool) -> None:
        """Refuse at once what no wait could end well, before anything has changed."""
        await self._target.require(init=init, code=ExitCode.NOT_STARTED)
        roster = None if self._target.fixed else await self._switch.roster()
        verdict = roster and foresee(roster, self._options.workers)
        if verdict:
            raise FailureError(
                ExitCode.NOT_STARTED, f"{verdict.reason}; nothing has changed"
            )

    async def _drain(self, publication: Publication) -> None:
        state = publication.state
        with WaitDisplay(self._target, state, self._options.timeout) as display:
            report = await self._signals.watch(
                lambda: self._switch.wait(
                    publication, self._options, progress=display.look
                )
            )
        if not report.drained:
            text = self._target.not_drained(report, state)
            text += "; the command was not started"
            await self._fail(publication, ExitCode.NOT_STARTED, text)
        self._target.drained(report, state)

    async def _fail(
        self,
        publication: Publication,
        code: int,
        text: str,
        *,
        stays: bool | None = None,
    ) -> NoReturn:
        try:
            if self._stay if stays is None else stays:
                await self._switch.release(self._holder, stays=True)
                then = STAYS_ON
            else:
                then = put_back(publication, await self._switch.undo(publication))
        except StoreError as error:
            then = (
                "maintenance stays on and held, `fastapi-maintenance off --force` opens"
                f" it: {error}"
            )
        raise FailureError(code, f"{text}; {then}")

    async def _finish(self, publication: Publication, code: int) -> int:
        out, received = self._target.out, list(self._signals.received)
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
            text = (
                f"the command ended with {how}, but maintenance stays on and held,"
                f" `fastapi-maintenance off --force` opens it: {error}"
            )
            raise FailureError(final or ExitCode.NOT_STARTED, text) from error
        enabled = state is not None and state.enabled
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
        elif enabled:
            out.say("The command succeeded; maintenance stays on: others hold it.")
        else:
            out.say("The command succeeded; maintenance is off.")
        return final
