"""One engine per process and the unit of work: one node, one connection, one transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from shared.db.absence import is_absent
from shared.db.knobs import DbKnobs
from shared.errors import DatabaseUnavailable


def connect_args(knobs: DbKnobs, *, application_name: str) -> dict[str, Any]:
    """libpq parameters that every connection of the fleet carries: a name, and a limit for each wait."""
    return {
        "application_name": application_name,
        "connect_timeout": knobs.connect_timeout_s,
        "options": f"-c statement_timeout={round(knobs.statement_timeout_s * 1000)}",
        "keepalives_idle": 20,
        "tcp_user_timeout": 20_000,
    }


def is_unavailable(error: BaseException) -> bool:
    """Whether the server or the way to it is gone, rather than the statement being wrong."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return isinstance(error, OSError | TimeoutError | PoolTimeout)


class Database:
    """The process's door to PostgreSQL."""

    def __init__(self, knobs: DbKnobs, *, application_name: str = "fleet") -> None:
        self.knobs = knobs
        self.url: URL = make_url(knobs.url)
        self._connect_args = connect_args(knobs, application_name=application_name)
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=knobs.pool_size,
            max_overflow=knobs.pool_size,
            pool_timeout=knobs.connect_timeout_s,
            pool_pre_ping=True,
            connect_args=self._connect_args,
        )

    @asynccontextmanager
    async def unit(self, *, mode: Literal["rw", "ro"] = "rw") -> AsyncIterator[AsyncSession]:
        """A session on one connection; commits at the end of `rw`, rolls back on an exception.

        Args:
            mode: `rw`, or `ro` for a transaction that the server itself keeps read-only.

        Raises: DatabaseUnavailable when the server cannot be reached or drops the connection.
        """
        try:
            async with self.engine.connect() as connection:
                if mode == "ro":
                    await connection.execution_options(postgresql_readonly=True)
                async with AsyncSession(bind=connection, expire_on_commit=False) as session, session.begin():
                    yield session
        except (DBAPIError, OSError, TimeoutError, PoolTimeout) as error:
            if not is_unavailable(error):
                raise
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.url.host}:{self.url.port} does not answer: {_first_line(error)}"
            ) from error

    async def direct(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A driver connection of its own in autocommit, for a loop that keeps it: the caller closes it.

        Raises: psycopg.OperationalError when the server cannot be reached.
        """
        return await psycopg.AsyncConnection.connect(
            host=self.url.host,
            port=self.url.port,
            user=self.url.username,
            password=self.url.password,
            dbname=self.url.database,
            autocommit=True,
            **self._connect_args,
        )

    async def is_absent(self, *, within_s: float) -> bool:
        """Whether the server certainly serves nobody now, as opposed to being silent."""
        return await is_absent(self.url, within_s=within_s)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0]
