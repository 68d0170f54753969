"""How tasks are shown: tables for people, plain data for machines."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.ops.moments import from_now, rounded
from workers.ops.screen import TABLE_WIDTH

if TYPE_CHECKING:  # see workers.ops.door
    from shared.ledger.rows import StepView, TaskView

STYLES = {
    **dict.fromkeys(("succeeded", "done"), "green"),
    **dict.fromkeys(("running", "intent"), "cyan"),
    **dict.fromkeys(("queued", "waiting"), "yellow"),
    **dict.fromkeys(("failed", "parked"), "bold red"),
    "cancelled": "magenta",
}
NOTHING = "–"


def task_json(view: "TaskView", *, with_steps: bool = True) -> dict[str, Any]:
    """A task as plain data: ids and times as text."""
    facts: dict[str, Any] = plain(asdict(view))
    if not with_steps:
        del facts["steps"], facts["children"]
        return facts
    return {**facts, "repeated_steps": view.repeated_steps, "in_doubt_steps": view.in_doubt_steps}


def print_outcome(view: "TaskView") -> None:
    """The output on stdout, for pipes; what it took on stderr."""
    print(_output(view))
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(summary(view), style="dim"))


def print_tasks(views: Sequence["TaskView"], *, now: datetime) -> None:
    """One line a task, newest first."""
    if not views:
        print("No tasks.", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("agent", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("try", "steps", "tokens"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("level", no_wrap=True)
    for heading in ("age", "took"):
        table.add_column(heading, no_wrap=True, justify="right")
    for view in views:
        report = view.report or {}
        table.add_row(
            str(view.id), view.agent, Text(view.state, style=STYLES[view.state]), str(view.attempt), _steps(report),
            _tokens(report), report.get("level", NOTHING), rounded(now - view.created_at), took(view, now=now),
        )  # fmt: skip
    console_here().print(table)
    for view in views:
        if (why := _situation(view, now=now)) is not None:
            console_here().print(Text(f"{view.id} {why}", style="dim"))


def print_task(view: "TaskView", *, now: datetime) -> None:
    """One task: its line of facts, its steps, its children, what it waits for, its output or its error."""
    console = console_here()
    console.print(Text.assemble((view.state, STYLES[view.state]), f"  {summary(view, now=now)}"))
    console.print(Text("  ".join((str(view.id), *_relations(view)))))
    if view.steps:
        console.print(_steps_table(view))
        console.print(Text(f"Repeated completed steps: {view.repeated_steps}"))
    if view.in_doubt_steps:
        console.print(Text(f"Calls in doubt, perhaps paid for twice: {view.in_doubt_steps}", style="yellow"))
    if view.children:
        console.print(Text("Children:", style="bold"))
    for child in view.children:
        console.print(Text.assemble(f"{child.id}  {child.agent}  ", (child.state, STYLES[child.state])))
    for reason in (view.report or {}).get("reasons", []):
        console.print(Text(f"Degraded: {reason}", style="yellow"))
    if (why := _situation(view, now=now)) is not None:
        console.print(Text(f"It {why}", style="yellow"))
    if view.error is not None:
        if view.state != "parked":
            console.print(Text(f"Error: {view.error.get('message', view.error)}", style="red"))
    elif view.is_finished:
        console.print(Text("Output:", style="bold"))
        console.print(Text(_output(view)))


def _output(view: "TaskView") -> str:
    from shared.ledger.vault import is_sealed  # imported here: see workers.ops.door

    if is_sealed(view.output):
        return f"sealed; fleet result {view.id} says what is missing"
    return view.output if isinstance(view.output, str) else json.dumps(view.output, indent=2, ensure_ascii=False)


def _relations(view: "TaskView") -> list[str]:
    facts = [f"tenant {view.tenant}"]
    facts += [f"session {view.session}"] if view.session else []
    facts += [f"priority {view.priority}"] if view.priority != "normal" else []
    facts += [f"child of {view.parent_id}"] if view.parent_id else []
    return facts + ([f"forked from {view.forked_from}"] if view.forked_from else [])


def _steps_table(view: "TaskView") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("step", "kind", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("runs", "tokens", "took"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("")
    for step in view.steps:
        table.add_row(
            _step_name(step), step.kind, Text(step.state, style=STYLES[step.state]), str(step.executions),
            tokens_of(step), step_took(step), Text(_remark(step, view), style="yellow"),
        )  # fmt: skip
    return table


def _situation(view: "TaskView", *, now: datetime) -> str | None:
    """What an unfinished task waits for, and until when; or why it is parked, and the way on."""
    if view.state == "parked":
        error = view.error or {}
        how = " --on-change reuse|rerun" if error.get("code") == "step_changed" else ""
        return f"is parked: {error.get('message', 'no reason recorded')}; go on: fleet resume {view.id}{how}"
    if view.state == "waiting":
        until = "" if view.wake_at is None else f", {'until' if view.wake_at > now else 'due'} {_clock(view, now=now)}"
        return f"is {view.condition}{until}"
    if view.state == "running" and view.cancel_requested_at is not None:
        return f"was asked to stop {rounded(now - view.cancel_requested_at)} ago"
    return None


def _clock(view: "TaskView", *, now: datetime) -> str:
    at = view.wake_at or now
    here = at.astimezone()
    shown = here.strftime("%H:%M:%S" if abs(at - now) < timedelta(hours=12) else "%Y-%m-%d %H:%M")
    return f"{shown} ({from_now(at, now=now)})"


def summary(view: "TaskView", *, now: datetime | None = None) -> str:
    """What a task took, in one line."""
    report = view.report or {}
    facts = [view.agent]
    if view.report is not None:
        facts.append(f"{_steps(report)} steps")
        facts.append(f"{report.get('input_tokens', 0)} + {report.get('output_tokens', 0)} tokens")
    facts.append(took(view, now=now))
    if "level" in report:
        facts.append(f"level {report['level']}")
    if view.attempt > 1:
        facts.append(f"attempt {view.attempt}")
    return " · ".join(fact for fact in facts if fact != NOTHING)


def took(view: "TaskView", *, now: datetime | None = None) -> str:
    """From the first claim to the end, or to now."""
    end = view.finished_at or now
    return NOTHING if view.started_at is None or end is None else _seconds(end - view.started_at)


def step_took(step: "StepView") -> str:
    """How long the last execution of a step took."""
    return NOTHING if step.finished_at is None else _seconds(step.finished_at - step.started_at)


def tokens_of(step: "StepView") -> str:
    """Input and output tokens of a model call."""
    if not step.usage:
        return NOTHING
    return f"{step.usage.get('input_tokens', 0)} + {step.usage.get('output_tokens', 0)}"


def console_here() -> Console:
    """The terminal's width on a terminal, no cuts elsewhere."""
    console = Console(soft_wrap=True, highlight=False)
    return console if console.is_terminal else Console(width=TABLE_WIDTH, soft_wrap=True, highlight=False)


def _seconds(length: timedelta) -> str:
    seconds = length.total_seconds()
    return f"{seconds:.1f} s" if seconds < 100 else rounded(length)


def _steps(report: dict[str, Any]) -> str:
    return str(report["steps_executed"] + report["steps_replayed"]) if "steps_executed" in report else NOTHING


def _tokens(report: dict[str, Any]) -> str:
    return str(report["input_tokens"] + report["output_tokens"]) if "input_tokens" in report else NOTHING


def _step_name(step: "StepView") -> str:
    return step.name if step.ordinal == 0 else f"{step.name} #{step.ordinal}"


def _remark(step: "StepView", view: "TaskView") -> str:
    if step.repeats:
        return f"completed, and yet run again {step.repeats}x"
    if step.in_doubt:
        return f"in doubt {step.in_doubt}x" + (", run again" if step.state != "intent" else "")
    if step.state == "intent" and view.state != "running":
        return "in doubt: nobody saw it end"
    return f"tried {step.executions} times" if step.executions > 1 else ""


def plain(value: Any) -> Any:
    """JSON-safe: ids and times as text."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
