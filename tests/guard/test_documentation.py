"""Documentation routes: the recipe for hosting them is open, and nothing wider."""

from collections.abc import Callable
from typing import Any

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.docs import (
    get_redoc_html,
    get_swagger_ui_html,
    get_swagger_ui_oauth2_redirect_html,
)
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from tests.guard.support import Ran, in_flight
from tests.guards import closed

# FastAPI 0.137.0 and 0.137.1 cannot list included routes: refused there.
LISTED = 503 if fastapi.__version__ in {"0.137.0", "0.137.1"} else 200


def guarded(**options: Any) -> FastAPI:
    """Return an application under maintenance."""
    return FastAPI(dependencies=[Depends(closed())], **options)


def status(app: FastAPI, path: str, method: str = "GET") -> int:
    """Ask an application and do not follow redirects."""
    client = TestClient(app)
    return client.request(method, path, follow_redirects=False).status_code


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
@pytest.mark.parametrize("root", ["", "/api"])
def test_fastapi_s_own_documentation_is_served(path: str, root: str) -> None:
    """The documentation that FastAPI makes never asks the guard."""
    client = TestClient(guarded(), root_path=root)
    assert client.get(path).status_code == 200
    assert client.get(f"{root}{path}").status_code == 200


def test_documentation_at_another_place_is_served() -> None:
    """Documentation that an application moved is served there."""
    app = guarded(docs_url="/help", redoc_url="/read", openapi_url="/schema.json")
    for path in ("/help", "/read", "/schema.json"):
        assert status(app, path) == 200


def self_hosted(app: FastAPI) -> FastAPI:
    """Add the routes of FastAPI's own recipe for self-hosted assets."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title="Shop")

    @app.get("/docs/oauth2-redirect", include_in_schema=False)
    async def redirect() -> HTMLResponse:
        return get_swagger_ui_oauth2_redirect_html()

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(openapi_url="/openapi.json", title="Shop")

    return app


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/redoc"])
@pytest.mark.parametrize("place", ["", "/shop"])
def test_self_hosted_documentation_is_served(path: str, place: str) -> None:
    """FastAPI's recipe for own documentation routes works under maintenance."""
    app = self_hosted(guarded(docs_url=None, redoc_url=None))
    if place:
        outer = FastAPI()
        outer.mount(place, app)
        app = outer
    assert status(app, f"{place}{path}") == 200


@pytest.mark.parametrize("path", ["/docs", "/api/docs"])
def test_self_hosted_documentation_behind_a_proxy_is_served(path: str) -> None:
    """A root path, stripped by the proxy or not, does not hide the documentation."""
    client = TestClient(self_hosted(guarded(docs_url=None)), root_path="/api")
    assert client.get(path).status_code == 200


def test_self_hosted_documentation_is_not_counted() -> None:
    """Reading the documentation holds up no drain."""
    guard = closed()
    counted = []

    def look() -> None:
        counted.append(in_flight(guard))

    app = FastAPI(docs_url=None, dependencies=[Depends(guard), Depends(look)])
    assert status(self_hosted(app), "/docs") == 200
    assert counted == [0]


def test_self_hosted_documentation_at_its_own_place_is_served() -> None:
    """Where the application names a place, its route is documentation there."""
    app = guarded(docs_url="/help")
    # FastAPI's own route is taken away; the application's setting stays.
    app.router.routes[:] = [
        route for route in app.routes if getattr(route, "path", "") != "/help"
    ]
    app.add_api_route("/help", Ran().endpoint, include_in_schema=False)
    app.add_api_route("/docs", Ran().endpoint, include_in_schema=False)
    assert status(app, "/help") == 200
    assert status(app, "/docs") == 503


def test_self_hosted_documentation_in_an_included_router_is_served() -> None:
    """The template counts with its prefixes, wherever the route was written."""
    app, router = guarded(docs_url=None), APIRouter(include_in_schema=False)
    router.add_api_route("/docs", Ran().endpoint)
    app.include_router(router)
    app.include_router(router, prefix="/more")
    outer, inner = APIRouter(prefix="/docs"), APIRouter(include_in_schema=False)
    inner.add_api_route("/oauth2-redirect", Ran().endpoint)
    outer.include_router(inner)
    app.include_router(outer)
    assert status(app, "/docs") == LISTED
    assert status(app, "/docs/oauth2-redirect") == LISTED
    assert status(app, "/more/docs") == 503


def in_schema(app: FastAPI) -> None:
    app.add_api_route("/docs", Ran().endpoint)


def writing(app: FastAPI) -> None:
    app.add_api_route(
        "/docs", Ran().endpoint, methods=["GET", "POST"], include_in_schema=False
    )


def catch_all(app: FastAPI) -> None:
    app.add_api_route("/{rest:path}", Ran().endpoint, include_in_schema=False)


def below(app: FastAPI) -> None:
    app.add_api_route("/docs{rest:path}", Ran().endpoint, include_in_schema=False)


def in_router_with_prefix(app: FastAPI) -> None:
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/docs", Ran().endpoint)
    app.include_router(router, prefix="/admin")


@pytest.mark.parametrize(
    ("add", "path"),
    [
        (in_schema, "/docs"),
        (writing, "/docs"),
        (catch_all, "/docs"),
        (catch_all, "/docs/"),
        (catch_all, "/docs/x"),
        (catch_all, "/openapi.json"),
        (below, "/docs"),
        (below, "/docs/secret"),
        (in_router_with_prefix, "/admin/docs"),
    ],
)
def test_business_at_documentation_paths_is_refused(
    add: Callable[[FastAPI], None], path: str
) -> None:
    """A route in the schema, a catch-all or one that writes is no documentation."""
    app = guarded(docs_url=None, redoc_url=None, openapi_url=None)
    add(app)
    assert status(app, path) == 503


def test_documentation_of_a_mounted_router_is_refused() -> None:
    """A router that is mounted elsewhere has no documentation of the application."""
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(closed())])
    router.add_api_route("/docs", Ran().endpoint, include_in_schema=False)
    app.mount("/internal", router)
    assert status(app, "/internal/docs") == 503


def test_websocket_at_a_documentation_path_is_refused() -> None:
    """Documentation is read over HTTP; a WebSocket at its path is business."""
    app = guarded(docs_url=None)
    app.add_api_websocket_route("/docs", Ran().socket)
    with pytest.raises(WebSocketDenialResponse):
        TestClient(app).websocket_connect("/docs").__enter__()


def test_documentation_of_one_application_is_business_in_another() -> None:
    """Two applications with one route and one guard decide for themselves."""
    one = FastAPI(docs_url=None, dependencies=[Depends(closed())])
    one.add_api_route("/docs", Ran().endpoint, include_in_schema=False)
    other = FastAPI(docs_url="/help", routes=list(one.router.routes))
    for _ in range(2):
        assert status(one, "/docs") == 200
        assert status(other, "/docs") == 503
