"""How the modules may import each other: one direction, no circles."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import fastapi_maintenance

ROOT = Path(fastapi_maintenance.__file__).parent

# From what knows least to what knows most. A module imports only from lines above its
# own; modules on one line may not import each other, unless the order on the line is
# from left to right.
ORDER = [
    ["checks", "files", "garbage", "limiters", "locks", "log", "processes"],
    ["state"],
    ["fence"],
    ["stores"],
    ["stores.memory", "stores.env", "stores.file", "stores.redis", "stores.sql"],
    ["changes"],
    ["notifier", "threads", "worker"],
    ["keeper"],
    ["switch"],
    ["_fastapi"],
    ["closing", "exemptions", "handlers", "refusal"],
    ["decision"],
    ["asgi", "asgi.resolve", "asgi.wrap"],
    ["inventory"],
    ["guard"],
    ["asgi.middleware"],
    ["pages", "control", "cli", "testing"],
]
PACKAGES = ("pages", "control", "cli")
"""Packages that are one room: what is inside of them is their own matter."""


def rank(module: str) -> tuple[int, int]:
    """Return where a module stands."""
    room = module.partition(".")[0]
    name = room if room in PACKAGES else module
    for row, names in enumerate(ORDER):
        if name in names:
            return row, names.index(name)
    raise AssertionError(f"{module} has no place in the house")


def modules() -> list[str]:
    """Return every module, named from the package on."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[-1] != "__main__":
            found.append(name)
    return found


def names(path: Path, *, lazy: bool) -> set[str]:
    """Return the full dotted names of what a file imports, at load time or at all."""
    package = ".".join([ROOT.name, *path.relative_to(ROOT).parts[:-1]])
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imported(module: str, *, lazy: bool) -> set[str]:
    """Return what a module imports of the package, at load time or at all."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    known = set(modules())
    found = set()
    for name in names(path, lazy=lazy):
        ours, _, inner = name.partition(".")
        if ours == ROOT.name:
            found.add(inner if inner in known else inner.rpartition(".")[0])
    return found


INSIDES = (
    *("fastapi.dependencies", "fastapi.routing", "fastapi.utils", "fastapi._"),
    "starlette._",
)
"""Modules of others that are no public API."""


def test_insides_of_fastapi_are_imported_in_one_place() -> None:
    """What is not public API is imported by one module only, lazily or not."""
    found = {
        path.name
        for path in ROOT.rglob("*.py")
        for name in names(path, lazy=True)
        if name.startswith(INSIDES)
    }
    assert found == {"_fastapi.py"}


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    """A module imports only what knows less than it does."""
    for other in imported(module, lazy=False):
        same_room = module.partition(".")[0] == other.partition(".")[0]
        if same_room and module.partition(".")[0] in PACKAGES:
            continue
        assert rank(other) < rank(module), f"{module} imports {other}"


def test_there_are_no_circles() -> None:
    """No chain of imports leads back to where it began, inside of packages too."""
    graph = {module: imported(module, lazy=False) for module in modules()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in graph[module] - {module}:
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_stores_know_neither_requests_nor_threads() -> None:
    """A new engine is one file of I/O: it imports nothing of the protocol's runners."""
    forbidden = {"worker", "keeper", "switch", "decision", "guard"}
    for module in modules():
        if module.startswith("stores"):
            assert not imported(module, lazy=True) & forbidden
