"""The JSON of the control router."""

from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..changes import EnableOptions
from ..fence import Liveness, Oldest, Outcome, StatusKind
from ..state import MaintenanceState, Phase

A_YEAR: Final = 366 * 86_400

_INVALID: Final = 422
_MEANINGS: Final = {
    400: "A time has passed",
    403: "From another origin, or not the token",
    409: "The present state, or the store, does not allow it",
    413: "Too large",
    415: "Not application/json",
    _INVALID: "Not what the schema says",
    503: "The store cannot be reached",
}


class NewState(EnableOptions):
    """What to publish; ``{"enabled": false}`` opens again."""

    # It inherits what ``enable`` takes, so a new option needs no change here.
    model_config: ClassVar[ConfigDict] = ConfigDict(title="NewState")

    enabled: bool
    seconds: Annotated[int, Field(ge=1, le=A_YEAR)] | None = Field(
        None, alias="for", description="Seconds until the announced end"
    )
    bypass: bool = Field(
        default=False,
        description="Make a bypass token; the answer shows it this once",
    )
    force: bool = Field(
        default=False, description="Open although others hold maintenance on"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        given = self.model_fields_set - {"enabled", "actor"}
        if self.enabled and self.force:
            raise ValueError('"force" is for opening: send it with "enabled": false')
        if not self.enabled and given - {"force"}:
            raise ValueError('"enabled": false takes nothing but "force" and "actor"')
        if self.until is not None and self.seconds is not None:
            raise ValueError('give "until" or "for", not both')
        if self.bypass and self.bypass_token is not None:
            raise ValueError('give "bypass" or "bypass_token", not both')
        return self

    def options(self, actor: str, token: str | None) -> EnableOptions:
        """Return the arguments for the switch.

        Args:
            actor: Who asks, if the body does not say so.
            token: The bypass token that was made for this request.
        """
        length = None if self.seconds is None else timedelta(seconds=self.seconds)
        return self.model_copy(
            update={
                "actor": self.actor or actor,
                "bypass_token": token or self.bypass_token,
                "until": length or self.until,
            }
        )


class BypassToken(BaseModel):
    """A bypass token, which ``on --bypass`` or the router showed once."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True
    )

    token: Annotated[str, Field(max_length=4_000, repr=False)]


class WorkerView(BaseModel):
    """A worker that is not proven dead.

    Attributes:
        id: Unique for one worker of one process; ``forget`` takes it.
        host: The machine's name.
        pid: The process, in its own pid namespace.
        in_flight: How many requests it is running.
        left: How many of them may be from before the present state.
        oldest: The oldest of them.
        kind: What it is doing under the present state.
        status: The same in words, such as *serving*, *draining (2 left)*, *drained* or
            *no answer for 12 s*.
        liveness: ``alive``, or ``silent`` if it has not reported for 3 seconds.
        age: Seconds since it reported.
    """

    id: str
    host: str
    pid: int
    in_flight: int
    left: int
    oldest: Oldest | None
    kind: StatusKind
    status: str
    liveness: Liveness
    age: float


class MaintenanceView(BaseModel):
    """The state of a switch, and which workers have adopted it.

    Attributes:
        name: The switch.
        location: Where its state is stored.
        now: The time by which the phase was judged.
        phase: *off*, *scheduled*, *in force*, *overdue* or *ended*.
        state: The present state.
        bypass: Whether a bypass token lets operators in.
        bypass_token: The token that this request made; it is shown only once.
        settable: Whether the store can be set here.
        notice: A limit of the store that operators should know.
        workers: Those that are not proven dead.
        acknowledged: How many of them have adopted the state.
        outcome: What a drain would answer if it ended now; null while maintenance is
            off, planned, or could open by the clock.
        reason: The reason for the outcome, or why there is none; null when drained.
    """

    name: str
    location: str
    now: datetime
    phase: Phase
    state: MaintenanceState
    bypass: bool
    bypass_token: str | None = None
    settable: bool
    notice: str | None
    workers: list[WorkerView]
    acknowledged: int
    outcome: Outcome | None
    reason: str | None


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


class InvalidItem(BaseModel):
    """One error in a body, in FastAPI's form."""

    loc: list[str | int]
    msg: str
    type: str


class Invalid(BaseModel):
    """The errors in a body."""

    detail: list[InvalidItem]


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Document the body that ``security.body_of`` reads, for ``openapi_extra``."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def error_responses(
    *statuses: Literal[400, 403, 409, 413, 415, 422, 503],
) -> dict[int | str, dict[str, Any]]:
    """Document the errors of an endpoint, for FastAPI's ``responses``."""
    return {
        status: {
            "model": Invalid if status == _INVALID else Problem,
            "description": _MEANINGS[status],
        }
        for status in statuses
    }
