"""What a worker looks up about its own runs: which shall be cancelled, and which it holds without knowing it."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import text

from shared.db.database import Database
from shared.db.tokens import carrying
from shared.ledger.poll import Polled
from shared.ledger.rows import message_of
from shared.ledger.runs import Claim

CANCELLED = """
    SELECT id FROM tasks WHERE worker_id = :worker AND state = 'running' AND cancel_requested_at IS NOT NULL"""
OVERLOOKED = "SELECT * FROM tasks WHERE worker_id = :worker AND state = 'running' AND id <> ALL(:known)"


async def asked_to_cancel(database: Database, worker: UUID) -> list[UUID]:
    """The worker's running tasks that somebody wants cancelled."""
    async with database.unit(mode="ro") as unit:
        return list((await unit.execute(text(CANCELLED), {"worker": worker})).scalars())


async def overlooked(database: Database, worker: UUID, *, known: Collection[UUID]) -> list[Polled]:
    """Tasks that the ledger says this worker runs and that are not among the known ones.

    A poll whose answer was lost with its connection leaves such: they are its own to run. A claim whose answer is on
    its way looks the same, so only what is found twice counts.
    """
    with carrying(None) as trail:
        async with database.unit() as unit:  # not `ro`: only the end of a writing unit is a token for these runs
            rows = (await unit.execute(text(OVERLOOKED), {"worker": worker, "known": list(known)})).all()
    return [Polled(Claim(row.id, row.epoch, row.attempt, trail.token), message_of(row)) for row in rows]
