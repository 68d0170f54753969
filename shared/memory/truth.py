"""The truth of session memory: PostgreSQL, table `messages`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.db.database import is_unavailable
from shared.db.tables import messages
from shared.errors import DatabaseUnavailable
from shared.llm.messages import Message, Role
from shared.memory.ports import StoredMessage


class PostgresTruth:
    """`SessionTruth` on an engine that somebody else opens and closes."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

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
        async with _available(self._engine) as connection:
            stored = [_stored(*row) for row in await connection.execute(statement)]
        return tuple(sorted(stored, key=lambda one: one.id))

    async def latest(self, tenant: str, session_id: str, *, limit: int, characters: int) -> tuple[StoredMessage, ...]:
        """One index scan. See `SessionTruth.latest`."""
        statement = (
            select(messages.c.id, messages.c.role, func.left(messages.c.content, characters))
            .where(messages.c.tenant == tenant, messages.c.session_id == session_id)
            .order_by(messages.c.id.desc())
            .limit(limit)
        )
        async with _available(self._engine) as connection:
            newest_first = [_stored(*row) for row in await connection.execute(statement)]
        return tuple(reversed(newest_first))


@asynccontextmanager
async def _available(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        async with engine.begin() as connection:
            yield connection
    except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
        if not (is_unavailable(error) or isinstance(error, PoolTimeout)):
            raise
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {type(error).__name__}") from error


def _stored(identity: int, role: str, content: str) -> StoredMessage:
    return StoredMessage(identity, Message(cast(Role, role), content))
