"""One connection to Redis that many callers use at once: questions are written as they come, answers read in turn.

A pool lends a connection to one caller at a time and throws it away when that caller is cancelled; here a caller that
gives up leaves an answer that nobody reads. redis-py connects, greets and logs in; then its transport is read here, as
bytes come: one question costs a fifth of what it costs through the pool.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as LineLost
from redis.exceptions import InvalidResponse, ResponseError

from shared.resilience.wire import replies_in

Reply = Any
"""Bytes, or a ResponseError."""
TURNS = 20
"""Of the event loop, enough for a new connection's greetings and an answer; an idle loop makes them in no time."""


class Line:
    """Connects at the first question, and again at the first one after the connection was lost.

    Args:
        client: Its pool says how to connect; the connection is the line's own.
    """

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._is_closed = False

    async def ask(self, *packed: bytes, within_s: float = 60.0) -> list[Reply]:
        """Send commands together and wait for their replies, one string each; errors of single ones are among them.

        Raises: RedisError or OSError when the connection cannot be made or is lost; TimeoutError after `within_s`, and
            then the connection is given up: whether the server hangs or packets are lost, the next one needs a new one.
        """
        if self._is_closed:
            raise LineLost("closed")
        loop = asyncio.get_running_loop()
        transport = self._transport
        if transport is None or self._loop is not loop:
            end_s = loop.time() + within_s
            async with heard_within(within_s):
                transport = await self._connected(loop)
            within_s = end_s - loop.time()
        futures = [loop.create_future() for _ in packed]
        self._waiting.extend(futures)
        transport.write(b"".join(packed))
        patience = Patience(loop, within_s, lambda: self.drop(TimeoutError(f"no answer within {within_s:g} s")))
        try:
            replies = [await future for future in futures]
        finally:
            patience.end()
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    def drop(self, error: Exception) -> None:
        """Give the connection up; all who wait get the error."""
        connection, self._connection, self._transport = self._connection, None, None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(error)
        if connection is not None and self._loop and not self._loop.is_closed():
            _hang_up(connection)

    async def aclose(self) -> None:
        """Close the connection for good: who asks late, such as a settlement that nobody waits for, opens no other."""
        self._is_closed = True
        self.drop(LineLost("closed"))
        await asyncio.sleep(0)  # the transport says goodbye in the loop's next turn

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> asyncio.Transport:
        if self._loop is not loop:
            self.drop(LineLost("the event loop was exchanged"))
            self._loop, self._connecting = loop, asyncio.Lock()
        assert self._connecting is not None
        async with self._connecting:
            if self._transport is not None:
                return self._transport
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()  # type: ignore[no-untyped-call]
            reader, writer = connection._reader, connection._writer
            if self._is_closed or reader is None or writer is None or reader.at_eof():
                _hang_up(connection)
                raise LineLost("closed")
            transport = cast(asyncio.Transport, writer.transport)
            transport.set_protocol(_Ear(self._heard, lambda error: self._lost(connection, error)))
            self._connection, self._transport = connection, transport
            return transport

    def _heard(self, reply: Reply) -> None:
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(reply)

    def _lost(self, connection: AbstractConnection, error: Exception) -> None:
        if self._connection is connection:
            self.drop(error)


class _Ear(asyncio.Protocol):
    """Cuts what comes into replies."""

    def __init__(self, heard: Callable[[Reply], None], lost: Callable[[Exception], None]) -> None:
        self._heard = heard
        self._lost = lost
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            replies, self._rest = replies_in(self._rest + data)
            for reply in replies:
                if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                    self._lost(reply)
                    return
                self._heard(reply)
        except (ValueError, IndexError):  # no reply that a script gives, or one that nobody waits for
            self._lost(InvalidResponse(f"Redis said {data[:40]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        self._lost(LineLost(f"the connection was lost ({error})"))


class Patience:
    """A timer that hears what has arrived before it gives up: a process that was busy for so long finds the answer and
    its timer due in one turn of the loop, and the server was not silent.
    """

    __slots__ = ("_give_up", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, give_up: Callable[[], None]) -> None:
        self._loop = loop
        self._give_up = give_up
        self._timer: asyncio.Handle = loop.call_later(seconds, self._turn, TURNS)

    def end(self) -> None:
        """The answer is there, or nobody waits for it."""
        self._timer.cancel()

    def _turn(self, left: int) -> None:
        if left:
            self._timer = self._loop.call_soon(self._turn, left - 1)
        else:
            self._give_up()


def _hang_up(connection: AbstractConnection) -> None:
    """At once: public `disconnect` is a coroutine, and whoever drops a line may be no task."""
    if connection._writer is not None:
        connection._writer.transport.abort()
        connection._close()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def heard_within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` with `Patience`.

    Raises: TimeoutError.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        patience = Patience(loop, seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            patience.end()
