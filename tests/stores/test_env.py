"""The store that is set when a service starts."""

import pytest

from fastapi_maintenance import (
    EnvStore,
    MaintenanceGuard,
    MemoryStore,
    StoreError,
    open_store,
)
from fastapi_maintenance.stores import is_read_only


@pytest.mark.parametrize(
    ("word", "enabled"),
    [
        *[("1", True), (" TRUE ", True), ("Yes", True), ("on", True)],
        *[("0", False), ("false", False), ("NO", False), ("off", False)],
        *[("", False), ("  ", False)],
    ],
)
def test_known_words_set_it(
    monkeypatch: pytest.MonkeyPatch, word: str, enabled: bool
) -> None:
    """A known word sets the switch, in any case; empty is how Compose writes unset."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", word)
    assert EnvStore().read("default").enabled is enabled


@pytest.mark.parametrize("word", ["fales", "2", "maintenance", "\uff11"])
def test_unknown_words_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """A word that is misspelt is an error at once, with the words that are known."""
    monkeypatch.setenv("SHOP_MODE", word)
    with pytest.raises(ValueError, match=r"SHOP_MODE is .*set it to one of 1, true"):
        open_store("env:SHOP_MODE")


def test_unset_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set means off."""
    monkeypatch.delenv("FASTAPI_MAINTENANCE_MODE", raising=False)
    store = open_store("env:")
    assert isinstance(store, EnvStore)
    assert is_read_only(store)
    assert not is_read_only(MemoryStore())
    assert store.location == "environment variable FASTAPI_MAINTENANCE_MODE"
    assert not store.read("default").enabled


@pytest.mark.parametrize("name", ["", "A=B", "A\0B"])
def test_name_that_no_variable_can_have(name: str) -> None:
    """A name that no environment can hold is an error at once."""
    with pytest.raises(ValueError, match="not a name of an environment variable"):
        EnvStore(name)


async def test_it_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting it at run time is refused, naming the variable and other stores."""
    monkeypatch.setenv("SHOP_MODE", "on")
    guard = MaintenanceGuard("env:SHOP_MODE")
    assert guard.is_active
    with pytest.raises(StoreError, match=r"SHOP_MODE .*restart, or use another store"):
        await guard.disable()
    assert guard.is_active
