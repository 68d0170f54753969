"""Reading tasks: for producers who wait, and for people who look."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from shared.db.database import Database
from shared.db.tables import dead_letters, steps, tasks
from shared.errors import DatabaseUnavailable, ResultPending, SealBroken, SealKeyUnknown, UnknownTask
from shared.ledger.rows import FINISHED, ChildView, StepView, TaskView
from shared.ledger.vault import NO_VAULT, OUTPUT, Vault

_COLUMNS = (
    tasks.c.id, tasks.c.tenant, tasks.c.agent, tasks.c.session_id.label("session"), tasks.c.state, tasks.c.attempt,
    tasks.c.epoch, tasks.c.output, tasks.c.error, tasks.c.report, tasks.c.created_at, tasks.c.started_at,
    tasks.c.finished_at, tasks.c.priority, tasks.c.parent_id, tasks.c.forked_from, tasks.c.wake_at,
    tasks.c.waiting_for, tasks.c.cancel_requested_at, tasks.c.deadline_at,
)  # fmt: skip
_STEP_COLUMNS = (
    steps.c.name, steps.c.ordinal, steps.c.kind, steps.c.state, steps.c.executions, steps.c.repeats, steps.c.in_doubt,
    steps.c.started_at, steps.c.finished_at, steps.c.usage,
)  # fmt: skip


async def state_of(database: Database, task_id: UUID) -> str | None:
    """A task's state alone, cheap enough to ask often; None when the ledger does not know it (yet)."""
    async with database.unit(mode="ro") as unit:
        return (await unit.execute(select(tasks.c.state).where(tasks.c.id == task_id))).scalar()


async def task_of(database: Database, task_id: UUID, *, vault: Vault = NO_VAULT) -> TaskView:
    """A task with its steps and its children, each in the order in which they began.

    Args:
        vault: Opens its output; one that it cannot open is shown as it is.

    Raises: UnknownTask.
    """
    async with database.unit(mode="ro") as unit:
        row = (await unit.execute(select(*_COLUMNS).where(tasks.c.id == task_id))).one_or_none()
        query = select(*_STEP_COLUMNS).where(steps.c.task_id == task_id)
        found = (await unit.execute(query.order_by(steps.c.started_at, steps.c.name, steps.c.ordinal))).all()
        below = select(tasks.c.id, tasks.c.agent, tasks.c.state).where(tasks.c.parent_id == task_id)
        children = (await unit.execute(below.order_by(tasks.c.created_at, tasks.c.id))).all()
    if row is None:
        raise UnknownTask(f"the ledger has no task {task_id}: check the id, or wait until a worker has claimed it")
    view = TaskView(
        **row._mapping,
        steps=tuple(StepView(**step._mapping) for step in found),
        children=tuple(ChildView(**child._mapping) for child in children),
    )
    return _opened(view, vault)


async def finished(database: Database, task_id: UUID, *, timeout_s: float) -> TaskView:
    """Wait for a task's end, through a database that is away for a while. Its output is as stored.

    Raises: ResultPending, saying what the task waits for; UnknownTask; DatabaseUnavailable.
    """
    loop = asyncio.get_running_loop()
    until, wait_s, problem = loop.time() + timeout_s, 0.005, None
    while True:
        try:
            state, problem = await state_of(database, task_id), None
            if state in FINISHED:
                return await task_of(database, task_id)
        except DatabaseUnavailable as error:
            problem = error
        left_s = until - loop.time()
        if left_s <= 0:
            break
        await asyncio.sleep(min(wait_s, left_s))
        wait_s = min(0.2, wait_s * 1.3)
    if problem is not None:
        raise problem
    view = await task_of(database, task_id)
    raise ResultPending(
        f"task {task_id} is {view.condition} after {timeout_s:g} s: ask again later", task_id=str(task_id)
    )


async def latest(
    database: Database, *, limit: int, state: str | None = None, tenant: str | None = None, agent: str | None = None,
    vault: Vault = NO_VAULT,
) -> list[TaskView]:  # fmt: skip
    """The newest tasks, without their steps and children."""
    query = select(*_COLUMNS).order_by(tasks.c.created_at.desc()).limit(limit)
    for column, wanted in ((tasks.c.state, state), (tasks.c.tenant, tenant), (tasks.c.agent, agent)):
        query = query if wanted is None else query.where(column == wanted)
    async with database.unit(mode="ro") as unit:
        return [_opened(TaskView(**row._mapping), vault) for row in await unit.execute(query)]


async def counts(database: Database) -> dict[str, int]:
    """How many tasks are in each state, and how many messages no worker could read (`dead_letters`)."""
    async with database.unit(mode="ro") as unit:
        by_state = (await unit.execute(select(tasks.c.state, func.count()).group_by(tasks.c.state))).all()
        dead = (await unit.execute(select(func.count()).select_from(dead_letters))).scalar_one()
    return {row[0]: row[1] for row in by_state} | {"dead_letters": dead}


def _opened(view: TaskView, vault: Vault) -> TaskView:
    """A look must not fail for a key that is not here, or one bad row: `FleetClient.result` says what is wrong."""
    try:
        output: Any = vault.open(view.output, task_id=view.id, role=OUTPUT)
    except (SealKeyUnknown, SealBroken):
        return view
    return view if output is view.output else replace(view, output=output)
