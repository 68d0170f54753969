"""`fleet db …`: what the fleet sees of PostgreSQL's nodes, and where a unit of work would go."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.errors import Misconfigured
from workers.ops.commands import AsJson
from workers.ops.door import USUAL_FOLDER, Door, Where
from workers.ops.run_dir import RunDir
from workers.ops.screen import print_json
from workers.ops.task_screen import console_here

if TYPE_CHECKING:  # see workers.ops.door
    from shared.db.explain import Explained
    from shared.db.status import Connections, NodeStatus

db = typer.Typer(name="db", help="See PostgreSQL's nodes as the fleet sees them.", no_args_is_help=True)
EVERY_S = 1.0
HEADINGS = ("server", "node", "role", "timeline", "behind", "lag", "reads", "connections", "why")


@db.command()
def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Show each node: role, timeline, lag, its share of all reads, who is connected, and whether it gets reads or why
    not. Exit code 1 without a primary.
    """
    from shared.db.status import database_status  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        seen = client.operate(database_status)
        servers = _servers(folder)
        if as_json:
            print_json([{"server": servers.get(one.url), **asdict(one)} for one in seen])
        elif not watch:
            console_here().print(_nodes(seen, servers))
        else:
            with (
                Live(_nodes(seen, servers), console=console_here(), auto_refresh=False) as live,
                suppress(KeyboardInterrupt),
            ):
                while True:
                    time.sleep(EVERY_S)
                    seen = client.operate(database_status)
                    live.update(_nodes(seen, servers), refresh=True)
    if not any(one.role == "primary" for one in seen):
        raise typer.Exit(1)


@db.command()
def route(
    context: typer.Context,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and why not another node.")] = False,
    mode: Annotated[Literal["rw", "ro"], typer.Option(help="Whether the unit writes.")] = "ro",
    consistency: Annotated[
        Literal["primary", "causal", "bounded", "eventual"], typer.Option(help="What it must see.")
    ] = "causal",
    max_staleness_s: Annotated[float | None, typer.Option(min=0, help="For bounded: seconds it may lag.")] = None,
    token: Annotated[str | None, typer.Option(help="For causal: the token of what it must see.")] = None,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Name the node on which such a unit of work would run now; nothing is run. Exit code 1 when there is none."""
    from shared.db.explain import explain as explained  # imported here: see workers.ops.door

    if mode == "rw":
        consistency = "primary"
    if (consistency == "bounded") == (max_staleness_s is None):
        raise Misconfigured("--max-staleness-s SECONDS and --consistency bounded belong together.")
    door: Door = context.obj
    with door.client(folder) as client:
        found = client.operate(
            lambda database: explained(
                database, mode=mode, consistency=consistency, max_staleness_s=max_staleness_s, token=token
            )
        )
    if as_json:
        print_json(asdict(found))
    else:
        _print_route(found, explain=explain)
    if found.node is None:
        raise typer.Exit(1)


def _servers(folder: Path | None) -> dict[str, str]:
    """The names of the nodes that a supervisor here runs, by address: what `fleet failover db --to` takes."""
    rows = RunDir(folder or USUAL_FOLDER).read_state().get("servers", [])
    return {row["url"]: row["name"] for row in rows}


def _nodes(seen: "Sequence[NodeStatus]", servers: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading not in ("connections", "why"))
    for one in seen:
        is_fine = one.admitted or one.role == "primary"
        table.add_row(
            servers.get(one.url, ""), one.name, one.role, _number(one.timeline), _bytes(one.lag_bytes),
            _seconds(one.lag_s), _share(one.share_of_reads), _connections(one.connections),
            Text(one.reason, style="green" if is_fine else "yellow"),
        )  # fmt: skip
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _connections(found: "Mapping[str, Connections] | None") -> str:
    """`fleet-worker 4 (1 busy), fleet-client 2`."""
    if found is None:
        return "?"
    return ", ".join(
        f"{name or 'unnamed'} {one.open}" + (f" ({one.busy} busy)" if one.busy else "") for name, one in found.items()
    )


def _print_route(found: "Explained", *, explain: bool) -> None:
    if not explain:
        print(found.node or found.reason)
        return
    print(f"{found.node or 'no node'}: {found.reason}")
    for node, sentence in found.considered:
        print(f"  {node}: {sentence}")


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value} B" if value < 10_240 else f"{value >> 10} KiB"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
