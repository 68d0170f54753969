"""`max_running` per tenant and per agent: how many of their tasks may run at once.

Tasks that a limit covers are held in the ledger until the keeper, who counts, lets one go.
"""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from shared.contracts import FleetHeader, checked_agent_name
from shared.db.database import Database
from shared.errors import BadInput, WrongState

Scope = Literal["tenant", "agent"]
MOST = 2**31 - 1

SET = """
    INSERT INTO limits (scope, name, max_running) VALUES (:scope, :name, :max_running)
    ON CONFLICT (scope, name) DO UPDATE SET max_running = excluded.max_running, changed_at = now()"""
HOLD = """
    UPDATE tasks SET published_at = NULL, dispatch_at = published_at
    WHERE id IN (SELECT id FROM tasks WHERE state = 'queued' AND published_at IS NOT NULL
                 AND CASE WHEN :scope = 'tenant' THEN tenant = :name ELSE agent = :name OR root_agent = :name END
                 ORDER BY id FOR NO KEY UPDATE)"""
"""What was on the queue before the limit keeps its place in line; its message is taken for a duplicate."""
LIST = """
    SELECT l.scope, l.name, l.max_running,
           count(t.id) FILTER (WHERE t.state = 'running') AS running,
           count(t.id) FILTER (WHERE t.state = 'queued') AS queued
    FROM limits l LEFT JOIN tasks t ON t.state IN ('queued', 'running')
        AND CASE WHEN l.scope = 'tenant' THEN t.tenant = l.name ELSE l.name IN (t.agent, t.root_agent) END
    GROUP BY l.scope, l.name, l.max_running ORDER BY l.scope, l.name"""


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit, and how far it is used. `running` of an agent counts the children of its tasks too."""

    scope: Scope
    name: str
    max_running: int
    running: int = 0
    queued: int = 0


async def set_limit(database: Database, scope: Scope, name: str, max_running: int) -> None:
    """Set or change a limit; from now on no more than that many start. What runs already goes on.

    Args:
        max_running: 0 holds everything.

    Raises: BadInput.
    """
    _check(scope, name)
    if not 0 <= max_running <= MOST:
        raise BadInput(f"max_running must be from 0 to {MOST}, not {max_running}")
    values = {"scope": scope, "name": name}
    async with database.unit() as unit:
        await unit.execute(text(SET), {**values, "max_running": max_running})
        await unit.execute(text(HOLD), values)


async def unset_limit(database: Database, scope: Scope, name: str) -> None:
    """Remove a limit: what it held may run at once.

    Raises: WrongState when there is none.
    """
    _check(scope, name)
    statement = text("DELETE FROM limits WHERE scope = :scope AND name = :name RETURNING name")
    async with database.unit() as unit:
        if not (await unit.execute(statement, {"scope": scope, "name": name})).all():
            raise WrongState(f"{scope} {name!r} has no limit: see `fleet limits list`", scope=scope, name=name)


async def limits_now(database: Database) -> list[LimitView]:
    """Every limit with what runs and what is queued under it."""
    async with database.unit(mode="ro") as unit:
        return [LimitView(**row._mapping) for row in await unit.execute(text(LIST))]


def _check(scope: Scope, name: str) -> None:
    if scope == "agent":
        checked_agent_name(name)
    else:
        FleetHeader.checked(tenant=name)
