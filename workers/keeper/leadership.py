"""One keeper leads: whoever holds PostgreSQL's advisory lock, for as long as its connection lives."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from shared.db.database import Database

LOCK = 0x6B6565706572  # "keeper"


class Leadership:
    """The lock on one connection; the server gives it free when the connection ends."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self._connection = connection

    async def is_leader(self) -> bool:
        """Take the lock, or find that it is still held.

        Raises: psycopg.OperationalError when the connection is gone: another keeper may lead now.
        """
        cursor = await self._connection.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted)"
            " OR pg_try_advisory_lock(%s)",
            (LOCK,),
        )
        row = await cursor.fetchone()
        return bool(row and row[0])


@asynccontextmanager
async def candidacy(database: Database) -> AsyncIterator[Leadership]:
    """Stand for leader until the block ends."""
    connection = await database.direct()
    try:
        yield Leadership(connection)
    finally:
        await connection.close()
