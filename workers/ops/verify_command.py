"""`fleet verify`: whether every promise of the ledger holds right now."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json
from workers.ops.task_screen import console_here

if TYPE_CHECKING:  # see workers.ops.door
    from collections.abc import Sequence

    from shared.ledger.invariants import Verdict


def verify(
    context: typer.Context,
    grace_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds that the keeper has to put right what died.")
    ] = 15.0,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Check the ledger's invariants on the live system; exit code 1 when one is broken. Changes nothing."""
    from shared.ledger.invariants import Patience
    from shared.ledger.invariants import verify as verify_ledger  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        patience = Patience(dead_after_s=client.ledger.dead_after_s, grace_s=grace_s)
        verdicts = client.operate(lambda database: verify_ledger(database, patience))
    holds = all(one.holds for one in verdicts)
    if as_json:
        print_json({"holds": holds, "invariants": [{**asdict(one), "holds": one.holds} for one in verdicts]})
    else:
        _print(verdicts)
    if not holds:
        raise typer.Exit(1)


def _print(verdicts: "Sequence[Verdict]") -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for one in verdicts:
        mark = Text("holds", style="green") if one.holds else Text("BROKEN", style="bold red")
        table.add_row(mark, one.promise)
        for violation in one.violations:
            whose = f"{violation.task_id}: " if violation.task_id else ""
            table.add_row("", Text(f"{whose}{violation.what}", style="red"))
    console_here().print(table)
    broken = sum(not one.holds for one in verdicts)
    ending = f"{broken} of {len(verdicts)} invariants are broken" if broken else f"All {len(verdicts)} invariants hold"
    console_here().print(f"{ending}.")
