"""The driver's connection, made honest: no wait without a limit, no silent demotion, no COMMIT of unknown end."""

import time
from typing import Any, NoReturn, Self, TypeVar

import psycopg
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

RV = TypeVar("RV")

END_HERE = (
    b"COMMIT; SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,"
    b" CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END"
)
"""One round trip: the position is taken after the commit is on disk, never before it.

In one simple query a failed COMMIT ends the rest. Not `pg_current_wal_insert_lsn()`: on a quiet server nobody flushes
what it may cover, for many seconds; not `pg_control_checkpoint()`: it shows the old timeline after a promotion.
"""
GONE = frozenset({"57P01", "57P02", "57P03"})
"""The server ends the connection: shutdown, crash of another backend, starting or stopping."""
COMMITTED_HERE_ONLY = "01000"
"""A warning at COMMIT: a wait for standbys was cancelled; the commit stands on this server, perhaps nowhere else."""


class Link(psycopg.AsyncConnection[Any]):
    """An asynchronous connection that keeps a limit on each exchange with the server."""

    limit_s: float | None = None
    """Seconds after which a silent server is given up and the connection cut."""
    writes: bool = True
    """Whether a refusal to write means that this server has been demoted, and not that somebody reads only."""
    marks_end: bool = False
    """Whether a commit asks where in the log it ended; see `end`."""
    end: tuple[str, str | None] | None = None
    """(position, name of the log's file or None on a replica) right after the last commit that was to say so."""
    is_committing: bool = False
    """COMMIT was sent, and its answer is not here."""
    is_unreplicated: bool = False
    opened_at: float = 0.0
    """When it was asked for, on the monotonic clock."""

    @classmethod
    async def open(cls, *, limit_s: float | None = None, writes: bool = True, **parameters: Any) -> Self:
        """Connect as psycopg does, within `connect_timeout`."""
        opened_at = time.monotonic()
        link = await cls.connect(**parameters)
        link.limit_s, link.writes, link.opened_at = limit_s, writes, opened_at
        link.add_notice_handler(link._hear)
        return link

    @property
    def is_standby(self) -> bool:
        """Whether the server said with its last message that it is one: no round trip."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See psycopg; a server that stays silent or steps down is given up."""
        limit_s = self.limit_s if timeout is None else timeout
        try:
            return await super().wait(gen, interval, limit_s)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has been silent for {limit_s:g} s: connection cut") from None
        except psycopg.Error as error:
            self._judge(error)
            raise

    async def commit(self) -> None:
        """Commit, and know afterwards whether the answer came; see `end`."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        self.end, self.is_unreplicated, self.is_committing = None, False, True
        try:
            if not self.marks_end or self.pgconn.transaction_status != TransactionStatus.INTRANS:
                await super().commit()
            else:
                await self._commit_and_mark()
        except psycopg.Error as error:
            self.is_committing = self.pgconn.status != psycopg.pq.ConnStatus.OK or error.sqlstate in GONE
            raise
        self.is_committing = False

    async def _commit_and_mark(self) -> None:
        """As psycopg's own commit, with a second result; a cursor would cost a third of a short read."""
        async with self.lock:
            first, *more = await self.wait(self._end_gen())
        for result in (first, *more):
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding=self.info.encoding)
        # A transaction that had failed is rolled back, as with plain COMMIT: nothing has ended anywhere.
        position = more[0].get_value(0, 0) if more and first.command_status == b"COMMIT" else None
        if position is not None:
            wal_file = more[0].get_value(0, 1)
            self.end = (position.decode(), wal_file.decode() if wal_file else None)

    def _end_gen(self) -> PQGen[list[PGresult]]:
        self.pgconn.send_query(END_HERE)
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        return results

    def _judge(self, error: psycopg.Error) -> None:
        """Cut a connection of which nothing good can come: the pool then drops it and its elders."""
        if error.sqlstate in GONE:
            self.pgconn.finish()
        elif self.writes and isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and not self.read_only:
            self.pgconn.finish()
            self._demoted(error)

    @staticmethod
    def _demoted(error: psycopg.Error) -> NoReturn:
        raise psycopg.OperationalError(f"the server takes no writes (any more): {error}") from error

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if self.is_committing and notice.sqlstate == COMMITTED_HERE_ONLY:
            self.is_unreplicated = True
