"""A task as the ledger's row: the same shape whether it comes from a producer, a message or the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func
from sqlalchemy.dialects.postgresql import Insert, insert

from shared.contracts import FleetHeader, TaskMessage, check_storable
from shared.db.tables import tasks

FINISHED = frozenset({"succeeded", "failed"})


def task_row(message: TaskMessage) -> dict[str, Any]:
    """The columns of a new task, JSON-safe."""
    deadline_at = message.fleet.deadline_at
    return {
        "id": str(message.id),
        "tenant": message.fleet.tenant,
        "agent": message.agent,
        "session_id": message.fleet.session,
        "idempotency_key": message.fleet.idempotency_key,
        "input": {"args": list(message.args), "kwargs": dict(message.kwargs)},
        "max_attempts": message.fleet.max_attempts,
        "deadline_at": deadline_at.isoformat() if deadline_at else None,
    }


def refuse_nul(row: Mapping[str, Any]) -> None:
    """PostgreSQL text cannot hold U+0000, which JSON can: say so at the door.

    Raises: BadInput.
    """
    check_storable(row["input"])


def accept_statement(message: TaskMessage, *, dispatch_after_s: float) -> Insert:
    """The INSERT that accepts a task, for whatever session or connection a producer holds; twice is once.

    Args:
        dispatch_after_s: Seconds until the keeper publishes it, should nobody have done so before.
    """
    row = task_row(message)
    refuse_nul(row)
    dispatch_at = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, dispatch_after_s)
    values = {**row, "id": message.id, "deadline_at": message.fleet.deadline_at, "dispatch_at": dispatch_at}
    return insert(tasks).values(**values).on_conflict_do_nothing()


def message_of(row: Row[Any]) -> TaskMessage:
    """The message that a task's row stands for, to publish it again."""
    return TaskMessage(
        agent=row.agent,
        kwargs=row.input["kwargs"],
        args=tuple(row.input["args"]),
        id=row.id,
        fleet=FleetHeader(
            tenant=row.tenant,
            session=row.session_id,
            idempotency_key=row.idempotency_key,
            deadline_at=row.deadline_at,
            max_attempts=row.max_attempts,
        ),
    )


@dataclass(frozen=True, slots=True)
class StepView:
    """One step as people read it."""

    name: str
    ordinal: int
    kind: str
    state: str
    executions: int
    repeats: int
    started_at: datetime
    finished_at: datetime | None
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task as people read it."""

    id: UUID
    tenant: str
    agent: str
    session: str | None
    state: str
    attempt: int
    epoch: int
    output: Any
    error: dict[str, Any] | None
    report: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    steps: tuple[StepView, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINISHED

    @property
    def repeated_steps(self) -> int:
        """How often a completed step was executed again: the promise is 0, always.

        A step whose execution was cut off before its result (in doubt) is not completed, and not counted.
        """
        return sum(step.repeats for step in self.steps)
