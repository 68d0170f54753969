"""`fleet tasks` and `fleet task`: the newest tasks of the ledger, or one with its steps."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json
from workers.ops.task_screen import print_task, print_tasks, task_json

State = Literal["queued", "running", "waiting", "parked", "succeeded", "failed", "cancelled"]
TaskId = Annotated[str, typer.Argument(help="The task's id.")]


def tasks(
    context: typer.Context,
    task_id: Annotated[str | None, typer.Argument(help="Show this task with its steps.")] = None,
    state: Annotated[State | None, typer.Option(help="Only tasks in this state.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only tasks of this agent.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only tasks of this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """List the newest tasks, or show one with its steps."""
    if task_id is not None:
        task(context, task_id, folder=folder, as_json=as_json)
        return
    door: Door = context.obj
    with door.client(folder) as client:
        found = client.tasks(limit=limit, state=state, agent=agent, tenant=tenant)
    if as_json:
        print_json([task_json(view, with_steps=False) for view in found])
    else:
        print_tasks(found, now=datetime.now(UTC))


def task(context: typer.Context, task_id: TaskId, folder: Where = None, as_json: AsJson = False) -> None:
    """Show one task with its steps."""
    door: Door = context.obj
    with door.client(folder) as client:
        view = client.status(task_id)
    if as_json:
        print_json(task_json(view))
    else:
        print_task(view, now=datetime.now(UTC))
