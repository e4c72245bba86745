"""What each command takes; what it does is in ``operate``, ``run`` and ``routes``."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ..orders import new_token
from . import operate
from . import options as given
from .errors import OneLineErrors
from .options import AsJson, Name, Store
from .output import Output
from .run import run_command
from .target import Target
from .times import parse_duration

app: typer.Typer = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _program(
    *,
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.")
    ] = False,
) -> None:
    """Take a FastAPI service out of service, know that it is out, bring it back."""
    if show_version:
        try:
            number = version("fastapi-maintenance-guard")
        except PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"fastapi-maintenance {number}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def _target(store: str | None, name: str, *, as_json: bool) -> Target:
    return Target(store, name, Output(as_json=as_json))


@app.command()
def on(
    *,
    message: given.Message = None,
    for_: given.For = None,
    until: given.Until = None,
    at: given.At = None,
    auto_off: given.AutoOff = False,
    read_only: given.ReadOnly = False,
    retry_after: given.RetryAfter = None,
    bypass: given.Bypass = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until nothing from before is running.")
    ] = False,
    timeout: given.Timeout = None,
    workers: given.Workers = None,
    close_after: given.CloseAfter = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Not drained: put back what was before.")
    ] = False,
    init: given.Init = False,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Switch maintenance on for every worker.

    With --wait, exit codes say why it was not drained: 10 requests in flight, 11 lost
    workers, 12 another operator, 13 too few workers, 15 the store cannot tell.
    """
    waiting = timeout, workers, close_after, rollback or None
    if not wait and any(word is not None for word in waiting):
        raise ValueError(
            "--timeout, --workers, --close-after and --rollback go with --wait; add it"
        )
    target = _target(store, name, as_json=as_json)
    token = new_token() if bypass else None
    order = given.an_order(
        message=message,
        for_=for_,
        until=until,
        at=at,
        auto_off=auto_off,
        read_only=read_only,
        retry_after=retry_after,
        token=token,
    )
    plan = given.a_plan(timeout, workers, close_after) if wait else None
    return operate.carry_out(
        target,
        lambda: operate.switch_on(
            target, order, init=init, token=token, plan=plan, rollback=rollback
        ),
    )


@app.command()
def off(
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Open although others hold it on.")
    ] = False,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Open again, unless others hold it on."""
    target = _target(store, name, as_json=as_json)
    return operate.carry_out(target, lambda: operate.switch_off(target, force=force))


@app.command()
def wait(
    *,
    timeout: given.Timeout = None,
    workers: given.Workers = None,
    close_after: given.CloseAfter = None,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Wait until nothing from before is running.

    It fences the state that is on; exit codes are those of `on --wait`.
    """
    target = _target(store, name, as_json=as_json)
    plan = given.a_plan(timeout, workers, close_after)
    return operate.carry_out(target, lambda: operate.wait_again(target, plan))


@app.command()
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it until interrupted.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 3 while maintenance is in force.")
    ] = False,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Show the state, its place and its workers."""
    if watch and check:
        raise ValueError("--watch goes on for ever, --check answers once; give one")
    target = _target(store, name, as_json=as_json)
    if watch:
        return operate.carry_out(target, lambda: operate.watch_status(target))
    return operate.carry_out(target, lambda: operate.show_status(target, check=check))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    *,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", show_default=False)
    ],
    message: given.Message = None,
    for_: given.For = None,
    until: given.Until = None,
    at: given.At = None,
    auto_off: given.AutoOff = False,
    read_only: given.ReadOnly = False,
    retry_after: given.RetryAfter = None,
    bypass: given.Bypass = False,
    wait: Annotated[bool, typer.Option("--wait", hidden=True)] = False,
    timeout: given.Timeout = None,
    workers: given.Workers = None,
    close_after: given.CloseAfter = None,
    rollback: Annotated[bool, typer.Option("--rollback", hidden=True)] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Not drained: keep maintenance on.")
    ] = False,
    init: given.Init = False,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Run a command under maintenance, drained.

    On, wait, run, and off if it succeeded: `run -- python migrate.py`. A command
    that fails, or that a signal interrupts, leaves maintenance on. The exit code is
    the command's own; 125 when it was not started, 127 when there is none. Its
    standard output stays its own: everything said here goes to standard error.
    """
    del wait  # It always does.
    if at is not None or auto_off:
        raise ValueError(
            "--at and --auto-off could open it by the clock under the command; give"
            " --for or --until alone"
        )
    if stay and rollback:
        raise ValueError("--stay and --rollback contradict each other; give one")
    target = Target(store, name, Output(as_json=as_json, aside=True))
    token = new_token() if bypass else None
    order = given.an_order(
        message=message,
        for_=for_,
        until=until,
        at=None,
        auto_off=False,
        read_only=read_only,
        retry_after=retry_after,
        token=token,
    )
    plan = given.a_plan(timeout, workers, close_after)
    return run_command(target, order, plan, command, init=init, token=token, stay=stay)


@app.command()
def forget(
    *,
    worker: Annotated[
        str | None,
        typer.Argument(metavar="[WORKER]", help="As `status` names it, or HOST/PID."),
    ] = None,
    lost_for: Annotated[
        str | None,
        typer.Option(metavar="10m", help="All that have been lost for so long."),
    ] = None,
    store: Store = None,
    name: Name = "default",
    as_json: AsJson = False,
) -> int:
    """Drop the rows of workers that are gone."""
    if (worker is None) == (lost_for is None):
        raise ValueError("name a WORKER, as `status` shows it, or give --lost-for 10m")
    target = _target(store, name, as_json=as_json)
    seconds = None if lost_for is None else parse_duration(lost_for).total_seconds()
    return operate.carry_out(target, lambda: operate.forget(target, worker, seconds))


@app.command()
def routes(
    *,
    application: Annotated[
        str, typer.Argument(metavar="APP", help="As uvicorn takes it: MODULE:NAME.")
    ],
    store: Annotated[str | None, typer.Option(hidden=True)] = None,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
) -> int:
    """Show which routes the guard covers."""
    del store, name  # Taken everywhere, so that an alias may give them.
    from .routes import show_routes  # noqa: PLC0415  # FastAPI, for this one alone

    return show_routes(application, Output(as_json=as_json))
