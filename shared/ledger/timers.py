"""Time that has come: waiting tasks go on, and tasks whose deadline has passed end."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.database import Database
from shared.ledger.dispatch import Fresh
from shared.ledger.terms import Units

WAKE = text("""
    WITH due AS MATERIALIZED (
        SELECT id, wake_at FROM tasks WHERE state = 'waiting' AND wake_at <= now()
        ORDER BY wake_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t
    SET state = 'queued', wake_at = NULL, waiting_for = NULL, published_at = NULL, dispatch_at = now()
    FROM due WHERE t.id = due.id
    RETURNING t.id, t.tenant, CAST(extract(epoch FROM clock_timestamp() - due.wake_at) AS float8) AS lag_s""")
SPENT = """deadline_at <= now() AND state IN ('queued', 'running', 'waiting', 'parked')
          AND (state <> 'running' OR deadline_at <= now() - make_interval(secs => :grace_s))"""
ANY_DUE = text(f"""
    SELECT EXISTS (SELECT FROM tasks WHERE state = 'waiting' AND wake_at <= now()) AS is_due,
           EXISTS (SELECT FROM tasks WHERE {SPENT}) AS is_spent""")
SPEND = text(f"""
    WITH spent AS MATERIALIZED (
        SELECT id, state,
               CASE WHEN state = 'running' AND cancel_requested_at IS NOT NULL THEN 'cancelled' ELSE 'failed' END
               AS next_state
        FROM tasks WHERE {SPENT}
        ORDER BY deadline_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t
    SET state = spent.next_state, epoch = t.epoch + 1, worker_id = NULL, published_at = NULL, dispatch_at = NULL,
        wake_at = NULL, waiting_for = NULL, finished_at = now(),
        error = CASE spent.next_state
            WHEN 'cancelled' THEN json_build_object('code', 'task_cancelled', 'message', 'the task was cancelled')
            ELSE json_build_object('code', 'deadline_spent', 'message',
                concat('the deadline passed while the task was ', spent.state),
                'context', json_build_object('state', spent.state)) END
    FROM spent WHERE t.id = spent.id
    RETURNING t.id, t.parent_id, spent.state AS was""")


@dataclass(frozen=True, slots=True)
class Due:
    """Whether any task waits whose time has come, and whether any has no time left."""

    is_due: bool
    is_spent: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that the keeper ended; `was` is the state that it was in."""

    id: UUID
    parent_id: UUID | None
    was: str


async def any_due(database: Database, *, grace_s: float) -> Due:
    """A look that costs nothing, for those who look often."""
    async with database.unit(mode="ro") as unit:
        return Due(*(await unit.execute(ANY_DUE, {"grace_s": grace_s})).one())


async def wake_due(unit: AsyncSession, *, limit: int) -> list[Fresh]:
    """Waiting tasks whose time has come are held for whoever has a slot, the earliest first."""
    rows = await unit.execute(WAKE, {"limit": limit})
    return [Fresh(row.id, row.tenant, row.lag_s) for row in rows]


async def spend_deadlines(units: Units, *, grace_s: float, limit: int) -> list[Ended]:
    """End tasks whose deadline has passed.

    Args:
        grace_s: How much longer a running one has: its worker ends it itself, and knows more about it.
    """
    async with units.unit() as unit:
        rows = (await unit.execute(SPEND, {"grace_s": grace_s, "limit": limit})).all()
    return [Ended(row.id, row.parent_id, row.was) for row in rows]
