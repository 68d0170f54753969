"""One node's connections: how they are made, what they carry, and who holds them."""

import asyncio
import threading
import time
from collections import Counter
from os import getpid
from socket import gethostname
from typing import Any
from weakref import WeakSet

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.db.facts import NodeAddress
from shared.db.knobs import DbKnobs
from shared.db.link import Honest, Link
from shared.db.sessions import guard
from shared.errors import PoolExhausted

FAILURES = (DBAPIError, PoolTimeout, InvalidRequestError)
"""What may be the server's doing. Not OSError: the driver raises none, and the caller's own work inside a unit may."""


def process_name(role: str) -> str:
    """What a process calls itself to PostgreSQL, which keeps 63 characters: `fleet-worker@host:4711`."""
    return f"{role}@{gethostname()[:30]}:{getpid()}"


def connect_args(knobs: DbKnobs, *, application_name: str, is_direct: bool = False) -> dict[str, Any]:
    """libpq parameters that every connection of the fleet carries: a name, and a limit for each wait.

    Args:
        is_direct: Whether it leads past a pooler, if there is one.
    """
    parameters: dict[str, Any] = {
        "application_name": application_name,
        "connect_timeout": knobs.connect_timeout_s,
        "keepalives_idle": 20,
        "tcp_user_timeout": 20_000,
    }
    if knobs.pooler == "none" or is_direct:
        limits = {
            "statement_timeout": knobs.statement_timeout_s,
            "idle_in_transaction_session_timeout": knobs.idle_in_transaction_s,
        }
        parameters["options"] = " ".join(f"-c {name}={round(value * 1000)}" for name, value in limits.items())
        parameters["options"] += " -c jit=off"
    else:
        parameters["prepare_threshold"] = None
    return parameters


STATEMENTS_FAULT = ("27", "2F", "38", "39", "3B", "54", "55000", "HV")
"""Beginnings of states that the driver counts as operational, and that no waiting helps: triggers, functions and their
languages, savepoints, a program's limits, objects that are not ready, foreign data."""


def is_unavailable(error: BaseException) -> bool:
    """Whether the server or the way to it is gone, rather than the statement being wrong."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        state = getattr(error.orig, "sqlstate", None) or ""
        return isinstance(error, OperationalError | InterfaceError) and not state.startswith(STATEMENTS_FAULT)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | OSError | TimeoutError | PoolTimeout)


def first_line(error: BaseException) -> str:
    """What a person needs of a driver's error."""
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0]


Links = dict[Any, Honest]
"""Connections in use, by their place in a pool."""


def watch(engine: Engine, knobs: DbKnobs, *, writes: bool, links: Links) -> None:
    """A transaction is begun with little patience and used with as much as a statement may take; see `guard`."""
    statement_s = knobs.statement_timeout_s + knobs.answer_timeout_s

    def out(connection: Any, record: Any, _proxy: Any) -> None:
        link: Honest = record.driver_connection
        if not link.is_new:
            _begin(connection, link)
        link.is_new, link.hears_role = False, knobs.pooler == "none"
        if writes and link.hears_role and link.is_standby:
            raise InvalidatePoolError("the server is a standby")
        link.limit_s, link.is_committing = statement_s, False
        links[record] = link

    def back(connection: Any, record: Any) -> None:
        links.pop(record, None)
        if connection is not None:
            link: Honest = record.driver_connection
            link.limit_s, link.marks_end, link.end = knobs.answer_timeout_s, False, None
            link.is_unreplicated = False
            if link.is_left:
                record.invalidate()

    event.listen(engine.pool, "checkout", out)
    event.listen(engine.pool, "checkin", back)
    guard(engine, always=not writes)


def _begin(connection: Any, link: Honest) -> None:
    """Begin on a connection that has waited in a pool. Raises: InvalidatePoolError when its server is not there."""
    try:
        if isinstance(link, Link):
            connection.run_async(Link.begin)
        else:
            connection.begin()
    except psycopg.Error as error:
        if link.closed:
            raise InvalidatePoolError(first_line(error)) from error
        raise


class Pool:
    """Connections to one node that all write, or all cannot."""

    def __init__(
        self, node: NodeAddress, knobs: DbKnobs, *, application_name: str, writes: bool
    ) -> None:  # fmt: skip
        self.url: URL = make_url(node.url)
        self.direct_url: URL = make_url(node.direct_url or node.url)
        """Past the pooler."""
        self.size = node.pool_size
        self.overflow = round(node.pool_size * knobs.pool_overflow_ratio)
        self.knobs = knobs
        self.writes = writes
        self.links: Links = {}
        self.kept: WeakSet[Honest] = WeakSet()
        """Connections beside the pool that somebody keeps."""
        self._holders: dict[object, tuple[asyncio.Task[object] | str, float]] = {}
        parameters = connect_args(knobs, application_name=application_name)
        if not writes and knobs.pooler == "none":
            # After a promotion these connections would otherwise write: nobody tells them that their node has changed.
            parameters["options"] += " -c default_transaction_read_only=on"
        self.options: dict[str, Any] = {
            "pool_size": self.size,
            "max_overflow": self.overflow,
            "pool_timeout": knobs.pool_timeout_s,
            "pool_recycle": knobs.pool_recycle_s,
            "connect_args": parameters,
        }
        """What an engine to this node is made with."""
        creator = {"async_creator_fn": Link.open, "writes": writes, "limit_s": knobs.answer_timeout_s}
        self.engine: AsyncEngine = create_async_engine(
            self.url, **self.options | {"connect_args": {**parameters, **creator}}
        )
        watch(self.engine.sync_engine, knobs, writes=writes, links=self.links)

    def hold(self) -> object:
        """Note who uses, or waits for, a connection: said when there are no more. Give the answer to `let_go`."""
        holding = object()
        self._holders[holding] = (_who(), time.monotonic())
        return holding

    def let_go(self, holding: object) -> None:
        """The connection is back."""
        del self._holders[holding]

    @property
    def in_use(self) -> int:
        """Connections in use or asked for."""
        return len(self._holders)

    def exhausted(self) -> PoolExhausted:
        """The error of a pool that had no connection in time."""
        now = time.monotonic()
        holders = list(self._holders.values())
        names = Counter(one if isinstance(one, str) else one.get_name() for one, _ in holders)
        oldest_s = max((now - since for _, since in holders), default=0.0)
        who = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in names.most_common(5))
        return PoolExhausted(
            f"no connection to {self.url.host}:{self.url.port} within {self.knobs.pool_timeout_s:g} s: all"
            f" {self.size + self.overflow} of this process are in use, the oldest for {oldest_s:.1f} s; held or awaited"
            f" by {who}",
            retry_after_s=0.1,
        )

    def cut(self) -> None:
        """The node does not lead any more: end what is in use, now: in the loop's next turn somebody may commit."""
        for link in (*self.links.values(), *self.kept):
            link.cut()

    async def close(self) -> None:
        """Close every connection: idle ones now, those in use when they come back."""
        for link in self.links.values():
            link.is_left = True
        await self.engine.dispose()


def _who() -> asyncio.Task[object] | str:
    """The task at work; in a thread without a loop, the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or f"thread {threading.current_thread().name}"


def is_standby(error: BaseException) -> bool:
    """Whether a checkout ended because every connection leads to a standby."""
    return isinstance(error, InvalidRequestError | InvalidatePoolError)
