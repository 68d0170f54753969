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

from workers.ops.screen import TABLE_WIDTH

if TYPE_CHECKING:  # see workers.ops.door
    from shared.ledger.rows import StepView, TaskView

STYLES = {
    **dict.fromkeys(("succeeded", "done"), "green"),
    **dict.fromkeys(("running", "intent"), "cyan"),
    "queued": "yellow",
    "failed": "bold red",
}
NOTHING = "–"


def task_json(view: "TaskView", *, with_steps: bool = True) -> dict[str, Any]:
    """A task as plain data: ids and times as text."""
    facts: dict[str, Any] = _plain(asdict(view))
    if not with_steps:
        del facts["steps"]
        return facts
    return {**facts, "repeated_steps": view.repeated_steps}


def print_outcome(view: "TaskView") -> None:
    """The output on stdout, for pipes; what it took on stderr."""
    print(view.output if isinstance(view.output, str) else json.dumps(view.output, indent=2, ensure_ascii=False))
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
    _console().print(table)


def print_task(view: "TaskView", *, now: datetime) -> None:
    """One task: its line of facts, its steps, its output or its error."""
    console = _console()
    console.print(Text.assemble((view.state, STYLES[view.state]), f"  {summary(view, now=now)}"))
    console.print(Text(f"{view.id}  tenant {view.tenant}" + (f"  session {view.session}" if view.session else "")))
    if view.steps:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("step", "kind", "state"):
            table.add_column(heading, no_wrap=True)
        for heading in ("runs", "tokens", "took"):
            table.add_column(heading, no_wrap=True, justify="right")
        table.add_column("")
        for step in view.steps:
            table.add_row(
                _step_name(step), step.kind, Text(step.state, style=STYLES[step.state]), str(step.executions),
                tokens_of(step), step_took(step), Text(_remark(step), style="yellow"),
            )  # fmt: skip
        console.print(table)
        console.print(Text(f"Repeated completed steps: {view.repeated_steps}"))
    for reason in (view.report or {}).get("reasons", []):
        console.print(Text(f"Degraded: {reason}", style="yellow"))
    if view.error is not None:
        console.print(Text(f"Error: {view.error.get('message', view.error)}", style="red"))
    elif view.is_finished:
        console.print(Text("Output:", style="bold"))
        text = view.output if isinstance(view.output, str) else json.dumps(view.output, indent=2, ensure_ascii=False)
        console.print(Text(text))


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


def rounded(age: timedelta) -> str:
    """An age in its largest unit: 12 s, 3 min, 2 h, 5 d."""
    seconds = max(0, int(age.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _console() -> Console:
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


def _remark(step: "StepView") -> str:
    if step.repeats:
        return f"completed, and yet run again {step.repeats}x"
    return "was in doubt, run again" if step.executions > 1 else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
