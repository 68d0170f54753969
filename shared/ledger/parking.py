"""Tasks whose agent nobody offers are put aside with that reason, and go on when a worker offers it again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from shared.db.database import Database
from shared.errors import UnknownAgent
from shared.ledger.dispatch import LINE, Fresh
from shared.ledger.terms import Units

HEADS = 100
"""Queued tasks that are looked at of each tenant and priority, the first in line: there ends what nobody takes."""
WANTING = text(f"""
    WITH RECURSIVE {LINE}, published(tenant) AS (
        (SELECT tenant FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT t.tenant FROM tasks t WHERE t.state = 'queued' AND t.published_at IS NOT NULL
                AND t.tenant > published.tenant ORDER BY t.tenant LIMIT 1)
        FROM published WHERE published.tenant IS NOT NULL
    ), heads AS (
        SELECT x.* FROM line CROSS JOIN LATERAL (
            SELECT id, agent FROM tasks WHERE state = 'queued' AND published_at IS NULL
              AND priority = line.priority AND tenant = line.tenant ORDER BY dispatch_at LIMIT {HEADS}) x
        UNION ALL SELECT x.* FROM published CROSS JOIN LATERAL (
            SELECT id, agent FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL
              AND tenant = published.tenant ORDER BY published_at LIMIT {HEADS}) x
    )
    SELECT agent, array_agg(id) AS ids, CAST(extract(epoch FROM now() - max(updated_at)) AS float8) AS silent_s
    FROM (SELECT h.id, h.agent, a.updated_at FROM heads h LEFT JOIN agents a ON a.name = h.agent
          WHERE a.name IS NULL OR a.updated_at <= now() - make_interval(secs => :after_s) LIMIT :limit) one
    GROUP BY agent ORDER BY agent""")
PARK = text("""
    WITH mine AS MATERIALIZED (
        SELECT t.id FROM tasks t WHERE t.id = ANY(:ids) AND t.state = 'queued' AND NOT EXISTS (
            SELECT FROM agents a WHERE a.name = t.agent AND a.updated_at > now() - make_interval(secs => :after_s))
        ORDER BY t.id FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t SET state = 'parked', error = CAST(:error AS json), published_at = NULL, dispatch_at = now()
    FROM mine WHERE t.id = mine.id RETURNING t.id""")
RETURN = """
    WITH back AS MATERIALIZED (
        SELECT t.id FROM tasks t JOIN agents a ON a.name = t.agent
        WHERE t.state = 'parked' AND t.error ->> 'code' = :code AND {condition}
        LIMIT :limit FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE tasks t SET state = 'queued', error = NULL, published_at = NULL, dispatch_at = now()
    FROM back WHERE t.id = back.id RETURNING t.id, t.tenant"""
OFFERED = text(RETURN.format(condition="t.agent = ANY(:agents)"))
OFFERED_SINCE = text(RETURN.format(condition="a.updated_at > t.dispatch_at"))
"""A parked task keeps in `dispatch_at` when it was parked."""


@dataclass(frozen=True, slots=True)
class Wanting:
    """Queued tasks whose agent no worker offers; `silent_s`: since the last one did, None when none ever has."""

    agent: str
    ids: tuple[UUID, ...]
    silent_s: float | None


async def wanting(database: Database, *, after_s: float, limit: int) -> list[Wanting]:
    """What is first in line and wants an agent that nobody has offered for `after_s`; workers offer now and then."""
    async with database.unit(mode="ro") as unit:
        rows = (await unit.execute(WANTING, {"after_s": after_s, "limit": limit})).all()
    return [Wanting(row.agent, tuple(row.ids), row.silent_s) for row in rows]


async def park(units: Units, one: Wanting, *, reason: str, after_s: float) -> int:
    """Put these tasks aside, unless they have begun or their agent is offered meanwhile. Returns: how many."""
    error = json.dumps(UnknownAgent(reason, agent=one.agent).as_dict())
    async with units.unit() as unit:
        rows = await unit.execute(PARK, {"ids": sorted(one.ids), "error": error, "after_s": after_s})
        return len(rows.all())


async def unpark(units: Units, agents: Sequence[str], *, limit: int = 1000) -> list[UUID]:
    """For a worker that offers these agents from now on: hold their parked tasks for whoever has a slot."""
    values = {"code": UnknownAgent.code, "agents": list(agents), "limit": limit}
    async with units.unit() as unit:
        return [row.id for row in await unit.execute(OFFERED, values)]


async def unpark_offered(units: Units, *, limit: int) -> list[Fresh]:
    """Tasks whose agent some worker has offered since they were parked are held for whoever has a slot."""
    async with units.unit() as unit:
        rows = await unit.execute(OFFERED_SINCE, {"code": UnknownAgent.code, "limit": limit})
        return [Fresh(row.id, row.tenant) for row in rows]
