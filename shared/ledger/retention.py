"""The end of finished tasks: after a while they are deleted, with their steps, results and signals."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text

from shared.ledger.terms import Units

OLD = text("""
    DELETE FROM tasks WHERE id IN (
        SELECT t.id FROM tasks t
        WHERE t.created_at >= :since AND t.created_at < now() - make_interval(secs => :keep_s)
          AND t.finished_at < now() - make_interval(secs => :keep_s)
          AND t.state IN ('succeeded', 'failed', 'cancelled')
          AND NOT EXISTS (SELECT FROM tasks p
                          WHERE p.id = t.parent_id AND p.state IN ('queued', 'running', 'waiting', 'parked'))
        ORDER BY t.created_at LIMIT :limit FOR UPDATE OF t SKIP LOCKED)
    RETURNING id, created_at""")
"""By `created_at`, which has an index: what is finished so long was created before. A child is kept for its parent."""
REMAINS = [text(f"DELETE FROM {table} WHERE task_id = ANY(:ids)") for table in ("steps", "blobs", "signals")]
WORKERS = text("""
    DELETE FROM workers w WHERE state IN ('stopped', 'dead') AND heartbeat_at < now() - make_interval(secs => :keep_s)
      AND NOT EXISTS (SELECT FROM tasks t WHERE t.worker_id = w.id AND t.state = 'running')""")
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Swept:
    """One batch: how many tasks went, and where the next one begins; None when there is no more."""

    tasks: int
    next_since: datetime | None


async def sweep(units: Units, *, keep_s: float, since: datetime | None, limit: int) -> Swept:
    """Delete one batch of tasks that finished more than `keep_s` ago, the oldest first.

    Args:
        since: Where the batch before ended; None: a new pass. Old tasks that still wait are so passed over once a
            pass, not once a batch.
    """
    values = {"keep_s": keep_s, "since": since or BEGINNING, "limit": limit}
    async with units.unit() as unit:
        rows = (await unit.execute(OLD, values)).all()
        ids = [row.id for row in rows]
        for statement in REMAINS if ids else ():
            await unit.execute(statement, {"ids": ids})
    is_more = len(rows) == limit
    return Swept(len(rows), max(row.created_at for row in rows) if is_more else None)


async def forget_workers(units: Units, *, keep_s: float) -> None:
    """Delete the rows of workers that left or died more than `keep_s` ago."""
    async with units.unit() as unit:
        await unit.execute(WORKERS, {"keep_s": keep_s})
