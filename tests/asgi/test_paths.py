"""No spelling of a request opens what is closed, or closes what is open."""

import functools
from pathlib import Path

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path

from tests.asgi.support import Shop, shop
from tests.asgi.test_coverage import shape
from tests.calls import Answer
from tests.guards import closed, opened

pytestmark = pytest.mark.anyio

PATHS = [
    "//items",
    "/items//",
    "/items//open",
    "/items/../open",
    "/items/%2e%2e/open",
    "/items/..%2fopen",
    "/items/%2Fopen",
    "/open/../items",
    "/open//items",
    "/open%2f..%2fitems",
    "/./items",
    "/ITEMS",
    "/items;open",
    "/items?/open",
    "/items#/open",
    "/items/\x00",
    "/items/é",
    "/docs/../items",
    "/docs/items",
    "//docs",
    "/sub//target",
    "/sub/../open",
    "/sub/open/../target",
    "/sub//open",
    "/subopen",
    "/static/../open",
    "/static//a.txt",
    "/static/./a.txt",
    "/assets/../static/a.txt",
    "/assets/../items",
    "/box",
    "/box//open",
    "/box/../open",
    "/v1//nested/deep/target",
    "/open-v1/../v1/nested/deep/target",
    "http://shop.example/open",
    "items",
    "",
    "*",
]
ROOTS = ["", "/api", "/open", "/sub", "/static", "/docs"]
HOSTS = [
    b"shop.example/open?",
    b"x/docs?",
    b"open",
    b"",
    b"shop.example:80/open",
    b"[::1]",
    b"api.shop.example",
]


async def obey(off: Shop, on: Shop, path: str, method: str, **scope: object) -> Answer:
    """Check the law for one request: as when off, or refused with nothing run."""
    ever = await off.get(path, method, **scope)
    answer = await on.get(path, method, **scope)
    # The only thing open whose endpoints serve elsewhere, too.
    root = str(scope.get("root_path", ""))
    where = get_route_path({"path": path, "root_path": root})
    assert set(on.ran) <= {"exempt"} or where.startswith("/open-v1/")
    if answer.status == 503:
        served = {200, 422}
        assert set(off.ran) - {"exempt"} or ever.status in served or "static" in path
    else:
        assert shape(answer) == shape(ever)
        assert on.ran == off.ran
    return answer


@pytest.fixture(scope="module", params=["middleware", "both"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shop, Shop]:
    """Return the same shop twice, off and on."""
    folder = tmp_path_factory.mktemp("static")
    way = request.param
    return shop(way, folder, opened()), shop(way, folder, closed())


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("path", PATHS)
async def test_no_path_is_a_way_around(
    pair: tuple[Shop, Shop], path: str, root: str
) -> None:
    """Slashes, dots, encodings and root paths open nothing and hide nothing."""
    for method in ("GET", "POST", "WS"):
        for whole in (path, root.rstrip("/") + path):
            await obey(*pair, whole, method, root_path=root)


@pytest.mark.parametrize("path", ["/items", "/plain", "/sub/target", "/static/a.txt"])
@pytest.mark.parametrize("host", HOSTS)
async def test_no_host_is_a_way_around(
    pair: tuple[Shop, Shop], host: bytes, path: str
) -> None:
    """A Host header is never part of a decision, except where a route asks for it."""
    answer = await obey(*pair, path, "GET", headers=[(b"host", host)])
    assert answer.status == 503


@pytest.mark.parametrize("name", [b"x-original-url", b"x-rewrite-url", b"forwarded"])
async def test_no_header_is_a_way_around(pair: tuple[Shop, Shop], name: bytes) -> None:
    """Headers that other programs take for a path are not looked at."""
    headers = [(name, b"/open"), (b"x-http-method-override", b"OPTIONS")]
    assert (await obey(*pair, "/items", "GET", headers=headers)).status == 503


@pytest.mark.parametrize("root", ["/api", "/open", "/docs"])
@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
async def test_an_application_s_own_root_path_is_heeded(
    tmp_path: Path, root: str
) -> None:
    """``FastAPI(root_path=...)`` changes neither what is open nor what is closed."""
    off = shop("middleware", tmp_path, opened(), root_path=root)
    on = shop("middleware", tmp_path, closed(), root_path=root)
    for made in (off, on):
        rooted = FastAPI(root_path=root)
        rooted.add_api_route("/target", made.ran.target)
        made.app.mount("/rooted", rooted)
    for path in (
        "/items",
        "/open",
        "/docs",
        "/sub/target",
        "/sub/open",
        "/nothing",
        "/rooted/target",
    ):
        for whole in (path, root + path):
            for served in ("", root, "/elsewhere"):
                await obey(off, on, whole, "GET", root_path=served)
    assert (await on.get(f"{root}/items")).status == 503
    assert (await on.get(f"{root}/open")).status == 200


PIECES = st.sampled_from(
    [
        *("items", "open", "open-v1", "sub", "static", "assets", "box", "plain"),
        *("target", "posted", "docs", "redoc", "openapi.json", "v1", "nested", "deep"),
        *("starlette", "router", "below", "guarded", "socket", "open-socket", "orders"),
        *("a.txt", "..", ".", "", "%2e%2e", "%2F", "x", "\x00", "É", "open-plain"),
    ]
)
TEXTS = st.lists(PIECES, max_size=5).map(lambda pieces: "/" + "/".join(pieces))
METHODS = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "WS"]
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"host",
                b"origin",
                b"access-control-request-method",
                b"upgrade",
                b"cookie",
            ]
        ),
        st.one_of(st.sampled_from(HOSTS), st.binary(max_size=20)),
    ),
    max_size=4,
)


ASCII = st.characters(max_codepoint=127)
SCOPES = st.fixed_dictionaries(
    {
        "root_path": st.one_of(st.just(""), TEXTS),
        "headers": HEADERS,
        "client": st.sampled_from([None, ("127.0.0.1", 1), ("10.0.0.1", 80)]),
        # Servers refuse other bytes, which Starlette cannot redirect with.
        "query_string": st.text(ASCII, max_size=20).map(str.encode),
    }
)


@pytest.mark.property
@given(path=st.one_of(TEXTS, st.text(max_size=20)), method=METHODS, scope=SCOPES)
def test_whatever_is_asked_for_nothing_unmarked_runs(
    pair: tuple[Shop, Shop], path: str, method: str, scope: dict[str, object]
) -> None:
    """Over random requests, an unmarked endpoint is never reached under maintenance."""
    off, on = pair
    anyio.run(functools.partial(obey, off, on, path, method, **scope))
