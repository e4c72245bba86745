"""Take a FastAPI service into maintenance, know that it is out, and bring it back."""

from .control import control_router
from .exemptions import maintenance_exempt
from .fence import DrainError, DrainReport
from .guard import MaintenanceGuard
from .middleware import MaintenanceModeMiddleware
from .pages import maintenance_exception_handler
from .refusal import MaintenanceError
from .state import MaintenanceState
from .stores import Store, StoreError, open_store
from .stores.env import EnvStore
from .stores.file import FileStore
from .stores.memory import MemoryStore

__all__ = [
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
]
