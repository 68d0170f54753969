"""One unit of work: one connection, one session, one transaction; how it begins, and what its end means."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.db import tokens
from shared.db.decide import Mode, Wish
from shared.db.link import Honest, Link
from shared.db.pools import FAILURES, Pool, first_line, is_standby, is_unavailable
from shared.db.router import Place, Router
from shared.db.sessions import ReadSession, WriteSession
from shared.db.tokens import CausalToken, lsn_of, lsn_text
from shared.errors import (
    CommitUnknown,
    CrossShard,
    DatabaseUnavailable,
    PrimaryLost,
    ReadOnlyUnit,
    ReplicaStale,
    ShardMoved,
)

Anyone = WriteSession | ReadSession
CONFLICT = "40001"
"""On a standby: replay was held up for too long and took back what this read saw."""
MOVED = "FS001"
"""From the trigger on `messages`: the session is on another shard now."""
HAS_REACHED = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
TRIES = 3
"""Nodes that are asked for a connection before a unit of work gives up; nothing has been sent by then."""


class Door(Protocol):
    """Whose unit of work it is."""

    @property
    def pool(self) -> Pool:
        """The only node's connections."""


@dataclass(slots=True)
class _Open:
    door: object
    wish: Wish
    token: CausalToken | None
    session: Anyone
    task: object


_open: ContextVar[_Open | None] = ContextVar("open_unit", default=None)


def outer_session(door: object, wish: Wish, token: Callable[[], CausalToken | None]) -> Anyone | None:
    """The session of the unit that is open around this one, in the same task, to be joined.

    Args:
        token: Finds what this one must see; only asked when there is an outer one.

    Raises: ReadOnlyUnit when this one asks for more than the outer one sees or may do.
    """
    outer = _open.get()
    if outer is None or outer.task is not asyncio.current_task():
        return None
    if outer.door is not door:
        refuse_other_shard(outer.door, door)
        return None
    refuse_unless_covered(outer.wish, outer.token, wish, token())
    return outer.session


def refuse_other_shard(outer: object, inner: object) -> None:
    """Raises: CrossShard when both are shards of one fleet: no transaction is over both."""
    shards = getattr(outer, "shards", None)
    if shards is not None and shards is getattr(inner, "shards", None):
        raise CrossShard(
            "a unit of work on one shard was opened inside one on another: give both keys of one session, or end the"
            " outer one first"
        )


def refuse_unless_covered(
    outer: Wish, outer_token: CausalToken | None, inner: Wish, inner_token: CausalToken | None
) -> None:
    """Raises: ReadOnlyUnit when the inner unit writes in a reading one, or must see what the outer one may not."""
    if inner.mode == "rw" and outer.mode == "ro":
        raise ReadOnlyUnit("a unit of work with mode='rw' was opened inside one with mode='ro': open the outer as 'rw'")
    if not outer.covers(outer_token, inner, inner_token):
        raise ReadOnlyUnit(
            f"a unit of work with {inner.words(inner_token)} was opened inside one with {outer.words(outer_token)},"
            " which may see less: ask for it in the outer one, or open it after that has ended"
        )


@asynccontextmanager
async def on_the_only_node(door: Door, wish: Wish, token: CausalToken | None) -> AsyncIterator[Anyone]:
    """A unit of work where there is one node: no look, no choice; the token binds nothing but units inside."""
    pool, mode = door.pool, wish.mode
    link: Link | None = None
    was, holding = _open.get(), pool.hold()
    try:
        async with pool.engine.connect() as connection:
            link = _link(connection)
            if mode == "ro":
                await connection.execution_options(postgresql_readonly=True)
            session = _session_on(connection, door, wish, token)
            async with session, session.begin():
                yield session
            check_replicated(link)
    except FAILURES as error:
        explain_failure(error, pool, link, mode)
    finally:
        _open.set(was)
        pool.let_go(holding)


@asynccontextmanager
async def on_a_chosen_node(
    door: object, router: Router, wish: Wish, given: CausalToken | None
) -> AsyncIterator[Anyone]:  # fmt: skip
    """A unit of work where there are several nodes; its end is noted in the trail of the work under way."""
    await router.ready()
    token = router.believed(given)
    was = _open.get()
    place, connection, holding = await _opened(router, wish, token)
    link = _link(connection)
    try:
        try:
            link.marks_end = wish.marks_end
            if wish.mode == "ro" and place.pool.writes:
                await connection.execution_options(postgresql_readonly=True)
            session = _session_on(connection, door, wish, token)
            async with session, session.begin():
                yield session
            note_end(router, link, place)
            check_replicated(link)
        finally:
            await _close(connection, link)
    except FAILURES as error:
        explain_failure(error, place.pool, link, wish.mode)
    finally:
        _open.set(was)
        place.pool.let_go(holding)
        router.release(place)


async def _close(connection: AsyncConnection, link: Link) -> None:
    """Back into the pool, even when cancelled."""
    if link.pgconn.transaction_status == TransactionStatus.IDLE:
        await connection.close()  # nothing to say to the server: this is not interrupted
    else:
        await asyncio.shield(asyncio.create_task(connection.close()))


def _session_on(connection: AsyncConnection, door: object, wish: Wish, token: CausalToken | None) -> Anyone:
    session: Anyone
    if wish.mode == "rw":
        session = WriteSession(bind=connection, expire_on_commit=False)
    else:
        session = ReadSession(bind=connection, expire_on_commit=False, autoflush=False)
    _open.set(_Open(door, wish, token, session, asyncio.current_task()))
    return session


def check_replicated(link: Honest) -> None:
    """Raises: CommitUnknown when the standbys that a commit had to wait for may not have it."""
    if link.is_unreplicated:
        raise CommitUnknown("committed on the primary, but a wait for its standbys was cancelled: they may not have it")


async def _opened(
    router: Router, wish: Wish, token: CausalToken | None
) -> tuple[Place, AsyncConnection, object]:  # fmt: skip
    """A connection on a node that will do. Nothing was sent before it: another node may be tried."""
    for tried in range(1, TRIES + 1):
        place = await router.place(wish, token)
        connection, holding, failure = place.pool.engine.connect(), place.pool.hold(), None
        is_kept = False
        try:
            await connection.start()
            if not place.is_replica:
                router.refuse_demoted(place.node)
            is_kept = await _has_reached(connection, place, wish, token)
            if is_kept:
                return place, connection, holding
        except PoolTimeout as error:
            raise place.pool.exhausted() from error
        except (*FAILURES, psycopg.Error) as error:
            failure = error
        finally:
            if not is_kept:
                place.pool.let_go(holding)
                router.release(place)
                if connection.sync_connection is not None:
                    await asyncio.shield(asyncio.create_task(connection.close()))
        if failure is not None and (tried == TRIES or not (is_unavailable(failure) or is_standby(failure))):
            explain_failure(failure, place.pool, None, wish.mode)
        await router.doubt(place.node)
    raise ReplicaStale("replicas that were known to be fresh enough have restarted and are not", retry_after_s=0.2)


def holds_for(link: Honest, place: Place, wish: Wish, token: CausalToken | None) -> bool:
    """Whether what is known of the node holds for this connection; else ask it with HAS_REACHED.

    A standby that restarts may serve reads before it has replayed what it had before: what was seen of it holds for
    connections that were there already when it was looked at, because a restart ends them all.
    """
    if wish.consistency != "causal" or token is None or not place.is_replica:
        return True
    is_ended_by_a_restart = place.pool.knobs.pooler == "none"
    return is_ended_by_a_restart and place.facts is not None and link.opened_at <= place.facts.seen_at


async def _has_reached(connection: AsyncConnection, place: Place, wish: Wish, token: CausalToken | None) -> bool:
    link = _link(connection)
    if token is None or holds_for(link, place, wish, token):
        return True
    row = await (await link.execute(HAS_REACHED, [lsn_text(token.lsn)])).fetchone()
    await link.begin()  # anew: a repeatable read would keep the look's snapshot, which is older than its answer
    return bool(row and row[0])


def note_end(router: Router, link: Honest, place: Place) -> None:
    """Note in the trail of the work under way where the unit on this connection ended."""
    end, system_id = link.end, router.cluster.system_id
    if end is None or system_id is None:
        return
    position, wal_file = end
    timeline = int(wal_file[:8], 16) if wal_file else place.timeline
    tokens.note(CausalToken(system_id, timeline, lsn_of(position), tokens.now_ms()))


def _link(connection: AsyncConnection) -> Link:
    return cast(Link, cast(Any, connection.sync_connection).connection.driver_connection)


def explain_failure(error: Exception, pool: Pool, link: Honest | None, mode: Mode) -> NoReturn:
    """Raise what the error means to a caller; the error itself when it is the statement's fault."""
    url = pool.url
    state = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    if isinstance(error, PoolTimeout):
        raise pool.exhausted() from error
    if mode == "ro" and _is_cause(error, psycopg.errors.ReadOnlySqlTransaction):
        raise ReadOnlyUnit(f"a read-only unit of work cannot write: {first_line(error)}") from error
    if state == MOVED:
        raise ShardMoved(first_line(error), retry_after_s=0.1) from error
    if mode == "ro" and state == CONFLICT:
        raise ReplicaStale(
            f"the replica took back what this read saw: {first_line(error)}", retry_after_s=0.0
        ) from error
    if is_standby(error) and link is None:
        raise PrimaryLost(f"PostgreSQL at {url.host}:{url.port} is a standby now", retry_after_s=0.2) from error
    if not is_unavailable(error):
        raise error
    if mode == "rw" and link is not None and link.is_committing:
        raise CommitUnknown(
            f"PostgreSQL at {url.host}:{url.port} was lost in COMMIT ({first_line(error)}): look whether it is there"
        ) from error
    if _is_cause(error, psycopg.errors.ReadOnlySqlTransaction):
        raise PrimaryLost(f"PostgreSQL at {url.host}:{url.port} takes no writes any more") from error
    if link is not None and link.is_demoted:
        raise PrimaryLost(f"PostgreSQL at {url.host}:{url.port} is not the primary any more", retry_after_s=0.0)
    raise DatabaseUnavailable(
        f"PostgreSQL at {url.host}:{url.port} does not answer: {first_line(error)}"
    ) from error  # fmt: skip


def _is_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind) or isinstance(getattr(error, "orig", None), kind):
            return True
        error = error.__cause__
    return False
