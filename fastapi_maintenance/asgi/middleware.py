"""A guard around a whole application, as a middleware."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TypedDict, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Send

from .._fastapi import Scope
from ..guard import MaintenanceGuard
from ..handlers import ExemptHandlers
from ..state import MaintenanceState
from ..stores import Store
from .resolve import layers, router_of
from .wrap import GuardedApp, guard_of


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


class MaintenanceModeMiddleware(GuardedApp):
    """Refuses requests for a whole application before a byte of a body is read.

    It covers mounted applications, static files and plain Starlette routes too. Marked
    routes and documentation stay open, and what no route matches is answered as always.
    It also decides for a dependency with the same guard.

    Add it in any order: its answers have the headers of a ``CORSMiddleware`` even where
    that stands inside. Other middlewares inside do not see a refusal. One that rewrites
    paths must stand outside, so that the right route is found.

    It joins the guard's store when the application starts, and leaves it at the end.

    Args:
        app: The application behind it; ``add_middleware`` gives it.
        guard: The guard that decides; by default one that is made from the options.
        options: Those of ``MaintenanceGuard``.

    Raises:
        TypeError: If both a guard and options are given, if the guard is not one, or
            if an option is unknown.
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
                f"{', '.join(options)}: pass options to MaintenanceGuard, or leave"
                " guard= out"
            )
        super().__init__(app, guard, guard._decision)  # noqa: SLF001  # two halves of one thing
        self.guard = guard
        *_, inner = layers(app)
        self._shows_routes = router_of(inner) is not None

    async def _pass_other(self, scope: Scope, receive: Receive, send: Send) -> None:
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

    def _routed(self, scope: Scope) -> object:
        if self._shows_routes:
            return self.app
        # A middleware behind this one hides what it wraps. If this one is in the stack
        # of the application, so is that one.
        app = scope.get("app")
        if isinstance(app, Starlette) and self in layers(app.middleware_stack):
            return app.router
        return self.app

    def _is_made_by(self, entry: Middleware) -> bool:
        kind: object = entry.cls
        if kind is not type(self):
            return False
        given = guard_of(entry)
        return given is None or given is self.guard
