"""Imports the files of `examples/`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

Load = Callable[..., ModuleType]


def loader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what imports a file of a folder again, with variables of its own."""
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)

    def load(name: str, **variables: str) -> ModuleType:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
