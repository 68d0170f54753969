"""Queued tasks and their messages: which lack one, which may have one, and the mark that one stands for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.ledger.rows import message_of
from shared.ledger.statements import CAPPED
from shared.ledger.terms import Units

log = structlog.get_logger()

BACKLOG = text("""
    SELECT count(*), count(*) FILTER (WHERE dispatch_at <= now())
    FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL""")
LOST = text("""
    WITH picked AS MATERIALIZED (
        SELECT id FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL AND dispatch_at <= now()
        ORDER BY dispatch_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t SET dispatch_at = now() + make_interval(secs => :again_after_s)
    FROM picked WHERE t.id = picked.id RETURNING t.*""")
LINE = """line(priority, tenant) AS (
        (SELECT priority, tenant FROM tasks WHERE state = 'queued' AND published_at IS NULL
         ORDER BY priority, tenant LIMIT 1)
        UNION ALL
        SELECT next.priority, next.tenant FROM line CROSS JOIN LATERAL (
            SELECT t.priority, t.tenant FROM tasks t WHERE t.state = 'queued' AND t.published_at IS NULL
              AND (t.priority, t.tenant) > (line.priority, line.tenant) ORDER BY t.priority, t.tenant LIMIT 1) next
    )"""
"""Who has held tasks, found by one look into the index for each, however many there are."""
HELD = text(f"""
    WITH RECURSIVE {LINE} SELECT mine.id FROM line CROSS JOIN LATERAL (
        SELECT x.id FROM tasks x
        WHERE x.priority = line.priority AND x.tenant = line.tenant AND x.state = 'queued' AND x.published_at IS NULL
          AND x.dispatch_at <= now() - make_interval(secs => :held_after_s) AND NOT {CAPPED}
        ORDER BY x.dispatch_at LIMIT greatest(1, :limit / (SELECT count(*) FROM line))
    ) mine
    WHERE NOT EXISTS (SELECT FROM limits l WHERE l.scope = 'tenant' AND l.name = line.tenant) LIMIT :limit""")
COUNTS = text("""
    SELECT 'published' AS state, count(*) AS tasks FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL
    UNION ALL SELECT 'held', count(*) FROM tasks WHERE state = 'queued' AND published_at IS NULL
    UNION ALL SELECT 'waiting', count(*) FROM tasks WHERE state = 'waiting'
    UNION ALL SELECT 'parked', count(*) FROM tasks WHERE state = 'parked'""")
"""Each over a partial index of its own."""
SLOTS = text("""
    SELECT count(*), coalesce(sum(slots), 0), (SELECT count(*) FROM tasks WHERE state = 'running')
    FROM workers WHERE state = 'alive'""")
STANDING = text("""
    SELECT d.tenant, (SELECT count(*) FROM (
        SELECT FROM tasks q WHERE q.tenant = d.tenant AND q.state = 'queued' AND q.published_at IS NOT NULL
        LIMIT :fair_window) s) AS published
    FROM unnest(CAST(:tenants AS text[])) AS d(tenant)""")
PUBLISHED = text(f"""
    UPDATE tasks x SET published_at = now(), dispatch_at = now() + make_interval(secs => :again_after_s)
    WHERE x.id = ANY(:ids) AND x.state = 'queued' AND x.published_at IS NULL AND (:capped OR NOT {CAPPED})
    RETURNING x.*""")


@dataclass(frozen=True, slots=True)
class Fresh:
    """A task that is queued since this moment, held in the ledger; `lag_s`: how long after its time that was."""

    id: UUID
    tenant: str
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Slots:
    """Workers that take tasks, the runs that they could hold at once, and how many run."""

    workers: int
    slots: int
    running: int


async def backlog(database: Database) -> tuple[int, int]:
    """How many queued tasks should have a message, and of how many it is overdue that a worker came for it."""
    async with database.unit(mode="ro") as unit:
        published, overdue = (await unit.execute(BACKLOG)).one()
    return published, overdue


async def backlog_counts(database: Database) -> dict[str, int]:
    """How many tasks are not running: `published`, `held` in the ledger, `waiting` and `parked`."""
    async with database.unit(mode="ro") as unit:
        return {row.state: row.tasks for row in await unit.execute(COUNTS)}


async def lost(units: Units, *, limit: int, again_after_s: float) -> list[TaskMessage]:
    """Published tasks that are overdue; each counts as published anew for `again_after_s`."""
    async with units.unit() as unit:
        return messages_of((await unit.execute(LOST, {"limit": limit, "again_after_s": again_after_s})).all())


async def overdue_held(database: Database, *, held_after_s: float, limit: int) -> list[UUID]:
    """Tasks that no limit holds and yet no worker has polled for `held_after_s`, tenants in turn."""
    async with database.unit(mode="ro") as unit:
        return [row.id for row in await unit.execute(HELD, {"held_after_s": held_after_s, "limit": limit})]


async def slots_now(database: Database) -> Slots:
    """How much room the living workers have."""
    async with database.unit(mode="ro") as unit:
        return Slots(*(await unit.execute(SLOTS)).one())


async def standing(unit: AsyncSession, tenants: Sequence[str], *, fair_window: int) -> dict[str, int]:
    """How many published tasks each tenant has, counted up to `fair_window`."""
    rows = await unit.execute(STANDING, {"tenants": list(tenants), "fair_window": fair_window})
    return {row.tenant: row.published for row in rows}


async def take_off_hold(
    unit: AsyncSession, task_ids: Sequence[UUID], *, again_after_s: float, capped: bool = False
) -> list[TaskMessage]:
    """Mark held tasks as published; the caller publishes them once this is committed.

    Args:
        again_after_s: Seconds until they are published again, should the caller die in between.
        capped: Whether also those under a limit, because the caller has counted.
    """
    if not task_ids:
        return []
    values = {"ids": sorted(task_ids), "again_after_s": again_after_s, "capped": capped}
    return messages_of((await unit.execute(PUBLISHED, values)).all())


def messages_of(rows: Sequence[Row[Any]]) -> list[TaskMessage]:
    """Their messages; a row that cannot be a message (written by hand) must not stand in the way of the others."""
    found = []
    for row in rows:
        try:
            found.append(message_of(row))
        except (ValidationError, KeyError, TypeError) as error:
            log.error("ledger.row_unreadable", task_id=str(row.id), cause=str(error))
    return found
