"""Who works: one row per worker process, kept alive by its heartbeat; and the agents they offer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from shared.db.database import Database
from shared.db.tables import agents, tasks, workers
from shared.ledger.limits import adopt


async def enlist(database: Database, *, worker: UUID, name: str, host: str, pid: int, slots: int) -> None:
    """Add a worker's row: from now on it may claim. Once is enough, also when nobody knows whether it was committed."""
    row = insert(workers).values(id=worker, name=name, host=host, pid=pid, slots=slots)
    async with database.unit() as unit:
        await unit.execute(row.on_conflict_do_nothing(index_elements=["id"]))


@dataclass(frozen=True, slots=True)
class Elder:
    """A worker of the same name that was there before, and when it last said that it lives."""

    id: UUID
    host: str
    pid: int
    heartbeat_at: datetime


async def elders(database: Database, worker: UUID) -> list[Elder]:
    """Workers that have this one's name, enlisted before it and have not left."""
    me = workers.alias()
    query = select(workers.c.id, workers.c.host, workers.c.pid, workers.c.heartbeat_at).join(
        me, (me.c.id == worker) & (me.c.name == workers.c.name)
    )
    older = tuple_(workers.c.started_at, workers.c.id) < tuple_(me.c.started_at, me.c.id)
    async with database.unit() as unit:  # the primary: a replica may not know of them yet
        rows = await unit.execute(query.where(workers.c.state == "alive", older))
        return [Elder(row.id, row.host, row.pid, row.heartbeat_at) for row in rows]


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
    """The worker leaves in good order: whatever it still holds is held for others and costs no attempt.

    Returns: How many runs were handed back.
    """
    leave = update(workers).where(workers.c.id == worker, workers.c.state != "dead").values(state="stopped")
    is_cancelled = tasks.c.cancel_requested_at.is_not(None)
    cancelled = func.json_build_object("code", "task_cancelled", "message", "the task was cancelled")
    held = select(tasks.c.id).where(tasks.c.worker_id == worker, tasks.c.state == "running")
    hand_back = (
        update(tasks)
        .where(tasks.c.id.in_(held.order_by(tasks.c.id).with_for_update()))
        .values(
            state=case((is_cancelled, "cancelled"), else_="queued"),
            error=case((is_cancelled, cancelled), else_=None),
            finished_at=case((is_cancelled, func.now()), else_=None),
            worker_id=None, epoch=tasks.c.epoch + 1, attempt=tasks.c.attempt - 1, dispatch_at=func.now(),
            published_at=None,
        )
        .returning(tasks.c.id)
    )  # fmt: skip
    async with database.unit() as unit:
        await unit.execute(leave)
        return len((await unit.execute(hand_back)).all())


async def offer(
    database: Database, schemas: Mapping[str, dict[str, Any]], *, max_running: Mapping[str, int] | None = None
) -> None:
    """Publish the agents of this worker, so that producers can check inputs before they submit.

    Repeated now and then, it also brings back tasks that a worker without the agent has parked since.

    Args:
        max_running: What agents declared, by name; it becomes their limit unless an operator has set one.
    """
    if not schemas:
        return
    declared = max_running or {}
    rows = [
        {"name": name, "input_schema": schema, "max_running": declared.get(name)}
        for name, schema in sorted(schemas.items())
    ]
    made = insert(agents).values(rows)
    changed = made.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "input_schema": made.excluded.input_schema,
            "max_running": made.excluded.max_running,
            "updated_at": func.now(),
        },
    )
    async with database.unit() as unit:
        await unit.execute(changed)
        await adopt(unit, declared)


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
