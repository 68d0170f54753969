"""Units of work for threads without an event loop: the loop's router decides, the thread's own connection works."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import psycopg
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.db import carriage
from shared.db.database import Database
from shared.db.decide import Wish
from shared.db.pools import FAILURES, Pool, is_standby, is_unavailable
from shared.db.router import Place
from shared.db.sessions import SyncReadSession, SyncWriteSession
from shared.db.sync_link import SyncLink, sync_engine
from shared.db.tokens import CausalToken, lsn_text
from shared.db.unit import (
    HAS_REACHED,
    TRIES,
    check_replicated,
    explain_failure,
    holds_for,
    note_end,
    refuse_other_shard,
    refuse_unless_covered,
)
from shared.errors import ReplicaStale

T = TypeVar("T")
Anyone = SyncWriteSession | SyncReadSession


class OnTheLoop(Protocol):
    """Runs a coroutine on the loop to which the database belongs, and waits for it."""

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or its exception."""


@dataclass(slots=True)
class _Open:
    door: object
    wish: Wish
    token: CausalToken | None
    session: Anyone
    worker: object


_open: ContextVar[_Open | None] = ContextVar("open_sync_unit", default=None)


class SyncUnits:
    """The units of work of one process's threads, on the nodes of a database that lives on a loop.

    Args:
        database: The database; asked for at the first unit, and again after `close`.
        on_the_loop: Where its coroutines run.
        shards: Whose units these are, when there are several shards.
    """

    def __init__(
        self, database: Callable[[], Database], *, on_the_loop: OnTheLoop, shards: object | None = None
    ) -> None:  # fmt: skip
        self.shards = shards
        self._find_database = database
        self._database: Database | None = None
        self._on_the_loop = on_the_loop
        self._engines: dict[Pool, Engine] = {}
        self._lock = threading.Lock()

    def unit(
        self, wish: Wish, token: CausalToken | str | None = None
    ) -> AbstractContextManager[Any]:  # a SyncWriteSession for mode="rw", else a SyncReadSession
        """A session on one connection to one node; see `Database.unit`.

        Inside another unit of the same thread, and of the same task where it has a loop, it is that unit.
        """
        given = carriage.read(token, source="unit") if isinstance(token, str) else token
        database = self._database
        if database is None:
            database = self._database = self._find_database()
        believed = database.believed(given)
        outer = _open.get()
        if outer is not None and outer.worker == _worker() and outer.door is not self:
            refuse_other_shard(outer.door, self)
        elif outer is not None and outer.worker == _worker():
            refuse_unless_covered(outer.wish, outer.token, wish, believed)
            return nullcontext(outer.session)
        return self._on(database, wish, believed)

    def close(self) -> None:
        """Close every connection: idle ones now, those in use when they come back."""
        with self._lock:
            engines, self._engines, self._database = list(self._engines.values()), {}, None
        for engine in engines:
            engine.dispose()

    @contextmanager
    def _on(self, database: Database, wish: Wish, token: CausalToken | None) -> Iterator[Anyone]:
        router = database.router
        pool, place, link = database.pool, None, None
        was, holding = _open.get(), None
        try:
            if router is None:
                holding = pool.hold()
                connection = self._engine(pool).connect()
            else:
                place, connection, holding = self._opened(database, wish, token)
                pool = place.pool
            with connection:
                link = _link(connection)
                link.marks_end = router is not None and wish.marks_end
                if wish.mode == "ro" and pool.writes:
                    connection.execution_options(postgresql_readonly=True)
                session = self._session_on(connection, wish, token)
                with session, session.begin():
                    yield session
                if router is not None and place is not None:
                    note_end(router, link, place)
                check_replicated(link)
        except FAILURES as error:
            explain_failure(error, pool, link, wish.mode)
        finally:
            _open.set(was)
            if holding is not None:
                pool.let_go(holding)
            if place is not None:
                self._release(database, place)

    def _session_on(self, connection: Connection, wish: Wish, token: CausalToken | None) -> Anyone:
        session: Anyone
        if wish.mode == "rw":
            session = SyncWriteSession(bind=connection, expire_on_commit=False)
        else:
            session = SyncReadSession(bind=connection, expire_on_commit=False, autoflush=False)
        _open.set(_Open(self, wish, token, session, _worker()))
        return session

    def _opened(
        self, database: Database, wish: Wish, token: CausalToken | None
    ) -> tuple[Place, Connection, object]:  # fmt: skip
        """A connection on a node that will do; as in `unit`, nothing was sent before it."""
        router = database.router
        assert router is not None
        for tried in range(1, TRIES + 1):
            place = self._on_the_loop(router.place(wish, token))
            connection, holding, failure = None, place.pool.hold(), None
            is_kept = False
            try:
                connection = self._engine(place.pool).connect()
                if not place.is_replica:
                    router.refuse_demoted(place.node)
                is_kept = _has_reached(connection, place, wish, token)
                if is_kept:
                    return place, connection, holding
            except PoolTimeout as error:
                raise place.pool.exhausted() from error
            except (*FAILURES, psycopg.Error) as error:
                failure = error
            finally:
                if not is_kept:
                    place.pool.let_go(holding)
                    self._release(database, place)
                    if connection is not None:
                        connection.close()
            if failure is not None and (tried == TRIES or not (is_unavailable(failure) or is_standby(failure))):
                explain_failure(failure, place.pool, None, wish.mode)
            self._on_the_loop(router.doubt(place.node))
        raise ReplicaStale("replicas that were known to be fresh enough have restarted and are not", retry_after_s=0.2)

    def _release(self, database: Database, place: Place) -> None:
        if place.takes_overflow and database.router is not None:  # nothing else is to be released

            async def release() -> None:
                assert database.router is not None
                database.router.release(place)

            self._on_the_loop(release())

    def _engine(self, pool: Pool) -> Engine:
        with self._lock:
            engine = self._engines.get(pool)
            if engine is None:
                engine = self._engines[pool] = sync_engine(pool)
            return engine


def _has_reached(connection: Connection, place: Place, wish: Wish, token: CausalToken | None) -> bool:
    link = _link(connection)
    if token is None or holds_for(link, place, wish, token):
        return True
    row = link.execute(HAS_REACHED, [lsn_text(token.lsn)]).fetchone()
    link.begin()  # anew: a repeatable read would keep the look's snapshot, which is older than its answer
    return bool(row and row[0])


def _link(connection: Connection) -> SyncLink:
    return cast(SyncLink, connection.connection.driver_connection)


def _worker() -> tuple[int, object]:
    """Whose unit it is: the thread's, or in a thread with a loop the task's."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task
