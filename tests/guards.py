"""Guards and switches as most tests want them."""

from typing import Any

from fastapi_maintenance import MaintenanceGuard, MemoryStore, Store
from fastapi_maintenance.switch import Switch


def closed(**options: Any) -> MaintenanceGuard:  # those of a guard
    """Return a guard with maintenance on."""
    return MaintenanceGuard(MemoryStore(enabled=True), **options)


def opened(**options: Any) -> MaintenanceGuard:  # those of a guard
    """Return a guard with maintenance off."""
    return MaintenanceGuard(MemoryStore(), **options)


def switch_of(store: Store, name: str = "default") -> Switch:
    """Return a switch that trusts a new roster at once."""
    switch = Switch(store, name)
    switch.settling = 0
    return switch


def guard_of(store: Store, **options: Any) -> MaintenanceGuard:  # those of a guard
    """Return a guard that trusts a new roster at once."""
    guard = MaintenanceGuard(store, **options)
    guard._switch.settling = 0
    return guard
