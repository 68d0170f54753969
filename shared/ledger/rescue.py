"""What the keeper does to the ledger: take runs from dead workers, find tasks whose message is missing."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningUpdate

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.tables import dead_letters, tasks, workers
from shared.ledger.rows import message_of


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker as the keeper sees it."""

    id: UUID
    name: str
    heartbeat_age_s: float


async def pulses(database: Database) -> list[Pulse]:
    """Every worker that should be alive, by the database's clock."""
    age = func.extract("epoch", func.now() - workers.c.heartbeat_at)
    query = select(workers.c.id, workers.c.name, age.label("age_s")).where(workers.c.state.in_(["alive", "draining"]))
    async with database.unit(mode="ro") as unit:
        return [Pulse(row.id, row.name, float(row.age_s)) for row in await unit.execute(query)]


async def bury(database: Database, worker: UUID, *, dead_after_s: float) -> int:
    """Declare a worker dead and put its runs back to the queue.

    First its row: no write of the worker can be in flight after that, because each holds the row while it commits.
    Then its runs: tasks with attempts left are queued again, the others fail.

    Returns: How many runs were taken; 0 also when its heartbeat came back in time.
    """
    silent_for = func.now() - workers.c.heartbeat_at
    fence = (
        update(workers)
        .where(
            workers.c.id == worker,
            workers.c.state.in_(["alive", "draining"]),
            silent_for > func.make_interval(0, 0, 0, 0, 0, 0, dead_after_s),
        )
        .values(state="dead")
        .returning(workers.c.id)
    )
    async with database.unit() as unit:
        if not (await unit.execute(fence)).all():
            return 0
        return len((await unit.execute(_requeue(worker))).all())


def _requeue(worker: UUID) -> ReturningUpdate[tuple[UUID]]:
    has_attempts = tasks.c.attempt < tasks.c.max_attempts
    reason = func.json_build_object(
        "code", "attempts_spent",
        "message", func.concat("the worker died in attempt ", tasks.c.attempt, " of ", tasks.c.max_attempts),
    )  # fmt: skip
    return (
        update(tasks)
        .where(tasks.c.worker_id == worker, tasks.c.state == "running")
        .values(
            state=case((has_attempts, "queued"), else_="failed"),
            epoch=tasks.c.epoch + 1,
            worker_id=None,
            dispatch_at=case((has_attempts, func.now()), else_=None),
            error=case((has_attempts, None), else_=reason),
            finished_at=case((has_attempts, None), else_=func.now()),
        )
        .returning(tasks.c.id)
    )


async def backlog(database: Database) -> tuple[int, int]:
    """How many tasks are queued, and how many of them are due to be looked after."""
    is_due = tasks.c.dispatch_at <= func.now()
    query = select(func.count(), func.count().filter(is_due)).where(tasks.c.state == "queued")
    async with database.unit(mode="ro") as unit:
        queued, overdue = (await unit.execute(query)).one()
    return queued, overdue


async def due(database: Database, *, limit: int, again_after_s: float) -> list[TaskMessage]:
    """Queued tasks whose message is missing or overdue; each is marked as looked after for `again_after_s`."""
    chosen = (
        select(tasks.c.id)
        .where(tasks.c.state == "queued", tasks.c.dispatch_at <= func.now())
        .order_by(tasks.c.dispatch_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    taken = (
        update(tasks)
        .where(tasks.c.id.in_(chosen))
        .values(dispatch_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, again_after_s))
        .returning(*tasks.c)
    )
    async with database.unit() as unit:
        return [message_of(row) for row in (await unit.execute(taken)).all()]


async def put_back(database: Database, task_ids: list[UUID]) -> None:
    """Publishing these failed: they are due again at once."""
    if not task_ids:
        return
    async with database.unit() as unit:
        await unit.execute(
            update(tasks).where(tasks.c.id.in_(task_ids), tasks.c.state == "queued").values(dispatch_at=func.now())
        )


async def record_dead_letter(database: Database, *, reason: str, headers: dict[str, object], body: str) -> None:
    """Keep a message that no worker could read."""
    async with database.unit() as unit:
        await unit.execute(insert(dead_letters).values(reason=reason, headers=headers, body=body))
