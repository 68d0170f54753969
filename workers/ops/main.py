"""The command line `fleet`: wiring only. Every failure that has a name ends as one sentence, never as a stack trace."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import FleetError, Misconfigured
from workers.ops import commands
from workers.ops.daemon import Order, run
from workers.ops.screen import print_error
from workers.ops.topology import Wish

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
# Further commands live in modules of their own beside this one and are registered here: app.command()(demo.demo).


@app.command(hidden=True)
def supervise(
    folder: commands.Folder = Path(".fleet"),
    profile: commands.ProfileName = "embedded",
    workers: commands.Workers = 1,
    port: commands.Pins = None,
    servers_only: commands.ServersOnly = False,
    here: Annotated[Path, typer.Option(help="Working folder of workers.")] = Path(),
) -> None:
    """Supervise a fleet in the foreground; `fleet up` runs this detached."""
    if profile not in ("embedded", "full"):
        raise Misconfigured(f"--profile {profile} is unknown; use embedded or full.")
    inherited = dict(os.environ)  # the one place: children get the caller's environment through this value
    wish = Wish(
        profile="full" if profile == "full" else "embedded",
        vectors="FLEET_VECTORS_URI" not in inherited,
        model="FLEET_LLM_BASE_URL" not in inherited,
        fleet=not servers_only,
        workers=workers,
    )
    pins = commands.pinned_ports(port or [])
    order = Order(folder=folder, wish=wish, pinned_ports=pins, inherited=inherited, project=here.absolute())
    raise typer.Exit(run(order))


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except FleetError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(2 if isinstance(error, Misconfigured) else 1)


if __name__ == "__main__":
    main()
