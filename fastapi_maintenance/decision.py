"""The order of decisions: a connection and the state in, admit or refuse out."""

import hmac
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from ._fastapi import Scope, effective_route, effective_template
from .changes import token_digest
from .closing import close_websocket
from .exemptions import has_mark, is_documentation, is_marked
from .handlers import HandlerChain
from .log import logger
from .refusal import MaintenanceError, prober_of, refuse, seconds_to_wait
from .state import MaintenanceState
from .stores import StoreError, is_in_process
from .switch import Switch
from .worker import Admission

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
BYPASS_HEADER: Final = "X-Maintenance-Bypass"
BYPASS_COOKIE: Final = "maintenance_bypass"

_CACHED_ROUTES: Final = 1024

_guard_numbers: Final = count(1)


class Coverage(NamedTuple):
    """What the guard knows about a route, whatever the state.

    Attributes:
        exempt: Whether it is open under maintenance, by its marker or as documentation,
            and never counted.
        label: How it is shown in a drain.
        pinned: Keeps the objects alive whose ids are the key in the cache.
    """

    exempt: bool
    label: str
    pinned: object = None


class Decision:
    """Decides for one guard, and for what it wraps.

    Args:
        switch: Where the state is and requests are counted.
        handlers: The exempt handlers.
        detail: What refused clients read when the state has no message.
        retry_after: Seconds, when the state names no end.
        spread: The fraction by which ``Retry-After`` is lengthened at random.

    Attributes:
        key: Where a scope has the ``GuardedRequest`` that was admitted.
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
        self._coverage: dict[tuple[int, int, int], Coverage] = {}
        self._warned_of_probe = False
        self._warned_of_outage = False
        self._warned_of_late_join = False
        self.key: str = f"fastapi_maintenance.{next(_guard_numbers)}"

    def admit_or_refuse(
        self,
        connection: HTTPConnection,
        stack: AsyncExitStack | ExitStack | None,
        coverage: Coverage | None = None,
    ) -> Coroutine[Any, Any, None] | None:
        """Let a matched request run, counted on a stack, or refuse it.

        Not a coroutine function: each request would pay for one.

        Args:
            connection: The request, for exempt handlers.
            stack: Ends the count when it closes; None where this FastAPI has none.
            coverage: What is known about the route; None if it was not looked up.

        Returns:
            None if all is decided, else what is left to await.

        Raises:
            MaintenanceError: If it is refused; or ``WebSocketException``. What is left
                to await raises them too.
        """
        scope = connection.scope
        if coverage is None:
            coverage = self.coverage(scope)
        if coverage.exempt:
            return None
        worker = self.switch.worker
        state = worker.state
        if (
            state.enabled
            and worker.joined
            and not self._handlers.has_handlers
            and self.switch.in_force(state)
            and not _state_allows(state, scope)
        ):
            # No work will run, so nothing has to be counted.
            self.warn_and_refuse(scope, state)
        admission = worker.admit(coverage.label)
        if admission is None:
            return self._join_first(connection, stack, coverage)
        if stack is None:
            worker.mark_uncounted("this FastAPI has no exit stack to count requests on")
            admission.release()
        else:
            # Before any await, at which the request could be cancelled.
            stack.push(admission)
            if scope["type"] == "websocket" and isinstance(connection, WebSocket):
                close_websocket(admission, connection)
        if admission.state.enabled:
            return self._decide(connection, admission)
        if not admission.ended:
            admission.enter_context()
        return None

    def error_for(self, state: MaintenanceState) -> MaintenanceError:
        """Return a new error for a state."""
        now = self.switch.clock()
        wait = seconds_to_wait(
            state,
            now,
            self._retry_after,
            self._spread * self.random() if self._spread else 0.0,
        )
        return MaintenanceError(
            state.message or self._detail, retry_after=wait, state=state, now=now
        )

    def warn_and_refuse(self, scope: Scope, state: MaintenanceState) -> NoReturn:
        """Refuse a connection; warn once if it is a health check."""
        if not self._warned_of_probe:
            prober = prober_of(scope)
            if prober is not None:
                self._warned_of_probe = True
                logger.warning(
                    "%r is refused at %r, and may report this service as down, restart"
                    " it or take it out: mark that endpoint @maintenance_exempt",
                    prober,
                    scope["path"],
                )
        refuse(scope, self.error_for(state))

    def coverage(self, scope: Scope) -> Coverage:
        """Return what is known about the matched route, from a bounded cache."""
        # From FastAPI 0.137 on, an included route is shared, and only its context
        # differs. What is documentation depends on the application.
        fastapi_scope = scope.get("fastapi")
        context = (
            fastapi_scope.get("effective_route_context") if fastapi_scope else None
        )
        route, app = scope.get("route"), scope.get("app")
        key = (id(route), id(context), id(app))
        known = self._coverage.get(key) if route is not None else None
        if known is None:
            effective = effective_route(scope)
            known = Coverage(
                exempt=is_marked(scope.get("endpoint"), effective)
                or has_mark(app)
                or is_documentation(scope, effective),
                label=label_of(scope, effective),
                pinned=(route, context, app),
            )
            # A frontend has no route of its own, and is not cached.
            if route is not None:
                if len(self._coverage) >= _CACHED_ROUTES:
                    self._coverage.clear()
                self._coverage[key] = known
        return known

    async def ensure_joined(self) -> bool:
        """Join at a first request, and log once if that fails."""
        late = not self.switch.worker.joined and not is_in_process(self.switch.store)
        try:
            await self.switch.join()
        except StoreError as error:
            if not self._warned_of_outage:
                logger.error("refusing until the state is known: %s", error)  # noqa: TRY400  # its text says all, and once
            self._warned_of_outage = True
            return False
        self._warned_of_outage = False
        if late and not self._warned_of_late_join:
            self._warned_of_late_join = True
            logger.warning(
                "maintenance: %s: a worker joined at its first request, and no command"
                " saw it before; use FastAPI(lifespan=guard.lifespan)",
                self.switch.worker.title,
            )
        return True

    def not_joined_error(self) -> MaintenanceError:
        """Return the error of a worker that has not joined, and so admits nothing."""
        return self.error_for(MaintenanceState(enabled=True))

    async def _join_first(
        self,
        connection: HTTPConnection,
        stack: AsyncExitStack | ExitStack | None,
        coverage: Coverage,
    ) -> None:
        if not await self.ensure_joined():
            refuse(connection.scope, self.not_joined_error())
        pending = self.admit_or_refuse(connection, stack, coverage)
        if pending is not None:
            await pending

    async def _decide(self, connection: HTTPConnection, admission: Admission) -> None:
        """Refuse an admitted request while maintenance is on, unless it is let in."""
        while self.switch.in_force(admission.state):
            state = admission.state
            if _state_allows(state, connection.scope):
                break
            try:
                exempt = await self._handlers.exempts(connection)
            except BaseException:
                admission.release()
                raise
            if self._handlers.has_handlers and self.switch.worker.readmit(admission):
                continue  # The state has changed while the handlers ran.
            if exempt:
                break
            admission.release()
            self.warn_and_refuse(connection.scope, state)
        if not admission.ended:
            admission.enter_context()


class AdmittedWork:
    """What ``MaintenanceGuard.admit`` returns: work outside of requests, counted."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        self._admission: Admission | None = None

    def __enter__(self) -> None:
        if self._admission is not None:
            raise RuntimeError("already entered; call guard.admit() for each work")
        switch = self._decision.switch
        admission = None
        while admission is None:
            switch.join_blocking()
            admission = switch.worker.admit("work")
        if switch.in_force(admission.state):
            admission.release()
            raise self._decision.error_for(admission.state)
        self._admission = admission.enter_context()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave_context()
            admission.release()

    async def __aenter__(self) -> None:
        await self._decision.switch.join()
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def _state_allows(state: MaintenanceState, scope: Scope) -> bool:
    """Tell whether the state itself makes an exception for a request."""
    if state.read_only and scope["type"] == "http" and scope["method"] in SAFE_METHODS:
        return True
    return state.bypass is not None and _has_bypass(scope, state.bypass)


def _has_bypass(scope: Scope, expected: str) -> bool:
    return any(
        given and hmac.compare_digest(token_digest(given).encode(), expected.encode())
        for given in _given_tokens(scope)
    )


def _given_tokens(scope: Scope) -> Iterator[bytes]:
    header, own = BYPASS_HEADER.lower().encode(), BYPASS_COOKIE.encode()
    for name, value in scope["headers"]:
        if name == header:
            yield value
        elif name == b"cookie":
            for cookie in value.split(b";"):
                key, _, given = cookie.partition(b"=")
                if key.strip() == own:
                    # No token has characters that are escaped. Before 3.11.10, Python
                    # needs seconds for what a client can escape (CVE-2024-7592).
                    yield given.strip().strip(b'"')


def label_of(scope: Scope, effective: Any) -> str:  # a route of any release
    """Return how a request is shown in a drain: by its template, if it has one."""
    template = effective_template(effective)
    if scope["type"] == "websocket":
        return f"WS {template}"
    if not template:
        if effective is not None:
            return "frontend"
        return f"{scope['method']} {scope['path']}"[:200]
    methods = getattr(effective, "methods", None) or {scope["method"]}
    return f"{'|'.join(sorted(methods))} {template}"
