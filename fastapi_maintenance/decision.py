"""The order of decisions: a connection and the state in, admit or refuse out."""

import hmac
import logging
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from typing import Any, Final, NamedTuple, NoReturn

from starlette.requests import HTTPConnection, cookie_parser
from starlette.websockets import WebSocket

from ._fastapi import Scope, effective_route, effective_template, matched
from .closing import close_in_time
from .exemptions import is_documentation, is_marked
from .handlers import HandlerChain
from .orders import hashed
from .refusal import MaintenanceError, prober_of, refuse
from .state import LONGEST_WAIT, MaintenanceState
from .stores import StoreError
from .stores._admission import Admission
from .switch import Switch

logger: logging.Logger = logging.getLogger("fastapi_maintenance")

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
BYPASS_HEADER: Final = "X-Maintenance-Bypass"
BYPASS_COOKIE: Final = "maintenance_bypass"

_CACHED_ROUTES: Final = 1024

_numbers: Final = count(1)


class Coverage(NamedTuple):
    """What is true of a route whatever the state is.

    Attributes:
        exempt: Whether it is open under maintenance, by its marker or as
            documentation, and never counted.
        label: How it is shown in a drain.
        key: Keeps the cached route alive, so that its id is not given away.
    """

    exempt: bool
    label: str
    key: object


class Decision:
    """Decides for one guard; its doors share it.

    Args:
        switch: Where the state is and requests are counted.
        handlers: Who else is let through.
        detail: What refused clients read when the state has no message.
        retry_after: Seconds, when the state names no end.
        spread: The fraction by which ``Retry-After`` is lengthened at random.

    Attributes:
        key: Under which a door notes in a request's scope what became of it.
    """

    def __init__(
        self,
        switch: Switch,
        handlers: HandlerChain,
        detail: str,
        retry_after: int,
        spread: float,
    ) -> None:
        self.switch = switch
        self._handlers = handlers
        self._detail = detail
        self._retry_after = retry_after
        self._spread = spread
        self.random: Callable[[], float] = random.random
        self._probed = False
        self._coverage: dict[tuple[int, int, int], Coverage] = {}
        self._unreachable = False
        self.key: str = f"fastapi_maintenance.{next(_numbers)}"

    def take(
        self,
        connection: HTTPConnection,
        stack: AsyncExitStack | ExitStack | None,
        coverage: Coverage | None = None,
        *,
        ready: bool = False,
    ) -> Coroutine[Any, Any, None] | None:
        """Let a matched request run, counted on the stack, or refuse it.

        Nothing is awaited unless it must be: a coroutine more would be felt by every
        request.

        Args:
            connection: What handlers are asked about.
            stack: Holds the count; None where this FastAPI has none.
            coverage: What is true of the route, if it is known already.
            ready: Whether the store was asked already, where it must be.

        Returns:
            None when that is all, else what is left to await.

        Raises:
            MaintenanceError: If it is refused; or ``WebSocketException``. What is left
                to await raises them too.
        """
        scope = connection.scope
        if coverage is None:
            coverage = self.coverage(scope)
        if coverage.exempt:
            return None
        switch = self.switch
        worker = switch.worker
        if not ready and (not worker.joined or switch.polled is not None):
            return self._take_late(connection, stack, coverage)
        if worker.state.active and not self._handlers:
            # To refuse, nothing needs to be counted: no work will run.
            self._refuse_at_once(scope, worker.look())
        admission = worker.admit(coverage.label)
        if stack is None:
            worker.stand_aside("this FastAPI has no exit stack to count requests on")
            admission.release()
        else:
            # At once, before anything is awaited: a request that is cancelled in
            # between must give its count back.
            stack.push(admission)
            # The type first: classes of connections are slow to tell apart.
            if scope["type"] == "websocket" and isinstance(connection, WebSocket):
                let_go = close_in_time(worker, admission.number, connection)
                stack.callback(let_go)
        if admission.state.active:
            return self._decide(connection, admission)
        return None

    @property
    def asks(self) -> bool:
        """Whether there are handlers to ask."""
        return bool(self._handlers)

    def error(self, state: MaintenanceState) -> MaintenanceError:
        """Return a new error for a state."""
        wait = state.wait_seconds(self.switch.clock(), self._retry_after)
        if self._spread:
            wait = min(wait + int(wait * self._spread * self.random()), LONGEST_WAIT)
        return MaintenanceError(
            state.message or self._detail, retry_after=wait, state=state
        )

    def refuse(self, scope: Scope, state: MaintenanceState) -> NoReturn:
        """Refuse a connection; warn once if it is a health check.

        Raises:
            MaintenanceError: Always; or ``WebSocketException``.
        """
        if not self._probed:
            prober = prober_of(scope)
            if prober is not None:
                self._probed = True
                logger.warning(
                    "a health check (%r) is refused at %r, and may have this service"
                    " restarted or taken out: mark its endpoint @maintenance_exempt",
                    prober,
                    scope["path"],
                )
        refuse(scope, self.error(state))

    def coverage(self, scope: Scope) -> Coverage:
        """Return what is true of the matched route, from a bounded cache."""
        # By identity: neither routes nor FastAPI's own objects are hashable by it. What
        # is documentation depends on the application.
        route, context, app = found = matched(scope)
        key = (id(route), id(context), id(app))
        known = None if route is None else self._coverage.get(key)
        if known is None:
            endpoint = scope.get("endpoint")
            effective = effective_route(scope)
            known = Coverage(
                exempt=is_marked(endpoint, effective)
                or is_documentation(scope, effective),
                label=label_of(scope, effective),
                key=found,
            )
            # A frontend has no route of its own, and is looked at each time.
            if route is not None:
                if len(self._coverage) >= _CACHED_ROUTES:
                    self._coverage.clear()
                self._coverage[key] = known
        return known

    async def join(self) -> bool:
        """Be ready to decide, and say once in the log when that fails."""
        try:
            await self.switch.join()
        except StoreError as error:
            if not self._unreachable:
                logger.error("refusing until the state is known: %s", error)  # noqa: TRY400  # its text says all, and once
            self._unreachable = True
            return False
        self._unreachable = False
        return True

    def unknown(self) -> MaintenanceError:
        """Return the error while the state has never been known.

        A worker that could join and has not admits nothing.
        """
        return self.error(MaintenanceState(active=True))

    async def _take_late(
        self,
        connection: HTTPConnection,
        stack: AsyncExitStack | ExitStack | None,
        coverage: Coverage,
    ) -> None:
        if not await self.join():
            refuse(connection.scope, self.unknown())
        pending = self.take(connection, stack, coverage, ready=True)
        if pending is not None:
            await pending

    async def _decide(self, connection: HTTPConnection, admission: Admission) -> None:
        while self.switch.in_force(admission.state):
            state = admission.state
            if _lets_in(state, connection.scope):
                return
            try:
                exempt = await self._handlers.exempts(connection)
            except BaseException:
                # Cancelled before it ran: whoever keeps the error keeps this frame,
                # and must not keep the count with it.
                admission.release()
                raise
            if self._handlers and self.switch.worker.recheck(admission):
                continue  # The state moved while a handler was asked.
            if exempt:
                return
            admission.release()
            self.refuse(connection.scope, state)

    def _refuse_at_once(self, scope: Scope, state: MaintenanceState) -> None:
        if self.switch.in_force(state) and not _lets_in(state, scope):
            self.refuse(scope, state)


def _lets_in(state: MaintenanceState, scope: Scope) -> bool:
    """Tell whether the state itself makes an exception for a request."""
    if state.read_only and scope.get("method") in SAFE_METHODS:
        return True
    return state.bypass is not None and _has_bypass(scope, state.bypass)


def _has_bypass(scope: Scope, expected: str) -> bool:
    header = BYPASS_HEADER.lower().encode()
    for name, value in scope["headers"]:
        if name == header:
            given = value
        elif name == b"cookie":
            found = cookie_parser(value.decode("latin-1")).get(BYPASS_COOKIE)
            given = found.encode("latin-1") if found else b""
        else:
            continue
        if given and hmac.compare_digest(hashed(given).encode(), expected.encode()):
            return True
    return False


def label_of(scope: Scope, effective: Any) -> str:  # a route of any release
    """Return how a request is shown in a drain: by its template, if it has one."""
    template = effective_template(effective)
    if scope["type"] == "websocket":
        return f"WS {template}"
    if not template:
        return (
            f"{scope['method']} {scope['path']}"[:200]
            if effective is None
            else "frontend"
        )
    methods = getattr(effective, "methods", None) or {scope["method"]}
    return f"{'|'.join(sorted(methods))} {template}"
