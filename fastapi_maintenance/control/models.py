"""The JSON of the control router."""

from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..changes import EnableOptions
from ..fence import Outcome, WorkerReport
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

    # What ``enable`` takes is inherited, so that a new option of it is one here too.
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
        """Return what the switch is asked for.

        Args:
            actor: Who asks, unless the body says so.
            token: The bypass token that was made for it.
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
    """The token that ``on --bypass`` or the router showed once."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True
    )

    token: Annotated[str, Field(max_length=4_000, repr=False)]


class WorkerView(WorkerReport):
    """A worker's report, and how it stands to the present state.

    Attributes:
        status: In words, such as *serving*, *draining (2 left)*, *drained* or *no
            answer for 12 s*.
        left: How many requests from before the present state may still be running.
    """

    status: str
    left: int


class MaintenanceView(BaseModel):
    """What is set, and which workers have adopted it.

    Attributes:
        name: The switch.
        location: Where it is stored.
        now: The time by which the phase was judged.
        phase: Which part of its life the state is in.
        state: The present state.
        bypass: Whether a bypass token lets operators in.
        bypass_token: The token that was made for this answer, and is shown this once.
        settable: Whether the store can be set here.
        notice: What an operator should know of the store.
        workers: Those that are not proven dead.
        acknowledged: How many of them have adopted the state.
        outcome: What a drain would answer if it ended now; null while maintenance is
            off, planned, or could open by the clock.
        reason: Why, in one sentence.
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


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Document the body that ``security.body_of`` reads, for ``openapi_extra``."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def answers(
    *statuses: Literal[400, 403, 409, 413, 415, 422, 503],
) -> dict[int | str, dict[str, Any]]:
    """Document the answers besides success, for FastAPI's ``responses``."""
    return {
        status: {
            "model": Invalid if status == _INVALID else Problem,
            "description": _MEANINGS[status],
        }
        for status in statuses
    }
