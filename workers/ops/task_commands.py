"""`fleet cancel|signal|replay|fork|resume`: steer one task."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shared.errors import Misconfigured
from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json
from workers.ops.submit import Pairs, read_inputs, read_json
from workers.ops.task_screen import task_json
from workers.ops.tasks import TaskId

if TYPE_CHECKING:  # see workers.ops.door
    from shared.client import FleetClient
    from shared.ledger.replaying import Past, Preview
    from shared.ledger.rows import TaskView

FromStep = Annotated[
    str | None,
    typer.Option("--from-step", metavar="STEP", help="Begin at this step, as `fleet task` names it: chat, or chat#2."),
]
LOOK_EVERY_S = 0.1


def cancel(
    context: typer.Context,
    task_id: TaskId,
    timeout_s: Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait for a running task to end.")] = 5.0,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a task and its children: what waits ends at once, what runs stops within a second."""
    door: Door = context.obj
    with door.client(folder) as client:
        view = client.cancel(task_id)
        end = time.monotonic() + timeout_s
        while _still_runs(view) and time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)
            view = client.status(task_id)
    if as_json:
        print_json(task_json(view))
        return
    print(_ending(view, waited_s=timeout_s))


def signal(
    context: typer.Context,
    task_id: TaskId,
    name: Annotated[str, typer.Argument(help="The signal's name, as in run.wait_for(NAME).")],
    pairs: Pairs = None,
    payload: Annotated[str | None, typer.Option("--payload", help="What it carries, any JSON; - reads stdin.")] = None,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Give a task what it waits for: `fleet signal ID approval by=ann`. Kept until it waits for it."""
    if pairs and payload is not None:
        raise Misconfigured("give KEY=VALUE words or --payload, not both.")
    told: Any = read_inputs(pairs, given=None, stdin=sys.stdin.read) if pairs else None
    if payload is not None:
        told = read_json(payload, option="--payload", stdin=sys.stdin.read)
    door: Door = context.obj
    with door.client(folder) as client:
        before = client.status(task_id).state
        view = client.signal(task_id, name, told)
    if as_json:
        print_json(task_json(view))
    elif before == "waiting" and view.state != "waiting":
        print(f"Given: the task goes on ({view.state}).")
    else:
        print(f"Kept for it: the task is {view.condition}.")


def resume(
    context: typer.Context,
    task_id: TaskId,
    on_change: Annotated[
        Literal["reuse", "rerun"] | None,
        typer.Option(help="Of a step that asks for something else than before: take its old result, or run it anew."),
    ] = None,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Let a parked task go on; `fleet task ID` says why it was parked."""
    door: Door = context.obj
    with door.client(folder) as client:
        view = client.resume(task_id, on_change)
    _say(view, "Resumed", as_json=as_json)


def replay(
    context: typer.Context, task_id: TaskId, from_step: FromStep = None, folder: Where = None, as_json: AsJson = False
) -> None:
    """Try a failed or cancelled task again under its own id; what it has done and paid for is kept."""
    door: Door = context.obj
    with door.client(folder) as client:
        looked = client.preview(task_id, from_step)
        view = client.replay(task_id, from_step)
    if not as_json:
        print(told(looked))
    _say(view, "Replayed", as_json=as_json)


def fork(
    context: typer.Context, task_id: TaskId, from_step: FromStep = None, folder: Where = None, as_json: AsJson = False
) -> None:
    """Start a new task beside one in any state: it finds the steps before --from-step done."""
    door: Door = context.obj
    with door.client(folder) as client:
        looked = client.preview(task_id, from_step)
        forked = client.fork(task_id, from_step)
        if as_json:
            print_json({"forked_from": task_id, "kept": [one.label for one in looked.kept], **_new(client, forked.id)})
            return
    print(forked.id)
    print(f"{told(looked)} Its result: fleet result {forked.id}", file=sys.stderr)


def told(looked: "Preview") -> str:
    """What a second try keeps and pays again, as a sentence."""
    kept = f"{_count(looked.kept)} kept ({tokens(looked.kept)} tokens already paid)"
    if not looked.again:
        return f"{kept}; nothing is done twice."
    return f"{kept}; again: {_names(looked.again)} ({tokens(looked.again)} tokens were paid for what is done again)."


def tokens(past: Sequence["Past"]) -> str:
    """Input and output tokens of these steps."""
    usage = [one.usage for one in past if one.usage]
    return f"{sum(u.get('input_tokens', 0) for u in usage)} + {sum(u.get('output_tokens', 0) for u in usage)}"


def _still_runs(view: "TaskView") -> bool:
    return "running" in (view.state, *(child.state for child in view.children))


def _ending(view: "TaskView", *, waited_s: float) -> str:
    """What became of a cancel, the children included."""
    below = sum(child.state == "cancelled" for child in view.children)
    with_children = f", and {below} of its {len(view.children)} children" if view.children else ""
    running = sum(child.state == "running" for child in view.children)
    if view.is_finished and view.state != "cancelled":
        return f"It had {view.state} before it could be stopped."
    if view.state == "cancelled" and not running:
        return f"Cancelled{with_children}."
    who = "it" if view.state == "running" else f"{running} of them"
    return f"Asked to stop{with_children}; {who} still run after {waited_s:g} s: look with fleet task {view.id}"


def _count(past: Sequence["Past"]) -> str:
    return f"{len(past)} step{'s' * (len(past) != 1)}"


def _names(past: Sequence["Past"]) -> str:
    shown = [one.label for one in past[:5]]
    return ", ".join(shown) + (f" and {len(past) - 5} more" if len(past) > 5 else "")


def _new(client: "FleetClient", task_id: Any) -> dict[str, Any]:
    return task_json(client.status(task_id))


def _say(view: "TaskView", done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(task_json(view))
        return
    print(f"{done} at {datetime.now(UTC).astimezone():%H:%M:%S}: it is {view.condition}; fleet result {view.id}")
