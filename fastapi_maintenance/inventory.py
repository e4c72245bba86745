"""What is covered: the truth behind ``routes`` and the warning at start-up."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakSet

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware

from ._fastapi import direct_dependencies
from ._routing import Listed, layers, listed, router_of
from .decision import Decision
from .door import Door
from .exemptions import documents, has_mark, is_marked
from .handlers import callable_name

logger: logging.Logger = logging.getLogger("fastapi_maintenance")

GUARDED: Final = "guarded"
EXEMPT: Final = "exempt"
DOCUMENTATION: Final = "documentation"
NOT_COVERED: Final = "not covered"

_DEEPEST: Final = 32

_warned: Final[WeakSet[object]] = WeakSet()


@dataclass(frozen=True, slots=True)
class Entry:
    """One route, mount, WebSocket or frontend of an application.

    Attributes:
        kind: "HTTP", "WebSocket", "Mount" or "Frontend".
        methods: The HTTP methods, sorted; empty where there are none, or any.
        path: The whole path template, prefixes and mounts included.
        coverage: "guarded", "exempt", "documentation" or "not covered".
        note: What guards it, and what runs before that; for people.
    """

    kind: str
    methods: tuple[str, ...]
    path: str
    coverage: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree of applications a route is.

    Attributes:
        prefix: The path up to here.
        mount: The path of the outermost mount on the way, or "".
        app: The innermost Starlette or FastAPI application.
        home: Whether the routes are that application's own, not a mounted router's.
        doors: The names of the guards whose doors are passed on the way.
        depth: How many mounts deep; an application may be mounted in itself.
    """

    prefix: str = ""
    mount: str = ""
    app: object = None
    home: bool = False
    doors: tuple[str, ...] = ()
    depth: int = 0


def survey(app: object) -> list[Entry]:
    """List everything an application serves, and whether a guard covers it.

    Args:
        app: A FastAPI or Starlette application, a router, or a middleware around one.

    Returns:
        One entry for each route in the order of matching, included routers and
        mounted applications too. What is mounted and has no routes of its own, as
        static files, is one entry.
    """
    return [entry for _, entry in _inside(app, _Place())]


def warn_of_mounts(app: object) -> None:
    """Log once for each application what is mounted in it and not covered."""
    if router_of(app) is None or app in _warned:
        return
    _warned.add(app)
    found = _inside(app, _Place())
    open_mounts = dict.fromkeys(
        mount for mount, entry in found if mount and entry.coverage == NOT_COVERED
    )
    if open_mounts:
        logger.warning(
            "maintenance does not reach what is mounted at %s: dependencies never do;"
            ' use app.mount("...", guard.wrap(...)), or MaintenanceModeMiddleware, or'
            " mark it with maintenance_exempt(...)",
            ", ".join(open_mounts),
        )


def _inside(app: object, place: _Place) -> Iterator[tuple[str, Entry]]:
    doors = list(place.doors)
    box = app
    for box in layers(app):
        doors += _door_of(box)
    router = router_of(box)
    if isinstance(box, Starlette):
        place = replace(place, app=box, home=True)
        for middleware in box.user_middleware:
            doors += _door_in(middleware)
    else:
        place = replace(place, home=False)
    place = replace(place, doors=tuple(dict.fromkeys(doors)), depth=place.depth + 1)
    if router is None or place.depth > _DEEPEST:
        yield place.mount, _closed_box(app, box, place)
        return
    for route in listed(router):
        if route.kind == "Mount":
            path = place.prefix + route.path
            below = replace(place, prefix=path, mount=place.mount or path or "/")
            yield from _mounted(route.effective.app, below)
        else:
            yield place.mount, _entry(route, place)


def _mounted(app: object, place: _Place) -> Iterator[tuple[str, Entry]]:
    if has_mark(app):
        name = type(app).__name__
        yield place.mount, Entry("Mount", (), place.prefix or "/", EXEMPT, name)
        return
    yield from _inside(app, place)


def _closed_box(app: object, box: object, place: _Place) -> Entry:
    coverage = GUARDED if place.doors else NOT_COVERED
    if has_mark(app) or has_mark(box):
        coverage = EXEMPT
    note = _joined(_names("door", place.doors), type(box).__name__)
    return Entry("Mount", (), place.prefix or "/", coverage, note)


def _entry(route: Listed, place: _Place) -> Entry:
    effective = route.effective
    calls = direct_dependencies(effective) if _runs_dependencies(route) else []
    names = [_name_of(call) for call in calls]
    guards = [name for name in names if name is not None]
    earlier = names.index(guards[0]) if guards else 0
    if route.kind == "HTTP" and _is_documentation(effective, place):
        coverage = DOCUMENTATION
    elif is_marked(getattr(effective, "endpoint", None), effective):
        coverage = EXEMPT
    else:
        coverage = GUARDED if guards or place.doors else NOT_COVERED
    note = _joined(
        _names("guard", guards),
        _names("door", place.doors),
        f"{', '.join(_depends(call) for call in calls[:earlier])}"
        f" run{'s' if earlier == 1 else ''} before the guard"
        if earlier and coverage == GUARDED
        else "",
    )
    return Entry(
        route.kind,
        tuple(sorted(getattr(effective, "methods", None) or ())),
        place.prefix + route.path,
        coverage,
        "" if coverage in {DOCUMENTATION, EXEMPT} else note,
    )


def _is_documentation(effective: object, place: _Place) -> bool:
    return (
        place.home
        and isinstance(place.app, FastAPI)
        and documents(place.app, effective)
    )


def _runs_dependencies(route: Listed) -> bool:
    # FastAPI 0.138 lists a frontend's dependencies and does not run them.
    return getattr(route.effective, "dependant", None) is not None


def _name_of(thing: object) -> str | None:
    """Return the name of the switch if a guard, or a door of one, is given."""
    decision = getattr(thing, "_decision", None)
    return decision.switch.name if isinstance(decision, Decision) else None


def _door_of(layer: object) -> list[str]:
    name = _name_of(layer)
    return [] if name is None else [name]


def _door_in(entry: Middleware) -> list[str]:
    if not (isinstance(entry.cls, type) and issubclass(entry.cls, Door)):
        return []
    guard = entry.args[0] if entry.args else entry.kwargs.get("guard")
    # One without a guard makes its own, of its options.
    return [_name_of(guard) or str(entry.kwargs.get("name", "default"))]


def _depends(call: object) -> str:
    return f"Depends({callable_name(call)})"


def _names(what: str, names: list[str] | tuple[str, ...]) -> str:
    return f"{what} {', '.join(names)}" if names else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
