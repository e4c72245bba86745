"""The door for a whole application, as a middleware."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TypedDict, Unpack

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Send

from ._fastapi import Scope
from ._routing import layers, router_of
from .door import Door
from .guard import MaintenanceGuard
from .handlers import ExemptHandlers
from .state import MaintenanceState
from .stores import Store


class GuardOptions(TypedDict, total=False):
    """What ``MaintenanceGuard`` takes."""

    store: Store | str | None
    name: str
    exempt_handler: ExemptHandlers
    detail: str
    retry_after: int | timedelta
    retry_spread: float
    handler_timeout: float
    on_change: Callable[[MaintenanceState], object] | None


class MaintenanceModeMiddleware(Door):
    """Refuses what no dependency reaches, too, and before a byte of a body is read.

    Mounted applications, static files and plain Starlette routes are covered, markers
    and documentation hold, and what no route matches is answered as always. Add it
    before all other middlewares: the first that is added is the innermost, so that
    nothing behind it rewrites a path, and CORS headers stay on its answers. Beside
    ``Depends(guard)`` it leaves to the dependency what that guards.

    It joins the guard's store when the application starts, and leaves it at the end.

    Args:
        app: The application behind it; ``add_middleware`` gives it.
        guard: Who decides. Without one, it makes its own of the options.
        options: Those of ``MaintenanceGuard``.

    Raises:
        TypeError: If both a guard and options are given, or something else than a
            guard, or an option that there is not.
        ValueError: If an option cannot work.

    Examples:
        >>> from fastapi import FastAPI
        >>> from fastapi_maintenance import MaintenanceModeMiddleware
        >>> app = FastAPI()
        >>> app.add_middleware(MaintenanceModeMiddleware, store="memory:")
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: MaintenanceGuard | None = None,
        **options: Unpack[GuardOptions],
    ) -> None:
        if guard is None:
            guard = MaintenanceGuard(**options)
        elif not isinstance(guard, MaintenanceGuard):
            raise TypeError(f"guard must be a MaintenanceGuard, not {guard!r}")
        elif options:
            raise TypeError(
                f"{', '.join(options)}: give options to the guard, or to a middleware"
                " that has none"
            )
        super().__init__(app, guard, guard._decision)  # noqa: SLF001  # two halves of one thing
        self.guard = guard
        *_, box = layers(app)
        self._shown = router_of(box) is not None

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be a worker from before the application starts until it has ended."""
        stack = AsyncExitStack()

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await stack.enter_async_context(
                        self.guard.lifespan(scope.get("app"))
                    )
                except Exception as error:
                    await send(
                        {"type": "lifespan.startup.failed", "message": str(error)}
                    )
                    raise
            return message

        async def sending(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await stack.aclose()
            await send(message)

        async with stack:
            await self.app(scope, receiving, sending)

    def _behind(self, scope: Scope) -> object:
        if self._shown:
            return self.app
        # A middleware behind this one hides what it wraps. It is the application's, if
        # this one is.
        app = scope.get("app")
        if isinstance(app, Starlette) and self in layers(app.middleware_stack):
            return app.router
        return self.app
