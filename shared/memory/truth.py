"""The truth of session memory: PostgreSQL, table `messages`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

from sqlalchemy import case, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.contracts import bucket_of
from shared.db.database import Database, is_unavailable
from shared.db.tables import messages, shard_buckets
from shared.errors import DatabaseUnavailable, ShardMoved
from shared.llm.messages import Message, Role
from shared.memory.ports import SEALED_TEXT, StoredMessage


class PostgresTruth:
    """`SessionTruth` on a database, or an engine, that somebody else opens and closes.

    Reads are causal: with a token in the trail of the work under way they may go to a replica that has reached it.
    """

    def __init__(self, where: Database | AsyncEngine) -> None:
        self._where = where

    async def append(
        self, tenant: str, session_id: str, numbered: Sequence[tuple[int, Message]], *, task_id: UUID | None
    ) -> tuple[StoredMessage, ...]:
        """One INSERT; rows whose (task_id, ordinal) exists are left as they are. See `SessionTruth.append`."""
        rows = [
            {
                "tenant": tenant,
                "session_id": session_id,
                "role": message.role,
                "content": message.content,
                "task_id": task_id,
                "ordinal": ordinal,
            }
            for ordinal, message in numbered
        ]
        statement = (
            insert(messages)
            .values(rows)
            .on_conflict_do_nothing(index_elements=["task_id", "ordinal"])
            .returning(messages.c.id, messages.c.role, messages.c.content)
        )
        async with _available(self._where) as connection:
            stored = [_stored(*row) for row in await connection.execute(statement)]
        return tuple(sorted(stored, key=lambda one: one.id))

    async def check_here(self, tenant: str, session_id: str) -> None:
        """One look by primary key, on a table that is empty until a bucket moves. See `SessionTruth.check_here`."""
        state = select(shard_buckets.c.state).where(shard_buckets.c.bucket == bucket_of(tenant, session_id))
        async with _available(self._where, reads_only=True) as connection:
            is_away = (await connection.execute(state)).scalar() in ("moved", "arriving")
        if is_away:
            raise ShardMoved(
                f"session {session_id!r} is on another shard than its task: the id of a task must be in the bucket of"
                " its session, as those are that FleetClient gives; submit it anew with FleetClient",
                session=session_id,
            )

    async def latest(self, tenant: str, session_id: str, *, limit: int, characters: int) -> tuple[StoredMessage, ...]:
        """One index scan. See `SessionTruth.latest`."""
        is_sealed = func.starts_with(messages.c.content, SEALED_TEXT)
        shown = case((is_sealed, messages.c.content), else_=func.left(messages.c.content, characters))
        statement = (
            select(messages.c.id, messages.c.role, shown)
            .where(messages.c.tenant == tenant, messages.c.session_id == session_id)
            .order_by(messages.c.id.desc())
            .limit(limit)
        )
        async with _available(self._where, reads_only=True) as connection:
            newest_first = [_stored(*row) for row in await connection.execute(statement)]
        return tuple(reversed(newest_first))


@asynccontextmanager
async def _available(where: Database | AsyncEngine, *, reads_only: bool = False) -> AsyncIterator[AsyncConnection]:
    if isinstance(where, Database):
        async with where.unit(mode="ro", consistency="causal") if reads_only else where.unit() as unit:
            yield await unit.connection()
        return
    try:
        async with where.begin() as connection:
            yield connection
    except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
        if not is_unavailable(error):
            raise
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {type(error).__name__}") from error


def _stored(identity: int, role: str, content: str) -> StoredMessage:
    return StoredMessage(identity, Message(cast(Role, role), content))
