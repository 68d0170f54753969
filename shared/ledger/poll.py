"""Tasks straight from the ledger: those held for a fair turn, and those whose message an idle worker misses.

Claimed in batches, tenants in turn, rows that others look at left out, and only of agents that the worker has. This is
how a tenant with ten thousand tasks does not stand in the way of another, and how work goes on without the broker.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from shared.contracts import Priority, TaskMessage
from shared.db.database import Database
from shared.db.tokens import carrying
from shared.ledger.rows import MESSAGE_COLUMNS, message_of
from shared.ledger.runs import Claim

FENCE = "fence AS MATERIALIZED (SELECT id FROM workers WHERE id = :worker AND state = 'alive' FOR SHARE)"
CLAIM = f"""
    UPDATE tasks t
    SET state = 'running', worker_id = fence.id, started_at = coalesce(t.started_at, now()), epoch = t.epoch + 1,
        attempt = t.attempt + 1, wake_at = NULL, waiting_for = NULL, published_at = coalesce(t.published_at, now())
    FROM fence WHERE t.id = ANY(ARRAY(SELECT id FROM picked)) AND t.state = 'queued'
    RETURNING t.epoch, t.attempt, {MESSAGE_COLUMNS}"""
"""By an array of ids: a join with them is planned as a look at every task."""
HELD = f"""
    WITH RECURSIVE {FENCE}, line(tenant) AS (
        (SELECT tenant FROM tasks WHERE priority = :priority AND state = 'queued' AND published_at IS NULL
         ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT t.tenant FROM tasks t WHERE t.priority = :priority AND t.state = 'queued'
                AND t.published_at IS NULL AND t.tenant > line.tenant ORDER BY t.tenant LIMIT 1)
        FROM line WHERE line.tenant IS NOT NULL
    ), turns AS (
        SELECT tenant, count(*) OVER () AS tenants FROM line
        WHERE tenant IS NOT NULL AND NOT EXISTS (SELECT FROM limits l WHERE l.scope = 'tenant' AND l.name = tenant)
        ORDER BY md5(tenant || :turn)
    ), picked AS MATERIALIZED (
        SELECT mine.id FROM turns CROSS JOIN LATERAL (
            SELECT q.id FROM tasks q
            WHERE q.priority = :priority AND q.tenant = turns.tenant AND q.state = 'queued' AND q.published_at IS NULL
              AND q.dispatch_at <= now() AND q.agent = ANY(:agents)
              AND NOT EXISTS (SELECT FROM limits l WHERE l.scope = 'agent' AND l.name IN (q.agent, q.root_agent))
            ORDER BY q.dispatch_at LIMIT greatest(1, :slots / turns.tenants) FOR UPDATE SKIP LOCKED
        ) mine LIMIT :slots
    ) {CLAIM}"""
LOST = f"""
    WITH {FENCE}, picked AS MATERIALIZED (
        SELECT q.id FROM tasks q
        WHERE q.state = 'queued' AND q.published_at < now() - make_interval(secs => :lost_after_s)
          AND q.priority = :priority AND q.agent = ANY(:agents)
        ORDER BY q.published_at LIMIT :slots FOR UPDATE SKIP LOCKED
    ) {CLAIM}"""


@dataclass(frozen=True, slots=True)
class Polled:
    """A task that was claimed without a message."""

    claim: Claim
    message: TaskMessage


async def poll_held(
    database: Database, *, worker: UUID, agents: Sequence[str], priority: Priority, slots: int
) -> list[Polled]:
    """Claim tasks of these agents that are held in the ledger, tenants in turn, as many as there are slots."""
    values: dict[str, object] = {"worker": worker, "agents": list(agents), "priority": priority, "slots": slots}
    values["turn"] = str(random.random())
    return await _poll(database, HELD, values)


async def poll_lost(
    database: Database, *, worker: UUID, agents: Sequence[str], priority: Priority, slots: int, lost_after_s: float
) -> list[Polled]:
    """Claim tasks of these agents that were published `lost_after_s` ago and whose message nobody has got since."""
    values: dict[str, object] = {"worker": worker, "agents": list(agents), "priority": priority, "slots": slots}
    values["lost_after_s"] = lost_after_s
    return await _poll(database, LOST, values)


async def _poll(database: Database, statement: str, values: Mapping[str, object]) -> list[Polled]:
    with carrying(None) as trail:
        async with database.unit() as unit:
            rows = (await unit.execute(text(statement), values)).all()
    return [Polled(Claim(row.id, row.epoch, row.attempt, trail.token), message_of(row)) for row in rows]
