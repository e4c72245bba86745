"""What went wrong for newcomers and with real packages, and the test that keeps it.

The numbers are those of the two lists that were made when the package was tried.
"""

import ast
from pathlib import Path

import pytest

NEWCOMERS = {
    1: ("tests without a Chromium", "test_docs.test_readme_runs_all_tests_as_ci_does"),
    2: (
        "the first wait on a new Redis",
        "stores.test_redis.test_the_first_drain_on_a_new_redis_needs_no_number",
    ),
    3: ("commands on macOS", "test_portability.test_commands_work"),
    4: (
        "a guard on Windows",
        "test_portability.test_package_is_imported_and_touches_nothing",
    ),
    5: ("the tutorial's end", "test_docs.test_tutorial_works_word_for_word"),
    6: (
        "`run` while the service is stopped",
        "cli.test_run.test_a_service_that_is_stopped_needs_no_wait",
    ),
    7: (
        "which request is waited for",
        "cli.test_waiting.test_a_request_that_does_not_end_is_busy",
    ),
    8: (
        "`status` on drained workers",
        "test_fence.test_status_says_what_a_worker_does",
    ),
    9: (
        "options that cannot work",
        "cli.test_run.test_what_cannot_be_run_under_is_refused",
    ),
    10: (
        "a store that is away at the start",
        "guard.test_lifespan.test_unreachable_store_is_one_line_at_the_start",
    ),
    11: (
        "a forgotten lifespan",
        "guard.test_lifespan.test_joining_late_is_said_once",
    ),
    12: ("the page about testing", "test_docs.test_blocks_run"),
}
REAL_PACKAGES = {
    1: ("what is mounted", "test_real_packages.test_on_refuses"),
    2: (
        "applications that are marked exempt",
        "guard.test_marker.test_marked_application_is_open_wherever_it_is_mounted",
    ),
    3: ("recipes", "test_recipes.test_every_recipe_is_tried"),
    4: (
        "the refusal in the schema",
        "test_refusal.test_schema_has_the_refusal_once",
    ),
    5: (
        "an empty variable",
        "stores.test_contract.test_environment_names_the_store",
    ),
    6: (
        "handlers that drop headers",
        "asgi.test_answers.test_headers_that_a_handler_drops_are_put_back",
    ),
    7: (
        "health checks that are refused",
        "guard.test_probers.test_refused_health_check_is_warned_of_once",
    ),
    8: ("how long urllib3 sleeps", "test_recipes.test_urllib3_sleeps"),
    9: (
        "names of fastapi-maintenance 0.0.5",
        "test_docs.test_every_name_of_the_other_package_has_an_answer",
    ),
}


@pytest.mark.parametrize(
    ("seen", "kept_by"), [*NEWCOMERS.values(), *REAL_PACKAGES.values()]
)
def test_gap_is_kept_by_a_test_that_is_there(seen: str, kept_by: str) -> None:
    """Each number names a test that exists."""
    module, _, name = kept_by.rpartition(".")
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = ast.walk(ast.parse(path.read_text()))
    assert name in {node.name for node in nodes if isinstance(node, functions)}, seen
