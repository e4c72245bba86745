"""What the package offers: its names, their signatures, and what importing costs."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import fastapi_maintenance

FOLDER = Path(fastapi_maintenance.__file__).parent
PUBLIC = {
    "Change",
    "DrainError",
    "DrainReport",
    "EnvStore",
    "FileStore",
    "MaintenanceError",
    "MaintenanceGuard",
    "MaintenanceModeMiddleware",
    "MaintenanceState",
    "MemoryStore",
    "Receipt",
    "Roster",
    "Store",
    "StoreError",
    "WorkerReport",
    "control_router",
    "maintenance_exception_handler",
    "maintenance_exempt",
    "open_store",
}

# What is imported from a module below, since most applications need none of it.
BELOW = {
    "exemptions.from_networks": "(*networks)",
    "exemptions.with_header": "(name, secret)",
    "inventory.survey": "(app)",
    "stores.redis.RedisStore": "(url, *, prefix)",
    "stores.sql.SQLStore": "(url_or_engine, *, prefix=None)",
    "testing.check_store": "(make_store)",
    "testing.force": "(guard, *, enabled=True, message=None, at=None, until=None,"
    " auto_off=False, retry_after=None, read_only=False, bypass_token=None)",
    "testing.frozen_clock": "(guard, moment=None)",
}
AT_THE_TOP = {
    "EnvStore": "(variable='FASTAPI_MAINTENANCE_MODE')",
    "FileStore": "(path='.fastapi-maintenance', *, run_dir=None)",
    "MaintenanceModeMiddleware": "(app, guard=None, **options)",
    "MemoryStore": "(enabled=False)",
    "control_router": "(guard, *, dependencies, prefix='/maintenance')",
    "maintenance_exception_handler": "(page=None)",
    "open_store": "(url=None)",
}

GUARD = textwrap.dedent(
    """
    class MaintenanceGuard:
        def __init__(
            self,
            store: Store | str | None = None,
            *,
            name: str = "default",
            exempt_handler: ExemptHandlers = None,
            detail: str = DEFAULT_DETAIL,
            retry_after: int | timedelta = 60,
            retry_spread: float = 0.0,
            handler_timeout: float = 2.0,
            on_change: Callable[[MaintenanceState], object] | None = None,
        ) -> None: ...

        async def __call__(self, connection: HTTPConnection) -> None: ...

        @property
        def responses(self) -> dict[int | str, dict[str, Any]]: ...

        @property
        def state(self) -> MaintenanceState: ...

        @property
        def is_active(self) -> bool: ...

        @property
        def closing(self) -> Closing: ...

        @asynccontextmanager
        async def lifespan(self, app: object = None) -> AsyncIterator[None]: ...

        async def enable(
            self,
            *,
            message: str | None = None,
            at: datetime | None = None,
            until: datetime | timedelta | None = None,
            auto_off: bool = False,
            retry_after: int | timedelta | None = None,
            read_only: bool = False,
            bypass_token: str | None = None,
            actor: str | None = None,
            acknowledge: float | None = None,
        ) -> MaintenanceState: ...

        async def disable(
            self, *, actor: str | None = None, acknowledge: float | None = None
        ) -> MaintenanceState: ...

        async def drain(
            self,
            *,
            timeout: float = 30.0,
            workers: int | None = None,
            close_after: float | None = None,
        ) -> DrainReport: ...

        def maintenance(
            self,
            *,
            message: str | None = None,
            until: datetime | timedelta | None = None,
            drain_timeout: float = 30.0,
            workers: int | None = None,
            stay_on_error: bool = True,
        ) -> AbstractAsyncContextManager[DrainReport]: ...

        def wrap(self, app: ASGIApp) -> GuardedApp: ...

        def admit(self) -> AdmittedWork: ...
    """
)


def test_exports_are_the_documented_names() -> None:
    """`__all__` is what is documented, sorted, and there is nothing else."""
    assert set(fastapi_maintenance.__all__) == PUBLIC
    assert list(fastapi_maintenance.__all__) == sorted(fastapi_maintenance.__all__)
    for name in PUBLIC:
        assert name in dir(fastapi_maintenance)
        assert getattr(fastapi_maintenance, name) is not None
    public = {
        name
        for name, value in vars(fastapi_maintenance).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"Change"}))
def test_every_export_is_documented(name: str) -> None:
    """Every public name says what it is for."""
    exported = getattr(fastapi_maintenance, name)
    documented = exported if callable(exported) else type(exported)
    assert inspect.getdoc(documented)


def signature(dotted: str) -> str:
    """Return how something is called, without types."""
    module, _, name = f"fastapi_maintenance.{dotted}".rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), name))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize(("name", "expected"), sorted((AT_THE_TOP | BELOW).items()))
def test_signatures_are_the_documented_ones(name: str, expected: str) -> None:
    """Parameters, their kinds and their defaults are what the design promises."""
    assert signature(name) == expected


def methods(source: str) -> dict[str, str]:
    """Return the heads of the public methods of the guard in a source."""
    (guard,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "MaintenanceGuard"
    )
    heads = {}
    for node in guard.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Expr(ast.Constant(...))]
            heads[node.name] = ast.unparse(node)
    # How it is printed is no promise.
    del heads["__repr__"]
    return heads


def test_guard_has_the_promised_methods() -> None:
    """Names, parameters, defaults and types of the guard are right to the letter."""
    written = methods((FOLDER / "guard.py").read_text())
    promised = methods(GUARD + "    def __repr__(self) -> str: ...\n")
    assert written == promised


def test_guard_can_be_inspected_by_fastapi() -> None:
    """Hints of what FastAPI calls are objects: old releases do not resolve strings."""
    parameters = inspect.signature(fastapi_maintenance.MaintenanceGuard.__call__)
    annotation = parameters.parameters["connection"].annotation
    assert not isinstance(annotation, str)
    assert list(parameters.parameters) == ["self", "connection"]


def test_package_is_typed() -> None:
    """The marker of PEP 561 is there."""
    assert (FOLDER / "py.typed").exists()


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, which knows this package."""
    start = f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r});"
    return subprocess.run(
        [sys.executable, "-IWerror", "-c", f"{start} {code}"],
        check=False,
        capture_output=True,
        text=True,
    )


def test_import_loads_no_optional_package() -> None:
    """The package needs FastAPI and filelock alone, and warns of nothing."""
    done = python(
        "import fastapi; before = set(sys.modules);"
        " from fastapi_maintenance import *; print(*sys.modules.keys() - before)"
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    packages = {name.partition(".")[0] for name in loaded}
    assert {"fastapi_maintenance", "filelock"} <= packages
    optional = {"redis", "sqlalchemy", "typer", "rich", "click", "httpx", "uvicorn"}
    assert packages & optional == set()
    ours = {name for name in loaded if name.startswith("fastapi_maintenance.")}
    rooms = (".cli", ".redis", ".sql", ".testing", ".inventory")
    assert not [name for name in ours if name.endswith(rooms) or ".cli." in name]


def test_names_are_loaded_when_they_are_asked_for() -> None:
    """The bare package loads nothing of itself, so that commands start at once."""
    done = python(
        "import fastapi_maintenance;"
        " print(*(n for n in sys.modules if n.startswith('fastapi_maintenance.')))"
    )
    assert done.stdout.split() == [], done.stderr


def test_a_name_that_is_not_there_is_an_error() -> None:
    """Loading names when they are asked for makes up no others, for checkers either."""
    with pytest.raises(AttributeError, match="no attribute 'MaintenanceGard'"):
        fastapi_maintenance.MaintenanceGard  # type: ignore[attr-defined]  # noqa: B018  # that mypy wants this is half of the test


def test_parts_are_found_below_the_package() -> None:
    """A dotted name of the documentation works after importing the package alone."""
    done = python(
        "import fastapi_maintenance as package;"
        " print(package.exemptions.with_header, package.inventory.survey,"
        " package.stores, package.testing)"
    )
    assert done.returncode == 0, done.stderr


def test_threads_may_ask_for_the_first_names_at_once() -> None:
    """Names that threads load side by side are whole, each."""
    done = python(
        "import threading, fastapi_maintenance as package; wrong = [];"
        " threading.excepthook = wrong.append;"
        " threads = [threading.Thread(target=getattr, args=(package, name))"
        " for name in package.__all__];"
        " [t.start() for t in threads]; [t.join() for t in threads];"
        " sys.exit(len(wrong))"
    )
    assert done.returncode == 0, done.stderr


REDIS = "from fastapi_maintenance.stores.redis import RedisStore"
SQL = "from fastapi_maintenance.stores.sql import SQLStore"
OPEN = "import fastapi_maintenance as package; package.open_store"
PIP = "pip install"


@pytest.mark.parametrize(
    ("missing", "code", "line"),
    [
        ("redis", REDIS, f'{PIP} "fastapi-maintenance-guard[redis]"'),
        (
            "redis",
            f"{OPEN}('redis://localhost/0?prefix=shop')",
            f'{PIP} "fastapi-maintenance-guard[redis]"',
        ),
        ("sqlalchemy", SQL, f'{PIP} "fastapi-maintenance-guard[sql]"'),
        (
            "sqlalchemy",
            f"{OPEN}('postgresql+psycopg://localhost/shop')",
            f'{PIP} "fastapi-maintenance-guard[sql]"',
        ),
        (
            "typer",
            "from fastapi_maintenance.cli import main; main(['status'])",
            f"{PIP} 'fastapi-maintenance-guard[cli]'",
        ),
    ],
)
def test_missing_extra_names_the_line_that_installs_it(
    missing: str, code: str, line: str
) -> None:
    """Without its extra, a store or the command ends with the line to type."""
    done = python(f"sys.modules[{missing!r}] = None; {code}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert line in last
