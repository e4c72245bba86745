"""What the documentation says is true: its code runs, its tables match the code."""

import contextlib
import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import anyio.to_thread
import pytest
import typer
from anyio.from_thread import start_blocking_portal
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
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
from fastapi_maintenance.cli.exits import ExitCode
from fastapi_maintenance.stores.redis import acl_line

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README, TUTORIAL = ROOT / "README.md", DOCS / "tutorial.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

# Their blocks need packages of others, which the nox session `packages` installs.
OTHERS = {DOCS / "how-to/observability.md", DOCS / "how-to/third-party-admins.md"}

FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
RUN = {"python", "console"}
LANGUAGES = {*RUN, "json", "yaml", "text"}

# Commands of a page that set up a machine, and are not run.
SETS_UP = (
    *("pip install ", "pip uninstall ", "python3 -m venv ", "export ", "uvicorn "),
    *("gunicorn ", "nox ", "docker ", "kubectl ", "systemctl "),
)

# The service of a test has one worker.
STAND_INS = {"--workers 8": "--workers 1"}


class Block(NamedTuple):
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block for a terminal."""
        lines = self.code.splitlines()
        assert all(line.startswith("$ ") for line in lines), f"no commands: {lines}"
        return [line.removeprefix("$ ") for line in lines]


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


def pages(*left_out: Path) -> list[Any]:  # what `parametrize` takes
    """Return the pages, each with its name."""
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.packages if page in OTHERS else (),
        )
        for page in PAGES
        if page not in left_out
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty directory in which programs of this environment are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTAPI_MAINTENANCE_STORE", raising=False)
    monkeypatch.setenv("ADMIN_KEY", "s3cret-key")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def service(workplace: Path) -> Iterator[Path]:
    """Yield a directory with a service that has joined, a migration and a main.py."""
    (workplace / "migrate.py").write_text("print('migrated')\n")
    (workplace / "main.py").write_text(blocks(README, "python")[0].code)
    guards = [MaintenanceGuard(name=name) for name in ("default", "payments")]
    with start_blocking_portal() as portal, contextlib.ExitStack() as stack:
        for guard in guards:
            stack.enter_context(portal.wrap_async_context_manager(guard.lifespan()))
        yield workplace


def execute(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block of Python, with the page's own lines in a traceback."""
    code = compile("\n" * block.line + block.code, str(block.page), "exec")
    known = set(namespace)
    exec(code, namespace)  # what this module is for
    for name in set(namespace) - known:
        if name.startswith("test_"):
            namespace[name]()


def run_command(words: str) -> None:
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


@pytest.mark.parametrize("page", pages())
def test_every_block_has_a_language_that_is_checked(page: Path) -> None:
    """No block of code escapes these tests."""
    opened = re.findall(r"^\s*```(.*)$", page.read_text(), re.MULTILINE)
    assert len(opened) == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", pages(TUTORIAL))
def test_blocks_run(page: Path, service: Path) -> None:
    """The Python and the commands of a page run in their order, as they stand."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, *RUN):
        if block.language == "console":
            for command in block.commands:
                if not command.startswith(SETS_UP):
                    run_command(command)
        elif block.title is None:
            execute(block, namespace)
        else:
            assert block.title.startswith("examples/")
            assert block.code in (ROOT / block.title).read_text()


CURL = """#!{python}
import sys, urllib.error, urllib.request
*words, url = sys.argv[1:]
headers = dict(words[n + 1].split(": ", 1) for n, w in enumerate(words) if w == "-H")
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers))
except urllib.error.HTTPError as error:
    answer = error
if "-i" in words:
    print(f"HTTP/1.1 {{answer.status}} {{answer.reason}}")
    print(answer.headers, end="")
print(answer.read().decode())
"""
"""Not every machine that runs these tests has curl."""


class Reader:
    """A person who types what the tutorial says, with a server in another terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[str] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        programs = folder / "programs"
        programs.mkdir()
        (programs / "curl").write_text(CURL.format(python=sys.executable))
        (programs / "curl").chmod(0o700)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}
        del self.environment["ADMIN_KEY"]

    def type(self, block: Block) -> str:
        """Type the commands of a block, and return what they print."""
        first, *_ = commands = block.commands
        if first.startswith("pip install "):
            return ""
        if first.startswith("uvicorn "):
            return self.start(first)
        script = "\n".join(["set -e", *commands]).replace(":8000/", f":{self.port}/")
        if first.startswith("export "):
            script += "\nprintenv ADMIN_KEY"
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{script}: {done.stdout}"
        if first.startswith("export "):
            self.environment["ADMIN_KEY"] = done.stdout.strip()
        return done.stdout

    def start(self, command: str) -> str:
        """Start the server, in place of the one that runs."""
        self.stop()
        server = subprocess.Popen(
            [*shlex.split(command), "--port", self.port],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.server = server
        workers = int(command.rpartition("--workers ")[2])
        while workers:
            workers -= "Application startup complete." in next(pipe(server))
        return ""

    def stop(self) -> None:
        """Type Ctrl-C, which reaches every process in the terminal."""
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGINT)
            self.server.communicate(timeout=30)
        self.server = None


def pipe(process: subprocess.Popen[str]) -> IO[str]:
    """Return what a process writes to."""
    assert process.stdout is not None
    return process.stdout


def comparable(text: str) -> list[str]:
    """Return lines without what is never twice the same: spans, and trailing space."""
    text = re.sub(r"[\d.]+ (s|min)\b", "N s", text)
    # The end comes nearer while one types.
    text = re.sub(
        r"retry-after: 1[12]\d\d$", "retry-after: N", text, flags=re.MULTILINE
    )
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.servers
@pytest.mark.timeout(240)
def test_tutorial_works_word_for_word(workplace: Path) -> None:
    """Typed from top to bottom, it prints what it shows, and ends with it open."""
    reader, printed = Reader(workplace), ""
    try:
        for block in blocks(TUTORIAL):
            if block.language == "console":
                printed = reader.type(block)
            elif block.language == "text":
                assert set(comparable(block.code)) <= set(comparable(printed)), printed
            elif str(block.title).startswith("examples/"):
                assert block.code in (ROOT / str(block.title)).read_text()
            else:
                assert block.language == "python"
                (workplace / str(block.title)).write_text(block.code)
        with urllib.request.urlopen(f"http://127.0.0.1:{reader.port}/items") as answer:
            assert json.load(answer) == ["coffee", "tea"]
    finally:
        reader.stop()


def test_states_are_states() -> None:
    """The JSON on the page about the state file is a state with those keys."""
    found = [block.code for block in blocks(DOCS / "state-file.md", "json")]
    states = [MaintenanceState.from_json(code) for code in found]
    assert json.loads(states[0].to_json()) == json.loads(found[0])
    assert all(state.enabled and not state.model_extra for state in states)


@pytest.mark.usefixtures("service")
def test_commands_in_manifests_run() -> None:
    """The command of the Kubernetes Job is one that runs."""
    text = (DOCS / "how-to/containers.md").read_text()
    commands = re.findall(r"command: (\[\"fastapi-maintenance.*\])", text)
    assert commands
    for command in commands:
        run_command(shlex.join(json.loads(command)))


def test_redis_rights_are_the_least() -> None:
    """The recipe grants what the store's own error message asks for."""
    assert acl_line("shop") in (DOCS / "redis.md").read_text()


def modules() -> list[str]:
    """Return the names of all modules of the package."""
    found = pkgutil.walk_packages(fastapi_maintenance.__path__, "fastapi_maintenance.")
    return ["fastapi_maintenance", *(module.name for module in found)]


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings_run(name: str) -> None:
    """Examples in docstrings do what they show."""
    if name == "fastapi_maintenance.__main__":
        return  # Importing it is running it.
    module: ModuleType = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_readme_is_short_and_starts_as_the_documentation_does() -> None:
    """Those who read both see one application, in less than 120 lines."""
    assert len(README.read_text().splitlines()) < 120
    first, second = blocks(README, *RUN)[0], blocks(DOCS / "index.md", *RUN)[0]
    assert first.code == second.code


def test_readme_runs_all_tests_as_ci_does() -> None:
    """Command two is the one that CI and contributors run."""
    *_, command = (
        command
        for block in blocks(README, "console")
        for command in block.commands
        if command.endswith("nox")
    )
    assert command in (ROOT / ".ci/run").read_text()
    assert f"$ {command}\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_readme_installs_extras_that_exist() -> None:
    """Extras and the name of the distribution are those of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    text = "".join(page.read_text() for page in PAGES)
    named = {
        name
        for word in re.findall(r"(?:\.|-guard)\[([\w,]+)\]", text)
        for name in word.split(",")
    }
    assert named <= extras
    assert f"`{project['name']}`" in README.read_text()
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE)
    assert set(rows) == extras


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and mentions of examples name something that is there."""
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for example in re.findall(r"`(examples/[\w/.]+)", text):
        assert (ROOT / example).exists(), example


@pytest.mark.parametrize("page", pages(README))
def test_each_page_says_whom_it_is_for(page: Path) -> None:
    """The first sentence under the title lets everyone else leave."""
    title, _, first, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert first.startswith("For "), first


@pytest.mark.parametrize(
    "image", sorted(DOCS.glob("images/*.svg")), ids=lambda p: p.stem
)
def test_diagrams_need_nothing_else(image: Path) -> None:
    """A drawing has a light and a dark form, and loads nothing from anywhere."""
    text = image.read_text()
    assert "prefers-color-scheme:dark" in text.replace(" ", "")
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "<title>" in text
    shown = "".join(page.read_text() for page in PAGES)
    assert f"images/{image.name}" in shown


def test_reference_lists_every_public_name() -> None:
    """What can be imported by name is in the reference."""
    text = (DOCS / "reference.md").read_text()
    listed = set(re.findall(r"^::: fastapi_maintenance\.(\S+)$", text, re.MULTILINE))
    below = {
        *("exemptions.from_networks", "exemptions.with_header", "inventory.survey"),
        *("stores.redis.RedisStore", "stores.sql.SQLStore"),
        *("testing.check_store", "testing.force", "testing.frozen_clock"),
    }
    assert set(fastapi_maintenance.__all__) | below <= listed


def test_every_page_is_in_the_menu() -> None:
    """No page of the documentation is hidden, and the menu names no other."""
    menu = re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def sections() -> dict[str, str]:
    """Return the sections of the page about the command line."""
    text = (DOCS / "cli.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands() -> dict[str, Any]:
    """Return the commands as Typer has them."""
    group: Any = typer.main.get_command(command_line)
    return dict(group.commands)


OTHER_NAMES = [
    "MaintenanceModeMiddleware",
    *("backend=", "enable_maintenance=", "exempt_handler=", "response_handler="),
    *("force_maintenance_mode_off", "force_maintenance_mode_on", "maintenance_mode_on"),
    *("configure_backend", "get_maintenance_mode", "set_maintenance_mode"),
    *("BaseStateBackend", "EnvVarBackend", "LocalFileBackend"),
    *("FASTAPI_MAINTENANCE_MODE", "fastapi-maintenance status", "Retry-After: 3600"),
    *("--backend", "--file-path", "--var-name"),
]


def test_every_name_of_the_other_package_has_an_answer() -> None:
    """The left column has all that fastapi-maintenance 0.0.5 gave to its users."""
    text = (DOCS / "coming-from.md").read_text()
    cells = re.findall(r"^\| (.+?) \| .+ \|$", text, re.MULTILINE)
    left = "".join(cells)
    assert [name for name in OTHER_NAMES if name not in left] == []


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
    section = sections()["Exit codes"]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert codes == set(ExitCode)
    drained = (DOCS / "what-drained-means.md").read_text()
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \|", drained, re.MULTILINE)
    outcomes: Any = {name.replace(" ", "_"): int(code) for name, code in rows}
    assert outcomes == {outcome: ExitCode.of(outcome) for outcome in outcomes}
    assert len(outcomes) == 6


def coverage_table() -> list[tuple[str, str, str]]:
    """Return the rows of the coverage table: what, and the answers of both columns."""
    text = (DOCS / "coverage.md").read_text()
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
    guard = MaintenanceGuard(MemoryStore(enabled=closed))
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
