"""How dead letters are shown to people."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from workers.ops.moments import rounded
from workers.ops.task_screen import NOTHING, console_here

if TYPE_CHECKING:  # see workers.ops.door
    from shared.ledger.dead import Letter, Paid


def print_letters(found: "Sequence[Letter]", *, now: datetime) -> None:
    """One line a letter, its reason below."""
    console = console_here()
    if not found:
        console.print("No dead letters.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "agent", "tenant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tries", "paid tokens", "age"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("error", no_wrap=True)
    for one in found:
        spent = f"{one.paid.input_tokens} + {one.paid.output_tokens}" if one.paid.calls else NOTHING
        table.add_row(
            one.id, one.agent or NOTHING, one.tenant or NOTHING, str(one.attempt or NOTHING), spent,
            rounded(now - one.at), Text(one.error.get("code", "unknown"), style="red"),
        )  # fmt: skip
    console.print(table)
    for one in found:
        console.print(Text(f"{one.id}  {one.error.get('message', '')}", style="dim"))


def print_letter(letter: "Letter", *, now: datetime) -> None:
    """A message that nobody could read, as it came."""
    from shared.ledger.dead import shown_body  # imported here: see workers.ops.door

    console = console_here()
    console.print(Text(f"{letter.id}  {rounded(now - letter.at)} ago"))
    console.print(Text(f"Error: {letter.error['message']}", style="red"))
    console.print(Text("Headers:", style="bold"))
    console.print(Text(json.dumps(letter.headers, indent=2, ensure_ascii=False)))
    console.print(Text("Body:", style="bold"))
    console.print(Text(shown_body(letter)))
    console.print(Text(f"Publish it again, if it can be read now: fleet dead replay {letter.id}", style="dim"))


def paid(what: "Paid") -> str:
    """What was paid, in words."""
    cost = f", {what.cost:.4f} by the price list" if what.cost else ""
    return f"{what.input_tokens} + {what.output_tokens} tokens in {what.calls} model calls{cost}"
