"""What the package offers, and what importing it costs."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastapi_maintenance

FOLDER = Path(fastapi_maintenance.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )
    for path in FOLDER.rglob("*.py")
)
PUBLIC = {
    "DrainError",
    "DrainReport",
    "EnvStore",
    "FileStore",
    "MaintenanceError",
    "MaintenanceGuard",
    "MaintenanceModeMiddleware",
    "MaintenanceState",
    "MemoryStore",
    "Store",
    "StoreError",
    "control_router",
    "maintenance_exception_handler",
    "maintenance_exempt",
    "open_store",
}


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


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_export_is_documented(name: str) -> None:
    """Every public name says what it is for."""
    exported = getattr(fastapi_maintenance, name)
    documented = exported if callable(exported) else type(exported)
    assert inspect.getdoc(documented)


def test_package_is_typed() -> None:
    """The marker of PEP 561 is there."""
    assert (FOLDER / "py.typed").exists()


def test_import_loads_no_optional_package() -> None:
    """The package needs FastAPI and what that brings, nothing else, and warns not."""
    loaded = subprocess.run(
        [
            sys.executable,
            "-IWerror",
            "-c",
            (
                f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r});"
                " import fastapi; before = set(sys.modules);"
                " from fastapi_maintenance import *;"
                " print(*sys.modules.keys() - before)"
            ),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    packages = {name.partition(".")[0] for name in loaded}
    assert "fastapi_maintenance" in packages
    optional = {"redis", "typer", "rich", "click", "httpx", "httpx2", "uvicorn", "trio"}
    assert packages & optional == set()
    ours = {name for name in loaded if name.startswith("fastapi_maintenance.")}
    assert not {name for name in ours if ".cli" in name or ".redis" in name}
    assert "fastapi_maintenance.testing" not in ours


def test_the_command_line_never_loads_fastapi() -> None:
    """Switching and waiting start at once: FastAPI would take longer than all else."""
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r});"
                " import fastapi_maintenance.cli.app; print(*sys.modules)"
            ),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "typer" in loaded
    assert {"fastapi", "starlette", "pydantic"} & set(loaded) == set()


def test_a_name_that_is_not_there_is_none_to_checkers_either() -> None:
    """Loading names when they are asked for makes up no others."""
    with pytest.raises(AttributeError, match="no attribute 'MaintenanceGard'"):
        fastapi_maintenance.MaintenanceGard  # type: ignore[attr-defined]  # noqa: B018  # that mypy wants this is half of the test


def test_parts_are_found_below_the_package() -> None:
    """A dotted name of the documentation works after importing the package alone."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r});"
        " import fastapi_maintenance as package;"
        " print(package.exemptions.with_header, package.stores, package.testing)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_threads_may_ask_for_the_first_names_at_once() -> None:
    """Names that threads load side by side are whole, each."""
    code = (
        f"import sys, threading; sys.path.insert(0, {str(FOLDER.parent)!r});"
        " import fastapi_maintenance as package; wrong = [];"
        " threading.excepthook = wrong.append;"
        " threads = [threading.Thread(target=getattr, args=(package, name))"
        " for name in package.__all__];"
        " [t.start() for t in threads]; [t.join() for t in threads];"
        " sys.exit(len(wrong))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ORDER = [
    "state",
    "fence",
    "stores",
    "switch",
    "decision",
    "door",
    "guard",
    "middleware",
]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    """A module imports only what knows less than it does."""
    path = FOLDER.parent / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    room = name.removeprefix("fastapi_maintenance").strip(".").partition(".")[0]
    if room not in ORDER:
        return
    allowed = ORDER[: ORDER.index(room) + 1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split(".")
            base = base[: len(base) - node.level + path.is_dir()]
            target = ".".join([*base, node.module or ""]).split(".")
            found = target[1] if len(target) > 1 else ""
            assert found not in ORDER or found in allowed, f"{name} imports {found}"


def test_fastapi_s_insides_are_touched_in_one_place() -> None:
    """What is not public API of FastAPI is imported by the modules that say so."""
    inside = ("fastapi.dependencies", "fastapi.routing", "fastapi._", "fastapi.utils")
    for name in MODULES:
        file = FOLDER.parent / Path(*name.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        found = [
            line
            for line in file.read_text().splitlines()
            if line.startswith(
                tuple(
                    f"{verb} {path}" for verb in ("from", "import") for path in inside
                )
            )
        ]
        rooms = {"_ahead.py", "_fastapi.py", "_routing.py"}
        assert not found or file.name in rooms, (name, found)


def test_guard_can_be_inspected_by_fastapi() -> None:
    """Hints of what FastAPI calls are objects: old releases do not resolve strings."""
    parameters = inspect.signature(fastapi_maintenance.MaintenanceGuard.__call__)
    annotation = parameters.parameters["connection"].annotation
    assert not isinstance(annotation, str)
    assert list(parameters.parameters) == ["self", "connection"]


def test_missing_extra_names_the_line_that_installs_it() -> None:
    """Without redis-py, opening such a store says what to install."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r});"
        " sys.modules['redis'] = None;"
        " from fastapi_maintenance import open_store;"
        " open_store('redis://localhost/0?prefix=shop')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], check=False, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install" in last
    assert "fastapi-maintenance-guard[redis]" in last


def test_every_module_can_be_imported_alone() -> None:
    """No module needs another one to be imported first."""
    for name in MODULES:
        if name.endswith("__main__") or "redis" in name or ".cli" in name:
            continue
        assert importlib.import_module(name).__name__ == name
