"""A task as the ledger's row: the same shape whether it comes from a producer, a message or the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, case, exists, func, or_
from sqlalchemy.dialects.postgresql import Insert, insert

from shared.contracts import FleetHeader, TaskMessage, check_storable
from shared.db.tables import limits, tasks

MESSAGE_COLUMNS = (
    "t.id, t.agent, t.input, t.tenant, t.session_id, t.idempotency_key, t.deadline_at, t.max_attempts, t.priority,"
    " t.parent_id, t.root_agent"
)
"""What `message_of` reads of a row of `tasks t`."""
FINISHED = frozenset({"succeeded", "failed", "cancelled"})


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
        "priority": message.fleet.priority,
        "parent_id": str(message.fleet.parent_id) if message.fleet.parent_id else None,
        "root_agent": message.fleet.root_agent,
        "available_at": message.fleet.available_at.isoformat() if message.fleet.available_at else None,
    }


def refuse_nul(row: Mapping[str, Any]) -> None:
    """PostgreSQL text cannot hold U+0000, which JSON can: say so at the door.

    Raises: BadInput.
    """
    check_storable(row["input"])


def accept_statement(message: TaskMessage, *, dispatch_after_s: float, is_held: bool = False) -> Insert:
    """The INSERT that accepts a task, for whatever session or connection a producer holds; twice is once.

    Args:
        dispatch_after_s: Seconds until the keeper publishes it, should nobody have done so before.
        is_held: Whether it waits in the ledger for a fair turn instead.
    """
    fleet = message.fleet
    row = task_row(message)
    refuse_nul(row)
    del row["available_at"]
    values = {**row, "id": message.id, "parent_id": fleet.parent_id, "deadline_at": fleet.deadline_at}
    if fleet.available_at is not None and fleet.available_at > datetime.now(UTC):
        values |= {"state": "waiting", "wake_at": fleet.available_at, "waiting_for": {"kind": "start"}}
    elif is_held:
        values["dispatch_at"] = func.now()
    else:
        capped = exists().where(
            or_(
                and_(limits.c.scope == "tenant", limits.c.name == fleet.tenant),
                and_(limits.c.scope == "agent", limits.c.name.in_([message.agent, fleet.root_agent or message.agent])),
            )
        )
        values["published_at"] = case((capped, None), else_=func.now())
        values["dispatch_at"] = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, dispatch_after_s)
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
            priority=row.priority,
            parent_id=row.parent_id,
            root_agent=row.root_agent,
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
    in_doubt: int
    started_at: datetime
    finished_at: datetime | None
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChildView:
    """A child of a task, as people read it."""

    id: UUID
    agent: str
    state: str


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
    priority: str = "normal"
    parent_id: UUID | None = None
    forked_from: UUID | None = None
    wake_at: datetime | None = None
    waiting_for: dict[str, Any] | None = None
    cancel_requested_at: datetime | None = None
    deadline_at: datetime | None = None
    steps: tuple[StepView, ...] = ()
    children: tuple[ChildView, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINISHED

    @property
    def condition(self) -> str:
        """Its state, and what it waits for."""
        if self.state != "waiting" or self.waiting_for is None:
            return "asked to stop" if self.cancel_requested_at is not None and self.state == "running" else self.state
        signals = ", ".join(self.waiting_for.get("signals", ()))
        children = len(self.waiting_for.get("ids", ()))
        awaited = [f"signal {signals}"] * bool(signals) + [f"{children} children"] * bool(children)
        kinds = {"start": "its start", "sleep": "the end of its sleep", "retry": "its next try"}
        return f"waiting for {' or '.join(awaited) or kinds.get(self.waiting_for['kind'], self.waiting_for['kind'])}"

    @property
    def repeated_steps(self) -> int:
        """How often a completed step was executed again: the promise is 0, always.

        A step whose execution was cut off before its result (in doubt) is not completed, and not counted.
        """
        return sum(step.repeats for step in self.steps)

    @property
    def in_doubt_steps(self) -> int:
        """Calls that began and whose end nobody saw: they may have been paid for, once more than the ledger knows."""
        return sum(step.in_doubt + (step.state == "intent" and self.state != "running") for step in self.steps)
