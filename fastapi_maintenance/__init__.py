"""Take a FastAPI service into maintenance, know that it is out, and bring it back."""

import importlib
import threading
import typing

if typing.TYPE_CHECKING:
    from .asgi.middleware import MaintenanceModeMiddleware
    from .control import control_router
    from .exemptions import maintenance_exempt
    from .fence import DrainError, DrainReport, Receipt, Roster, WorkerReport
    from .guard import MaintenanceGuard
    from .pages import maintenance_exception_handler
    from .refusal import MaintenanceError
    from .state import MaintenanceState
    from .stores import Change, Store, StoreError, open_store
    from .stores.env import EnvStore
    from .stores.file import FileStore
    from .stores.memory import MemoryStore

__all__ = [
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
]

# Each is loaded when it is first asked for (PEP 562): the command line switches and
# waits without FastAPI, which takes three times as long to load as all the rest.
_MODULES = {
    "Change": ".stores",
    "DrainError": ".fence",
    "DrainReport": ".fence",
    "EnvStore": ".stores.env",
    "FileStore": ".stores.file",
    "MaintenanceError": ".refusal",
    "MaintenanceGuard": ".guard",
    "MaintenanceModeMiddleware": ".asgi.middleware",
    "MaintenanceState": ".state",
    "MemoryStore": ".stores.memory",
    "Receipt": ".fence",
    "Roster": ".fence",
    "Store": ".stores",
    "StoreError": ".stores",
    "WorkerReport": ".fence",
    "control_router": ".control",
    "maintenance_exception_handler": ".pages",
    "maintenance_exempt": ".exemptions",
    "open_store": ".stores",
}
_PARTS = {"exemptions", "inventory", "stores", "testing"}

# Two threads that import parts of FastAPI at once can see half-loaded modules.
_loading = threading.RLock()

if not typing.TYPE_CHECKING:  # Type checkers would accept every name.

    def __getattr__(name: str) -> object:
        if name not in _MODULES and name not in _PARTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _loading:
            if name in _PARTS:
                return importlib.import_module(f".{name}", __name__)
            value = getattr(importlib.import_module(_MODULES[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
