"""A producer's way into the ledger: accept a task durably, and tell the keeper when its message did not get out."""

import asyncio
from uuid import UUID

import structlog

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import DatabaseUnavailable
from shared.ledger.catalogue import Catalogue
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.rescue import put_back
from shared.ledger.rows import task_row

log = structlog.get_logger()

LEDGER_WAIT_S = 2.0
"""Seconds a submit waits for PostgreSQL before the broker alone accepts the task."""


class Intake:
    """A producer's way to the ledger. Belongs to one event loop; close it there."""

    def __init__(self, db: DbKnobs, ledger: LedgerKnobs) -> None:
        self.database = Database(db, application_name="fleet-client")
        self.commit = GroupCommit(self.database, ledger, worker=None, when_down="raise")
        self.catalogue = Catalogue(self.database)
        self._late: set[asyncio.Task[None]] = set()

    async def accept(self, message: TaskMessage, *, redispatch_s: float) -> None:
        """Store a task; a second time it changes nothing.

        Args:
            redispatch_s: Seconds until the keeper publishes it (again), should nobody have claimed it.

        Raises: DatabaseUnavailable when PostgreSQL is down or does not answer within LEDGER_WAIT_S.
        """
        row = task_row(message) | {"redispatch_s": redispatch_s}
        key = ("accept", message.id, None, 0)
        try:
            async with asyncio.timeout(LEDGER_WAIT_S):
                await self.commit.write("accept", key, row)
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {LEDGER_WAIT_S:g} s") from None

    def settle(self, task_id: UUID, error: BaseException | None) -> None:
        """A publish that ended after its submit had returned."""
        if error is not None:
            late = asyncio.ensure_future(self.mark_due(task_id, error))
            self._late.add(late)
            late.add_done_callback(self._late.discard)

    async def mark_due(self, task_id: UUID, error: BaseException) -> None:
        """Its publish failed: the keeper shall publish it at its next round."""
        log.warning("client.left_to_keeper", task_id=str(task_id), cause=str(error))
        try:
            await put_back(self.database, [task_id])
        except DatabaseUnavailable:
            log.warning("client.left_to_redispatch", task_id=str(task_id))

    async def close(self) -> None:
        """Write what waits, then close the connections."""
        await asyncio.gather(*self._late, return_exceptions=True)
        await self.commit.close()
        await self.database.close()
