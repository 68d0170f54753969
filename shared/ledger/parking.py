"""Tasks parked because no worker knew their agent go on when one does again."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from shared.errors import UnknownAgent
from shared.ledger.dispatch import Fresh
from shared.ledger.terms import Units

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


async def unpark(units: Units, agents: Sequence[str], *, limit: int = 1000) -> list[UUID]:
    """For a worker that offers these agents from now on: hold their parked tasks for whoever has a slot."""
    values = {"code": UnknownAgent.code, "agents": list(agents), "limit": limit}
    async with units.unit() as unit:
        return [row.id for row in await unit.execute(OFFERED, values)]


async def unpark_offered(units: Units, *, limit: int) -> list[Fresh]:
    """Tasks whose agent some worker has offered since they were parked are held for whoever has a slot.

    While workers without the agent are still there (a rolling deployment) a task may be parked again; it costs no
    attempt, and it comes back with the next offer.
    """
    async with units.unit() as unit:
        rows = await unit.execute(OFFERED_SINCE, {"code": UnknownAgent.code, "limit": limit})
        return [Fresh(row.id, row.tenant) for row in rows]
