"""Agents that read tables of their own and their conversation, and say which node answered."""

from typing import Any

from sqlalchemy import text

from shared.db.database import Database
from shared.db.tokens import current
from shared.llm.messages import Message
from shared.settings import load
from workers.agents.agent import agent
from workers.agents.run import Run

LOOK = "SELECT (SELECT value FROM own WHERE key = :key), pg_is_in_recovery()"
_doors: list[Database] = []


@agent("causal.look")
async def look(run: Run, key: str, says: str | None = None) -> dict[str, Any]:
    """What a causal read of one's own table gives, and the conversation; adds to it when told to."""
    begun_at = str(current())
    seen = await run.step("look", read, key)
    heard = [turn.content for turn in await run.recall()]
    if says is not None:
        await run.remember(Message("user", says))
    return {**seen, "heard": heard, "begun_at": begun_at}


async def read(key: str) -> dict[str, Any]:
    """Wherever the router says."""
    if not _doors:
        _doors.append(Database(load().db, application_name="own"))
    async with _doors[0].unit(mode="ro", consistency="causal") as unit:
        value, is_replica = (await unit.execute(text(LOOK), {"key": key})).one()
    return {"value": value, "is_replica": is_replica}
