"""One run from claim to end: claim commits, then the message is acknowledged, then the agent runs."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from uuid import UUID

import structlog
from celery.exceptions import Ignore, SoftTimeLimitExceeded, TimeLimitExceeded

from shared.contracts import FleetHeader, TaskMessage
from shared.db import carriage
from shared.db.tokens import carrying
from shared.errors import BadInput, DeadlineSpent, Fenced, FleetError, Permanent
from shared.ledger.journal import Journal
from shared.ledger.poll import Polled
from shared.ledger.rows import FINISHED
from shared.ledger.runs import Claim
from shared.ledger.sealed_input import open_message
from shared.ledger.vault import Vault
from shared.telemetry import metrics
from workers.agents.active import Active, Cancellable
from workers.agents.agent import Agent
from workers.agents.children import Home
from workers.agents.endings import Ending, ending_of
from workers.agents.knobs import WorkerKnobs
from workers.agents.limits import limited
from workers.agents.pool import current_delivery
from workers.agents.run import Ports, Run

log = structlog.get_logger()

T = TypeVar("T")


class Hold(Home, Protocol):
    """What an execution needs from its worker."""

    ports: Ports
    knobs: WorkerKnobs
    vault: Vault
    active: dict[UUID, Active]

    async def back_in_place(self) -> None:
        """Wait until this worker, fenced just now, has a place in the ledger again."""

    def begin(self, claim: Claim) -> bool:
        """Whether this claim is new to the worker: a late message of a task that it has polled gets the same again."""

    def handed_back(self, message: TaskMessage) -> None:
        """A run was put down that can go on at once: see to it that somebody takes it."""


async def execute(
    hold: Hold, agent: Agent, task_id: str, args: Any, kwargs: Any, header: Mapping[str, Any], token: object = None
) -> str:
    """Run a delivered task to its end.

    Args:
        token: The message's header `wt`, whatever it holds.

    Returns: One line about the end, for Celery's events; outputs stay in the ledger.
    Raises: Ignore for a duplicate, a fenced run or one that was put down; the agent's own failure otherwise.
    """
    read = carriage.read(token, source="celery")
    carried = None if read is None else str(read)
    message = TaskMessage(agent.name, kwargs, tuple(args), UUID(task_id), FleetHeader.model_validate(header), carried)
    claim = await _claim(hold, message)
    if claim is None or not hold.begin(claim):
        metrics.TASKS_ENDED.labels(agent.name, "duplicate").inc()
        raise Ignore
    return await _claimed(hold, agent, message, claim)


async def execute_polled(hold: Hold, agent: Agent, polled: Polled) -> str:
    """Run a task that was claimed straight from the ledger; see `execute`."""
    if not hold.begin(polled.claim):
        raise Ignore
    return await _claimed(hold, agent, polled.message, polled.claim)


async def _claim(hold: Hold, message: TaskMessage) -> Claim | None:
    """Claim, under a new identity should this worker have lost its place meanwhile: the message is still ours."""
    while True:
        try:
            return await hold.runs.claim(message)
        except Fenced:
            await hold.back_in_place()
        except BadInput:  # PostgreSQL can never store it: acknowledged, and told as this task's failure
            current_delivery.get().accept()
            raise
        except asyncio.CancelledError:
            await _undo_claim(hold, message)
            raise


async def _undo_claim(hold: Hold, message: TaskMessage) -> None:
    """Cancelled while the claim was being committed: claiming again tells whether it was, so that none stays behind."""
    claim = await hold.runs.claim(message)
    if claim is not None and hold.begin(claim):
        await hold.runs.release(claim)
        hold.handed_back(message)


async def _claimed(hold: Hold, agent: Agent, message: TaskMessage, claim: Claim) -> str:
    delivery = current_delivery.get()
    delivery.accept()
    active = hold.active[message.id] = Active(claim, delivery)
    started = time.monotonic()
    structlog.contextvars.bind_contextvars(task_id=str(message.id), attempt=claim.attempt, agent=agent.name)
    seen = carriage.beginning(message.token, claim.token)
    try:
        with metrics.RUNNING.labels(agent.name).track_inprogress(), carrying(seen):
            return await _run(hold, agent, message, active, delivery)
    finally:
        if hold.active.get(message.id) is active:
            del hold.active[message.id]
        metrics.RUN_SECONDS.labels(agent.name).observe(time.monotonic() - started)
        structlog.contextvars.clear_contextvars()


async def _run(hold: Hold, agent: Agent, message: TaskMessage, active: Active, delivery: Cancellable) -> str:
    run: Run | None = None
    journal: Journal | None = None
    output, error = None, None
    try:
        journal = await hold.runs.journal(active.claim, on_change=agent.on_change)
        active.follow(journal)
        run = Run(
            message=message,
            attempt=active.claim.attempt,
            journal=journal,
            ports=hold.ports,
            home=hold,
            retry=agent.retry,
            must_act=agent.must_act,
        )
        output = await _limited_agent(hold.knobs, agent, open_message(hold.vault, message), run)
    except GeneratorExit:
        raise
    except BaseException as raised:  # whatever an agent raises ends its task with a reason, never the worker
        error = raised
    if journal is not None and journal.is_left:
        error = await _settle(journal) or error
    if journal is not None and journal.is_writing:
        await _surely(journal.written)
    reached = ending_of(
        output=output,
        error=error,
        reason=delivery.cancel_reason,
        suspension=journal.suspension if journal is not None else None,
        is_left=journal is not None and journal.is_left,
    )
    del error  # or its traceback, which holds this frame, is garbage only for the next collection
    return await _end(hold, agent, message, active.claim, run, reached)


async def _settle(journal: Journal) -> asyncio.CancelledError | None:
    """Branches that outlived their agent finish the step that they are at."""
    try:
        await journal.settled()
    except asyncio.CancelledError as cut:
        return cut
    return None


async def _limited_agent(knobs: WorkerKnobs, agent: Agent, message: TaskMessage, run: Run) -> Any:
    inputs = agent.inputs.check(message.args, message.kwargs)
    soft_s = agent.soft_limit_s or knobs.soft_limit_s
    hard_s = agent.hard_limit_s or max(knobs.hard_limit_s, soft_s)
    deadline_at = message.fleet.deadline_at
    if deadline_at is None:
        return await limited(agent(run, inputs), soft_s=soft_s, hard_s=hard_s)
    left_s = deadline_at.timestamp() - time.time()
    if left_s <= 0:
        raise DeadlineSpent(f"the deadline passed {-left_s:.1f} s before the task could go on")
    try:
        return await limited(agent(run, inputs), soft_s=min(soft_s, left_s), hard_s=min(hard_s, left_s))
    except (SoftTimeLimitExceeded, TimeLimitExceeded):
        if deadline_at.timestamp() > time.time():
            raise
        raise DeadlineSpent("the deadline passed while the task was running") from None


async def _end(hold: Hold, agent: Agent, message: TaskMessage, claim: Claim, run: Run | None, ending: Ending) -> str:
    """Write the end, tell those who wait for it, and Celery."""
    report = run.report() if run is not None else None
    try:
        state, ending = await _written(hold, claim, ending, report)
    except Fenced as error:
        state, ending = "fenced", Ending(kind="fenced", error=error)
    else:
        with suppress(Fenced):  # then the keeper tells them
            await _tell(hold, message, run, state)
    metrics.TASKS_ENDED.labels(agent.name, state).inc()
    if run is not None:
        metrics.IN_DOUBT.labels(agent.name).inc(run.doubts_met)
    cause = {} if ending.error is None else {"cause": repr(ending.raised or ending.error.message)}
    log.info("task.ended", state=state, **cause, **(report or {}))
    if ending.kind == "failed" and ending.raised is not None:
        raise ending.raised
    if ending.kind != "succeeded" or report is None:
        raise Ignore(state)
    return f"succeeded: {report['steps_executed']} steps, {report['steps_replayed']} replayed"


async def _written(hold: Hold, claim: Claim, ending: Ending, report: dict[str, Any] | None) -> tuple[str, Ending]:
    """Write the end.

    Returns: The task's state from now on, and the end as it was written: what cannot be stored of an output or of a
        wait is a failure.
    Raises: Fenced.
    """
    runs, error = hold.runs, ending.error or Permanent("no reason recorded")
    match ending.kind:
        case "fenced":
            raise error
        case "suspended" | "succeeded":
            try:
                if ending.kind == "suspended":
                    return await _surely(lambda: runs.suspend(claim, ending.suspension, report)), ending
                await _surely(lambda: runs.succeed(claim, ending.output, report or {}))
            except Fenced:
                raise
            except FleetError as unwritten:
                return await _written(hold, claim, Ending(kind="failed", error=unwritten, raised=unwritten), report)
        case "cancelled":
            await _surely(lambda: runs.cancel(claim, error, report or {}))
        case "failed":
            await _surely(lambda: runs.fail(claim, error, report or {}))
    return ending.kind, ending


async def _surely(write: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """A last write is not stopped by a cancellation, and not made twice. A fenced one raises by itself."""
    writing = asyncio.create_task(write())
    while True:
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            if writing.done():
                raise
            task = asyncio.current_task()
            while task is not None and task.cancelling():
                task.uncancel()


async def _tell(hold: Hold, message: TaskMessage, run: Run | None, state: str) -> None:
    """Whoever waits for this task may go on; whoever was started by it has nobody left to answer to."""
    parent = message.fleet.parent_id
    if state == "queued":
        hold.handed_back(message)
    if state in FINISHED and parent is not None and await _surely(lambda: hold.runs.wake(parent)):
        hold.hurry_poll()
    if state in ("failed", "cancelled") and run is not None and run.children:
        await _surely(lambda: hold.runs.cancel_children(message.id))
