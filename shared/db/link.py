"""The driver's connection, made honest: no wait without a limit, no silent demotion, no COMMIT of unknown end."""

import asyncio
import time
from contextlib import suppress
from os import dup
from socket import SHUT_RDWR, socket
from typing import Any, NoReturn, Self, TypeVar

import psycopg
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

RV = TypeVar("RV")

END_HERE = (
    b"COMMIT; SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    b" WHEN current_setting('synchronous_commit') = 'off' THEN pg_current_wal_insert_lsn()"
    b" ELSE pg_current_wal_flush_lsn() END,"
    b" CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END"
)
"""One round trip: the position is taken after the commit is on disk, never before it.

In one simple query a failed COMMIT ends the rest. Not `pg_current_wal_insert_lsn()`: on a quiet server nobody flushes
what it may cover, for many seconds (only with synchronous_commit = off, where a commit may not be flushed itself, by a
role's setting; within units it is refused); not `pg_control_checkpoint()`: it shows the old timeline after a promotion.
"""
END_ON_STANDBY = b"COMMIT; SELECT pg_last_wal_replay_lsn(), NULL"
"""The same for a server that is known to replay: half as much for it to read. What it answers is only a position while
it still does so when it has answered."""
GONE = frozenset({"57P01", "57P02", "57P03"})
"""The server ends the connection: shutdown, crash of another backend, starting or stopping."""
WAIT_FOR_STANDBYS = "syncrep.c"
"""Where the server warns that a commit's wait for standbys was cancelled: it stands on this server, perhaps nowhere
else. By the file, which no language changes: the warning's own code, 01000, is that of any RAISE WARNING."""
CANCEL_WITHIN_S = 0.5
"""Seconds for the server to take back what was cancelled, and to say so, before the connection is cut."""


class Honest(psycopg.BaseConnection[Any]):
    """What both kinds of connection remember, and conclude from what the server says."""

    limit_s: float | None = None
    """Seconds after which a silent server is given up and the connection cut."""
    rollback_s: float | None = None
    """As `limit_s`, for a ROLLBACK: it has nothing to compute, and whoever was cancelled waits for it."""
    writes: bool = True
    """Whether a refusal to write means that this server has been demoted, and not that somebody reads only."""
    marks_end: bool = False
    """Whether a commit asks where in the log it ended; see `end`."""
    end: tuple[str, str | None] | None = None
    """(position, name of the log's file or None on a replica) right after the last commit that was to say so."""
    is_committing: bool = False
    """COMMIT was sent, and its answer is not here."""
    is_unreplicated: bool = False
    """A wait for standbys was cancelled: what was committed may not be there."""
    is_demoted: bool = False
    """See `cut`."""
    opened_at: float = 0.0
    """When it was asked for, on the monotonic clock."""
    is_left: bool = False
    """Its pool was closed while somebody had it: it is closed when it comes back."""
    hears_role: bool = True
    """Whether `is_standby` is the server's own last word: a pooler repeats what it heard when it connected."""
    is_new: bool = True
    """No pool has given it to anybody yet: it need not be asked whether it is still there."""
    _is_blank: bool = False
    """Nothing was asked yet in the transaction that `_begin_gen` began."""
    _turns_read_only: bool = False
    """Its first statement is to be preceded by the word that it only reads."""

    @property
    def is_standby(self) -> bool:
        """Whether the server said with its last message that it is one: no round trip."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    def _begin_gen(self) -> PQGen[None]:
        """Begin a transaction before there is a statement for it; one under way ends as if it had never been.

        The answer says that the server is there: one round trip instead of two, a ping and a BEGIN. Until something is
        asked in it, the transaction has no snapshot and no locks, and may become one of another kind.
        """
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            yield from super()._start_query()
        else:
            yield from self._exec_command(b"ROLLBACK AND CHAIN")
        self._is_blank, self._turns_read_only = True, False

    def _start_query(self) -> PQGen[None]:
        """See psycopg; a statement is about to be sent."""
        turns_read_only = self._turns_read_only
        self._is_blank = self._turns_read_only = False
        yield from super()._start_query()
        if turns_read_only:
            yield from self._exec_command(b"SET TRANSACTION READ ONLY")

    def _check_intrans_gen(self, attribute: str) -> PQGen[None]:
        """See psycopg, which refuses to change what only the next transaction can be: one that is blank ends here."""
        if self._is_blank and self.pgconn.transaction_status == TransactionStatus.INTRANS:
            yield from self._exec_command(b"ROLLBACK")
            self._turns_read_only = False
        yield from super()._check_intrans_gen(attribute)

    def _set_read_only_gen(self, value: bool | None) -> PQGen[None]:
        """See psycopg; a blank transaction is told with its first statement, whose caller expects what may go wrong.

        None asks to write: standbys refuse that too.
        """
        is_later = bool(value) and self._is_blank and self.pgconn.transaction_status == TransactionStatus.INTRANS
        self._turns_read_only = is_later
        if is_later:
            self._read_only, self._begin_statement = True, b""
        else:
            yield from super()._set_read_only_gen(value or None)

    def _begin_commit(self) -> None:
        if self.is_demoted:  # or else it would be unknown whether it was committed
            raise psycopg.OperationalError("the server does not lead any more: nothing was committed")
        self.end, self.is_unreplicated, self.is_committing = None, False, True

    def _commit_failed(self, error: psycopg.Error) -> None:
        self.is_committing = self.pgconn.status != psycopg.pq.ConnStatus.OK or error.sqlstate in GONE

    @property
    def _is_to_mark(self) -> bool:
        return self.marks_end and self.pgconn.transaction_status == TransactionStatus.INTRANS

    def _end_gen(self) -> PQGen[list[PGresult]]:
        is_standby = self.hears_role and self.is_standby
        self.pgconn.send_query(END_ON_STANDBY if is_standby else END_HERE)
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        if is_standby and not self.is_standby:  # promoted: the position stands still since then, what is read does not
            self.pgconn.send_query(END_HERE.partition(b"; ")[2])
            results[1:] = yield from generators.execute(self.pgconn)
        return results

    def _mark(self, results: list[PGresult]) -> None:
        first, *more = results
        if first.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(first, encoding=self.info.encoding)
        # A transaction that had failed is rolled back, as with plain COMMIT: nothing has ended anywhere. And where only
        # the question has failed, the commit stands.
        is_told = first.command_status == b"COMMIT" and more and more[0].status == ExecStatus.TUPLES_OK
        position = more[0].get_value(0, 0) if is_told else None
        if position is not None:
            wal_file = more[0].get_value(0, 1)
            self.end = (position.decode(), wal_file.decode() if wal_file else None)

    def cut(self) -> None:
        """The server does not lead any more: whoever waits for it is told at once, in whatever thread."""
        self.is_demoted = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self.pgconn.status == ConnStatus.OK:
            with suppress(OSError), socket(fileno=dup(self.pgconn.socket)) as line:
                line.shutdown(SHUT_RDWR)

    def _give_up(self, limit_s: float | None) -> NoReturn:
        self.pgconn.finish()
        raise psycopg.OperationalError(f"the server has been silent for {limit_s:g} s: connection cut") from None

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

    def _committed_here_only(self) -> NoReturn:
        self.is_unreplicated = False
        raise psycopg.OperationalError("committed, but a wait for standbys was cancelled: they may not have it")

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.source_file == WAIT_FOR_STANDBYS:
            self.is_unreplicated = True


class Link(Honest, psycopg.AsyncConnection[Any]):
    """An asynchronous connection that keeps a limit on each exchange with the server."""

    _shears: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, *, limit_s: float | None = None, writes: bool = True, **parameters: Any) -> Self:
        """Connect as psycopg does, within `connect_timeout`."""
        opened_at = time.monotonic()
        link = await cls.connect(**parameters)
        link.limit_s = link.rollback_s = limit_s
        link.writes, link.opened_at = writes, opened_at
        link.add_notice_handler(link._hear)
        if not writes:  # each transaction says so too: through a pooler nothing else does
            await link.set_read_only(True)
        return link

    async def begin(self) -> None:
        """See `_begin_gen`."""
        async with self.lock:
            await self.wait(self._begin_gen())

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See psycopg; a server that stays silent or steps down is given up."""
        limit_s = self.limit_s if timeout is None else timeout
        try:
            result = await super().wait(gen, interval, limit_s)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self._give_up(limit_s)
        except psycopg.Error as error:
            self._judge(error)
            raise
        finally:
            if self._shears is not None:
                self._shears.cancel()
                self._shears = None
        if self.is_unreplicated and self._autocommit:
            self._committed_here_only()
        return result

    async def _try_cancel(self, *, timeout: float = CANCEL_WITHIN_S) -> None:
        """See psycopg, which would wait for ten seconds: cut the connection unless the server obeys soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_WITHIN_S):
                await super()._try_cancel(timeout=CANCEL_WITHIN_S)
        self._shears = asyncio.get_running_loop().call_later(CANCEL_WITHIN_S, self._hang_up)

    async def rollback(self) -> None:
        """See psycopg; without a connection the server does it, and whatever led here is what a caller has to hear."""
        if self.closed or self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        limit_s, self.limit_s = self.limit_s, self.rollback_s
        try:
            await super().rollback()
        except psycopg.OperationalError:
            if not self.closed:
                raise
        finally:
            self.limit_s = limit_s

    async def commit(self) -> None:
        """Commit, and know afterwards whether the answer came; see `end`."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        self._begin_commit()
        try:
            if self._is_to_mark:  # a cursor would cost a third of a short read
                async with self.lock:
                    self._mark(await self.wait(self._end_gen()))
            else:
                await super().commit()
        except psycopg.Error as error:
            self._commit_failed(error)
            raise
        self.is_committing = False
