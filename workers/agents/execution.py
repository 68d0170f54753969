"""One run from claim to end: claim commits, then the message is acknowledged, then the agent runs."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

import structlog
from celery.exceptions import Ignore, SoftTimeLimitExceeded, TimeLimitExceeded

from shared.contracts import FleetHeader, TaskMessage
from shared.errors import BadInput, DeadlineSpent, Fenced, FleetError, Permanent
from shared.ledger.runs import Claim, Runs
from shared.telemetry import metrics
from workers.agents.agent import Agent
from workers.agents.knobs import WorkerKnobs
from workers.agents.limits import limited
from workers.agents.pool import Delivery, current_delivery
from workers.agents.run import Ports, Run

log = structlog.get_logger()


class Hold(Protocol):
    """What an execution needs from its worker."""

    runs: Runs
    ports: Ports
    knobs: WorkerKnobs
    running: set[UUID]

    async def back_in_place(self) -> None:
        """Wait until this worker, fenced just now, has a place in the ledger again."""


async def execute(hold: Hold, agent: Agent, task_id: str, args: Any, kwargs: Any, header: Mapping[str, Any]) -> str:
    """Run a delivered task to its end.

    Returns: One line about the end, for Celery's events; outputs stay in the ledger.
    Raises: Ignore for a duplicate, a fenced run or one that was handed back; the agent's own failure otherwise.
    """
    delivery = current_delivery.get()
    message = TaskMessage(agent.name, kwargs, tuple(args), UUID(task_id), FleetHeader.model_validate(header))
    if message.id in hold.running:
        raise Ignore
    hold.running.add(message.id)
    try:
        return await _claim_and_run(hold, agent, message, delivery)
    finally:
        hold.running.discard(message.id)


async def _claim_and_run(hold: Hold, agent: Agent, message: TaskMessage, delivery: Delivery) -> str:
    claim = await _claim(hold, message, delivery)
    if claim is None:
        metrics.TASKS_ENDED.labels(agent.name, "duplicate").inc()
        raise Ignore
    delivery.accept()
    started = time.monotonic()
    structlog.contextvars.bind_contextvars(task_id=str(message.id), attempt=claim.attempt, agent=agent.name)
    with metrics.RUNNING.labels(agent.name).track_inprogress():
        try:
            state = await _run(hold, agent, message, claim, delivery)
        finally:
            metrics.RUN_SECONDS.labels(agent.name).observe(time.monotonic() - started)
            structlog.contextvars.clear_contextvars()
    return state


async def _claim(hold: Hold, message: TaskMessage, delivery: Delivery) -> Claim | None:
    """Claim, under a new identity should this worker have lost its place meanwhile: the message is still ours."""
    while True:
        try:
            return await hold.runs.claim(message)
        except Fenced:
            await hold.back_in_place()
        except BadInput:  # PostgreSQL can never store it: acknowledged, and told as this task's failure
            delivery.accept()
            raise
        except asyncio.CancelledError:
            await _undo_claim(hold, message)
            raise


async def _undo_claim(hold: Hold, message: TaskMessage) -> None:
    """Cancelled while the claim was being committed: claiming again tells whether it was, so that none stays behind."""
    claim = await hold.runs.claim(message)
    if claim is not None:
        await hold.runs.release(claim)


async def _run(hold: Hold, agent: Agent, message: TaskMessage, claim: Claim, delivery: Delivery) -> str:
    journal = await hold.runs.journal(claim)
    run = Run(task_id=message.id, header=message.fleet, attempt=claim.attempt, journal=journal, ports=hold.ports)
    try:
        output = await _limited_agent(hold.knobs, agent, message, run)
        await hold.runs.succeed(claim, output, run.report())
    except Fenced as error:
        _closing_line(agent, "fenced", cause=error.message)
        raise Ignore from None
    except asyncio.CancelledError:
        await _cancelled(hold, agent, claim, delivery, run)
        raise Ignore from None
    except Exception as error:  # whatever an agent raises ends its task with a reason, never the worker
        await _failed(hold, agent, claim, run, error)
        raise
    _closing_line(agent, "succeeded", **run.report())
    return f"succeeded: {run.report()['steps_executed']} steps, {run.report()['steps_replayed']} replayed"


async def _limited_agent(knobs: WorkerKnobs, agent: Agent, message: TaskMessage, run: Run) -> Any:
    inputs = agent.inputs.check(message.args, message.kwargs)
    soft_s = agent.soft_limit_s or knobs.soft_limit_s
    hard_s = agent.hard_limit_s or max(knobs.hard_limit_s, soft_s)
    deadline_at = message.fleet.deadline_at
    if deadline_at is None:
        return await limited(agent(run, inputs), soft_s=soft_s, hard_s=hard_s)
    left_s = deadline_at.timestamp() - time.time()
    if left_s <= 0:
        raise DeadlineSpent(f"the deadline passed {-left_s:.1f} s before the task could start")
    try:
        return await limited(agent(run, inputs), soft_s=min(soft_s, left_s), hard_s=min(hard_s, left_s))
    except (SoftTimeLimitExceeded, TimeLimitExceeded):
        if deadline_at.timestamp() > time.time():
            raise
        raise DeadlineSpent("the deadline passed while the task was running") from None


async def _cancelled(hold: Hold, agent: Agent, claim: Claim, delivery: Delivery, run: Run) -> None:
    """A cancellation from outside: hand back on a drain, end on a revoke, write nothing when fenced."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
    reason = delivery.cancel_reason
    if reason == "revoked":
        await hold.runs.fail(claim, Permanent("revoked by an operator", reason="revoked"), run.report())
    elif reason != "fenced":
        await hold.runs.release(claim)
    _closing_line(agent, "handed_back" if reason in (None, "drain") else reason)


async def _failed(hold: Hold, agent: Agent, claim: Claim, run: Run, error: Exception) -> None:
    try:
        await hold.runs.fail(claim, _as_recorded(error), run.report())
    except Fenced as fenced:
        _closing_line(agent, "fenced", cause=fenced.message)
        raise Ignore from None
    _closing_line(agent, "failed", cause=repr(error))


def _as_recorded(error: Exception) -> FleetError:
    if isinstance(error, FleetError):
        return error
    if isinstance(error, SoftTimeLimitExceeded | TimeLimitExceeded):
        kind = "soft" if isinstance(error, SoftTimeLimitExceeded) else "hard"
        return Permanent(f"the {kind} time limit passed", type=type(error).__name__, limit=kind)
    return Permanent(f"{type(error).__name__}: {error}", type=type(error).__name__)


def _closing_line(agent: Agent, state: str, **facts: Any) -> None:
    metrics.TASKS_ENDED.labels(agent.name, state).inc()
    log.info("task.ended", state=state, **facts)
