"""`fleet schedule …`: tasks by the clock, one a tick however many keepers run."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

import typer
from rich.table import Table
from rich.text import Text

from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.moments import from_now
from workers.ops.screen import print_json
from workers.ops.submit import LONGEST_S, Pairs, read_inputs
from workers.ops.task_screen import NOTHING, console_here, plain

if TYPE_CHECKING:  # see workers.ops.door
    from shared.ledger.schedules import Schedule

schedule = typer.Typer(name="schedule", help="Run agents by the clock.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The schedule's name.")]


@schedule.command()
def add(
    context: typer.Context,
    name: Name,
    cron: Annotated[str, typer.Argument(help="When, in one word: '30 8 * * MON-FRI' (minute hour day month weekday).")],
    agent: Annotated[str, typer.Argument(help="The agent that runs.")],
    pairs: Pairs = None,
    timezone: Annotated[str, typer.Option(help="Whose clock, for example Europe/Berlin.")] = "UTC",
    given: Annotated[str | None, typer.Option("--input", help="All inputs as a JSON object; - reads stdin.")] = None,
    session: Annotated[str | None, typer.Option(help="The conversation its tasks belong to.")] = None,
    tenant: Annotated[str, typer.Option(help="On whose behalf.")] = "default",
    priority: Annotated[Literal["interactive", "normal", "batch"], typer.Option(help="Which queue.")] = "normal",
    max_attempts: Annotated[int, typer.Option(min=1, max=100, help="How many workers may die under a task.")] = 3,
    deadline_s: Annotated[
        float | None, typer.Option(min=0, max=LONGEST_S, help="Seconds from its tick until a task fails unfinished.")
    ] = None,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent at every tick: `fleet schedule add daily '0 8 * * *' report --timezone Europe/Berlin`."""
    from shared.ledger.schedules import create_schedule  # imported here: see workers.ops.door

    inputs = read_inputs(pairs or [], given=given, stdin=sys.stdin.read)
    door: Door = context.obj
    with door.client(folder) as client:
        made = client.operate(
            lambda database: create_schedule(
                database,
                name=name,
                agent=agent,
                cron=cron,
                timezone=timezone,
                input=inputs,
                tenant=tenant,
                session=session,
                priority=priority,
                max_attempts=max_attempts,
                deadline_s=deadline_s,
                vault=client.vault,
                max_bytes=client.ledger.input_max_bytes,
            )
        )
    _say(made, f"Added: {agent} runs next {_when(made, now=datetime.now(UTC))}.", as_json=as_json)


@schedule.command("list")
def list_(context: typer.Context, folder: Where = None, as_json: AsJson = False) -> None:
    """List every schedule with its next and its last tick."""
    from shared.ledger.schedules import list_schedules  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        found = client.operate(lambda database: list_schedules(database, vault=client.vault))
    if as_json:
        print_json([_json(one) for one in found])
    elif found:
        _print(found, now=datetime.now(UTC))
    else:
        print("No schedules; add one with: fleet schedule add daily '0 8 * * *' AGENT")


@schedule.command()
def pause(context: typer.Context, name: Name, folder: Where = None, as_json: AsJson = False) -> None:
    """Stop a schedule's ticks until it is resumed."""
    from shared.ledger.schedules import pause_schedule  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        paused = client.operate(lambda database: pause_schedule(database, name))
    _say(paused, f"Paused; it goes on with: fleet schedule resume {name}", as_json=as_json)


@schedule.command()
def resume(context: typer.Context, name: Name, folder: Where = None, as_json: AsJson = False) -> None:
    """Let a paused schedule tick again, from now on; what it missed stays undone."""
    from shared.ledger.schedules import resume_schedule  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        resumed = client.operate(lambda database: resume_schedule(database, name))
    _say(resumed, f"Resumed: it runs next {_when(resumed, now=datetime.now(UTC))}.", as_json=as_json)


@schedule.command()
def delete(context: typer.Context, name: Name, folder: Where = None, as_json: AsJson = False) -> None:
    """Delete a schedule; the tasks that it has made go on."""
    from shared.ledger.schedules import delete_schedule  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        client.operate(lambda database: delete_schedule(database, name))
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        print(f"Deleted {name}; the tasks that it has made go on.")


def _say(one: "Schedule", sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_json(one))
    else:
        print(sentence)


def _json(one: "Schedule") -> dict[str, Any]:
    facts: dict[str, Any] = plain(asdict(one))
    return {**facts, "input": one.input["kwargs"]}


def _print(found: "Sequence[Schedule]", *, now: datetime) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "agent", "cron", "next", "last task"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        upcoming = Text("paused", style="yellow") if one.is_paused else Text(_when(one, now=now))
        last = NOTHING if one.last_task_id is None else str(one.last_task_id)
        table.add_row(one.name, one.agent, one.cron, upcoming, last)
    console_here().print(table)


def _when(one: "Schedule", *, now: datetime) -> str:
    """The next tick on the schedule's own clock."""
    if one.next_at is None:
        return NOTHING
    zone = UTC if one.timezone == "UTC" else ZoneInfo(one.timezone)
    return f"{one.next_at.astimezone(zone):%a %d %b %H:%M %Z} ({from_now(one.next_at, now=now)})"
