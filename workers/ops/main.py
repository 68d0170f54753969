"""The command line `fleet`: wiring only. Every failure that has a name ends as one sentence, never as a stack trace."""

import importlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import FleetError, Misconfigured, ResultPending
from shared.settings import load, load_llm, load_room
from shared.telemetry.logs import setup_logs
from workers.ops import (
    commands,
    db_commands,
    dead_commands,
    demo,
    failover_command,
    key_commands,
    limit_commands,
    llm_commands,
    schedule_commands,
    schema,
    shard_commands,
    submit,
    task_commands,
    tasks,
    verify_command,
)
from workers.ops.daemon import Order, run, tell
from workers.ops.door import Door
from workers.ops.knobs import SupervisorKnobs
from workers.ops.remedies import of_system, with_remedy
from workers.ops.screen import print_error
from workers.ops.topology import Wish

if TYPE_CHECKING:  # see workers.ops.door
    from shared.client import FleetClient

KNOBS = {"worker": ("workers.agents.knobs", "WorkerKnobs"), "keeper": ("workers.keeper.knobs", "KeeperKnobs")}
"""Of the processes that `fleet up` starts as commands: named, not imported, for rooms do not know each other."""

app = typer.Typer(
    name="fleet",
    help="Run an agent task fleet on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(commands.up)
app.command()(commands.status)
app.command()(commands.down)
app.command()(submit.submit)
app.command()(submit.result)
app.command()(tasks.tasks)
app.command()(tasks.task)
app.command()(task_commands.cancel)
app.command()(task_commands.signal)
app.command()(task_commands.resume)
app.command()(task_commands.replay)
app.command()(task_commands.fork)
app.add_typer(db_commands.db)
db_commands.db.command()(shard_commands.shards)
db_commands.db.command()(shard_commands.move_bucket)
app.add_typer(failover_command.failover)
app.add_typer(dead_commands.dead)
app.add_typer(schedule_commands.schedule)
app.add_typer(limit_commands.limits)
app.add_typer(key_commands.keys)
app.command()(verify_command.verify)
app.command()(schema.schema)
app.command()(demo.demo)
app.add_typer(llm_commands.llm)


@app.callback()
def open_door(context: typer.Context) -> None:
    """Hand every command what it may not fetch itself: the environment, and the way to a fleet."""
    context.obj = Door(environment=dict(os.environ), check=load, check_all=check_all, connect=connect)


def check_all() -> None:
    """Check what every process of a fleet is set up with, before any of them starts. Raises: Misconfigured."""
    load_llm(load().llm)
    for room, (module, knobs) in KNOBS.items():
        load_room(room, getattr(importlib.import_module(module), knobs))


def connect(addresses: Mapping[str, str]) -> "FleetClient":
    """A client of the environment plus the addresses of a running fleet. Raises: Misconfigured."""
    from shared.client import FleetClient  # imported here: it takes a second, which `fleet status` need not pay

    setup_logs(style="console", level="CRITICAL")  # what goes wrong ends as one sentence, not as log lines before it
    os.environ.update(addresses)
    return FleetClient()


@app.command(hidden=True)
def supervise(
    folder: commands.Folder = Path(".fleet"),
    profile: commands.ProfileName = "embedded",
    workers: commands.Workers = 1,
    replicas: commands.Replicas = 1,
    sync: commands.Sync = False,
    port: commands.Pins = None,
    servers_only: commands.ServersOnly = False,
    here: Annotated[Path, typer.Option(help="Working folder of workers.")] = Path(),
) -> None:
    """Supervise a fleet in the foreground; `fleet up` runs this detached."""
    try:
        wish = _wish(profile, workers=workers, replicas=replicas, sync=sync, fleet=not servers_only)
        order = _order(folder, wish=wish, pins=port or [], here=here)
    except FleetError as error:
        tell({"error": error.as_dict()})
        raise typer.Exit(1) from None
    raise typer.Exit(run(order))


def _wish(profile: str, *, workers: int, replicas: int, sync: bool, fleet: bool) -> Wish:
    if profile not in ("embedded", "full"):
        raise Misconfigured(f"--profile {profile} is unknown; use embedded or full.")
    return Wish(
        profile="full" if profile == "full" else "embedded",
        vectors="FLEET_VECTORS_URI" not in os.environ,
        model=not {"FLEET_LLM_BASE_URL", "FLEET_LLM_CONFIG"} & os.environ.keys(),
        fleet=fleet,
        workers=workers,
        replicas=replicas,
        synchronous=sync,
    )


def _order(folder: Path, *, wish: Wish, pins: list[str], here: Path) -> Order:
    return Order(
        folder=folder,
        wish=wish,
        pinned_ports=commands.pinned_ports(pins),
        inherited=dict(os.environ),  # the one place: children get the caller's environment through this value
        project=here.absolute(),
        knobs=load_room("ops", SupervisorKnobs),
    )


def exit_code(error: FleetError) -> int:
    """1: it failed; 2: the command or a setting is wrong; 3: no result yet."""
    if isinstance(error, Misconfigured):
        return 2
    return 3 if isinstance(error, ResultPending) else 1


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that cannot show a character gets its escape, not an error
            stream.reconfigure(errors="backslashreplace")
    as_json = "--json" in sys.argv
    try:
        sys.exit(app(standalone_mode=not as_json))  # else typer tells people what is wrong with their words, by itself
    except typer.TyperException as error:
        print_error(Misconfigured(error.format_message()), as_json=as_json)
        sys.exit(error.exit_code)
    except FleetError as error:
        print_error(with_remedy(error), as_json=as_json)
        sys.exit(exit_code(error))
    except OSError as error:
        print_error(of_system(error), as_json=as_json)
        sys.exit(2)


if __name__ == "__main__":
    main()
