"""The ASGI door: what no dependency reaches, decided before a byte is read.

While maintenance is off a door does not match routes: that would cost more than all
else it does. But what is exempt is never counted, and no drain may wait for it. So a
request is counted when it enters, before its route is known, and what turns out to be
exempt is sorted out whenever counts are looked at, and when the worker adopts a new
state: before that nobody waits.

Counting too much for a moment is safe: the count precedes the reading of the state, as
it must, and work that is not exempt is never uncounted while it runs. Only what the
application's own router has written into the scope is believed: a route that was merely
*foreseen* may not be the one that runs, and would make a drain lie. Where a middleware
behind the door copies the scope, the door learns of an exempt endpoint from the guard
inside, or not at all: then a drain waits too long, but never says drained too early.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.websockets import WebSocket

from ._ahead import Ahead, look_ahead
from ._asking import who_asks
from ._fastapi import Scope, direct_dependencies, effective_route
from ._visit import Unopened, Unsettled, Visit, foreseen, unread
from .closing import close_in_time
from .decision import Coverage, Decision
from .refusal import refuse
from .stores._admission import Admission

_SERVED: Final = frozenset({"http", "websocket"})
_NOTHING: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}


class Door:
    """An ASGI application behind a guard: ``guard.wrap(app)``.

    Args:
        app: What is behind it.
        guard: Who is looked for among dependencies and their overrides.
        decision: Decides and counts, for the guard's other doors too.
    """

    def __init__(self, app: ASGIApp, guard: object, decision: Decision) -> None:
        if not _is_application(app):
            raise TypeError(
                f"wrap takes an ASGI application, not {app!r}; for example"
                ' app.mount("/static", guard.wrap(StaticFiles(directory="static")))'
            )
        self.app = app
        self._guard = guard
        self._decision = decision
        self._key = decision.key

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes behind it, so that names in a mount are still found."""
        return list(getattr(self.app, "routes", None) or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, counted, or refuse it before its body is read."""
        if scope["type"] not in _SERVED:
            await self._other(scope, receive, send)
            return
        key = self._key
        visit: Visit | None = scope.get(key)
        decided = visit is not None and visit.settled and visit.is_of(scope)
        if decided or self._is_overridden(scope):
            await self.app(scope, receive, send)
            return
        # Looked up each time: a test may have replaced it for a while.
        switch = self._decision.switch
        worker = switch.worker
        ready = worker.joined and switch.polled is None
        if not ready and not await self._decision.join():
            await self._closed(scope, receive, send, known=False)
            return
        if not (worker.state.active and switch.in_force(worker.look())):
            visit = Visit(scope)
            admission = worker.admit(visit)
            try:
                with admission:
                    state = admission.state
                    if not (state.active and switch.in_force(state)):
                        scope[key] = visit
                        if scope["type"] == "websocket":
                            await self._connected(scope, receive, send, admission)
                        else:
                            await self.app(scope, receive, send)
                        return
            finally:
                # They would hold each other until somebody collects garbage.
                scope.pop(key, None)
                if admission.number:
                    visit.leave()
        await self._closed(scope, receive, send)

    async def _connected(
        self, scope: Scope, receive: Receive, send: Send, admission: Admission
    ) -> None:
        """Pass on a WebSocket that can be told to close."""
        line = WebSocket(scope, receive, send)
        let_go = close_in_time(admission.worker, admission.number, line)
        try:
            await self.app(scope, line.receive, line.send)
        finally:
            let_go()

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no request."""
        await self.app(scope, receive, send)

    async def _closed(
        self, scope: Scope, receive: Receive, send: Send, *, known: bool = True
    ) -> None:
        """Decide while maintenance is on, or while its state is not known."""
        decision = self._decision
        found = self._foresee(scope)
        if found is None:
            await self.app(scope, receive, send)
            return
        ahead, coverage, beside = found
        if beside:
            await self._beside(scope, receive, send, ahead, coverage, known=known)
            return
        refusal: Exception
        with ExitStack() as stack:
            try:
                if not known:
                    refuse(scope, decision.unknown())
                asking = unread(ahead.scope)
                pending = decision.take(asking, stack, coverage)
                if pending is not None:
                    await pending
            except (HTTPException, WebSocketException) as error:
                # Without its traceback, whose frames hold this one, which holds it.
                refusal = error.with_traceback(None)
            else:
                scope[self._key] = Visit(scope)
                if isinstance(asking, Unopened):
                    line = asking.line = WebSocket(scope, receive, send)
                    receive, send = line.receive, line.send
                try:
                    await self.app(scope, receive, send)
                finally:
                    scope.pop(self._key, None)
                return
        await _answer(refusal, ahead, scope, receive, send)

    def _foresee(self, scope: Scope) -> tuple[Ahead, Coverage, bool] | None:
        """Return what is closed ahead, and whether the guard inside will say so."""
        # A quick look is good enough to refuse by, but not to ask or to let in by.
        for quick in (False,) if self._decision.asks else (True, False):
            ahead = look_ahead(self._behind(scope), scope, quick=quick)
            if ahead is None or any(
                self._is_overridden({"app": app}) for app in ahead.apps
            ):
                continue
            coverage = foreseen(ahead)
            beside = self._guard in direct_dependencies(ahead.effective)
            if not coverage.exempt and not (quick and beside):
                return ahead, coverage, beside
        return None

    async def _beside(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        ahead: Ahead,
        coverage: Coverage,
        *,
        known: bool,
    ) -> None:
        """Leave a request to the guard inside, but its body unread until it decides."""
        decision = self._decision
        visit = scope[self._key] = Unsettled(scope)
        if not known:
            visit.refusal = decision.unknown()
        undecided = True

        async def receiving() -> Message:
            nonlocal undecided
            asker = who_asks(door) if undecided else None
            if asker is None:
                return await receive()
            undecided = False
            try:
                if visit.refusal is not None:
                    raise visit.refusal
                seen = unread(dict(asker.scope))
                pending = decision.take(seen, stack, coverage)
                if pending is not None:
                    await pending
            except HTTPException as error:
                reached = direct_dependencies(effective_route(asker.scope))
                if not asker.grouped or self._guard not in reached:
                    raise
                # The guard will refuse, before anything is made of the empty body.
                visit.refusal = error
                return _NOTHING
            visit.settled = True
            return await receive()

        door = Door._beside.__code__
        try:
            with ExitStack() as stack:
                await self.app(scope, receiving, send)
        finally:
            scope.pop(self._key, None)

    def _is_overridden(self, scope: Mapping[str, object]) -> bool:
        overrides: Mapping[object, object] | None
        overrides = getattr(scope.get("app"), "dependency_overrides", None)
        return overrides is not None and self._guard in overrides

    def _behind(self, _scope: Scope) -> object:
        """Return where to look for what a request will reach."""
        return self.app


def _is_application(app: object) -> bool:
    return callable(app) and not isinstance(app, type | BaseRoute)


async def _answer(
    error: Exception, ahead: Ahead, scope: Scope, receive: Receive, send: Send
) -> None:
    """Let the exception handlers of the innermost application answer."""
    app = ahead.apps[-1] if ahead.apps else scope.get("app")
    handlers: dict[Any, Any] = {  # of all kinds of errors, as Starlette types them
        HTTPException: http_exception_handler,
        **getattr(app, "exception_handlers", {}),
    }

    async def refusing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    await ExceptionMiddleware(refusing, handlers)(ahead.scope, receive, send)
    error.__traceback__ = None
