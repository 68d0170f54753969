"""Reading tasks: for producers who wait, and for people who look."""

from uuid import UUID

from sqlalchemy import func, select

from shared.db.database import Database
from shared.db.tables import dead_letters, steps, tasks
from shared.errors import UnknownTask
from shared.ledger.rows import StepView, TaskView

_COLUMNS = (
    tasks.c.id, tasks.c.tenant, tasks.c.agent, tasks.c.session_id.label("session"), tasks.c.state, tasks.c.attempt,
    tasks.c.epoch, tasks.c.output, tasks.c.error, tasks.c.report, tasks.c.created_at, tasks.c.started_at,
    tasks.c.finished_at,
)  # fmt: skip
_STEP_COLUMNS = (
    steps.c.name, steps.c.ordinal, steps.c.kind, steps.c.state, steps.c.executions, steps.c.repeats,
    steps.c.started_at, steps.c.finished_at, steps.c.usage,
)  # fmt: skip


async def state_of(database: Database, task_id: UUID) -> str | None:
    """A task's state alone, cheap enough to ask often; None when the ledger does not know it (yet)."""
    async with database.unit(mode="ro") as unit:
        return (await unit.execute(select(tasks.c.state).where(tasks.c.id == task_id))).scalar()


async def task_of(database: Database, task_id: UUID) -> TaskView:
    """A task with its steps in the order in which they began.

    Raises: UnknownTask.
    """
    async with database.unit(mode="ro") as unit:
        row = (await unit.execute(select(*_COLUMNS).where(tasks.c.id == task_id))).one_or_none()
        query = select(*_STEP_COLUMNS).where(steps.c.task_id == task_id).order_by(steps.c.started_at, steps.c.name)
        found = (await unit.execute(query)).all()
    if row is None:
        raise UnknownTask(f"the ledger has no task {task_id}: check the id, or wait until a worker has claimed it")
    return TaskView(**row._mapping, steps=tuple(StepView(**step._mapping) for step in found))


async def latest(
    database: Database, *, limit: int, state: str | None = None, tenant: str | None = None, agent: str | None = None
) -> list[TaskView]:
    """The newest tasks, without their steps."""
    query = select(*_COLUMNS).order_by(tasks.c.created_at.desc()).limit(limit)
    for column, wanted in ((tasks.c.state, state), (tasks.c.tenant, tenant), (tasks.c.agent, agent)):
        query = query if wanted is None else query.where(column == wanted)
    async with database.unit(mode="ro") as unit:
        return [TaskView(**row._mapping) for row in await unit.execute(query)]


async def counts(database: Database) -> dict[str, int]:
    """How many tasks are in each state, and how many messages no worker could read (`dead_letters`)."""
    async with database.unit(mode="ro") as unit:
        by_state = (await unit.execute(select(tasks.c.state, func.count()).group_by(tasks.c.state))).all()
        dead = (await unit.execute(select(func.count()).select_from(dead_letters))).scalar_one()
    return {row[0]: row[1] for row in by_state} | {"dead_letters": dead}
