"""The endpoints of the control router."""

import hmac
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Final

from anyio import WouldBlock
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.params import Depends as DependsType

from ._document import Document
from ._events import EVENT_SCHEMA, EventStream, Feed
from ._http import actor_of, answered, body_of
from ._wire import BypassToken, NewState, StateView, answers, seen, takes, view
from .decision import BYPASS_COOKIE
from .exemptions import maintenance_exempt
from .fence import DrainReport, Outcome, Roster
from .guard import MaintenanceGuard
from .orders import digest, new_token
from .stores import StoreError
from .switch import Switch
from .waiting import Fenced, FenceRefusedError, Plan

SHOWN_EVERY: Final = 0.5
"""Seconds between two looks that a watcher is sent."""

_POLICY: Final = (
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


def build(
    guard: MaintenanceGuard, dependencies: Sequence[DependsType], prefix: str
) -> APIRouter:
    """Return the router, all of it exempt."""
    # Exempt twice, by the router and by each endpoint, should a release of FastAPI hide
    # the one: a switch behind itself is a service that stays closed.
    router = APIRouter(
        prefix=prefix,
        dependencies=[
            Depends(maintenance_exempt),
            *dependencies,
            Depends(_not_to_be_stored),
        ],
    )

    def switch() -> Switch:
        # Each time anew: fastapi_maintenance.testing replaces it.
        return guard._switch  # noqa: SLF001  # the guard's other half

    _add_state(router, switch)
    _add_events(router, switch)
    _add_bypass(router, switch)
    _add_console(router)
    return router


async def _not_to_be_stored(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


def _add_state(router: APIRouter, switch: Callable[[], Switch]) -> None:
    @router.get("", responses=answers(503))
    @maintenance_exempt
    async def maintenance_state() -> StateView:
        """Show the state and the workers."""
        async with answered():
            here = switch()
            return await view(here, await here.source.read(here.name))

    @router.put(
        "",
        responses=answers(400, 403, 409, 413, 415, 422, 503),
        openapi_extra=takes(NewState),
    )
    @maintenance_exempt
    async def set_maintenance(
        request: Request, wanted: Annotated[NewState, Depends(body_of(NewState))]
    ) -> StateView:
        """Publish a new state, or open again."""
        here, actor = switch(), actor_of(request)
        token = new_token() if wanted.bypass else None
        async with answered():
            if wanted.active:
                state = await here.enable(wanted.order(actor, token))
            else:
                state = await here.disable(actor=actor, force=wanted.force)
            shown = await view(here, state)
            return shown.model_copy(update={"bypass_token": token})


def _add_events(router: APIRouter, switch: Callable[[], Switch]) -> None:
    described = {
        "description": "`look` events while it lasts, then one `report`",
        "content": {"text/event-stream": {"itemSchema": EVENT_SCHEMA}},
    }

    @router.get(
        "/events",
        status_code=200,
        response_class=Response,
        responses={**answers(409, 503), 200: described},
    )
    @maintenance_exempt
    async def maintenance_events(
        timeout: Annotated[float, Query(ge=0, le=3_600)] = 60.0,
        workers: Annotated[int, Query(ge=0, le=100_000)] = 1,
    ) -> Response:
        """Watch the present state being drained; it is not published anew."""
        async with answered():
            return await _watch(switch(), Plan(timeout=timeout, workers=workers))


def _add_bypass(router: APIRouter, switch: Callable[[], Switch]) -> None:
    @router.post(
        "/bypass",
        status_code=204,
        responses=answers(403, 409, 413, 415, 422, 503),
        openapi_extra=takes(BypassToken),
    )
    @maintenance_exempt
    async def maintenance_bypass(
        request: Request, given: Annotated[BypassToken, Depends(body_of(BypassToken))]
    ) -> Response:
        """Let this browser through until maintenance is switched off."""
        async with answered():
            here = switch()
            state = await here.source.read(here.name)
        if not state.active or state.bypass is None:
            raise HTTPException(409, "there is no bypass token at present")
        try:
            hashed = digest(given.token)
        except ValueError:
            hashed = ""
        if not hmac.compare_digest(hashed.encode(), state.bypass.encode()):
            raise HTTPException(403, "not the bypass token of this maintenance")
        response = Response(status_code=204, headers={"Cache-Control": "no-store"})
        response.set_cookie(
            BYPASS_COOKIE,
            given.token,
            httponly=True,
            samesite="lax",
            secure=request.scope["scheme"] == "https",
            path="/",
        )
        return response


def _add_console(router: APIRouter) -> None:
    document = Document.of("console.html", _POLICY)

    @router.get("/console", include_in_schema=False)
    @maintenance_exempt
    async def maintenance_console() -> Response:
        """Show the page."""
        response = document.response({})
        response.headers["Cache-Control"] = "no-store"
        return response


async def _watch(switch: Switch, plan: Plan) -> EventStream:
    # A fence publishes the state once more, which would end the wait of a command with
    # "superseded". A watcher looks at what was published: as good an epoch as any, if
    # it rests on no clock.
    state = await switch.source.read(switch.name)
    plan.fenced(state, switch.clock())
    if state.since is not None and not state.begun:
        raise FenceRefusedError(
            "a window that the clock began is no fence; set it once more without"
            ' "at" to see it drained'
        )
    roster = await switch.source.roster(switch.name)
    fenced = Fenced(state=state, before=state, roster=roster, own=dict, holder=None)

    async def drain(feed: Feed) -> None:
        started = time.monotonic()
        shown = float("-inf")

        def look(roster: Roster, outcome: Outcome, reason: str) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < SHOWN_EVERY:
                return
            shown = now
            with suppress(WouldBlock):  # a slow client sees fewer
                feed.send_nowait(
                    ("look", seen(outcome, reason, now - started, roster.rows))
                )

        try:
            report = await switch.wait(fenced, plan, look=look)
        except StoreError as error:
            report = DrainReport(
                outcome="unknown", epoch=state.epoch, reason=str(error)
            )
        last = seen(report.outcome, report.reason, report.seconds, report.workers)
        await feed.send(
            ("report", {**last, "epoch": state.epoch, "drained": report.drained})
        )

    return EventStream(drain)
