"""Where newcomers stumbled, by number: each gap has a test that keeps it closed.

The numbers are those of the list that was made when the package was tried as a newcomer
would, and with real packages.
"""

import ast
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from fastapi_maintenance import MaintenanceGuard, MemoryStore
from fastapi_maintenance.cli.app import app as command_line

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Gap(NamedTuple):
    """One thing that went wrong, and what keeps it from coming back."""

    number: str
    promise: str
    kept_by: tuple[str, ...]


NEWCOMER = [
    Gap(
        "1",
        "Without a Chromium, all other tests run and the browser's are skipped.",
        (
            "test_gaps.test_browser_tests_are_a_session_that_can_be_skipped",
            "test_docs.test_readme_runs_all_tests_as_ci_does",
        ),
    ),
    Gap(
        "2",
        "The first wait on a new Redis works, and one that cannot ends at once.",
        (
            "stores.test_redis.test_the_first_drain_on_a_new_redis_needs_no_number",
            "chaos.test_redis_faults.test_first_drain_on_a_new_server",
            "cli.test_waiting.test_a_wait_that_cannot_end_well_ends_at_once",
            "cli.test_run.test_what_cannot_end_well_is_refused_before_anything_changes",
        ),
    ),
    Gap(
        "3",
        "Commands and workers need nothing that macOS lacks.",
        (
            "cli.test_program.test_commands_need_nothing_that_other_systems_lack",
            "test_portability.test_worker_in_a_directory_is_counted_and_drains",
            "test_portability.test_commands_work",
            "test_portability.test_work_is_run_under_maintenance",
        ),
    ),
    Gap(
        "4",
        "A guard and the command line need nothing that Windows lacks.",
        (
            "test_portability.test_package_is_imported_and_touches_nothing",
            "cli.test_program.test_on_windows_a_console_reaches_the_command_itself",
        ),
    ),
    Gap(
        "5",
        "The tutorial ends with an open service, and a missing directory is made.",
        (
            "test_docs.test_tutorial_works_word_for_word",
            "cli.test_switching.test_a_store_in_a_directory_that_is_missing_is_made",
            "stores.test_file.test_publish_makes_what_a_state_needs",
            "stores.test_file.test_worker_that_could_not_join_keeps_trying",
        ),
    ),
    Gap(
        "6",
        "While the service is stopped, `run` says at once to use `--workers 0`.",
        (
            "cli.test_run.test_what_cannot_end_well_is_refused_before_anything_changes",
            "cli.test_run.test_a_service_that_is_stopped_needs_no_wait",
            "test_gaps.test_workers_0_is_documented",
        ),
    ),
    Gap(
        "7",
        "Without a terminal, lines and errors name the request that is waited for.",
        (
            "cli.test_waiting.test_plain_lines_are_written_where_nothing_can_be_redrawn",
            "cli.test_waiting.test_a_request_that_does_not_end_is_busy",
        ),
    ),
    Gap(
        "8",
        "`status` tells drained workers from others, in JSON as well.",
        (
            "test_fence.test_status_says_what_a_worker_does",
            "cli.test_waiting.test_a_wait_ends_when_nothing_is_running",
        ),
    ),
    Gap(
        "9",
        "Options that cannot work are not offered, and what is replaced is said.",
        (
            "test_gaps.test_help_offers_no_option_that_is_always_refused",
            "cli.test_run.test_what_cannot_be_run_under_is_refused",
            "cli.test_switching.test_wrong_options_change_nothing",
            "cli.test_switching.test_on_says_what_is_replaced",
        ),
    ),
    Gap(
        "10",
        "A store that is away is one line, at a start and within seconds of a command.",
        (
            "guard.test_lifespan.test_unreachable_store_is_one_line_at_the_start",
            "cli.test_switching.test_redis_that_is_not_there_is_unreachable",
            "cli.test_switching.test_a_store_that_does_not_answer_is_given_up",
        ),
    ),
    Gap(
        "11",
        "A forgotten lifespan is said, in the log and by the commands.",
        (
            "guard.test_lifespan.test_joining_late_is_said_once",
            "cli.test_status.test_a_service_that_could_not_join_is_told_apart",
        ),
    ),
    Gap(
        "12",
        "The page about testing runs, WebSockets included; the demonstration adds up.",
        (
            "test_docs.test_blocks_run",
            "test_gaps.test_page_about_testing_has_a_websocket",
            "test_demo.test_demo_tells_the_whole_story",
        ),
    ),
]
REAL_PACKAGES = [
    Gap(
        "1",
        "What is mounted answers 503 behind the middleware, whatever handlers need.",
        (
            "test_real_packages.test_on_refuses",
            "test_real_packages.test_sockets_below_an_admin_are_refused",
            "asgi.test_answers.test_a_handler_that_fails_does_not_cost_the_client_a_503",
        ),
    ),
    Gap(
        "2",
        "Starlette and FastAPI applications can be marked exempt.",
        (
            "guard.test_marker.test_marked_application_is_open_wherever_it_is_mounted",
            "test_real_packages.test_an_admin_that_is_all_there_is",
            "test_inventory.test_marked_applications_are_listed_with_what_is_theirs",
        ),
    ),
    Gap(
        "3",
        "Recipes for Sentry, OpenTelemetry and metrics are tried with the packages.",
        (
            "test_real_packages.test_sentry",
            "test_real_packages.test_opentelemetry",
            "test_real_packages.test_metrics_count_refusals",
            "test_recipes.test_every_recipe_is_tried",
        ),
    ),
    Gap(
        "4",
        "A schema has the refusal once, on exempt routes too, as FastAPI merges it.",
        (
            "test_refusal.test_schema_has_the_refusal_once",
            "test_refusal.test_exempt_operations_document_it_too",
        ),
    ),
    Gap(
        "5",
        "An empty variable is one that is not set.",
        (
            "stores.test_env.test_known_words_set_it",
            "test_gaps.test_empty_variable_of_a_store_is_unset",
        ),
    ),
    Gap(
        "6",
        "A handler that drops the headers does not cost the client what it needs.",
        ("asgi.test_answers.test_headers_that_a_handler_drops_are_put_back",),
    ),
    Gap(
        "7",
        "A health check that is refused is named, however it calls itself.",
        (
            "test_gaps.test_prober_that_is_refused_is_named",
            "guard.test_probers.test_refused_health_check_is_warned_of_once",
        ),
    ),
    Gap(
        "8",
        "What uvicorn logs, and how long urllib3 sleeps, is documented and tried.",
        (
            "test_recipes.test_uvicorn_s_line_about_handshakes",
            "test_recipes.test_urllib3_sleeps",
        ),
    ),
    Gap(
        "9",
        "Every public name of fastapi-maintenance 0.0.5 has an answer.",
        ("test_gaps.test_every_name_of_the_other_package_has_an_answer",),
    ),
]


def test_no_number_is_left_out() -> None:
    """Both lists are whole."""
    assert [gap.number for gap in NEWCOMER] == [str(n) for n in range(1, 13)]
    assert [gap.number for gap in REAL_PACKAGES] == [str(n) for n in range(1, 10)]


@pytest.mark.parametrize(
    "gap",
    [
        *(pytest.param(gap, id=f"newcomer-{gap.number}") for gap in NEWCOMER),
        *(pytest.param(gap, id=f"package-{gap.number}") for gap in REAL_PACKAGES),
    ],
)
def test_each_gap_is_kept_by_tests_that_are_there(gap: Gap) -> None:
    """A number points to tests by their dotted names."""
    for dotted in gap.kept_by:
        module, _, name = dotted.rpartition(".")
        path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
        found = {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in found, f"{dotted}: {gap.promise}"


def test_browser_tests_are_a_session_that_can_be_skipped() -> None:
    """The coverage gate needs no browser, and each try to fetch one has an end."""
    sessions = {
        node.name: ast.unparse(node)
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert "not browser" in sessions["tests"]
    assert "session.skip(" in sessions["browser"]
    assert "timeout=" in sessions["find_browser"]
    assert "coverage" not in sessions["browser"]
    assert "Chromium" in (ROOT / "README.md").read_text()


def test_workers_0_is_documented() -> None:
    """Those who stop the service first find the option."""
    assert "--workers 0" in (DOCS / "cli.md").read_text()
    assert "--workers 0" in (DOCS / "how-to/migrations.md").read_text()


def test_help_offers_no_option_that_is_always_refused() -> None:
    """`run` opens by nothing but its command, so that a clock has no option there."""
    words = {
        command: CliRunner().invoke(command_line, [command, "--help"]).stdout
        for command in ("on", "run")
    }
    for option in ("--at", "--auto-off"):
        assert re.search(rf"{option}\b", words["on"])
        assert not re.search(rf"{option}\b", words["run"])


def test_page_about_testing_has_a_websocket() -> None:
    """How a refused handshake is tested is there to be copied."""
    page = (DOCS / "how-to/testing.md").read_text()
    assert "websocket_connect" in page
    assert "WebSocketDenialResponse" in page


def test_empty_variable_of_a_store_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compose writes `${X:-}` as an empty variable: the default store is used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STORE", "")
    guard = MaintenanceGuard()
    assert repr(guard).endswith(f"of {tmp_path / '.fastapi-maintenance'}>")


@pytest.mark.parametrize(
    "agent",
    [
        "kube-probe/1.30",
        "Envoy/HC",
        "Consul Health Check",
        "Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/1vsZADi)",
        "Blackbox Exporter/0.25.0",
        "Prometheus/2.53.0",
    ],
)
def test_prober_that_is_refused_is_named(
    agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of the common health checkers is known by what it sends."""
    app = FastAPI(dependencies=[Depends(MaintenanceGuard(MemoryStore(enabled=True)))])

    @app.get("/healthz")
    async def healthz() -> None: ...

    TestClient(app).get("/healthz", headers={"User-Agent": agent})
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert agent in said


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
    assert "`500` to every request once a router is included" in text
    cells = re.findall(r"^\| (.+?) \| .+ \|$", text, re.MULTILINE)
    left = "".join(cells)
    assert [name for name in OTHER_NAMES if name not in left] == []


def test_systems_that_are_named_are_those_of_the_readme() -> None:
    """The index shows the systems that the README says it is made for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    systems = {
        line.rpartition(" :: ")[2]
        for line in project["classifiers"]
        if line.startswith("Operating System")
    }
    assert systems == {"Linux", "MacOS", "Windows"}
    readme = (ROOT / "README.md").read_text()
    assert "tested on Linux" in readme
    assert "made for macOS and Windows" in readme
