"""``run``: on, wait, the command, and open again if that is safe."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from typing import Final, NoReturn

import anyio
import anyio.to_thread

from ..orders import Order, new_holder
from ..stores import StoreError
from ..waiting import Fenced, FenceRefusedError, Plan
from .display import Waiting
from .operate import put_back
from .signals import InterruptedBySignalError, Signals, signal_name
from .target import FailureError, Target

OWN_FAILURE: Final = 125
NO_COMMAND: Final = 127

STAYS_ON: Final = "maintenance stays on; `fastapi-maintenance off` opens it"


def run_command(
    target: Target,
    order: Order,
    plan: Plan,
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
            NO_COMMAND,
            f"no command, or none to execute: {command[0]!r}; nothing was published",
        )
    try:
        target.require(init=init)
    except FailureError as error:
        raise FailureError(OWN_FAILURE, str(error)) from None
    try:
        # Before there is any thread: each inherits what is held back here.
        with Signals() as signals:
            run = _Run(target, plan, signals, stay=stay)
            return anyio.run(run.take, order, path, command, token)
    except (StoreError, FenceRefusedError, OSError) as error:
        raise FailureError(OWN_FAILURE, str(error)) from error


class _Run:
    def __init__(
        self, target: Target, plan: Plan, signals: Signals, *, stay: bool
    ) -> None:
        self._target = target
        self._switch = target.switch
        self._plan = plan
        self._signals = signals
        self._stay = stay
        self._holder = new_holder()

    async def take(
        self, order: Order, path: str, command: Sequence[str], token: str | None
    ) -> int:
        fenced = await self._switch.fence(self._plan, order, holder=self._holder)
        self._target.published(fenced.state, fenced.roster, token)
        try:
            await self._drain(fenced)
            self._signals.check()
        except InterruptedBySignalError as error:
            # Whoever interrupts does not ask to open.
            await self._fail(fenced, 128 + error.number, str(error), stays=True)
        except StoreError as error:
            await self._fail(fenced, OWN_FAILURE, str(error), stays=self._stay)
        try:
            child = self._start(path, command)
        except OSError as error:
            text = f"cannot start {path}: {error.strerror}"
            await self._fail(fenced, OWN_FAILURE, text, stays=self._stay)
        code, received = await anyio.to_thread.run_sync(
            self._signals.wait_for_child, child
        )
        return await self._settle(fenced, code, received)

    async def _drain(self, fenced: Fenced) -> None:
        with Waiting(self._target.out, fenced.state.epoch, self._plan.timeout) as shown:
            report = await self._signals.watch(
                lambda: self._switch.wait(fenced, self._plan, look=shown.look)
            )
        if not report.drained:
            text = f"{self._target.not_drained(report)}; the command was not started"
            await self._fail(fenced, OWN_FAILURE, text, stays=self._stay)
        self._target.drained(report)

    def _start(self, path: str, command: Sequence[str]) -> int:
        python_ignores = [signal.SIGPIPE, signal.SIGXFSZ]
        return os.posix_spawn(
            path,
            list(command),
            os.environ,
            setsigmask=self._signals.before,
            setsigdef=python_ignores,
        )

    async def _fail(
        self, fenced: Fenced, code: int, text: str, *, stays: bool
    ) -> NoReturn:
        try:
            if stays:
                await self._switch.release(self._holder, stays=True)
                then = STAYS_ON
            else:
                then = put_back(fenced.before, await self._switch.undo(fenced))
        except StoreError as error:
            then = (
                "maintenance stays on and held, `fastapi-maintenance off --force` opens"
                f" it: {error}"
            )
        raise FailureError(code, f"{text}; {then}")

    async def _settle(self, fenced: Fenced, code: int, received: list[int]) -> int:
        out = self._target.out
        succeeded = code == 0 and not received
        final = code if code >= 0 else 128 - code
        how = f"exit code {code}" if code >= 0 else signal_name(-code)
        try:
            present = await self._switch.source.read(self._switch.name)
            if succeeded:
                state = await self._switch.undo(fenced)
            else:
                state = await self._switch.release(self._holder, stays=True)
        except StoreError as error:
            out.emit("end", command_exit=code, signals=received, active=None)
            text = (
                f"the command ended with {how}, but maintenance stays on and held,"
                f" `fastapi-maintenance off --force` opens it: {error}"
            )
            raise FailureError(final or OWN_FAILURE, text) from error
        active = state is not None and state.active
        out.emit("end", command_exit=code, signals=received, active=active)
        if self._holder not in present.holders:
            out.warn(
                f"the command ended with {how}, but had lost its hold:"
                f" {present.actor or 'somebody'} published another state meanwhile"
            )
        elif not succeeded:
            names = ", ".join(signal_name(number) for number in received)
            after = f" after {names}" if names else ""
            out.warn(f"the command ended with {how}{after}; {STAYS_ON}")
        elif active:
            out.say("The command succeeded; maintenance stays on: others hold it.")
        else:
            out.say("The command succeeded; maintenance is off.")
        return final
