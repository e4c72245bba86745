"""What the control router reads and writes: its JSON, and what it says of a store."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictBool
from pydantic import model_validator as validated

from .fence import Liveness, Outcome, Roster, WorkerRow
from .orders import Order
from .state import LONGEST_WAIT, MaintenanceState, Phase, phase
from .stores import StoreError, describe
from .stores.env import EnvStore
from .stores.memory import MemoryStore
from .switch import Switch

A_YEAR: Final = 366 * 86_400

_INVALID: Final = 422
_MEANINGS: Final = {
    400: "A time has passed, or a text is not one line",
    403: "From another origin, or not the token",
    409: "The present state, or the store, does not allow it",
    413: "Too large",
    415: "Not application/json",
    _INVALID: "Not what the schema says",
    503: "The store cannot be reached",
}

Shown = Literal["off", "scheduled", "on", "ended"]

_SHOWN: Final[dict[Phase, Shown]] = {
    "off": "off",
    "scheduled": "scheduled",
    "in force": "on",
    "ending": "on",
    "ended": "ended",
}

Answers = dict[int | str, dict[str, Any]]  # the type of FastAPI's own ``responses``


class NewState(BaseModel):
    """What to publish; ``{"active": false}`` opens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    active: StrictBool
    message: Annotated[str, Field(min_length=1, max_length=2_000)] | None = None
    at: AwareDatetime | None = None
    until: AwareDatetime | None = None
    seconds: Annotated[int, Field(ge=1, le=A_YEAR)] | None = Field(None, alias="for")
    auto_off: StrictBool = False
    read_only: StrictBool = False
    retry_after: Annotated[int, Field(ge=1, le=LONGEST_WAIT)] | None = None
    bypass: Annotated[
        StrictBool, Field(description="Make a token, which the answer shows this once")
    ] = False
    force: Annotated[
        StrictBool, Field(description="Open although others hold it closed")
    ] = False

    @validated(mode="after")
    def _agrees(self) -> "NewState":
        given = self.model_fields_set - {"active"}
        if self.active and "force" in given:
            raise ValueError('"force" is for opening: send it with "active": false')
        if not self.active and given - {"force"}:
            raise ValueError('"active": false takes nothing but "force"')
        if self.until is not None and self.seconds is not None:
            raise ValueError('give "until" or "for", not both')
        return self

    def order(self, actor: str, token: str | None) -> Order:
        """Return what the switch is asked for.

        Raises:
            ValueError: If a time or a text cannot be.
        """
        length = None if self.seconds is None else timedelta(seconds=self.seconds)
        return Order(
            message=self.message,
            at=self.at,
            until=self.until if length is None else length,
            auto_off=self.auto_off,
            retry_after=self.retry_after,
            read_only=self.read_only,
            bypass_token=token,
            actor=actor,
        )


class BypassToken(BaseModel):
    """The token that ``on --bypass`` or the router showed once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: Annotated[str, Field(max_length=4_000)]


class Problem(BaseModel):
    """Why not, in a sentence."""

    detail: str


class InvalidItem(BaseModel):
    """One thing that is wrong with a body, as FastAPI says it."""

    loc: list[str | int]
    msg: str
    type: str


class Invalid(BaseModel):
    """What is wrong with a body."""

    detail: list[InvalidItem]


class WorkerView(BaseModel):
    """One process that has joined the store."""

    id: str
    host: str
    pid: int
    liveness: Liveness
    seen: int
    in_flight: int
    old: int
    oldest_route: str | None
    oldest_age: float | None


class StateView(BaseModel):
    """What is set, and who obeys."""

    name: str
    location: str
    phase: Shown
    now: datetime
    epoch: int
    active: bool
    begun: bool
    since: datetime | None
    until: datetime | None
    auto_off: bool
    message: str | None
    retry_after: int | None
    read_only: bool
    actor: str | None
    holders: list[str]
    bypass: bool
    settable: bool
    notice: str | None
    workers: list[WorkerView]
    bypass_token: str | None = None


async def view(switch: Switch, state: MaintenanceState) -> StateView:
    """Return a state as clients see it; the hash of a token is not among it."""
    now = switch.clock()
    workers: list[WorkerView] = []
    try:
        roster = await switch.source.roster(switch.name)
    except StoreError as error:
        # The state is known all the same, and what matters more.
        notice: str | None = str(error)
    else:
        workers = worker_views(roster.rows)
        notice = _notice(switch, roster)
    return StateView(
        name=switch.name,
        location=describe(switch.source),
        phase=_SHOWN[phase(state, now)],
        now=now,
        epoch=state.epoch,
        active=state.active,
        begun=state.begun,
        since=state.since,
        until=state.until,
        auto_off=state.auto_off,
        message=state.message,
        retry_after=state.retry_after,
        read_only=state.read_only,
        actor=state.actor,
        holders=list(state.holders),
        bypass=state.bypass is not None,
        settable=not isinstance(switch.source, EnvStore),
        notice=notice,
        workers=workers,
    )


def worker_views(rows: Iterable[WorkerRow]) -> list[WorkerView]:
    """Return workers as clients see them."""
    return [WorkerView.model_validate(row, from_attributes=True) for row in rows]


def seen(
    outcome: Outcome, reason: str, seconds: float, rows: Sequence[WorkerRow]
) -> dict[str, object]:
    """Return one look of a drain as clients see it."""
    return {
        "outcome": outcome,
        "reason": reason,
        "seconds": round(seconds, 3),
        "workers": [shown.model_dump() for shown in worker_views(rows)],
    }


def takes(model: type[BaseModel]) -> dict[str, Any]:  # the type of ``openapi_extra``
    """Document the body that ``body_of`` reads."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def answers(*statuses: int) -> Answers:
    """Document the answers besides success."""
    return {
        status: {
            "model": Invalid if status == _INVALID else Problem,
            "description": _MEANINGS[status],
        }
        for status in statuses
    }


def _notice(switch: Switch, roster: Roster) -> str | None:
    source = switch.source
    if isinstance(source, EnvStore):
        return (
            f"It is set by {source.variable} when the service starts, and cannot be set"
            " here."
        )
    if isinstance(source, MemoryStore):
        return (
            "This speaks for one process: other workers and machines are not switched."
            " Use a file: or redis: store for them."
        )
    if roster.uncounted:
        return "Some workers cannot be counted: nobody can tell when they are drained."
    return None
