"""Who may use the control router, and from where."""

import pytest

from fastapi_maintenance import MaintenanceGuard
from tests import calls

from .support import JSON, SECRET, build, serving

ON = b'{"enabled": true}'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/maintenance"),
        ("PUT", "/maintenance"),
        ("GET", "/maintenance/console"),
        ("POST", "/maintenance/bypass"),
    ],
)
def test_everything_is_behind_the_dependency(method: str, path: str) -> None:
    """No endpoint answers without the user's own authentication."""
    with serving() as client:
        answer = client.request(
            method, path, headers={**JSON, "X-Operator": "eve"}, content=ON
        )
        assert answer.status_code == 401
        assert client.get("/maintenance").json()["state"]["epoch"] == 0


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/json",
        "application/json-seq",
        "application/vnd.api+json",
        "",
        None,
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/maintenance"), ("POST", "/maintenance/bypass")]
)
def test_takes_json_only(method: str, path: str, kind: str | None) -> None:
    """What a form of another site could send is refused, the type's absence too."""
    headers = SECRET if kind is None else {**SECRET, "Content-Type": kind}
    with serving() as client:
        assert (
            client.request(method, path, content=ON, headers=headers).status_code == 415
        )
        assert client.get("/maintenance").json()["state"]["epoch"] == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, 200),
        # A proxy that renames the host leaves what the browser says of itself.
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://shop.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "http://TESTSERVER"}, 200),
        ({"Origin": "http://testserver.evil.example"}, 403),
        ({"Origin": "http://testserver:8080"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://[::1"}, 403),
    ],
)
def test_refuses_other_origins(headers: dict[str, str], status: int) -> None:
    """What a browser sends for a page of another origin is refused."""
    with serving() as client:
        answer = client.put("/maintenance", content=ON, headers={**JSON, **headers})
        assert answer.status_code == status
        assert client.get("/maintenance").json()["state"]["enabled"] is (status == 200)


def test_reading_is_not_asked_for_its_origin() -> None:
    """What changes nothing may be opened from a bookmark or a link."""
    with serving() as client:
        answer = client.get(
            "/maintenance/console", headers={"Sec-Fetch-Site": "cross-site"}
        )
    assert answer.status_code == 200


def test_get_changes_nothing() -> None:
    """No GET publishes: the state and its epoch stay."""
    with serving() as client:
        on = client.put("/maintenance", json={"enabled": True}).json()
        for path in ("", "/console"):
            assert client.get(f"/maintenance{path}").status_code == 200
        assert client.get("/maintenance").json()["state"] == on["state"]


@pytest.mark.parametrize(
    ("client", "actor"),
    [
        (("192.0.2.1", 5), "control@192.0.2.1"),
        (("::1", 5), "control@::1"),
        (None, "control"),
        (("\r\n\x00\u2028", 5), "control"),
        (("x" * 5_000, 5), f"control@{'x' * 64}"),
    ],
)
@pytest.mark.anyio
async def test_names_who_asked_by_address(
    client: tuple[str, int] | None, actor: str
) -> None:
    """The address is the actor; one that a proxy made up breaks nothing."""
    guard = MaintenanceGuard("memory:")
    answer = await calls.call(
        build(guard),
        "/maintenance",
        method="PUT",
        headers=[
            (b"content-type", b"application/json"),
            (b"x-operator", b"ada"),
            (b"host", b"shop.example"),
        ],
        body=({"type": "http.request", "body": ON},),
        client=client,
    )
    assert answer.status == 200
    assert guard.state.actor == actor


def test_console_is_self_contained() -> None:
    """The page loads nothing, runs its own code only, and cannot be framed."""
    with serving() as client:
        answer = client.get("/maintenance/console")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    for foreign in ("http://", "https://", "@import", "url(", "innerHTML", " style="):
        assert foreign not in text
