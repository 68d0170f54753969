"""Who leads: an advisory lock says it at once, an epoch in `terms` makes it safe.

The lock is the server's: it is free as soon as its holder's connection ends. The epoch is the fence: every unit of work
of a leader begins by holding its row of `terms`, and a successor cannot write that row before those units have ended.
So a leader that was frozen, and deposed meanwhile, finds its epoch gone and writes nothing.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.database import Database
from shared.errors import Fenced

HOLDS = text("SELECT role FROM terms WHERE role = :role AND epoch = :epoch FOR KEY SHARE")
"""Lets the leader renew its row beside its own units of work, and lets nobody take the row over before they end."""
LOCKED = """locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint = %(key)s >> 32
    AND objid::bigint = %(key)s & 4294967295
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
LOOK = f"""SELECT (SELECT min(pid) FROM pg_locks WHERE {LOCKED}), t.epoch, t.renewed_at, t.holder
    FROM (SELECT) one LEFT JOIN terms t ON t.role = %(role)s"""
TAKE = """INSERT INTO terms (role, epoch, holder, backend_pid) VALUES (%(role)s, 1, %(holder)s, pg_backend_pid())
    ON CONFLICT (role) DO UPDATE SET epoch = terms.epoch + 1, holder = excluded.holder,
        backend_pid = excluded.backend_pid, renewed_at = now()
    RETURNING epoch"""
CUT = """SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN terms t ON t.holder = a.application_name
    WHERE t.role = %(role)s AND t.holder <> %(holder)s AND a.pid <> pg_backend_pid()"""


class Units(Protocol):
    """Whatever opens units of work: the database itself, or a term, which fences each of them."""

    def unit(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session that commits at the end of the block."""


class Term:
    """One leader's time in office: its units of work fail once another one leads.

    Args:
        epoch: As `Candidate.stand` returned it.
    """

    def __init__(self, database: Database, *, role: str, epoch: int) -> None:
        self.database = database
        self.role = role
        self.epoch = epoch

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[AsyncSession]:
        """A unit of work that is this leader's.

        Raises: Fenced when another process leads by now: nothing was written. DatabaseUnavailable.
        """
        async with self.database.unit() as unit:
            if (await unit.execute(HOLDS, {"role": self.role, "epoch": self.epoch})).first() is None:
                raise Fenced(f"term {self.epoch} of the {self.role} is over: another process leads")
            yield unit


@dataclass(frozen=True, slots=True)
class Look:
    """The office as a standby sees it; two equal looks mean that the leader has not shown itself in between."""

    lock_pid: int | None
    epoch: int | None
    renewed_at: datetime | None
    holder: str | None


class Candidate:
    """One process that stands for a role, over a connection that it keeps.

    Args:
        holder: The application name of all this process's connections, no other's: a successor cuts them.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], *, role: str, holder: str
    ) -> None:  # fmt: skip
        self._connection = connection
        self._values = {"role": role, "holder": holder, "key": int.from_bytes(role.encode()[:7], "big")}

    async def stand(self) -> int | None:
        """Take the lock and begin a new term.

        What the predecessor left open is cut off: a frozen process would hold its row for ever.

        Returns: The epoch of the term; None while another process has the lock.
        Raises: psycopg.Error when the connection is gone.
        """
        row = await self._one("SELECT pg_try_advisory_lock(%(key)s)")
        if not row[0]:
            return None
        await self._connection.execute(CUT, self._values)
        async with self._connection.transaction():
            await self._connection.execute("SELECT role FROM terms WHERE role = %(role)s FOR UPDATE", self._values)
            return int((await self._one(TAKE))[0])

    async def renew(self, epoch: int) -> bool:
        """Show that this leader lives.

        Returns: False when another one leads.
        Raises: psycopg.Error when the connection, and the lock with it, is gone.
        """
        cursor = await self._connection.execute(
            "UPDATE terms SET renewed_at = now() WHERE role = %(role)s AND epoch = %(epoch)s",
            {**self._values, "epoch": epoch},
        )
        return cursor.rowcount == 1

    async def look(self) -> Look:
        """Who has the lock and when it was last heard of."""
        return Look(*await self._one(LOOK))

    async def depose(self, lock_pid: int) -> None:
        """Take the lock from a process that has stopped showing itself, by ending its connection."""
        await self._connection.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid = %(pid)s AND {LOCKED}",
            {**self._values, "pid": lock_pid},
        )

    async def _one(self, statement: str) -> tuple[Any, ...]:
        row = await (await self._connection.execute(statement, self._values)).fetchone()
        if row is None:
            raise psycopg.InterfaceError("the server answered with no row")
        return row


@asynccontextmanager
async def candidacy(database: Database, *, role: str, holder: str) -> AsyncIterator[Candidate]:
    """Stand for a role until the block ends; the lock ends with it.

    Raises: psycopg.OperationalError when the server cannot be reached.
    """
    connection = await database.direct()
    try:
        yield Candidate(connection, role=role, holder=holder)
    finally:
        await connection.close()
