"""`fleet dead …`: tasks that failed and messages that nobody could read; try them again, or put them aside."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import FleetError, Misconfigured
from workers.ops.commands import AsJson
from workers.ops.dead_screen import paid, print_letter, print_letters
from workers.ops.door import Door, Where
from workers.ops.moments import moment
from workers.ops.screen import print_error, print_json
from workers.ops.task_commands import FromStep, told
from workers.ops.task_screen import plain, print_task, task_json

if TYPE_CHECKING:  # see workers.ops.door
    from shared.client import FleetClient
    from shared.ledger.dead import Filter, Letter

dead = typer.Typer(
    name="dead", help="Failed tasks and unreadable messages: see why, try again, put aside.", no_args_is_help=True
)
MOST = 10_000
Id = Annotated[str, typer.Argument(help="Its id, from `fleet dead list`.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Their ids; or say which with the options.")]
Agent = Annotated[str | None, typer.Option(help="Only of this agent.")]
Tenant = Annotated[str | None, typer.Option(help="Only of this tenant.")]
Error = Annotated[str | None, typer.Option(help="Only with this error code, or this text in the message.")]
Since = Annotated[str | None, typer.Option(metavar="WHEN", help="Only failed since: 2h ago, or 2027-01-01T09:00.")]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="Only failed before.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it to all that the options fit.")]


@dead.command("list")
def list_(
    context: typer.Context, agent: Agent = None, tenant: Tenant = None, error: Error = None, since: Since = None,
    until: Until = None, limit: Annotated[int, typer.Option(min=1, max=MOST, help="How many.")] = 20,
    folder: Where = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List dead letters, newest first, with the reason and what they have cost."""
    door: Door = context.obj
    wanted = _filter(agent, tenant, error, since, until)
    with door.client(folder) as client:
        found = _letters(client, wanted, limit=limit)
    if as_json:
        print_json([plain(asdict(one)) for one in found])
    else:
        print_letters(found, now=datetime.now(UTC))


@dead.command()
def show(context: typer.Context, letter_id: Id, folder: Where = None, as_json: AsJson = False) -> None:
    """Show one dead letter: the task with its steps, or the message as it came."""
    from shared.ledger.dead import is_message, message_letter, task_letter  # imported here: see workers.ops.door

    door: Door = context.obj
    with door.client(folder) as client:
        if is_message(letter_id):
            letter = client.operate(lambda database: message_letter(database, letter_id))
            print_json(plain(asdict(letter))) if as_json else print_letter(letter, now=datetime.now(UTC))
            return
        view = client.status(letter_id)
        letter = client.operate(lambda database: task_letter(database, view.id))
    if as_json:
        print_json({**plain(asdict(letter)), "task": task_json(view)})
        return
    print_task(view, now=datetime.now(UTC))
    print(f"Paid so far: {paid(letter.paid)}")
    print(f"Try again: fleet dead replay {view.id} [--from-step STEP]; put aside: fleet dead discard {view.id}")


@dead.command()
def replay(
    context: typer.Context, letter_ids: Ids = None, from_step: FromStep = None, agent: Agent = None,
    tenant: Tenant = None, error: Error = None, since: Since = None, until: Until = None, yes: Yes = False,
    folder: Where = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Try dead letters again: tasks under their own id, keeping what is paid for; messages if they can be read now."""
    door: Door = context.obj
    wanted = _filter(agent, tenant, error, since, until)
    with door.client(folder) as client:
        chosen = _chosen(client, letter_ids or [], wanted, verb="replay", yes=yes)
        done = [_attempt(client, one, from_step, as_json=as_json) for one in chosen]
    _end(done, as_json=as_json)


@dead.command()
def discard(
    context: typer.Context, letter_ids: Ids = None, agent: Agent = None, tenant: Tenant = None, error: Error = None,
    since: Since = None, until: Until = None, yes: Yes = False, folder: Where = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Put dead letters aside: tasks stay in the ledger as failed, messages are deleted."""
    from shared.ledger.dead import discard as discard_letter  # imported here: see workers.ops.door

    door: Door = context.obj
    wanted = _filter(agent, tenant, error, since, until)
    with door.client(folder) as client:
        chosen = _chosen(client, letter_ids or [], wanted, verb="discard", yes=yes)
        for one in chosen:
            client.operate(lambda database, letter_id=one: discard_letter(database, letter_id))  # type: ignore[misc]
            if not as_json:
                print(f"{one}  discarded")
    if as_json:
        print_json([{"id": one, "discarded": True} for one in chosen])


def _filter(agent: str | None, tenant: str | None, error: str | None, since: str | None, until: str | None) -> "Filter":
    from shared.ledger.dead import Filter  # imported here: see workers.ops.door

    now = datetime.now(UTC)
    return Filter(
        agent=agent,
        tenant=tenant,
        error=error,
        since=moment(since, option="--since", now=now, side="ago"),
        until=moment(until, option="--until", now=now, side="ago"),
    )


def _letters(client: "FleetClient", wanted: "Filter", *, limit: int) -> "list[Letter]":
    from shared.ledger.dead import letters  # imported here: see workers.ops.door

    return client.operate(lambda database: letters(database, wanted, limit=limit))


def _chosen(client: "FleetClient", ids: Sequence[str], wanted: "Filter", *, verb: str, yes: bool) -> list[str]:
    """The ids that were given, or those that the options fit.

    Raises: Misconfigured when neither or both were given, or `--yes` is missing.
    """
    if bool(ids) != wanted.is_empty:
        raise Misconfigured(f"say which to {verb}: either ids from `fleet dead list`, or options such as --agent.")
    if ids:
        return list(ids)
    from shared.ledger.dead import total_paid  # imported here: see workers.ops.door

    found = _letters(client, wanted, limit=MOST)
    if found and not yes:
        raise Misconfigured(
            f"dead letters that fit: {len(found)}; they have cost {paid(total_paid(found))}; "
            f"look at them with `fleet dead list`, then add --yes to {verb} them."
        )
    return [one.id for one in found]


def _attempt(client: "FleetClient", letter_id: str, from_step: str | None, *, as_json: bool) -> dict[str, Any]:
    """Replay one; what is wrong with it is told, and the others go on."""
    try:
        facts = _replay(client, letter_id, from_step)
    except FleetError as error:
        print_error(error, as_json=as_json)
        return {"id": letter_id, "replayed": False, "error": error.as_dict()}
    if not as_json:
        print(f"{letter_id}  {facts['told']}")
    return {"id": letter_id, "replayed": True, **facts}


def _replay(client: "FleetClient", letter_id: str, from_step: str | None) -> dict[str, Any]:
    from shared.ledger.dead import discard as forget
    from shared.ledger.dead import is_message, message_letter, reread  # imported here: see workers.ops.door

    if is_message(letter_id):
        if from_step is not None:
            raise Misconfigured(f"{letter_id} is a message that has not run: leave --from-step out.")
        letter = client.operate(lambda database: message_letter(database, letter_id))
        task = client.submit_message(reread(letter))
        client.operate(lambda database: forget(database, letter_id))
        return {"task_id": str(task.id), "told": f"can be read now: task {task.id}"}
    looked = client.preview(letter_id, from_step)
    view = client.replay(letter_id, from_step)
    kept, again = [one.label for one in looked.kept], [one.label for one in looked.again]
    return {"task_id": str(view.id), "kept": kept, "again": again, "told": told(looked)}


def _end(done: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(list(done))
    elif not done:
        print("Nothing fits.")
    if any(not one["replayed"] for one in done):
        raise typer.Exit(1)
