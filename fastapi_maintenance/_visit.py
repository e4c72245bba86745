"""What a door knows of a request, before the application has seen it and after."""

from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.websockets import WebSocket

from ._ahead import Ahead
from ._fastapi import Scope, effective_route
from .decision import Coverage, label_of
from .exemptions import documents, has_mark, is_marked
from .handlers import UNREAD, Unread

_NAMING: Final = ("type", "method", "path", "route", "fastapi", "endpoint")


class Visit:
    """A request that has come through a door, as the guard inside finds it.

    A worker calls it by its route, once that is known.

    Attributes:
        scope: The request, where its endpoint shows itself.
    """

    __slots__ = ("_asked", "scope")

    settled = True
    """Whether the door has decided for its guard, and counted."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._asked = scope["path"], scope.get("method")

    def __str__(self) -> str:
        return label_of(self.scope, effective_route(self.scope))

    def leave(self) -> None:
        """Keep no more than what it is called by: threads still work for it.

        What an application has put into a scope may hold a task, and with it the very
        count that is to be given back when nothing holds it.
        """
        self.scope = {name: self.scope.get(name) for name in _NAMING}

    def is_exempt(self) -> bool:
        """Tell whether an endpoint was reached that is exempt."""
        return is_marked(self.scope.get("endpoint"), effective_route(self.scope))

    def is_of(self, scope: Scope) -> bool:
        """Tell whether a scope is that of this request, or a copy.

        An endpoint may send another request into its application with a scope made of
        its own. Where a middleware rewrites a path behind the door, it is decided anew.
        """
        return self._asked == (scope["path"], scope.get("method"))

    def settles(self, scope: Scope) -> bool:
        """Tell the guard inside whether there is nothing left to decide."""
        # A middleware may have copied the scope; this one has the endpoint.
        self.scope = scope
        return self.settled


class Unsettled(Visit):
    """A request that is left to the guard inside.

    Attributes:
        settled: Whether the door has decided after all, and counted.
        refusal: What the guard has to refuse with.
    """

    __slots__ = ("refusal", "settled")

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.settled = False
        self.refusal: HTTPException | None = None

    def settles(self, scope: Scope) -> bool:
        """Tell the guard inside whether there is nothing left to decide.

        Raises:
            MaintenanceError: If the door has refused and left it to be said inside.
        """
        if self.refusal is not None:
            raise self.refusal
        return super().settles(scope)


def foreseen(ahead: Ahead) -> Coverage:
    """Return what is true of the route that a request will reach."""
    effective = ahead.effective
    exempt = (
        is_marked(ahead.endpoint, effective)
        or any(map(has_mark, ahead.passed))
        or (
            ahead.home
            and isinstance(ahead.apps[-1], FastAPI)
            and ahead.scope["type"] == "http"
            and documents(ahead.apps[-1], effective)
        )
    )
    return Coverage(exempt, label_of(ahead.scope, effective), None)


class Unopened(WebSocket):
    """What handlers are asked about; later, what is told to close.

    Attributes:
        line: The connection itself, when it has been let in.
    """

    line: WebSocket | None = None

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection.

        Raises:
            RuntimeError: If it has not been let in, or has ended.
        """
        if self.line is None:
            await super().close(code, reason)
        else:
            await self.line.close(code, reason)


def unread(scope: Scope) -> Request | Unopened:
    """Return a connection for handlers that has all but a body."""
    nothing = scope[UNREAD] = Unread()
    if scope["type"] == "websocket":
        return Unopened(scope, nothing, nothing)
    return Request(scope, nothing, nothing)
