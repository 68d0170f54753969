"""The keeper's side of `max_running`: what runs, what waits, and the release of what may run next.

A child counts for its tenant, for its own agent and for the agent at the root of its tree. Operators' side is `caps`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import TaskMessage
from shared.db.tables import limits
from shared.ledger.dispatch import LINE, take_off_hold

Scope = Literal["tenant", "agent"]
PRIORITIES = ("interactive", "normal", "batch")

HOLD_BACK = text("""
    UPDATE tasks SET published_at = NULL, dispatch_at = published_at
    WHERE id IN (SELECT id FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL
                 AND :name IN (agent, root_agent) ORDER BY id FOR NO KEY UPDATE)""")
"""What was on the queue before the limit keeps its place in line; its message is taken for a duplicate."""
RECALL = text("""
    UPDATE tasks SET published_at = NULL, dispatch_at = published_at
    WHERE id IN (SELECT id FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL
                 AND CASE WHEN :scope = 'tenant' THEN tenant = :name ELSE :name IN (agent, root_agent) END
                 ORDER BY published_at DESC LIMIT :count FOR NO KEY UPDATE SKIP LOCKED)""")
OCCUPIED = text("""
    SELECT tenant, agent, root_agent, count(*) AS tasks FROM tasks
    WHERE state = 'running' OR (state = 'queued' AND published_at IS NOT NULL) GROUP BY tenant, agent, root_agent""")
"""Running and released in one look: a task that moves from the one to the other meanwhile is counted once."""
UNDER = "(q.tenant = ANY(:tenants) OR q.agent = ANY(:agents) OR q.root_agent = ANY(:agents))"
NOT_FULL = """q.tenant <> ALL(:full_tenants) AND q.agent <> ALL(:full_agents)
    AND coalesce(q.root_agent <> ALL(:full_agents), true)"""
HELD = "q.priority = line.priority AND q.tenant = line.tenant AND q.state = 'queued' AND q.published_at IS NULL"
NEXT = text(f"""
    WITH RECURSIVE {LINE} SELECT mine.* FROM line CROSS JOIN LATERAL (
        SELECT q.id, q.tenant, q.agent, q.root_agent, q.priority FROM tasks q
        WHERE {HELD} AND {UNDER} AND {NOT_FULL}
        ORDER BY q.dispatch_at LIMIT greatest(1, :limit / (SELECT count(*) FROM line))
    ) mine""")
ANY_HELD = text(f"""
    WITH RECURSIVE {LINE} SELECT EXISTS (
        SELECT FROM line CROSS JOIN LATERAL (SELECT q.id FROM tasks q WHERE {HELD} AND {UNDER} LIMIT 1) mine)""")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `max_running` tasks of one tenant, or of one agent, run at once."""

    scope: Scope
    name: str
    max_running: int


@dataclass(frozen=True, slots=True)
class Occupied:
    """How many tasks of one kind run or are released to run."""

    tenant: str
    agent: str
    root_agent: str | None
    tasks: int


@dataclass(frozen=True, slots=True)
class Held:
    """A task that waits for its release."""

    id: UUID
    tenant: str
    agent: str
    root_agent: str | None
    priority: str


async def adopt(unit: AsyncSession, declared: Mapping[str, int]) -> None:
    """Make limits of what agents' authors declared, by agent; one that exists is an operator's word and stays."""
    if not declared:
        return
    rows = [{"scope": "agent", "name": name, "max_running": count} for name, count in sorted(declared.items())]
    made = insert(limits).values(rows).on_conflict_do_nothing().returning(limits.c.name)
    for name in (await unit.execute(made)).scalars().all():
        await unit.execute(HOLD_BACK, {"name": name})


async def limits_now(unit: AsyncSession, *, locked: bool = False) -> list[Limit]:
    """Every limit.

    Args:
        locked: Whether none shall change before the unit ends: who counts by them must not miss a new one.
    """
    if locked:
        await unit.execute(text("LOCK TABLE limits IN SHARE MODE"))
    rows = await unit.execute(select(limits).order_by(limits.c.scope, limits.c.name))
    return [Limit(row.scope, row.name, row.max_running) for row in rows]


async def occupied(unit: AsyncSession) -> list[Occupied]:
    """What counts against limits at this moment."""
    return [Occupied(row.tenant, row.agent, row.root_agent, row.tasks) for row in await unit.execute(OCCUPIED)]


async def next_held(unit: AsyncSession, some: Collection[Limit], *, full: Collection[Limit], limit: int) -> list[Held]:
    """Held tasks under these limits and under no full one: the first of each tenant's line, urgent ones first."""
    values = {**_names(some), **{f"full_{key}": names for key, names in _names(full).items()}, "limit": limit}
    rows = (await unit.execute(NEXT, values)).all()
    found = [Held(row.id, row.tenant, row.agent, row.root_agent, row.priority) for row in rows]
    return sorted(found, key=lambda one: PRIORITIES.index(one.priority))


async def holds_any(unit: AsyncSession, some: Collection[Limit]) -> bool:
    """Whether any task waits under these limits."""
    return bool((await unit.execute(ANY_HELD, _names(some))).scalar_one())


async def release(unit: AsyncSession, task_ids: Sequence[UUID], *, again_after_s: float) -> list[TaskMessage]:
    """Let these run; the caller publishes them once this is committed."""
    return await take_off_hold(unit, task_ids, again_after_s=again_after_s, capped=True)


async def recall(unit: AsyncSession, limit: Limit, *, count: int) -> None:
    """Hold back tasks that were accepted in the moment in which the limit was set, the latest first."""
    values = {"scope": limit.scope, "name": limit.name, "count": count}
    await unit.execute(RECALL, values)


def _names(some: Collection[Limit]) -> dict[str, list[str]]:
    return {f"{scope}s": [one.name for one in some if one.scope == scope] for scope in ("tenant", "agent")}
