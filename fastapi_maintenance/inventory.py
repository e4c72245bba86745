"""What is covered: the truth behind ``routes`` and the warning at start-up."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakSet

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware

from ._fastapi import ListedRoute, direct_dependencies, routes_of, runs_dependencies
from .asgi.resolve import layers, router_of
from .asgi.wrap import GuardedApp
from .decision import Decision
from .exemptions import documents, has_mark, inherits_mark, is_marked
from .handlers import callable_name
from .log import logger

GUARDED: Final = "guarded"
EXEMPT: Final = "exempt"
DOCUMENTATION: Final = "documentation"
NOT_COVERED: Final = "not covered"

_DEEPEST: Final = 32
_NO_DEPENDENCIES: Final = "does not run its dependencies"

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
        marked: Whether that application is marked exempt.
        around: What is passed on the way: "wrap NAME", "middleware NAME".
        depth: How many mounts deep; an application may be mounted in itself.
    """

    prefix: str = ""
    mount: str = ""
    app: object = None
    home: bool = False
    marked: bool = False
    around: tuple[str, ...] = ()
    depth: int = 0


def survey(app: object) -> list[Entry]:
    """List everything an application serves, and whether a guard covers it.

    Args:
        app: A FastAPI or Starlette application, a router, or a middleware around one.

    Returns:
        One entry for each route in the order of matching, included routers and
        mounted applications too. What is mounted and has no routes of its own, such
        as static files, is one entry.
    """
    return [entry for _, entry in _inside(app, _Place())]


def warn_of_uncovered(app: object) -> None:
    """Log once for each application what its guards may be thought to cover."""
    if router_of(app) is None or app in _warned:
        return
    _warned.add(app)
    found = list(_inside(app, _Place()))
    mounts = dict.fromkeys(
        mount for mount, entry in found if mount and entry.coverage == NOT_COVERED
    )
    if mounts:
        logger.warning(
            "maintenance does not reach what is mounted at %s: dependencies never do;"
            ' use app.mount("...", guard.wrap(...)), or MaintenanceModeMiddleware, or'
            " mark it with maintenance_exempt(...)",
            ", ".join(mounts),
        )
    routes = dict.fromkeys(
        entry.path
        for _, entry in found
        if entry.coverage == NOT_COVERED and entry.note.endswith(_NO_DEPENDENCIES)
    )
    if routes:
        logger.warning(
            "maintenance does not reach the routes at %s: their class does not run"
            " dependencies; use MaintenanceModeMiddleware",
            ", ".join(routes),
        )


def _inside(app: object, place: _Place) -> Iterator[tuple[str, Entry]]:
    boxes = list(layers(app))
    box = boxes[-1] if boxes else app
    around = [*place.around, *map(_guarding, boxes)]
    router = router_of(box)
    if isinstance(box, Starlette):
        place = replace(place, app=box, home=True)
        around += map(_guarding_entry, box.user_middleware)
    else:
        place = replace(place, home=False)
    place = replace(
        place,
        marked=any(map(has_mark, boxes)) or (place.marked and inherits_mark(box)),
        around=tuple(dict.fromkeys(filter(None, around))),
        depth=place.depth + 1,
    )
    if router is None or place.depth > _DEEPEST:
        coverage = _best(place, guarded=False)
        note = _joined(*place.around, type(box).__name__)
        yield place.mount, Entry("Mount", (), place.prefix or "/", coverage, note)
        return
    for route in routes_of(router):
        if route.kind == "Mount":
            path = place.prefix + route.path
            below = replace(place, prefix=path, mount=place.mount or path or "/")
            yield from _inside(route.effective.app, below)
        else:
            yield place.mount, _entry(route, place)


def _best(place: _Place, *, guarded: bool) -> str:
    if place.marked:
        return EXEMPT
    return GUARDED if guarded or place.around else NOT_COVERED


def _entry(route: ListedRoute, place: _Place) -> Entry:
    effective = route.effective
    calls = direct_dependencies(effective)
    names = [_switch_of(call) for call in calls]
    guards = [name for name in names if name is not None]
    run = runs_dependencies(effective)
    earlier = names.index(guards[0]) if guards else 0
    coverage = _best(place, guarded=run and bool(guards))
    if route.kind == "HTTP" and _is_documentation(effective, place):
        coverage = DOCUMENTATION
    elif is_marked(getattr(effective, "endpoint", None), effective):
        coverage = EXEMPT
    before = ", ".join(_depends(call) for call in calls[:earlier])
    if guards and not run:
        reason = f"{_class_of(effective)} {_NO_DEPENDENCIES}"
    elif earlier and coverage == GUARDED:
        reason = f"{before} run{'s' if earlier == 1 else ''} before the guard"
    else:
        reason = ""
    guarding = f"guard {', '.join(guards)}" if guards and run else ""
    note = _joined(guarding, *place.around, reason)
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


def _class_of(effective: object) -> str:
    return type(getattr(effective, "original_route", effective)).__name__


def _switch_of(thing: object) -> str | None:
    """Return the name of the switch of a guard, or of what it wraps."""
    decision = getattr(thing, "_decision", None)
    return decision.switch.name if isinstance(decision, Decision) else None


def _guarding(layer: object) -> str:
    if not isinstance(layer, GuardedApp):
        return ""
    kind = "wrap" if type(layer) is GuardedApp else "middleware"
    return f"{kind} {_switch_of(layer)}"


def _guarding_entry(entry: Middleware) -> str:
    if not (isinstance(entry.cls, type) and issubclass(entry.cls, GuardedApp)):
        return ""
    guard = entry.args[0] if entry.args else entry.kwargs.get("guard")
    # One without a guard makes its own, of its options.
    return f"middleware {_switch_of(guard) or entry.kwargs.get('name', 'default')}"


def _depends(call: object) -> str:
    return f"Depends({callable_name(call)})"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
