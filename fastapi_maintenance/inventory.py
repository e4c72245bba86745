"""What is covered: for ``routes`` and the warnings at start-up."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakSet

from starlette.applications import Starlette
from starlette.middleware import Middleware

from ._fastapi import ListedRoute, direct_dependencies, routes_of, runs_dependencies
from .asgi.resolve import DEEPEST, Level, router_of
from .asgi.wrap import GuardedApp, guard_of
from .decision import Decision
from .exemptions import is_marked
from .handlers import callable_name
from .log import logger

GUARDED: Final = "guarded"
EXEMPT: Final = "exempt"
DOCUMENTATION: Final = "documentation"
NOT_COVERED: Final = "not covered"

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
        runs_dependencies: False if a guard is among its dependencies, and its class
            does not run them.
    """

    kind: str
    methods: tuple[str, ...]
    path: str
    coverage: str
    note: str = ""
    runs_dependencies: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree of applications a route is.

    Attributes:
        prefix: The path up to here.
        mount: The path of the outermost mount on the way, or "".
        level: The application that is mounted there.
        apps: The Starlette and FastAPI applications on the way.
        guards: The guards around it: "wrap NAME", "middleware NAME".
        depth: How many mounts deep; an application may be mounted in itself.
    """

    prefix: str = ""
    mount: str = ""
    level: Level = field(default_factory=Level)
    apps: tuple[Starlette, ...] = ()
    guards: tuple[str, ...] = ()
    depth: int = 0


def survey(app: object) -> list[Entry]:
    """List everything an application serves, and whether a guard covers it.

    Args:
        app: A FastAPI or Starlette application, a router, or a middleware around one.

    Returns:
        One entry for each route in the order of matching, those of included routers
        and mounted applications too. A mount that has no routes of its own, such as
        static files, is one entry.
    """
    return [entry for _, entry in _walk(app, _Place())]


def warn_of_uncovered(app: object) -> None:
    """Log once for each application what its guards do not cover."""
    if router_of(app) is None or app in _warned:
        return
    _warned.add(app)
    found = list(_walk(app, _Place()))
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
        if entry.coverage == NOT_COVERED and not entry.runs_dependencies
    )
    if routes:
        logger.warning(
            "maintenance does not reach the routes at %s: their class does not run"
            " dependencies; use MaintenanceModeMiddleware",
            ", ".join(routes),
        )


def _walk(app: object, place: _Place) -> Iterator[tuple[str, Entry]]:
    """Yield what is below a place, with the outermost mount that it is in."""
    level = place.level.enter(app, place.apps)
    inner, router = level.inner, level.router
    guards = [*place.guards, *map(_guarding, level.layers)]
    apps = place.apps
    if isinstance(inner, Starlette):
        guards += map(_guarding_entry, inner.user_middleware)
        apps = (*apps, inner)
    place = replace(
        place,
        level=level,
        apps=apps,
        guards=tuple(dict.fromkeys(filter(None, guards))),
        depth=place.depth + 1,
    )
    if router is None or place.depth > DEEPEST:
        coverage = _coverage(place, guarded=False)
        note = "; ".join([*place.guards, type(inner).__name__])
        yield place.mount, Entry("Mount", (), place.prefix or "/", coverage, note)
        return
    for route in routes_of(router):
        if route.kind == "Mount":
            path = place.prefix + route.path
            below = replace(place, prefix=path, mount=place.mount or path or "/")
            yield from _walk(route.effective.app, below)
        else:
            yield place.mount, _entry(route, place)


def _coverage(place: _Place, *, guarded: bool) -> str:
    if place.level.marked:
        return EXEMPT
    return GUARDED if guarded or place.guards else NOT_COVERED


def _entry(route: ListedRoute, place: _Place) -> Entry:
    effective = route.effective
    calls = direct_dependencies(effective)
    names = [_switch_of(call) for call in calls]
    guards = [name for name in names if name is not None]
    runs = runs_dependencies(effective)
    if route.kind == "HTTP" and place.level.documents(effective):
        coverage = DOCUMENTATION
    elif is_marked(getattr(effective, "endpoint", None), effective):
        coverage = EXEMPT
    else:
        coverage = _coverage(place, guarded=runs and bool(guards))
    notes: list[str] = []
    if coverage in {GUARDED, NOT_COVERED}:
        if guards and runs:
            notes.append(f"guard {', '.join(guards)}")
        notes += place.guards
        before = calls[: names.index(guards[0])] if guards else []
        if guards and not runs:
            notes.append(f"{_class_of(effective)} does not run its dependencies")
        elif before and coverage == GUARDED:
            run = "runs" if len(before) == 1 else "run"
            notes.append(f"{', '.join(map(_depends, before))} {run} before the guard")
    return Entry(
        route.kind,
        tuple(sorted(getattr(effective, "methods", None) or ())),
        place.prefix + route.path,
        coverage,
        "; ".join(notes),
        runs_dependencies=runs or not guards,
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
    # Without a guard, the middleware makes one.
    name = _switch_of(guard_of(entry)) or entry.kwargs.get("name", "default")
    return f"middleware {name}"


def _depends(call: object) -> str:
    return f"Depends({callable_name(call)})"
