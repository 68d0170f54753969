"""Parents and children, where a process died between the end of one and the word to the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.ledger.dispatch import Fresh
from shared.ledger.statements import NO_CHILD_RUNS
from shared.ledger.terms import Units

AWAITS_CHILDREN = "t.state = 'waiting' AND t.waiting_for -> 'ids' IS NOT NULL"
TELL = text(f"""
    WITH mine AS MATERIALIZED (
        SELECT t.id FROM tasks t WHERE t.id = ANY(:ids) AND t.state IN ('running', 'waiting') ORDER BY t.id FOR UPDATE
    )
    UPDATE tasks t
    SET wakes = t.wakes + 1, published_at = NULL, dispatch_at = now(),
        state = CASE WHEN {AWAITS_CHILDREN} AND {NO_CHILD_RUNS} THEN 'queued' ELSE t.state END
    FROM mine WHERE t.id = mine.id
    RETURNING t.id, t.state""")
WAKE = text(f"""
    WITH done AS MATERIALIZED (
        SELECT t.id FROM tasks t WHERE {AWAITS_CHILDREN} AND {NO_CHILD_RUNS} LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t
    SET state = 'queued', wake_at = NULL, waiting_for = NULL, published_at = NULL, dispatch_at = now()
    FROM done WHERE t.id = done.id
    RETURNING t.id, t.tenant""")
HAS_LEFT = "(p.state = 'cancelled' OR (p.state = 'failed' AND NOT coalesce(c.started_at > p.finished_at, c.epoch > 0)))"
"""Whether a child `c` has lost its parent `p`. One that began anew after that had failed is an operator's replay."""
ORPHANS = f"""
    SELECT c.id FROM tasks c
    WHERE {{where}} AND c.parent_id IS NOT NULL AND c.cancel_requested_at IS NULL
      AND (SELECT {HAS_LEFT} FROM tasks p WHERE p.id = c.parent_id)
    LIMIT :limit FOR UPDATE OF c SKIP LOCKED"""
"""One index at a time, and each parent by its key: so the finished millions are not looked at."""
CANCELLED = """state = 'cancelled', epoch = t.epoch + 1, published_at = NULL, dispatch_at = NULL, wake_at = NULL,
    waiting_for = NULL, finished_at = now(),
    error = json_build_object('code', 'task_cancelled', 'message', 'cancelled with its parent')"""
FOLLOW = [
    text(f"""
    WITH orphans AS MATERIALIZED ({ORPHANS.format(where=where)})
    UPDATE tasks t SET {change} FROM orphans WHERE t.id = orphans.id
    RETURNING t.id, t.state""")
    for where, change in [
        ("c.state = 'queued' AND c.published_at IS NULL", CANCELLED),
        ("c.state = 'queued' AND c.published_at IS NOT NULL", CANCELLED),
        ("c.state = 'waiting'", CANCELLED),
        ("c.state = 'parked'", CANCELLED),
        ("c.state = 'running'", "cancel_requested_at = now()"),
    ]
]


@dataclass(frozen=True, slots=True)
class Orphan:
    """A child of a cancelled or failed parent: `cancelled` itself now, or `running` and told to stop."""

    id: UUID
    state: str


async def wake_parents(units: Units, parents: Sequence[UUID | None]) -> int:
    """Tell parents that a child of theirs has ended. Call it after that end is committed: two that end at once would
    otherwise each see the other running.

    Returns: How many go on now.
    """
    ids = sorted({one for one in parents if one is not None})
    if not ids:
        return 0
    async with units.unit() as unit:
        rows = (await unit.execute(TELL, {"ids": ids})).all()
    return sum(row.state == "queued" for row in rows)


async def wake_bereft(unit: AsyncSession, *, limit: int) -> list[Fresh]:
    """Parents that wait although all their children have ended: whoever should have told them died before."""
    return [Fresh(row.id, row.tenant) for row in await unit.execute(WAKE, {"limit": limit})]


async def cancel_orphans(units: Units, *, limit: int) -> list[Orphan]:
    """Children whose parent was cancelled while it spawned them, or failed without a worker to tell them, follow it."""
    async with units.unit() as unit:
        found = [row for one in FOLLOW for row in await unit.execute(one, {"limit": limit})]
    return [Orphan(row.id, row.state) for row in found]
