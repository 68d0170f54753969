"""Who works: one row per worker process, kept alive by its heartbeat; and the agents they offer."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.db.database import Database
from shared.db.tables import agents, tasks, workers


async def enlist(database: Database, *, worker: UUID, name: str, host: str, pid: int, slots: int) -> None:
    """Add a worker's row: from now on it may claim."""
    async with database.unit() as unit:
        await unit.execute(insert(workers).values(id=worker, name=name, host=host, pid=pid, slots=slots))


async def beat(database: Database, worker: UUID, *, is_draining: bool) -> bool:
    """Say that the worker lives.

    Returns: False when it was declared dead: its runs belong to others.
    """
    statement = (
        update(workers)
        .where(workers.c.id == worker, workers.c.state.in_(["alive", "draining"]))
        .values(heartbeat_at=func.now(), state="draining" if is_draining else "alive")
    )
    async with database.unit() as unit:
        return bool((await unit.execute(statement.returning(workers.c.id))).all())


async def discharge(database: Database, worker: UUID) -> int:
    """The worker leaves in good order: whatever it still holds goes back to the queue and costs no attempt.

    Returns: How many runs were handed back.
    """
    leave = update(workers).where(workers.c.id == worker, workers.c.state != "dead").values(state="stopped")
    hand_back = (
        update(tasks)
        .where(tasks.c.worker_id == worker, tasks.c.state == "running")
        .values(
            state="queued", worker_id=None, epoch=tasks.c.epoch + 1, attempt=tasks.c.attempt - 1, dispatch_at=func.now()
        )
        .returning(tasks.c.id)
    )
    async with database.unit() as unit:
        await unit.execute(leave)
        return len((await unit.execute(hand_back)).all())


async def offer(database: Database, schemas: Mapping[str, dict[str, Any]]) -> None:
    """Publish the agents of this worker, so that producers can check inputs before they submit."""
    if not schemas:
        return
    statement = insert(agents).values([{"name": name, "input_schema": schema} for name, schema in schemas.items()])
    changed = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={"input_schema": statement.excluded.input_schema, "updated_at": func.now()},
        where=agents.c.input_schema != statement.excluded.input_schema,
    )
    async with database.unit() as unit:
        await unit.execute(changed)


async def offered(database: Database) -> dict[str, dict[str, Any]]:
    """The input schema of every agent that some worker has offered, by name."""
    async with database.unit(mode="ro") as unit:
        rows = (await unit.execute(select(agents.c.name, agents.c.input_schema))).all()
    return {row.name: row.input_schema for row in rows}


async def workers_now(database: Database) -> list[dict[str, Any]]:
    """Every worker that is not gone, with the age of its heartbeat in seconds."""
    query = (
        select(
            workers.c.name, workers.c.host, workers.c.pid, workers.c.slots, workers.c.state,
            func.extract("epoch", func.now() - workers.c.heartbeat_at).label("heartbeat_age_s"),
        )
        .where(workers.c.state.in_(["alive", "draining"]))
        .order_by(workers.c.name)
    )  # fmt: skip
    async with database.unit(mode="ro") as unit:
        return [
            dict(row._mapping) | {"heartbeat_age_s": float(row.heartbeat_age_s)} for row in await unit.execute(query)
        ]
