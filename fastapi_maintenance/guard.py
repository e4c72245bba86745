"""The guard: the dependency, and a façade over the switch and the decision."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from ._fastapi import OUTER_STACK
from .asgi.wrap import GuardedApp
from .changes import EnableOptions
from .checks import check_listener, check_text, fraction, whole_seconds
from .closing import Closing
from .decision import AdmittedWork, Decision
from .fence import DrainReport
from .handlers import ExemptHandlers, HandlerChain
from .refusal import DEFAULT_DETAIL, openapi_responses
from .state import MaintenanceState
from .stores import Store, as_store, location
from .switch import DrainOptions, Switch


class MaintenanceGuard:
    """Refuses requests with a 503 while maintenance is on, and counts those it admits.

    Create it once and give it to ``Depends``: for an application, a router, an
    ``include_router`` or one route. At several levels it runs once per request. Put it
    first among the dependencies, so that nothing else runs before a refusal.

    Args:
        store: Where the state lives: a store, a URL for ``open_store``, or None for
            ``$FASTAPI_MAINTENANCE_STORE``, else the directory ``.fastapi-maintenance``.
        name: Which switch of the store; one store can hold several.
        exempt_handler: One or several callables of the connection that let a request
            through by returning ``True``. They are asked only while maintenance is on.
            Wrapped in ``Depends``, one may have FastAPI dependencies of its own.
        detail: What refused clients read when the state has no message.
        retry_after: Seconds for ``Retry-After`` when the state names no end that is
            ahead.
        retry_spread: Lengthens each ``Retry-After`` by a random part of this fraction,
            from 0 to 1, so that clients do not all return in the same second. In whole
            seconds: a wait of less than ``1 / retry_spread`` seconds stays as it is.
        handler_timeout: Seconds after which a handler has not said ``True``.
        on_change: Called with each state that was published, once per change and
            worker, in order, in a thread of its own. A planned start and the end of
            ``auto_off`` happen by the clock; ``is_active`` has them.

    Raises:
        ValueError: If a value cannot work: a bad name, an unknown store URL, a negative
            or not finite number, a text of several lines.
        TypeError: If a value has another type than documented.

    Examples:
        >>> from fastapi import Depends, FastAPI
        >>> from fastapi_maintenance import MaintenanceGuard
        >>> guard = MaintenanceGuard("memory:")
        >>> app = FastAPI(
        ...     dependencies=[Depends(guard)],
        ...     lifespan=guard.lifespan,
        ...     responses=guard.responses,
        ... )
    """

    def __init__(
        self,
        store: Store | str | None = None,
        *,
        name: str = "default",
        exempt_handler: ExemptHandlers = None,
        detail: str = DEFAULT_DETAIL,
        retry_after: int | timedelta = 60,
        retry_spread: float = 0.0,
        handler_timeout: float = 2.0,
        on_change: Callable[[MaintenanceState], object] | None = None,
    ) -> None:
        check_text(detail, "detail")
        self._detail = detail
        self._switch = Switch(as_store(store), name)
        self._decision = Decision(
            self._switch,
            HandlerChain(exempt_handler, handler_timeout),
            detail,
            whole_seconds(retry_after, "retry_after"),
            fraction(retry_spread, "retry_spread"),
        )
        if on_change is not None:
            check_listener(on_change, "on_change")
            self._switch.worker.notifier.listen(on_change)

    def __repr__(self) -> str:
        switch = self._switch
        return f"<MaintenanceGuard {switch.name!r} of {location(switch.store)}>"

    async def __call__(self, connection: HTTPConnection) -> None:
        """Admit a matched request, or refuse it; FastAPI calls this.

        It takes nothing else: FastAPI would make any further parameter one that clients
        can set.

        Raises:
            MaintenanceError: If it is refused. On a WebSocket whose server cannot send
                a response to a handshake, ``WebSocketException`` with code 1013.
        """
        scope = connection.scope
        decision = self._decision
        request = scope.get(decision.key)
        if request is not None and request.is_running():
            # Decided by the middleware or ``wrap``; its route is known here.
            request.reached(scope)
            return
        pending = decision.admit_or_refuse(connection, scope.get(OUTER_STACK))
        if pending is not None:
            await pending

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Documents the 503 and its header: ``FastAPI(responses=guard.responses)``.

        The type is the one of FastAPI's own ``responses`` parameter.
        """
        return openapi_responses(self._detail)

    @property
    def state(self) -> MaintenanceState:
        """The last state that this worker knows.

        Raises:
            StoreError: If it has not joined, and the store cannot be read without
                waiting; the message names the remedy.
        """
        return self._switch.state

    @property
    def is_active(self) -> bool:
        """Whether guarded requests are refused at this moment.

        Raises:
            StoreError: As for ``state``.
        """
        return self._switch.in_force(self.state)

    @property
    def closing(self) -> Closing:
        """Whether the calling work is to end, as ``drain(close_after=...)`` asks.

        WebSockets are closed by themselves. A stream ends when it looks:
        ``while not guard.closing.is_set(): ...``, or ``await guard.closing.wait()``.
        """
        return Closing(self._switch.worker)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Join the store at start and leave it cleanly at the end.

        Use it as ``FastAPI(lifespan=guard.lifespan)``, or inside a lifespan of your own
        as ``async with guard.lifespan(app):``. Without one, a worker joins at its first
        guarded request.

        Raises:
            StoreError: If the store cannot be reached for 10 seconds. A roll-out then
                stops, and does not replace workers by some that refuse.
        """
        from .inventory import warn_of_uncovered  # noqa: PLC0415  # needed once, here

        warn_of_uncovered(app)
        async with self._switch.attached():
            yield

    async def enable(
        self,
        *,
        message: str | None = None,
        at: datetime | None = None,
        until: datetime | timedelta | None = None,
        auto_off: bool = False,
        retry_after: int | timedelta | None = None,
        read_only: bool = False,
        bypass_token: str | None = None,
        actor: str | None = None,
        acknowledge: float | None = None,
    ) -> MaintenanceState:
        """Switch maintenance on, for every worker of the store.

        A request that begins after this has returned without a warning is decided by
        the new state, on every worker.

        Args:
            message: What refused clients read; one line.
            at: When it begins; now by default.
            until: When it is expected to end; a duration counts from the beginning.
            auto_off: Open by the clock at ``until``.
            retry_after: Seconds for ``Retry-After`` when no end is ahead.
            read_only: Let GET, HEAD and OPTIONS through.
            bypass_token: Lets operators through until it is switched off; at least 16
                characters. Only its hash is stored.
            actor: Who does this, for the log and ``status``.
            acknowledge: Seconds to wait until every worker that is not proven dead has
                adopted the state. None is one second, or three ticks of the store; 0
                does not wait. Workers that have not are named in a warning in the log.

        Returns:
            The published state.

        Raises:
            ValueError: If a time is naive or has passed, or a text is not one line.
            StoreError: If the store cannot be set, or a ``maintenance()`` block or a
                ``run`` holds maintenance and ``at``, ``auto_off`` or ``read_only``
                could let requests in; nothing has changed then.
        """
        options = EnableOptions.from_arguments(
            message=message,
            at=at,
            until=until,
            auto_off=auto_off,
            retry_after=retry_after,
            read_only=read_only,
            bypass_token=bypass_token,
            actor=actor,
        )
        return (await self._switch.enable(options, acknowledge)).state

    async def disable(
        self, *, actor: str | None = None, acknowledge: float | None = None
    ) -> MaintenanceState:
        """Open again.

        Args:
            actor: Who does this, for the log and ``status``.
            acknowledge: As for ``enable``.

        Raises:
            StoreError: If the store cannot be set, or a ``maintenance()`` block or a
                ``run`` holds it on; it stays on then.
        """
        publication = await self._switch.disable(actor=actor, acknowledge=acknowledge)
        return publication.state

    async def drain(
        self,
        *,
        timeout: float = 30.0,
        workers: int | None = None,
        close_after: float | None = None,
    ) -> DrainReport:
        """Wait until no request that was admitted before this moment is running.

        It publishes the present state under a new epoch and waits for every worker.
        Inside a counted request it does not wait for that request; inside two blocks of
        ``admit`` it waits for the outer one.

        Args:
            timeout: Seconds.
            workers: How many workers must have joined. Give the exact number when the
                roster is not known to be complete. None trusts the roster, which must
                be complete and have at least one worker; 0 accepts none.
            close_after: Seconds after which counted WebSockets are closed with 1012,
                and ``guard.closing`` tells streams to end.

        Raises:
            ValueError: If maintenance is off, has not begun, or could open by the
                clock; or an argument cannot work.
            StoreError: If the store cannot be read or set.
        """
        options = DrainOptions(
            timeout=timeout, workers=workers, close_after=close_after
        )
        return await self._switch.drain(options)

    def maintenance(
        self,
        *,
        message: str | None = None,
        until: datetime | timedelta | None = None,
        drain_timeout: float = 30.0,
        workers: int | None = None,
        stay_on_error: bool = True,
    ) -> AbstractAsyncContextManager[DrainReport]:
        """Run a block under maintenance, once no request from before is running.

        Args:
            message: What refused clients read.
            until: When it is expected to end.
            drain_timeout: Seconds to wait for what is running.
            workers: As for ``drain``.
            stay_on_error: Keep maintenance on when the block fails.

        Raises:
            DrainError: If requests may still be running: the block does not start, and
                the state stays on.
            ValueError: If the present state could open by the clock or its window has
                not begun, or an argument cannot work.
            StoreError: If the store cannot be read or set.
        """
        return self._switch.maintenance(
            DrainOptions(timeout=drain_timeout, workers=workers),
            message=message,
            until=until,
            stay_on_error=stay_on_error,
        )

    def wrap(self, app: ASGIApp) -> GuardedApp:
        """Put an application that no dependency reaches behind this guard.

        ``app.mount("/static", guard.wrap(StaticFiles(directory="static")))``. Inside of
        a FastAPI application, its exception handlers answer refused requests.

        Raises:
            TypeError: If it is not an ASGI application.
        """
        return GuardedApp(app, self, self._decision)

    def admit(self) -> AdmittedWork:
        """Count work outside of requests: a job, a consumer, a task.

        Use it with ``with`` or ``async with``. A drain waits for it as for a request.

        Raises:
            MaintenanceError: On entering, while maintenance is on.
            StoreError: On entering, if the store has never been reached.
        """
        return AdmittedWork(self._decision)
