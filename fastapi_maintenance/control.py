"""The switch over HTTP: ``control_router``, for teams without a shell on the host."""

import re
from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.params import Depends

from .exemptions import maintenance_exempt
from .guard import MaintenanceGuard


def control_router(
    guard: MaintenanceGuard,
    *,
    dependencies: Sequence[Depends],
    prefix: str = "/maintenance",
) -> APIRouter:
    """Return a router that shows and sets a guard's state over HTTP.

    ``GET`` answers the state and the workers, ``PUT`` sets a new state, ``GET
    .../events`` is the drain as server-sent events, ``GET .../console`` a page for
    people, and ``POST .../bypass`` trades a token for a cookie. It stays open under
    maintenance and is not counted; it changes nothing on GET.

    Args:
        guard: Whose switch it is.
        dependencies: Your own authentication; at least one. It must not depend on what
            is under maintenance. For the console it must be one that a browser sends by
            itself: a cookie or HTTP Basic.
        prefix: The path below which all of it is.

    Raises:
        ValueError: If there is no dependency, or only those of this package; or the
            prefix is no path.
        TypeError: If the guard is none, the dependencies are no list, or one of them
            is not made by ``Depends``.

    Examples:
        >>> from fastapi import Depends, FastAPI
        >>> from fastapi_maintenance import MaintenanceGuard, control_router
        >>> guard = MaintenanceGuard("memory:")
        >>> app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
        >>> async def operators_only() -> None: ...  # raises for everybody else
        >>> app.include_router(
        ...     control_router(guard, dependencies=[Depends(operators_only)])
        ... )
    """
    _check(guard, dependencies, prefix)
    # Building its models takes Pydantic longer than importing all the rest.
    from ._control import build  # noqa: PLC0415  # for those who use it

    return build(guard, dependencies, prefix)


def _check(guard: object, dependencies: Sequence[object], prefix: object) -> None:
    if not isinstance(guard, MaintenanceGuard):
        raise TypeError(f"guard must be a MaintenanceGuard, not {guard!r}")
    if not isinstance(prefix, str) or not re.fullmatch(r"(/[^/]+)+", prefix):
        raise ValueError(
            f'prefix must be a path as "/maintenance", without a slash at its end, not'
            f" {prefix!r}"
        )
    if isinstance(dependencies, Depends) or not isinstance(dependencies, Sequence):
        raise TypeError(
            f"dependencies must be a list, as [Depends(operators_only)], not"
            f" {dependencies!r}"
        )
    for entry in dependencies:
        if not isinstance(entry, Depends) or entry.dependency is None:
            raise TypeError(f"write Depends(operators_only), not {entry!r}")
    if not any(
        entry.dependency is not maintenance_exempt
        and not isinstance(entry.dependency, MaintenanceGuard)
        for entry in dependencies
        if isinstance(entry, Depends)
    ):
        raise ValueError(
            "a control router without authentication is a switch for everybody: give"
            " dependencies=[Depends(operators_only)], your own"
        )
