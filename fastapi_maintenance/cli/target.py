"""The switch that a command is about: opened, and looked for where it lives."""

from __future__ import annotations

from typing import Final

import anyio
import anyio.to_thread

from ..files import other_owner
from ..stores import (
    StoreError,
    TemporaryStoreError,
    is_in_process,
    is_read_only,
    location,
    open_store,
)
from ..stores.file import FileStore
from ..switch import Switch
from .exits import ExitCode, FailureError
from .options import Where

PATIENCE: Final = 3.0
"""Seconds for which a command waits for a store that does not answer."""

IF_RUNNING: Final = (
    "if it is running, add FastAPI(lifespan=guard.lifespan), without which it joins at"
    " its first request, or name its store and switch with --store and --name"
)
"""What to check when a running service shows no worker."""


class Target:
    """One switch of one store.

    Args:
        where: The store and the switch.

    Attributes:
        switch: The switch.
        place: Where its state lives, for people.
        fixed: Whether it is set when a service starts.

    Raises:
        ValueError: If the name or the store URL cannot be used.
        FailureError: If the store lives in the service's own process.
    """

    def __init__(self, where: Where) -> None:
        store = open_store(where.store)
        self.fixed: bool = is_read_only(store)
        if is_in_process(store) and not self.fixed:
            raise FailureError(
                ExitCode.USAGE,
                "memory: is a store inside the service's own process, which no command"
                " reaches; give the service and --store a file:, redis: or SQL store",
            )
        self.switch: Switch = Switch(store, where.name)
        self.place: str = location(store)

    def __str__(self) -> str:
        return f"{self.switch.name!r} in {self.place}"

    async def require(
        self, *, init: bool = False, code: int = ExitCode.UNREACHABLE
    ) -> None:
        """Refuse a store that is not there, or that cannot be used from here.

        Args:
            init: Whether it is to be made.
            code: The exit code then.

        Raises:
            FailureError: If it is missing, another user's, or does not answer.
        """
        store = self.switch.store
        if isinstance(store, FileStore):
            self._keep_out(store, code)
            if not (init or store.exists):
                raise FailureError(
                    code,
                    f"no store at {self.place}: start the service; {IF_RUNNING}; or"
                    " make the store with `on --init`",
                )
        try:
            with anyio.fail_after(PATIENCE):
                await anyio.to_thread.run_sync(self._reach, abandon_on_cancel=True)
        except TimeoutError:
            raise FailureError(
                code,
                f"{self.place} has not answered for {PATIENCE:g} s; check that it is"
                " running and that --store names it",
            ) from None
        except TemporaryStoreError as error:
            raise FailureError(code, str(error)) from error

    def _reach(self) -> None:
        """Read the state, whatever it is.

        Raises:
            TemporaryStoreError: If the store does not answer.
        """
        try:
            self.switch.store.read(self.switch.name)
        except TemporaryStoreError:
            raise
        except StoreError:
            pass  # Damaged: ``on`` and ``off`` repair it, the others say so.

    def _keep_out(self, store: FileStore, code: int) -> None:
        """Refuse, as root, a directory in which another user could have put links."""
        for path in (store.path, store.run_dir):
            owner = other_owner(path)
            if owner is not None:
                raise FailureError(
                    code,
                    f"{path} or its parent directory belongs to {owner}, and root stays"
                    " out of it; use",
                    run_as=owner,
                )
