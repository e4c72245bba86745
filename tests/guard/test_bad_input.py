"""Wrong arguments are refused at once, with the value and the remedy."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import Depends

from fastapi_maintenance import (
    EnvStore,
    MaintenanceError,
    MaintenanceGuard,
    MemoryStore,
    StoreError,
    open_store,
)
from fastapi_maintenance.exemptions import from_networks, with_header
from tests.guards import closed, opened


class WithoutPublish:
    """Half a store."""

    async def read(self, name: str) -> None: ...


LONE = "\ud800"
WRONG = [
    ({"retry_after": -1}, ValueError, "retry_after.*-1"),
    ({"retry_after": timedelta(seconds=-1)}, ValueError, "retry_after"),
    ({"retry_after": math.nan}, ValueError, "retry_after.*nan"),
    ({"retry_after": math.inf}, ValueError, "retry_after.*inf"),
    ({"retry_after": 10**400}, ValueError, "retry_after"),
    ({"retry_after": True}, TypeError, "retry_after.*True"),
    ({"retry_after": "60"}, TypeError, "retry_after.*'60'"),
    ({"retry_after": "1\r\nX: y"}, TypeError, "retry_after"),
    ({"retry_after": None}, TypeError, "retry_after"),
    ({"handler_timeout": 0}, ValueError, "handler_timeout.*0"),
    ({"handler_timeout": -1.0}, ValueError, "handler_timeout.*-1"),
    ({"handler_timeout": math.inf}, ValueError, "handler_timeout.*inf"),
    ({"handler_timeout": "2"}, TypeError, "handler_timeout.*'2'"),
    ({"handler_timeout": True}, TypeError, "handler_timeout.*True"),
    ({"detail": ""}, ValueError, "detail"),
    ({"detail": " "}, ValueError, "detail"),
    ({"detail": "a\nb"}, ValueError, "detail.*one line"),
    ({"detail": "a\x00b"}, ValueError, "detail.*one line"),
    ({"detail": "a\u2028b"}, ValueError, "detail.*one line"),
    ({"detail": LONE}, ValueError, "detail.*one line"),
    ({"detail": "x" * 2001}, ValueError, "detail.*2001"),
    ({"detail": None}, TypeError, "detail.*None"),
    ({"detail": {"error": 1}}, TypeError, "detail"),
    ({"name": ""}, ValueError, "name.*payments"),
    ({"name": "Shop"}, ValueError, "name.*'Shop'"),
    ({"name": "../x"}, ValueError, "name"),
    ({"name": "a" * 65}, ValueError, "name"),
    ({"name": "shop\n"}, ValueError, "name"),
    ({"name": None}, ValueError, "name.*None"),
    ({"exempt_handler": "handler"}, TypeError, "callable.*'handler'"),
    ({"exempt_handler": b"handler"}, TypeError, "callable"),
    ({"exempt_handler": 5}, TypeError, "callable.*5"),
    ({"exempt_handler": [5]}, TypeError, "callable.*5"),
    ({"exempt_handler": lambda: True}, TypeError, r"one argument.*Depends\("),
    ({"exempt_handler": lambda a, b: True}, TypeError, "one argument"),
    ({"exempt_handler": lambda *, c: True}, TypeError, "one argument"),
    ({"exempt_handler": Depends()}, ValueError, r"Depends\(is_staff\)"),
    ({"on_change": "print"}, TypeError, "on_change.*'print'"),
    ({"store": 5}, TypeError, r"store.*5.*file:"),
    ({"store": MemoryStore}, TypeError, "store.*MemoryStore"),
    ({"store": WithoutPublish()}, TypeError, "store"),
    ({"store": "memory"}, ValueError, "memory.*file:PATH"),
    ({"store": "memory:x"}, ValueError, "unknown store URL"),
    ({"store": "mongodb://x"}, ValueError, "unknown store URL.*file:PATH"),
    ({"store": "reddis://ada:secret@host/0"}, ValueError, r"reddis://\*\*\*@host"),
    ({"store": ""}, ValueError, "unknown store URL"),
    ({"store": "file:"}, ValueError, "file:PATH"),
    ({"store": "file:x?color=red"}, ValueError, "run_dir"),
    ({"store": "file://host/x"}, ValueError, "file:///ABS"),
    ({"store": "env:A=B"}, ValueError, "A=B"),
]


@pytest.mark.parametrize(
    ("options", "kind", "text"), WRONG, ids=[str(index) for index in range(len(WRONG))]
)
def test_guard_refuses_wrong_arguments(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """A guard with a wrong argument cannot be built; the error is one line."""
    with pytest.raises(kind, match=text) as refused:
        MaintenanceGuard(**{"store": "memory:", **options})
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("wrong", [5, b"memory:", MemoryStore])
def test_url_of_a_store_is_a_string(wrong: Any) -> None:
    """What is no string is no URL."""
    with pytest.raises(TypeError, match="must be a string"):
        open_store(wrong)


async def coroutine(_: object) -> None: ...


def test_on_change_that_nothing_would_await_is_refused() -> None:
    """An async on_change would never run."""
    with pytest.raises(TypeError, match="plain function"):
        opened(on_change=coroutine)


NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)

OPTIONS = [
    ({"until": datetime(2030, 1, 2)}, ValueError, "(?s)until.*timezone"),  # noqa: DTZ001  # the mistake
    ({"at": datetime(2030, 1, 2)}, ValueError, "(?s)at.*timezone"),  # noqa: DTZ001  # the mistake
    ({"until": NOW - timedelta(1)}, ValueError, "later than the start"),
    ({"until": NOW}, ValueError, "later than the start"),
    ({"until": timedelta(0)}, ValueError, "longer than 0"),
    ({"until": timedelta(-1)}, ValueError, "longer than 0"),
    ({"until": timedelta.max}, ValueError, "calendar"),
    ({"until": 20}, ValueError, "(?s)until.*20"),
    ({"at": NOW + timedelta(2), "until": NOW + timedelta(1)}, ValueError, "later than"),
    ({"at": "tomorrow"}, ValueError, "(?s)at.*'tomorrow'"),
    ({"auto_off": True}, ValueError, "until"),
    ({"auto_off": "yes", "until": timedelta(1)}, ValueError, "(?s)auto_off.*'yes'"),
    ({"read_only": 1}, ValueError, "(?s)read_only.*1"),
    ({"message": "a\r\nb"}, ValueError, "one line"),
    ({"message": LONE}, ValueError, "one line"),
    ({"message": ""}, ValueError, "message"),
    ({"message": 5}, ValueError, "(?s)message.*5"),
    ({"actor": "a\x1b[2J"}, ValueError, "one line"),
    ({"retry_after": -1}, ValueError, "retry_after"),
    ({"retry_after": 10**400}, ValueError, "retry_after"),
    ({"retry_after": True}, ValueError, "retry_after must be seconds.*True"),
    ({"bypass_token": "short"}, ValueError, "16 characters"),
    ({"bypass_token": ""}, ValueError, "16 characters"),
    ({"bypass_token": "x" * 15 + "é"}, ValueError, "visible ASCII"),
]


@pytest.mark.parametrize(
    ("fields", "kind", "text"), OPTIONS, ids=[str(i) for i in range(len(OPTIONS))]
)
async def test_enable_refuses_wrong_arguments(
    fields: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """Switching on with a wrong argument changes nothing."""
    guard = opened()
    guard._switch.clock = lambda: NOW
    with pytest.raises(kind, match=text):
        await guard.enable(**fields)
    assert not guard.state.enabled


DRAINS = [
    ({"timeout": -1}, ValueError, "timeout.*-1"),
    ({"timeout": math.nan}, ValueError, "timeout.*nan"),
    ({"timeout": "1"}, TypeError, "timeout.*'1'"),
    ({"timeout": None}, TypeError, "timeout.*None"),
    ({"close_after": -1}, ValueError, "close_after.*-1"),
    ({"timeout": 10**400}, ValueError, "timeout must be 0 to 1000000000 seconds"),
    ({"close_after": True}, TypeError, "close_after.*True"),
    ({"workers": -1}, ValueError, "workers.*-1"),
    ({"workers": 1.5}, ValueError, "workers.*1.5"),
    ({"workers": True}, ValueError, "workers.*True"),
]


@pytest.mark.parametrize(
    ("fields", "kind", "text"), DRAINS, ids=[str(i) for i in range(len(DRAINS))]
)
async def test_drain_refuses_wrong_arguments(
    fields: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """A drain with a wrong argument does not begin."""
    with pytest.raises(kind, match=text):
        await closed().drain(**fields)


async def test_drain_of_nothing_is_refused() -> None:
    """While maintenance is off there is nothing to wait for."""
    with pytest.raises(ValueError, match="maintenance is off"):
        await opened().drain()


async def test_enable_on_a_store_that_cannot_be_set_is_refused() -> None:
    """The error of a store that is set at start names its variable."""
    guard = MaintenanceGuard(EnvStore("SHOP_CLOSED"))
    for change in (guard.enable, guard.disable):
        with pytest.raises(StoreError, match=r"SHOP_CLOSED.*restart"):
            await change()


def test_unknown_word_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A misspelt word must not open a service."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "ture")
    with pytest.raises(ValueError, match=r"FASTAPI_MAINTENANCE_MODE is 'ture'.*true"):
        MaintenanceGuard("env:")


SECRETS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: with_header("X-Key", ""), ValueError, "X-Key is empty"),
    (lambda: with_header("X-Key", " "), ValueError, "X-Key is empty"),
    (lambda: with_header("X-Key", None), ValueError, "X-Key is empty"),  # type: ignore[arg-type]  # the mistake
    (lambda: with_header("X-Key", 5), TypeError, "X-Key.*string"),  # type: ignore[arg-type]  # the mistake
    (lambda: with_header("X-Key", b"hidden"), TypeError, "X-Key.*string"),  # type: ignore[arg-type]  # the mistake
    (lambda: with_header("X-Key", " hidden"), ValueError, "spaces"),
    (lambda: with_header("X-Key", "hid\nden"), ValueError, "control"),
    (lambda: with_header("X-Key", "hid\ud800den"), ValueError, "X-Key"),
    (lambda: with_header("", "hidden"), ValueError, "not a header name"),
    (lambda: with_header("X Key", "hidden"), ValueError, "not a header name"),
    (lambda: with_header("X-Kéy", "hidden"), ValueError, "not a header name"),
    (lambda: with_header("X-Key:", "hidden"), ValueError, "not a header name"),
    (lambda: with_header(5, "hidden"), ValueError, "not a header name: 5"),  # type: ignore[arg-type]  # the mistake
    (from_networks, ValueError, "at least one"),
    (lambda: from_networks("10.0.0.1/8"), ValueError, "10.0.0.1/8.*host bits"),
    (lambda: from_networks("10."), ValueError, "'10.'"),
    (lambda: from_networks(""), ValueError, "''"),
    (lambda: from_networks(10), ValueError, "10.*string"),  # type: ignore[arg-type]  # the mistake
    (lambda: from_networks(["10.0.0.0/8"]), ValueError, "string"),  # type: ignore[arg-type]  # the mistake
]


@pytest.mark.parametrize(
    ("make", "kind", "text"), SECRETS, ids=[str(i) for i in range(len(SECRETS))]
)
def test_handlers_refuse_wrong_arguments(
    make: Callable[[], object], kind: type[Exception], text: str
) -> None:
    """A ready-made handler that could exempt everyone cannot be made."""
    with pytest.raises(kind, match=text) as refused:
        make()
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("wrong", [0, -1, 86_401, True, "60", 1.5])
def test_error_refuses_what_no_header_can_carry(wrong: Any) -> None:
    """An error of the application's own is as careful as the guard's."""
    with pytest.raises(ValueError, match=f"retry_after.*{wrong!r}"):
        MaintenanceError(retry_after=wrong)
