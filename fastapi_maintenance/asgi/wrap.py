"""An application behind a guard, decided before its route runs or a body is read.

While maintenance is off, no route is matched: that would cost more than everything
else together. A request is counted before its route is known. If it turns out to be
exempt, it is dropped from the count when the worker adopts a new state; counting too
many for a moment is safe. The route is then read from the scope, where the
application's own routers have written it: the route that was foreseen may not be the
one that runs.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.websockets import WebSocket, WebSocketClose

from .._fastapi import Scope, effective_route
from ..closing import close_websocket
from ..decision import Coverage, Decision, label_of
from ..exemptions import has_mark, is_marked
from ..handlers import NO_BODY, NoBody
from ..log import logger
from ..refusal import MaintenanceError, refuse
from ..worker import Admission
from .resolve import ResolvedRoute, layers, resolve

_SERVED: Final = frozenset({"http", "websocket"})
_NAMING: Final = ("type", "method", "path", "route", "fastapi", "endpoint", "app")
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start"})


class GuardedRequest:
    """A request that was admitted outside of an application.

    The dependency finds it in the scope. It is also the label of its admission, and
    knows its route as soon as the application's routers have found one.
    """

    __slots__ = ("_key", "_method", "_path", "_reached", "_scope", "admission")

    def __init__(self, scope: Scope, key: str) -> None:
        self.admission: Admission | None = None
        self._key = key
        self._path: str = scope["path"]
        self._method: object = scope.get("method")
        self._scope = scope
        self._reached = False
        scope[key] = self

    def is_running(self) -> bool:
        """Tell whether its admission has not ended."""
        admission = self.admission
        return admission is not None and not admission.ended

    def covers(self, scope: Scope) -> bool:
        """Tell whether a scope is that of this request, or a copy of it."""
        # An endpoint may send another request into its application with a copy of its
        # own scope. That request is decided on its own.
        return (
            self._path == scope["path"]
            and self._method == scope.get("method")
            and self.is_running()
        )

    def reached(self, scope: Scope) -> None:
        """Note the scope in which the dependency ran, where the endpoint is known."""
        # Only the first one is that of the request itself: its endpoint may send others
        # into the application, with copies of its scope.
        if not self._reached:
            self._reached = True
            self._scope = scope
            self._path = scope["path"]

    def is_exempt(self) -> bool:
        """Tell whether an endpoint was reached that is exempt."""
        scope = self._scope
        endpoint = scope.get("endpoint")
        chain = list(layers(endpoint))
        if (
            endpoint is None
            or isinstance(chain[-1], Starlette | Router)  # Its endpoint is not known.
            or scope["path"] != self._path
        ):
            return False
        effective = effective_route(scope)
        if is_marked(endpoint, effective) or any(map(has_mark, chain)):
            return True
        own = getattr(scope.get("route"), "endpoint", None) is endpoint
        return has_mark(scope.get("app")) and (own or isinstance(endpoint, StaticFiles))

    def end(self) -> None:
        """Drop the scope, except what the label needs while threads are running."""
        scope = self._scope
        scope.pop(self._key, None)
        self._scope = {name: scope.get(name) for name in _NAMING}

    def __str__(self) -> str:
        return label_of(self._scope, effective_route(self._scope))


class GuardedApp:
    """An ASGI application behind a guard: ``guard.wrap(app)``.

    Args:
        app: What is behind it.
        guard: What tests override in ``dependency_overrides``.
        decision: Decides and counts for the guard and everything that it wraps.

    Raises:
        TypeError: If it is not an ASGI application.
    """

    def __init__(self, app: ASGIApp, guard: object, decision: Decision) -> None:
        given: object = app
        if not callable(given) or isinstance(given, type | BaseRoute):
            raise TypeError(
                f"wrap takes an ASGI application, not {app!r}; for example"
                ' app.mount("/static", guard.wrap(StaticFiles(directory="static")))'
            )
        self.app = app
        self._guard = guard
        self._decision = decision
        self._handler_failed = False

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes behind it, for ``url_path_for`` through a mount."""
        return list(getattr(self.app, "routes", None) or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit a request, or refuse it before its body is read."""
        if scope["type"] not in _SERVED:
            await self._pass_other(scope, receive, send)
            return
        decision = self._decision
        request: GuardedRequest | None = scope.get(decision.key)
        decided = request is not None and request.covers(scope)
        if decided or self._is_overridden(scope.get("app")):
            await self.app(scope, receive, send)
            return
        # Looked up each time, as ``testing.force`` replaces it.
        switch = decision.switch
        worker = switch.worker
        state = worker.state
        joined = True
        if not (state.enabled and worker.joined and switch.in_force(state)):
            request = GuardedRequest(scope, decision.key)
            admission = worker.admit(request)
            while admission is None and joined:
                joined = await decision.ensure_joined()
                admission = worker.admit(request)
            try:
                if admission is not None and not (
                    admission.state.enabled and switch.in_force(admission.state)
                ):
                    request.admission = admission.enter_context()
                    if scope["type"] == "websocket":
                        websocket = WebSocket(scope, receive, send)
                        close_websocket(admission, websocket)
                        receive, send = websocket.receive, websocket.send
                    await self.app(scope, receive, send)
                    return
            finally:
                if admission is not None:
                    admission.release()
                request.end()
        await self._decide(scope, receive, send, joined=joined)

    async def _pass_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is not a request."""
        await self.app(scope, receive, send)

    async def _decide(
        self, scope: Scope, receive: Receive, send: Send, *, joined: bool
    ) -> None:
        """Decide while maintenance is on, or the worker could not join."""
        decision = self._decision
        resolved = resolve(self._routed(scope), scope)
        if (
            resolved is None
            or resolved.exempt
            or any(map(self._is_overridden, resolved.apps))
        ):
            # This route was only foreseen. A guard inside decides by the one that runs.
            await self.app(scope, receive, send)
            return
        label = label_of(resolved.scope, resolved.effective)
        coverage = Coverage(exempt=False, label=label)
        connection = _without_body(resolved.scope)
        refusal: MaintenanceError | WebSocketException
        with ExitStack() as stack:
            try:
                if not joined:
                    refuse(scope, decision.not_joined_error())
                pending = decision.admit_or_refuse(connection, stack, coverage)
                if pending is not None:
                    await pending
            except (MaintenanceError, WebSocketException) as error:
                # Its traceback refers to this frame, which would be a reference cycle.
                refusal = error.with_traceback(None)
            else:
                if isinstance(connection, PendingWebSocket):
                    websocket = connection.opened = WebSocket(scope, receive, send)
                    receive, send = websocket.receive, websocket.send
                request = GuardedRequest(scope, decision.key)
                request.admission = decision.switch.worker.own_admission()
                stack.callback(request.end)
                await self.app(scope, receive, send)
                return
        await self._answer(refusal, resolved, scope, receive, send)

    async def _answer(
        self,
        error: MaintenanceError | WebSocketException,
        resolved: ResolvedRoute,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer as the outer application would, and in any case with a 503."""
        outer = scope.get("app")
        inside = self._entries_inside(outer)
        if outer is None and resolved.apps:
            outer = resolved.apps[0]
            inside = outer.user_middleware
            scope = {**scope, "app": outer}
        refusal = Refusal(error, outer)
        await _with_cors(refusal, inside, scope)(scope, receive, send)
        error.__traceback__ = None
        if refusal.failure is not None and not self._handler_failed:
            self._handler_failed = True
            logger.error(
                "an exception handler cannot answer a refusal", exc_info=refusal.failure
            )

    def _entries_inside(self, app: object) -> list[Middleware]:
        """Return the middlewares of an application that stand inside of this one."""
        entries = app.user_middleware if isinstance(app, Starlette) else []
        for number, entry in enumerate(entries, 1):
            if self._is_made_by(entry):
                return entries[number:]
        return []

    def _is_made_by(self, _entry: Middleware) -> bool:
        """Tell whether this was made by an entry of ``user_middleware``."""
        return False

    def _is_overridden(self, app: object) -> bool:
        overrides: Mapping[object, object] | None
        overrides = getattr(app, "dependency_overrides", None)
        return overrides is not None and self._guard in overrides

    def _routed(self, _scope: Scope) -> object:
        """Return the application whose routes a request will reach."""
        return self.app


class PendingWebSocket(WebSocket):
    """A WebSocket that handlers are asked about, before it is let in.

    Attributes:
        opened: The connection itself, once it has been let in.
    """

    opened: WebSocket | None = None

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection, once it has been let in."""
        if self.opened is None:
            await super().close(code, reason)
        else:
            await self.opened.close(code, reason)


def guard_of(entry: Middleware) -> object:
    """Return the guard that an entry of ``user_middleware`` was given, or None."""
    return entry.args[0] if entry.args else entry.kwargs.get("guard")


def _without_body(scope: Scope) -> Request | PendingWebSocket:
    """Return a connection for handlers that has everything but a body."""
    nothing = scope[NO_BODY] = NoBody()
    if scope["type"] == "websocket":
        return PendingWebSocket(scope, nothing, nothing)
    return Request(scope, nothing, nothing)


class Refusal:
    """The answer to a refused request, as an ASGI application.

    Args:
        error: Why it was refused.
        app: Whose exception handlers answer.

    Attributes:
        failure: What a handler raised before it had sent anything.
    """

    def __init__(
        self, error: MaintenanceError | WebSocketException, app: object
    ) -> None:
        self._error = error
        self._app = app
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the handler, or plainly where there is none or it fails."""
        error, started = self._error, False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] in _STARTS and isinstance(error, MaintenanceError):
                message = _with_headers(message, error)
            await send(message)

        if self._has_handler():
            try:
                await self._handle(scope, receive, sending)
            except Exception as failure:
                if started:
                    raise
                self.failure = failure
        if not started:
            await _plain_answer(error)(scope, receive, send)

    def _has_handler(self) -> bool:
        """Tell whether the application has a handler of its own for the error."""
        handlers = getattr(self._app, "exception_handlers", {})
        status = getattr(self._error, "status_code", None)
        kinds = (status, *type(self._error).__mro__)
        found = (handlers[kind] for kind in kinds if kind in handlers)
        return next(found, http_exception_handler) is not http_exception_handler

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        handlers: dict[Any, Any] = {  # Starlette's own type
            HTTPException: http_exception_handler,
            **getattr(self._app, "exception_handlers", {}),
        }

        async def refusing(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise self._error

        await ExceptionMiddleware(refusing, handlers)(dict(scope), receive, send)


def _with_cors(app: ASGIApp, inside: list[Middleware], scope: Scope) -> ASGIApp:
    """Put an answer behind the CORS middlewares among some entries."""
    if not any(name == b"origin" for name, _ in scope["headers"]):
        return app
    for entry in reversed(inside):
        kind = entry.cls
        if isinstance(kind, type) and issubclass(kind, CORSMiddleware):
            made: Any = kind  # Its options are those of any middleware.
            app = made(app, *entry.args, **entry.kwargs)
    return app


def _plain_answer(error: MaintenanceError | WebSocketException) -> ASGIApp:
    if isinstance(error, WebSocketException):
        return WebSocketClose(error.code, error.reason)
    return JSONResponse({"detail": error.detail}, 503, error.headers)


def _with_headers(message: Message, error: MaintenanceError) -> Message:
    """Put back what an answer lacks of the headers of a refusal."""
    sent = list(message.get("headers", ()))
    present = {bytes(name).lower() for name, _ in sent}
    for name, value in (error.headers or {}).items():
        raw = name.lower().encode()
        if raw not in present:
            sent.append((raw, value.encode()))
    return {**message, "headers": sent}
