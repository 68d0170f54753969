"""`fleet failover db`: promote a replica of the PostgreSQL that runs in a folder, with the old primary fenced first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from shared.errors import Misconfigured
from workers.ops.commands import AsJson
from workers.ops.control import ask
from workers.ops.door import ADDRESSES, USUAL_FOLDER, Door
from workers.ops.inspection import supervisor_of
from workers.ops.run_dir import RunDir
from workers.ops.screen import print_json

failover = typer.Typer(name="failover", help="Move a role to another server.", no_args_is_help=True)


@failover.callback()
def parts() -> None:
    """Move a role to another server."""


@failover.command()
def db(
    context: typer.Context,
    to: Annotated[str | None, typer.Option(help="Node to promote; the most advanced replica unless said.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote although acknowledged writes may be lost.")] = False,
    rejoin: Annotated[bool, typer.Option(help="Take the old primary back as a replica.")] = True,
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder of a running fleet; .fleet unless said.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fence the primary, promote a replica, re-point the others; the old one comes back as a replica.

    Whether the primary is well, dead or frozen. Where Patroni decides, ask Patroni: the fleet sees roles and follows.
    """
    door: Door = context.obj
    run = RunDir(folder or USUAL_FOLDER)
    if supervisor_of(run) is None:
        elsewhere = any(door.environment.get(name) for name in ADDRESSES)
        remedy = "the servers of FLEET_DB_URL are not ours to promote" if elsewhere else "start one with `fleet up`"
        raise Misconfigured(f"No fleet runs in {run.base}: {remedy}.")
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)

    def show(told: Mapping[str, Any]) -> None:
        console.print(f"{told['part']}: {told['says']}", highlight=False)

    order = {"do": "failover_db", "to": to, "force": force, "rejoin": rejoin}
    try:
        done = ask(run.base, order, on_progress=show)
    except KeyboardInterrupt:
        typer.echo("The failover goes on to its end without you; see `fleet status`.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(done)
    else:
        print(sentence(done))


def sentence(done: Mapping[str, Any]) -> str:
    """What a failover did and how long each part took."""
    seconds = dict(done["seconds"])
    writable_s = seconds.pop("writable")
    parts = ", ".join(f"{part} {value:.2f}" for part, value in seconds.items())
    return f"{done['new']} leads in place of {done['old']}; writes again after {writable_s:.2f} s (seconds: {parts})."
