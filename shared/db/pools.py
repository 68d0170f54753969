"""One node's connections: how they are made, what they carry, and who holds them."""

import asyncio
import time
from collections import Counter
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.db.knobs import DbKnobs
from shared.db.link import Link
from shared.db.sessions import guard
from shared.errors import PoolExhausted

UNAVAILABLE = (DBAPIError, OSError, TimeoutError, PoolTimeout)


def connect_args(knobs: DbKnobs, *, application_name: str) -> dict[str, Any]:
    """libpq parameters that every connection of the fleet carries: a name, and a limit for each wait."""
    parameters: dict[str, Any] = {
        "application_name": application_name,
        "connect_timeout": knobs.connect_timeout_s,
        "keepalives_idle": 20,
        "tcp_user_timeout": 20_000,
    }
    if knobs.pooler == "none":
        parameters["options"] = f"-c statement_timeout={round(knobs.statement_timeout_s * 1000)}"
    else:
        parameters["prepare_threshold"] = None
    return parameters


def is_unavailable(error: BaseException) -> bool:
    """Whether the server or the way to it is gone, rather than the statement being wrong."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return isinstance(error, OSError | TimeoutError | PoolTimeout)


def first_line(error: BaseException) -> str:
    """What a person needs of a driver's error."""
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0]


class Pool:
    """Connections to one node that all write, or all cannot."""

    def __init__(
        self, url: str, knobs: DbKnobs, *, application_name: str, writes: bool, pool_size: int | None = None
    ) -> None:  # fmt: skip
        self.url: URL = make_url(url)
        self.size = pool_size or knobs.pool_size
        self._knobs = knobs
        self._holders: dict[object, tuple[asyncio.Task[object] | None, float]] = {}
        parameters = connect_args(knobs, application_name=application_name)
        if not writes and knobs.pooler == "none":
            # After a promotion these connections would otherwise write: nobody tells them that their node has changed.
            parameters["options"] += " -c default_transaction_read_only=on"
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=self.size,
            max_overflow=self.size,
            pool_timeout=knobs.connect_timeout_s,
            pool_recycle=knobs.pool_recycle_s,
            pool_pre_ping=True,
            connect_args={**parameters, "async_creator_fn": Link.open, "writes": writes},
        )
        self._watch(writes=writes)
        guard(self.engine.sync_engine, always=not writes)

    def _watch(self, *, writes: bool) -> None:
        """A pooled connection is pinged with little patience, and used with as much as a statement may take."""
        statement_s = self._knobs.statement_timeout_s + self._knobs.answer_timeout_s

        def out(connection: Any, _record: Any, _proxy: Any) -> None:
            link: Link = connection.driver_connection
            if writes and self._knobs.pooler == "none" and link.is_standby:
                raise InvalidatePoolError("the server is a standby")
            link.limit_s, link.is_committing = statement_s, False

        def back(connection: Any, _record: Any) -> None:
            if connection is not None:
                link: Link = connection.driver_connection
                link.limit_s, link.marks_end, link.end = self._knobs.answer_timeout_s, False, None

        event.listen(self.engine.sync_engine.pool, "checkout", out)
        event.listen(self.engine.sync_engine.pool, "checkin", back)

    def hold(self) -> object:
        """Note who uses, or waits for, a connection: said when there are no more. Give the answer to `let_go`."""
        holding = object()
        self._holders[holding] = (asyncio.current_task(), time.monotonic())
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
        names = Counter(task.get_name() if task else "?" for task, _ in self._holders.values())
        oldest_s = max((now - since for _, since in self._holders.values()), default=0.0)
        who = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in names.most_common(5))
        return PoolExhausted(
            f"no connection to {self.url.host}:{self.url.port} within {self._knobs.connect_timeout_s} s: all"
            f" {2 * self.size} of this process are in use, the oldest for {oldest_s:.1f} s; held or awaited by {who}",
            retry_after_s=0.1,
        )

    async def close(self) -> None:
        """Close every connection: idle ones now, those in use when they come back."""
        await self.engine.dispose()


def is_standby(error: BaseException) -> bool:
    """Whether a checkout ended because every connection leads to a standby."""
    return isinstance(error, InvalidRequestError | InvalidatePoolError)
