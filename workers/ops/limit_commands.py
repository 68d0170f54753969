"""`fleet limits …`: how many tasks of a tenant or of an agent may run at once."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json
from workers.ops.task_screen import console_here

limits = typer.Typer(name="limits", help="Limit how many tasks of a tenant or agent run at once.", no_args_is_help=True)
Scope = Annotated[Literal["tenant", "agent"], typer.Argument(help="Whose tasks: a tenant's, or an agent's.")]
Name = Annotated[str, typer.Argument(help="Its name.")]


@limits.command("set")
def set_(
    context: typer.Context,
    scope: Scope,
    name: Name,
    max_running: Annotated[int, typer.Argument(min=0, help="Tasks at once; 0 holds all of them.")],
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Set a limit: `fleet limits set tenant acme 5`. What runs already goes on; children count with their parent."""
    from shared.ledger.caps import set_limit  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        client.operate(lambda database: set_limit(database, scope, name, max_running))
    if as_json:
        print_json({"scope": scope, "name": name, "max_running": max_running})
    else:
        print(f"From now on at most {max_running} tasks of {scope} {name} run at once.")


@limits.command("list")
def list_(context: typer.Context, folder: Where = None, as_json: AsJson = False) -> None:
    """List every limit and how far it is used."""
    from shared.ledger.caps import limits_now  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        found = client.operate(limits_now)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        print("No limits; set one with: fleet limits set tenant NAME 5")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("scope", "name"):
        table.add_column(heading, no_wrap=True)
    for heading in ("running", "limit", "queued"):
        table.add_column(heading, no_wrap=True, justify="right")
    for one in found:
        style = "yellow" if one.running >= one.max_running else ""
        used = Text(str(one.running), style=style)
        table.add_row(one.scope, one.name, used, str(one.max_running), str(one.queued))
    console_here().print(table)


@limits.command()
def unset(context: typer.Context, scope: Scope, name: Name, folder: Where = None, as_json: AsJson = False) -> None:
    """Remove a limit: what it held back may run."""
    from shared.ledger.caps import unset_limit  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        client.operate(lambda database: unset_limit(database, scope, name))
    if as_json:
        print_json({"scope": scope, "name": name, "max_running": None})
    else:
        print(f"{scope.capitalize()} {name} has no limit any more.")
