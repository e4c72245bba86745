"""What the documentation says is true: its code runs, its tables match the code."""

import contextlib
import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import anyio.to_thread
import pytest
import typer
from anyio.from_thread import start_blocking_portal
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.testclient import WebSocketDenialResponse

import fastapi_maintenance
from fastapi_maintenance import (
    MaintenanceGuard,
    MaintenanceModeMiddleware,
    MaintenanceState,
    MemoryStore,
    maintenance_exempt,
)
from fastapi_maintenance.cli.app import app as command_line
from fastapi_maintenance.stores._redis_errors import acl_line

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "console", "json", "yaml", "text"}

# Commands of a page that set up a machine: the README's own are what CI runs.
SETS_UP = ("pip install ", "python3 -m venv ", "uvicorn ", "nox ", "export ")

# The service of a test has one worker.
STAND_INS = {"--workers 8": "--workers 1"}


class Block(NamedTuple):
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            found["title"],
            found["code"],
        )
        for found in FENCE.finditer(text)
        if found["language"] in languages or not languages
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a directory with a service that has joined, a migration and a main.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    monkeypatch.setenv("ADMIN_KEY", "s3cret-key")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "migrate.py").write_text("print('migrated')\n")
    (tmp_path / "main.py").write_text(blocks(ROOT / "README.md", "python")[0].code)
    guards = [MaintenanceGuard(name=name) for name in ("default", "payments")]
    with start_blocking_portal() as portal, contextlib.ExitStack() as stack:
        for guard in guards:
            stack.enter_context(portal.wrap_async_context_manager(guard.lifespan()))
        yield tmp_path


def execute(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block of Python, with the page's own lines in a traceback."""
    code = compile("\n" * block.line + block.code, str(block.page), "exec")
    known = set(namespace)
    exec(code, namespace)  # what this module is for
    for name in set(namespace) - known:
        if name.startswith("test_"):
            namespace[name]()


def ordered(words: str) -> None:
    """Run one command of a page, which has to succeed."""
    for written, stand_in in STAND_INS.items():
        words = words.replace(written, stand_in)
    program, *rest = shlex.split(words)
    assert program == "fastapi-maintenance", f"who runs {words!r}?"
    done = subprocess.run(
        [sys.executable, "-m", "fastapi_maintenance", *rest],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_has_a_language_that_is_checked(page: Path) -> None:
    """No block of code escapes these tests."""
    opened = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    assert len(opened) == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_run(page: Path, workplace: Path) -> None:
    """The Python and the commands of a page run in their order, as they stand."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python", "console"):
        if block.language == "console":
            for line in block.code.splitlines():
                assert line.startswith("$ "), f"output of a command: {line!r}"
                if not line.removeprefix("$ ").startswith(SETS_UP):
                    ordered(line.removeprefix("$ "))
        elif block.title is None:
            execute(block, namespace)
        elif block.title.startswith("examples/"):
            assert block.code in (ROOT / block.title).read_text()
        else:
            (workplace / block.title).write_text(block.code)
            execute(block, {"__name__": block.title})


def test_states_are_states() -> None:
    """Every JSON that the documentation shows is a state with those keys."""
    found = [block.code for page in PAGES for block in blocks(page, "json")]
    states = [MaintenanceState.from_json(code) for code in found]
    assert len(states) == 2
    assert json.loads(states[0].to_json()) == json.loads(found[0])
    assert all(not state.extra for state in states)


@pytest.mark.usefixtures("workplace")
def test_commands_in_manifests_run() -> None:
    """The command of the Kubernetes Job is one that runs."""
    text = (ROOT / "docs/how-to/containers.md").read_text()
    commands = re.findall(r"command: (\[.*\])", text)
    assert len(commands) == 1
    ordered(shlex.join(json.loads(commands[0])))


def test_redis_rights_are_the_least() -> None:
    """The recipe grants what the store's own error message asks for."""
    assert acl_line("shop") in (ROOT / "docs/redis.md").read_text()


def modules() -> list[str]:
    """Return the names of all modules of the package."""
    found = pkgutil.walk_packages(fastapi_maintenance.__path__, "fastapi_maintenance.")
    return ["fastapi_maintenance", *(module.name for module in found)]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings_run(name: str) -> None:
    """Examples in docstrings do what they show."""
    if name == "fastapi_maintenance.__main__":
        return  # Importing it is running it.
    module: ModuleType = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_readme_is_short_and_starts_as_the_documentation_does() -> None:
    """Who reads both sees one thing, in less than 120 lines."""
    readme, index = PAGES[0].read_text(), (ROOT / "docs/index.md").read_text()
    assert len(readme.splitlines()) < 120
    start = readme[: readme.index("`--wait` ends")]
    assert index.startswith(start.rstrip("\n"))


def test_readme_runs_all_tests_as_ci_does() -> None:
    """Command two is the one that CI and contributors run."""
    *_, command = (
        line.removeprefix("$ ")
        for block in blocks(PAGES[0], "console")
        for line in block.code.splitlines()
        if line.endswith("nox")
    )
    assert command in (ROOT / ".ci/run").read_text()
    assert f"$ {command}\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_readme_installs_extras_that_exist() -> None:
    """Extras and the name of the distribution are those of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    text = "".join(page.read_text() for page in PAGES)
    named = {
        name for word in re.findall(r"\.\[([\w,]+)\]", text) for name in word.split(",")
    }
    assert named <= extras
    assert f"`{project['name']}`" in PAGES[0].read_text()
    rows = re.findall(r"^\| `(\w+)` \|", PAGES[0].read_text(), re.MULTILINE)
    assert set(rows) == extras


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and mentions of examples name something that is there."""
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for example in re.findall(r"`(examples/[\w/.]+)", text):
        assert (ROOT / example).exists(), example


def test_reference_lists_every_public_name() -> None:
    """What can be imported from the top is in the reference."""
    text = (ROOT / "docs/reference.md").read_text()
    listed = set(re.findall(r"^::: fastapi_maintenance\.(\w+)$", text, re.MULTILINE))
    assert set(fastapi_maintenance.__all__) <= listed


def test_every_page_is_in_the_menu() -> None:
    """No page of the documentation is hidden."""
    menu = (ROOT / "zensical.toml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    assert [page for page in pages if f'"{page}"' not in menu] == []


def sections() -> dict[str, str]:
    """Return the sections of the page about the command line."""
    text = (ROOT / "docs/cli.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands() -> dict[str, Any]:
    """Return the commands as Typer has them."""
    group: Any = typer.main.get_command(command_line)
    return dict(group.commands)


def test_every_command_is_documented() -> None:
    """The page has a section for each command, and for no other."""
    assert set(sections()) - {"Exit codes", "For scripts"} == set(commands())


@pytest.mark.parametrize("name", commands())
def test_every_option_is_documented(name: str) -> None:
    """The page names each option of a command, and none that it has not."""
    everywhere = {"--store", "--name", "--json", "--help"}
    there = {
        option
        for parameter in commands()[name].params
        if not getattr(parameter, "hidden", False)
        for option in parameter.opts
        if option.startswith("--")
    }
    table = "".join(re.findall(r"^\| (`.+?) \|", sections()[name], re.MULTILINE))
    assert set(re.findall(r"--[a-z-]+", table)) == there - everywhere


def test_exit_codes_are_those_of_the_command() -> None:
    """Both tables of exit codes have the codes that the command ends with."""
    from fastapi_maintenance.cli.target import EXIT_CODES

    section = sections()["Exit codes"]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert codes == {2, 3, 14} | set(EXIT_CODES.values())
    drained = (ROOT / "docs/what-drained-means.md").read_text()
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \|", drained, re.MULTILINE)
    assert {name.replace(" ", "_"): int(code) for name, code in rows} == EXIT_CODES


def coverage_table() -> list[tuple[str, str, str]]:
    """Return the rows of the coverage table: what, and the answers of both columns."""
    text = (ROOT / "docs/coverage.md").read_text()
    row = r"^\| ([^|]+?) \| (`\d+`[^|]*?) \| (`\d+`[^|]*?) \|"
    return re.findall(row, text, re.MULTILINE)


class Order(BaseModel):
    """A declared body."""

    text: str


class OwnRoute(APIRoute):
    """A route that answers without running dependencies."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        await PlainTextResponse("own")(scope, receive, send)


def guarded(folder: Path, *, middleware: bool, closed: bool = True) -> FastAPI:
    """Return an application with everything that the table names."""
    guard = MaintenanceGuard(MemoryStore(active=closed))
    app = FastAPI(dependencies=[Depends(guard)])
    if middleware:
        app.add_middleware(MaintenanceModeMiddleware, guard=guard)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])
    router, mounted = APIRouter(), FastAPI()

    @app.get("/own")
    @app.get("/slash/")
    @router.get("/route")
    @mounted.get("/route")
    async def served() -> str:
        return "served"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()

    @app.post("/declared")
    async def declared(order: Order) -> str:
        return order.text

    @app.post("/undeclared")
    async def undeclared(request: Request) -> int:
        return len(await request.body())

    @app.get("/exempt")
    @maintenance_exempt
    async def exempt() -> str:
        return "open"

    (folder / "index.html").write_text("<p>frontend")
    router.mount("/files", StaticFiles(directory=folder))
    app.include_router(router, prefix="/included")
    app.mount("/mounted", mounted)
    open_mount = FastAPI()
    open_mount.get("/route")(served)
    own = OwnRoute("/own-class", served, dependencies=[Depends(guard)])
    app.mount("/open-mount", maintenance_exempt(open_mount))
    app.router.routes.append(own)
    app.mount("/static", StaticFiles(directory=folder))
    app.add_route("/plain", lambda _: PlainTextResponse("plain"))
    app.router.add_websocket_route("/plain-socket", socket)
    app.frontend("/front", directory=folder)
    return app


def handshake(client: TestClient, path: str) -> int:
    """Return the status of a WebSocket handshake."""
    try:
        with client.websocket_connect(path):
            return 101
    except WebSocketDenialResponse as denied:
        return denied.status_code


async def upload(app: FastAPI, path: str) -> str:
    """Send a body of 64 kB in pieces; return what is answered, and when."""
    sent: list[MutableMapping[str, Any]] = []
    pieces = [b'{"text": "', *[b"x" * 8_000] * 8, b'"}']
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        more = taken < len(pieces)
        return {"type": "http.request", "body": pieces[taken - 1], "more_body": more}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"64012")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("testserver", 80),
        "client": ("testclient", 50000),
    }
    await app(scope, receive, send)
    when = {0: "before", len(pieces): "after"}[taken]
    return f"`{sent[0]['status']}`, {when} the body"


def answers(app: FastAPI) -> dict[str, str]:
    """Return what the application answers to each kind of request of the table."""
    client = TestClient(app, follow_redirects=False)
    preflight = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "GET",
    }
    statuses = {
        "a route of the application": client.get("/own").status_code,
        "a route of an included router": client.get("/included/route").status_code,
        "a WebSocket": handshake(client, "/socket"),
        "a file of `app.frontend()`": client.get("/front/index.html").status_code,
        "a missing file of `app.frontend()`": client.get("/front/no.js").status_code,
        "a mounted FastAPI application": client.get("/mounted/route").status_code,
        "mounted static files": client.get("/static/index.html").status_code,
        "a mount inside an included router": client.get(
            "/included/files/index.html"
        ).status_code,
        "a plain Starlette route": client.get("/plain").status_code,
        "a plain Starlette WebSocket": handshake(client, "/plain-socket"),
        "a route that declares a body, with a body that is not JSON": client.post(
            "/declared", content="{", headers={"Content-Type": "application/json"}
        ).status_code,
        "a route whose class answers without running dependencies": client.get(
            "/own-class"
        ).status_code,
        "a route that is marked exempt": client.get("/exempt").status_code,
        "a mounted application that is marked exempt": client.get(
            "/open-mount/route"
        ).status_code,
        "the documentation": client.get("/docs").status_code,
        "an unknown path": client.get("/nothing").status_code,
        "a method that the route does not have": client.delete("/own").status_code,
        "HEAD of a GET route": client.head("/own").status_code,
        "a path without its slash": client.get("/slash").status_code,
        "a CORS preflight": client.options("/own", headers=preflight).status_code,
    }
    return {what: f"`{status}`" for what, status in statuses.items()}


@pytest.mark.parametrize("middleware", [False, True], ids=["dependency", "middleware"])
async def test_coverage_table_is_true(*, middleware: bool, tmp_path: Path) -> None:
    """Each row of the table is what a real application answers under maintenance."""
    app = guarded(tmp_path, middleware=middleware)
    written = {what: cells[middleware] for what, *cells in coverage_table()}
    measured = await anyio.to_thread.run_sync(answers, app)
    kind = "a route that declares {} body, with a large one"
    measured[kind.format("a")] = await upload(app, "/declared")
    measured[kind.format("no")] = await upload(app, "/undeclared")
    assert written == measured


async def test_rows_of_the_coverage_table_are_served_while_open(tmp_path: Path) -> None:
    """What the table calls refused is refused by maintenance and by nothing else."""
    app = guarded(tmp_path, middleware=True, closed=False)
    measured = await anyio.to_thread.run_sync(answers, app)
    assert await upload(app, "/declared") == "`200`, after the body"
    assert await upload(app, "/undeclared") == "`200`, after the body"
    refused = {what for what, _, cell in coverage_table() if cell.startswith("`503`")}
    served = {what: measured[what] for what in refused & set(measured)}
    otherwise = {
        "a WebSocket": "`101`",
        "a plain Starlette WebSocket": "`101`",
        "a missing file of `app.frontend()`": "`404`",
        "a route that declares a body, with a body that is not JSON": "`422`",
    }
    assert served == dict.fromkeys(served, "`200`") | otherwise
