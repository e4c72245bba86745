"""Where a Redis store is: URLs, clients, and what is never shown of them."""

import subprocess
import sys
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.sentinel import Sentinel

from fastapi_maintenance import StoreError, open_store
from fastapi_maintenance.stores.redis import RedisStore

SECRET = "hunter2"


def from_sentinel(kind: str, database: int = 0) -> redis.Redis:
    """Return what a Sentinel's ``master_for`` or ``slave_for`` makes."""
    sentinel: Any = Sentinel  # redis-py has no types for it
    made = sentinel([("127.0.0.1", 1)], socket_timeout=0.1)
    client: redis.Redis = getattr(made, kind)("main", db=database)
    return client


def options(store: RedisStore) -> dict[str, Any]:
    """Return what a store gives to redis-py for a connection."""
    found: dict[str, Any] = store._client.connection_pool.connection_kwargs
    return found


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://h:7000/3?prefix=shop", "redis://h:7000/3?prefix=shop"),
        ("redis://h?prefix=shop", "redis://h:6379/0?prefix=shop"),
        ("redis://h/?db=2&prefix=shop", "redis://h:6379/2?prefix=shop"),
        (f"redis://ann:{SECRET}@h/0?prefix=shop", "redis://h:6379/0?prefix=shop"),
        (f"redis://h?password={SECRET}&prefix=shop", "redis://h:6379/0?prefix=shop"),
        (f"rediss://:{SECRET}@h?prefix=shop", "rediss://h:6379/0?prefix=shop"),
        ("redis://[::1]:7000?prefix=shop", "redis://[::1]:7000/0?prefix=shop"),
        (
            f"unix://ann:{SECRET}@/run/redis.sock?db=1&prefix=shop",
            "unix:///run/redis.sock?db=1&prefix=shop",
        ),
    ],
)
def test_location_names_the_server_without_user_and_password(
    url: str, location: str
) -> None:
    """A location says where the state is and nothing that is secret."""
    store = RedisStore.from_url(url)
    assert store.location == location
    assert repr(store) == f"RedisStore({location!r})"


def test_open_store_opens_a_redis_store() -> None:
    """The URL that configures the guard and the command opens a Redis store."""
    store = open_store("redis://h:7000/3?prefix=shop")
    assert isinstance(store, RedisStore)
    assert store.prefix == "shop"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h?prefix=",
        "redis://h?prefix=a%20b",
        "redis://h?prefix=%7Ba%7D",
        f"redis://h?prefix={'a' * 65}",
    ],
)
def test_a_prefix_is_required(url: str) -> None:
    """Without a proper prefix there is no store: two applications would share one."""
    with pytest.raises(ValueError, match="prefix must name the application"):
        RedisStore.from_url(url)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://h?prefix=a&prefix=b", "prefix is given more than once"),
        ("redis://h:port?prefix=a", "not a Redis URL"),
        ("redis://h:0?prefix=a", "not a Redis URL"),
        (f"redis://:{SECRET}/x@h?prefix=a", "not a Redis URL"),
        (f"redis://:{SECRET}#x@h?prefix=a", "not a Redis URL"),
        ("redis://h/shop?prefix=a", "database in a Redis URL must be a number"),
        ("redis://h/0?prefix=a#x", "has no '#'"),
        ("redis://h?prefix=a&nonsense=1", "knows no option 'nonsense'"),
        (
            "redis://h?prefix=a&socket_timeout=soon",
            "Invalid value for 'socket_timeout'",
        ),
        ("rediss://h?prefix=a&ssl_cert_reqs=maybe", "refuses an option"),
        ("http://h?prefix=a", "not a Redis URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, what: str) -> None:
    """A slip in a URL is an error of one line that shows no password."""
    with pytest.raises(ValueError, match=what) as caught:
        RedisStore.from_url(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prefix_may_stand_in_the_url_and_beside_it_if_they_agree() -> None:
    """The prefix given twice alike is fine, two different ones are an error."""
    assert RedisStore("redis://h?prefix=shop", prefix="shop").prefix == "shop"
    with pytest.raises(ValueError, match="'shop', and 'other' in the URL"):
        RedisStore("redis://h?prefix=other", prefix="shop")


def test_options_of_the_url_reach_redis_py() -> None:
    """What redis-py knows can be said in the URL; our own defaults give way."""
    url = "rediss://h?prefix=a&socket_timeout=0.5&ssl_ca_certs=/ca.pem&username=ann"
    found = options(RedisStore.from_url(url))
    assert found["socket_timeout"] == 0.5
    assert found["ssl_ca_certs"] == "/ca.pem"
    assert found["username"] == "ann"
    assert options(RedisStore.from_url("redis://h?prefix=a"))["socket_timeout"] == 1.5


def test_a_client_shows_the_way_and_keeps_its_own_manners() -> None:
    """A client's address and secrets are used; its long timeouts and text are not."""
    client = redis.Redis(
        host="h", port=7000, db=4, password=SECRET, decode_responses=True
    )
    store = RedisStore(client, prefix="shop")
    found = options(store)
    assert store.location == "redis://h:7000/4?prefix=shop"
    assert found["password"] == SECRET
    assert found["decode_responses"] is False
    assert found["socket_timeout"] == 1.5
    assert SECRET not in repr(store)
    assert client.connection_pool.connection_kwargs["decode_responses"] is True


def test_a_client_of_a_socket_and_of_tls_lead_there() -> None:
    """Clients of Unix sockets and of TLS give stores of the same kind."""
    local = redis.Redis(unix_socket_path="/run/redis.sock", socket_timeout=0.2)
    assert RedisStore(local, prefix="a").location == (
        "unix:///run/redis.sock?db=0&prefix=a"
    )
    assert options(RedisStore(local, prefix="a"))["socket_timeout"] == 0.2
    secure = redis.Redis(host="h", ssl=True, ssl_ca_certs="/ca.pem")
    store = RedisStore(secure, prefix="a")
    assert store.location == "rediss://h:6379/0?prefix=a"
    assert options(store)["ssl_ca_certs"] == "/ca.pem"


def test_a_client_of_a_sentinel_follows_the_primary() -> None:
    """What ``master_for`` makes is a way to the primary, also after a failover."""
    store = RedisStore(from_sentinel("master_for", 2), prefix="shop")
    assert store.location == "redis+sentinel://127.0.0.1:1/main/2?prefix=shop"
    with pytest.raises(
        StoreError, match=r"cannot reach redis\+sentinel://127.0.0.1:1/main/2: No m"
    ):
        store.read("default")


def test_a_client_of_replicas_is_refused() -> None:
    """Replicas cannot be set: ``slave_for`` is a mistake that is found at once."""
    with pytest.raises(ValueError, match=r"sentinel.master_for\('main'\)"):
        RedisStore(from_sentinel("slave_for"), prefix="shop")


async def test_a_client_of_asyncio_is_refused() -> None:
    """A client that only an event loop can use is a mistake that is found at once."""
    client = redis.asyncio.Redis()
    with pytest.raises(TypeError, match=r"redis\.asyncio cannot be used"):
        RedisStore(client, prefix="shop")  # type: ignore[arg-type]  # the mistake
    await client.aclose()


def test_a_missing_extra_is_named_with_the_line_that_installs_it() -> None:
    """Without redis-py, importing the store says what to type."""
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "try:\n    import fastapi_maintenance.stores.redis\n"
        "except ImportError as error:\n    print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip().endswith(
        'pip install "fastapi-maintenance-guard[redis]"'
    )
