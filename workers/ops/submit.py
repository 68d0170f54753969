"""`fleet submit` and `fleet result`: hand a task to the fleet, and get what became of it."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shared.errors import Misconfigured, UnknownTask
from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.moments import moment
from workers.ops.screen import print_json
from workers.ops.task_screen import print_outcome, task_json

if TYPE_CHECKING:  # see workers.ops.door
    from shared.client import FleetClient
    from shared.ledger.rows import TaskView

UNKNOWN_FOR_S = 2.0
"""Seconds in which a task that only the broker has may still turn up in the ledger."""
LONGEST_S = 366 * 86_400.0


TimeoutS = Annotated[float, typer.Option(min=0, max=LONGEST_S, help="Seconds to wait for the result.")]
Pairs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…",
        help="Named inputs; a value that reads as JSON is JSON: n=3 is a number, n='\"3\"' a text.",
    ),
]


def submit(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="The agent's name, for example chat.")],
    pairs: Pairs = None,
    given: Annotated[str | None, typer.Option("--input", help="All inputs as a JSON object; - reads stdin.")] = None,
    session: Annotated[str | None, typer.Option(help="The conversation it belongs to.")] = None,
    tenant: Annotated[str, typer.Option(help="On whose behalf.")] = "default",
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same task.")] = None,
    deadline_s: Annotated[
        float | None, typer.Option(min=0, max=LONGEST_S, help="Seconds until it fails unfinished.")
    ] = None,
    priority: Annotated[Literal["interactive", "normal", "batch"], typer.Option(help="Which queue.")] = "normal",
    start: Annotated[
        str | None, typer.Option("--at", metavar="WHEN", help="Not before: 2h from now, or 2027-01-01T09:00+01:00.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    timeout_s: TimeoutS = 60.0,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Hand a task to the fleet: `fleet submit chat message="Hello"`."""
    inputs = read_inputs(pairs or [], given=given, stdin=sys.stdin.read)
    available_at = moment(start, option="--at", now=datetime.now(UTC), side="ahead")
    door: Door = context.obj
    with door.client(folder) as client:
        accepted = client.submit(
            agent, inputs, session=session, tenant=tenant, idempotency_key=key, deadline_s=deadline_s,
            priority=priority, available_at=available_at,
        )  # fmt: skip
        facts = {"id": str(accepted.id), "agent": agent, "accepted_by": accepted.accepted_by}
        if wait:
            _say_waiting(as_json)
            accepted.result(timeout_s)
            _show(accepted.status(), as_json=as_json, more=facts)
        elif as_json:
            print_json(facts)
        else:
            print(accepted.id)
            _hint(f"Accepted by the {accepted.accepted_by}; its result: fleet result {accepted.id}")


def result(
    context: typer.Context,
    task_id: Annotated[str, typer.Argument(help="The id that `fleet submit` printed.")],
    timeout_s: TimeoutS = 60.0,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a task's result and print it; exit code 1 when it failed, 3 when it is not ready in time."""
    door: Door = context.obj
    with door.client(folder) as client:
        _wait_known(client, task_id, within_s=min(UNKNOWN_FOR_S, timeout_s))
        _say_waiting(as_json)
        client.result(task_id, timeout_s)
        _show(client.status(task_id), as_json=as_json, more={})


def read_inputs(pairs: Sequence[str], *, given: str | None, stdin: Callable[[], str]) -> dict[str, Any]:
    """The named inputs of KEY=VALUE words and of --input; words win.

    Raises: Misconfigured when a word or --input cannot be read.
    """
    inputs = {} if given is None else _object(given, stdin=stdin)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise Misconfigured(f'{pair!r} is not KEY=VALUE; write for example message="Hello".')
        inputs[name] = _value(value)
    return inputs


def read_json(given: str, *, option: str, stdin: Callable[[], str]) -> Any:
    """The JSON of an option; `-` reads standard input.

    Raises: Misconfigured when it is not JSON.
    """
    source = "standard input" if given == "-" else option
    try:
        return json.loads(stdin() if given == "-" else given)
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f'{source} is not JSON ({error}); write for example \'{{"message": "Hello"}}\'.') from None


def _object(given: str, *, stdin: Callable[[], str]) -> dict[str, Any]:
    source = "standard input" if given == "-" else "--input"
    found = read_json(given, option="--input", stdin=stdin)
    if not isinstance(found, dict):
        raise Misconfigured(f"{source} must be a JSON object of named inputs, not {type(found).__name__}.")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wait_known(client: "FleetClient", task_id: str, *, within_s: float) -> None:
    """A mistyped id is told at once, not after the whole time limit. Raises: UnknownTask, BadInput."""
    end = time.monotonic() + within_s
    while True:
        try:
            client.status(task_id)
            return
        except UnknownTask:
            if time.monotonic() >= end:
                raise
        time.sleep(0.1)


def _show(view: "TaskView", *, as_json: bool, more: dict[str, Any]) -> None:
    if as_json:
        print_json({**more, **task_json(view)})
    else:
        print_outcome(view)


def _say_waiting(as_json: bool) -> None:
    if not as_json and sys.stderr.isatty():
        _hint("Waiting for the result; Ctrl-C leaves the task running …")


def _hint(sentence: str) -> None:
    print(sentence, file=sys.stderr)
