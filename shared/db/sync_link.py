"""The driver's connection for threads without a loop, as honest as `link.Link`."""

import time
from typing import Any, Self, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine

from shared.db.link import Honest
from shared.db.pools import Pool, watch

RV = TypeVar("RV")


class SyncLink(Honest, psycopg.Connection[Any]):
    """A blocking connection that keeps a limit on each exchange with the server."""

    @classmethod
    def open(cls, *, limit_s: float | None = None, writes: bool = True, **parameters: Any) -> Self:
        """Connect as psycopg does, within `connect_timeout`."""
        opened_at = time.monotonic()
        link = cls.connect(**parameters)
        link.limit_s = link.rollback_s = limit_s
        link.writes, link.opened_at = writes, opened_at
        link.add_notice_handler(link._hear)
        if not writes:  # each transaction says so too: through a pooler nothing else does
            link.set_read_only(True)
        return link

    def begin(self) -> None:
        """See `_begin_gen`."""
        with self.lock:
            self.wait(self._begin_gen())

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See psycopg; a server that stays silent or steps down is given up."""
        limit_s = self.limit_s if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit_s)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self._give_up(limit_s)
        except psycopg.Error as error:
            self._judge(error)
            raise

    def rollback(self) -> None:
        """See psycopg; without a connection the server does it, and whatever led here is what a caller has to hear."""
        if self.closed or self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        limit_s, self.limit_s = self.limit_s, self.rollback_s
        try:
            super().rollback()
        except psycopg.OperationalError:
            if not self.closed:
                raise
        finally:
            self.limit_s = limit_s

    def commit(self) -> None:
        """Commit, and know afterwards whether the answer came; see `end`."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        self._begin_commit()
        try:
            if self._is_to_mark:
                with self.lock:
                    self._mark(self.wait(self._end_gen()))
            else:
                super().commit()
        except psycopg.Error as error:
            self._commit_failed(error)
            raise
        self.is_committing = False


def sync_engine(pool: Pool) -> Engine:
    """Blocking connections to the pool's node, with all that its own carry."""
    engine = create_engine(pool.url, **pool.options)

    def connect(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> SyncLink:
        return SyncLink.open(limit_s=pool.knobs.answer_timeout_s, writes=pool.writes, **parameters)

    event.listen(engine, "do_connect", connect)
    watch(engine, pool.knobs, writes=pool.writes, links=pool.links)
    return engine
