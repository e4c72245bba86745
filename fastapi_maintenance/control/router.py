"""The endpoints of the control router."""

import hmac
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.params import Depends as DependsType

from ..changes import CannotDrainError, Changes, new_token, validated_token_digest
from ..decision import BYPASS_COOKIE
from ..exemptions import maintenance_exempt
from ..fence import (
    LOST_AFTER,
    Fence,
    Outcome,
    Roster,
    WorkerReport,
    blocks_drain,
    count_before,
    foresee,
    has_acknowledged,
    worker_status,
)
from ..guard import MaintenanceGuard
from ..pages.html_file import HtmlFile
from ..state import MaintenanceState
from ..stores import Store, StoreError, is_in_process, is_read_only, location
from ..switch import Switch
from .models import (
    BypassToken,
    MaintenanceView,
    NewState,
    WorkerView,
    error_responses,
    request_body,
)
from .security import actor_of, body_of, check_arguments, errors_as_http

_CONSOLE: Final = HtmlFile.load(
    __file__,
    "console.html",
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
)


def control_router(
    guard: MaintenanceGuard,
    *,
    dependencies: Sequence[DependsType],
    prefix: str = "/maintenance",
) -> APIRouter:
    """Return a router that shows and sets a guard's state over HTTP.

    ``GET`` answers the state, the workers and whether they are drained. ``PUT`` sets a
    new state. ``GET .../console`` is a page for people, and ``POST .../bypass`` trades
    a bypass token for a cookie. The router stays open under maintenance and is not
    counted. ``GET`` publishes nothing; it only takes workers off the list that are
    proven dead.

    Args:
        guard: Whose switch it is.
        dependencies: Your own authentication; at least one. It must not depend on what
            is under maintenance. The console needs one that a browser sends by itself:
            a cookie or HTTP Basic.
        prefix: The path of the router.

    Raises:
        ValueError: If there is no dependency, or only those of this package, or if the
            prefix is not a path.
        TypeError: If the guard is not a guard, the dependencies are not a list, or one
            of them is not made by ``Depends``.

    Examples:
        >>> from fastapi import Depends, FastAPI
        >>> from fastapi_maintenance import MaintenanceGuard, control_router
        >>> guard = MaintenanceGuard("memory:")
        >>> app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
        >>> async def operators_only() -> None: ...  # raises for all others
        >>> app.include_router(
        ...     control_router(guard, dependencies=[Depends(operators_only)])
        ... )
    """
    check_arguments(guard, dependencies, prefix)
    router = APIRouter(
        prefix=prefix,
        dependencies=[
            Depends(maintenance_exempt),
            *dependencies,
            Depends(_not_to_be_stored),
        ],
    )

    def switch() -> Switch:
        # Read each time: fastapi_maintenance.testing replaces it.
        return guard._switch  # noqa: SLF001  # the guard's other half

    @router.get("", responses=error_responses(503))
    async def maintenance_state() -> MaintenanceView:
        """Show the state and the workers."""
        async with errors_as_http():
            return await view_of(switch())

    @router.put(
        "",
        responses=error_responses(400, 403, 409, 413, 415, 422, 503),
        openapi_extra=request_body(NewState),
    )
    async def set_maintenance(
        request: Request, wanted: Annotated[NewState, Depends(body_of(NewState))]
    ) -> MaintenanceView:
        """Publish a new state, or open again, and show who has acknowledged it."""
        here, actor = switch(), actor_of(request)
        token = new_token() if wanted.bypass else None
        async with errors_as_http():
            if wanted.enabled:
                await here.enable(wanted.options(actor, token))
            else:
                await here.disable(actor=wanted.actor or actor, force=wanted.force)
            view = await view_of(here)
            return view.model_copy(update={"bypass_token": token})

    @router.post(
        "/bypass",
        status_code=204,
        responses=error_responses(403, 409, 413, 415, 422, 503),
        openapi_extra=request_body(BypassToken),
    )
    async def maintenance_bypass(
        request: Request, given: Annotated[BypassToken, Depends(body_of(BypassToken))]
    ) -> Response:
        """Let this browser in until maintenance is switched off."""
        async with errors_as_http():
            state = await switch().read()
        if not state.enabled or state.bypass is None:
            raise HTTPException(409, "there is no bypass token at present")
        if not _is_token(given.token, state.bypass):
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

    @router.get("/console", include_in_schema=False)
    async def maintenance_console() -> Response:
        """Show the page."""
        response = _CONSOLE.response({})
        response.headers["Cache-Control"] = "no-store"
        return response

    return router


async def view_of(switch: Switch) -> MaintenanceView:
    """Return the present state, its workers, and what a drain would find now."""
    notice, trouble = _notice(switch.store), "this store keeps no reports of workers"
    # The reports are read before the state: if workers have acknowledged that state, no
    # other publication came in between.
    try:
        roster = await switch.roster()
    except StoreError as error:
        # The state is shown without them.
        roster, trouble = None, str(error)
    state = await switch.read()
    now = switch.clock()
    workers = () if roster is None else roster.not_dead
    if roster is None:
        notice = notice or trouble
    elif roster.uncounted:
        notice = notice or "Some workers cannot be counted; see their logs."
    outcome, reason = _judge(switch, state, roster, trouble)
    return MaintenanceView(
        name=switch.name,
        location=location(switch.store),
        now=now,
        phase=state.phase(now),
        state=state,
        bypass=state.bypass is not None,
        settable=not is_read_only(switch.store),
        notice=notice,
        workers=[_view_of_worker(worker, state, now) for worker in workers],
        acknowledged=sum(has_acknowledged(worker, state) for worker in workers),
        outcome=outcome,
        reason=reason,
    )


def _view_of_worker(
    worker: WorkerReport, state: MaintenanceState, now: datetime
) -> WorkerView:
    status = worker_status(worker, state, now)
    return WorkerView(
        id=worker.id,
        host=worker.host,
        pid=worker.pid,
        in_flight=worker.in_flight,
        left=count_before(worker, state),
        oldest=worker.oldest,
        kind=status.kind,
        status=status.text,
        liveness=worker.liveness,
        age=worker.age,
    )


def _judge(
    switch: Switch, state: MaintenanceState, roster: Roster | None, trouble: str
) -> tuple[Outcome | None, str | None]:
    if not state.enabled:
        return None, None
    try:
        Changes(now=switch.clock()).make_drainable(state)
    except CannotDrainError as error:
        return None, str(error)
    if state.starts_at is not None:
        # Requests from before the window began have the same epoch.
        return None, "the clock has begun this window; switch it on once more to drain"
    if roster is None:
        return "unknown", trouble
    fence = Fence(
        state=state,
        roster_before=roster,
        in_process=is_in_process(switch.store),
        settling=switch.settling,
    )
    verdict = fence.judge(roster, time.monotonic())
    blocking = tuple(w for w in roster.not_dead if blocks_drain(w, state))
    if verdict.outcome == "busy" and all(w.age >= LOST_AFTER for w in blocking):
        # One look cannot measure a silence, so the ages that the store gives decide.
        verdict = foresee(replace(roster, workers=blocking), None) or verdict
    return verdict.outcome, verdict.reason or None


def _notice(store: Store) -> str | None:
    if is_read_only(store):
        return f"It is set by {location(store)} and cannot be set here."
    if is_in_process(store):
        return (
            "This switches one process only. For other workers and machines, use a"
            " file:, redis: or SQL store."
        )
    return None


def _is_token(token: str, expected: str) -> bool:
    try:
        given = validated_token_digest(token)
    except ValueError:
        given = ""
    return hmac.compare_digest(given.encode(), expected.encode())


async def _not_to_be_stored(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"
