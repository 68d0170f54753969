"""Who started a task, and who started that: the line from a child up to the task that a producer handed in."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from shared.db.database import Database

HIGHEST = 50
"""Generations that are looked at; a line of descent that goes on beyond is cut there."""
ABOVE = text("""
    WITH RECURSIVE above AS (
        SELECT p.id, p.agent, p.parent_id, 1 AS height
        FROM tasks t JOIN tasks p ON p.id = t.parent_id WHERE t.id = :id
        UNION ALL
        SELECT p.id, p.agent, p.parent_id, above.height + 1
        FROM above JOIN tasks p ON p.id = above.parent_id WHERE above.height < :highest
    )
    SELECT id, agent FROM above ORDER BY height""")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A task above another one."""

    id: UUID
    agent: str


async def ancestors(database: Database, task_id: UUID) -> tuple[Ancestor, ...]:
    """The tasks above this one, its parent first; those that retention has deleted are not there any more."""
    async with database.unit(mode="ro") as unit:
        rows = (await unit.execute(ABOVE, {"id": task_id, "highest": HIGHEST})).all()
    return tuple(Ancestor(row.id, row.agent) for row in rows)
