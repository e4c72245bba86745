"""Take a FastAPI service into maintenance, know that it is out, and bring it back."""

from .exemptions import maintenance_exempt
from .fence import DrainError, DrainReport
from .guard import MaintenanceGuard
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
    "MaintenanceState",
    "MemoryStore",
    "Store",
    "StoreError",
    "maintenance_exempt",
    "open_store",
]
