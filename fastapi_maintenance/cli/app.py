"""What each command takes; what it does is in ``commands``, ``run`` and ``routes``."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ..changes import new_token
from . import commands
from .display import Display
from .errors import OneLineErrors
from .options import Enabling, Planning, Waiting, Where, grouped
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


def _display(where: Where, *, to_stderr: bool = False) -> Display:
    target = Target(where)
    return Display(target, Output(as_json=where.as_json, to_stderr=to_stderr))


@app.command()
@grouped
def on(
    *,
    enabling: Planning,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until nothing from before is running.")
    ] = False,
    waiting: Waiting,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Not drained: put back what was before.")
    ] = False,
    where: Where,
) -> int:
    """Switch maintenance on for every worker.

    With --wait, exit codes say why it was not drained: 10 requests in flight, 11 lost
    workers, 12 another operator, 13 too few workers, 15 the store cannot tell.
    --timeout, --workers, --close-after and --rollback need --wait.
    """
    if not wait and (rollback or waiting.given):
        raise ValueError(
            "--timeout, --workers, --close-after and --rollback go with --wait; add it"
        )
    if wait and (enabling.at is not None or enabling.auto_off):
        raise ValueError(
            "--at and --auto-off leave it to the clock, so that nothing can be drained;"
            " leave out --wait, or give --for or --until alone"
        )
    display = _display(where)
    token = new_token() if enabling.bypass else None
    enable = enabling.options(token)
    if not wait:
        return commands.carry_out(
            lambda: commands.switch_on(
                display, enable, init=enabling.init, token=token
            ),
            interrupted=commands.PERHAPS_PUBLISHED,
        )
    return commands.carry_out_and_wait(
        display,
        waiting.options(),
        enable,
        init=enabling.init,
        token=token,
        rollback=rollback,
    )


@app.command()
@grouped
def off(
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Open although others hold it on.")
    ] = False,
    where: Where,
) -> int:
    """Open again, unless others hold it on."""
    display = _display(where)
    return commands.carry_out(
        lambda: commands.switch_off(display, force=force),
        interrupted=commands.PERHAPS_PUBLISHED,
    )


@app.command()
@grouped
def wait(*, waiting: Waiting, where: Where) -> int:
    """Wait until nothing from before is running.

    Maintenance must be on already. The exit codes are those of `on --wait`.
    """
    display = _display(where)
    return commands.carry_out_and_wait(display, waiting.options())


@app.command()
@grouped
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it until interrupted.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 3 while maintenance is in force.")
    ] = False,
    where: Where,
) -> int:
    """Show the state, its place and its workers."""
    if watch and check:
        raise ValueError("--watch goes on for ever, --check answers once; give one")
    display = _display(where)
    if watch:
        return commands.watch_status(display)
    return commands.carry_out(lambda: commands.show_status(display, check=check))


@app.command(context_settings={"allow_interspersed_args": False})
@grouped
def run(
    *,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND", show_default=False, help="Everything after `--`."
        ),
    ],
    enabling: Enabling,
    waiting: Waiting,
    stay: Annotated[
        bool, typer.Option("--stay", help="Not drained: keep maintenance on.")
    ] = False,
    where: Where,
) -> int:
    """Run a command under maintenance, drained.

    On, wait, run, and off if it succeeded: `run -- python migrate.py`. A command
    that fails, or that a signal interrupts, leaves maintenance on. The exit code is
    the command's own; 125 when it was not started, 127 when there is none. Its
    standard output stays its own: everything said here goes to standard error.
    """
    token = new_token() if enabling.bypass else None
    return run_command(
        _display(where, to_stderr=True),
        enabling.options(token),
        waiting.options(),
        command,
        init=enabling.init,
        token=token,
        stay=stay,
    )


@app.command()
@grouped
def forget(
    *,
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKER", help="As `status` names them, or HOST/PID."),
    ] = None,
    lost_for: Annotated[
        str | None,
        typer.Option(metavar="10m", help="All that have not answered for this time."),
    ] = None,
    where: Where,
) -> int:
    """Take workers off the list that are gone for good."""
    if bool(workers) == (lost_for is not None):
        raise ValueError("name a WORKER, as `status` shows it, or give --lost-for 10m")
    display = _display(where)
    seconds = None if lost_for is None else parse_duration(lost_for).total_seconds()
    return commands.carry_out(
        lambda: commands.forget(display, workers or [], seconds),
        interrupted="`fastapi-maintenance status` shows who is still on the list",
    )


@app.command()
@grouped
def routes(
    *,
    application: Annotated[
        str, typer.Argument(metavar="APP", help="As uvicorn takes it: MODULE:NAME.")
    ],
    store: Annotated[str | None, typer.Option(hidden=True)] = None,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines.")] = False,
) -> int:
    """Show which routes the guard covers."""
    del store, name  # Taken everywhere, so that an alias may give them.
    from .routes import show_routes  # noqa: PLC0415  # FastAPI, for this one alone

    return show_routes(application, Output(as_json=as_json))


@app.command()
@grouped
def schema(*, where: Where) -> int:
    """Show the SQL that makes the tables of an SQL store.

    For those who make tables by migrations; it connects to nothing.
    """
    return commands.show_schema(where.store, Output(as_json=where.as_json))
