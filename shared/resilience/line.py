"""One connection to Redis that many callers use at once: questions are written as they come, answers read in turn.

A pool lends a connection to one caller at a time and throws it away when that caller is cancelled; here a caller that
gives up leaves an answer that nobody reads. One question costs a third of what it costs through the pool.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as LineLost
from redis.exceptions import RedisError, ResponseError

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
        self._reader: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._is_closed = False

    async def ask(self, *packed: bytes) -> list[Reply]:
        """Send commands together and wait for their replies; errors of single commands are among them.

        Raises: RedisError or OSError when the connection cannot be made or is lost.
        """
        if self._is_closed:
            raise LineLost("closed")
        loop = asyncio.get_running_loop()
        connection = self._connection
        if connection is None or self._loop is not loop:
            connection = await self._connected(loop)
        futures = [loop.create_future() for _ in packed]
        self._waiting.extend(futures)
        try:
            # Without a health check this writes before it first suspends: replies come in the order of `_waiting`.
            await connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            self.drop(error)
        replies = [await future for future in futures]
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    def drop(self, error: Exception) -> None:
        """Give the connection up; all who wait get the error."""
        connection, self._connection = self._connection, None
        reader, self._reader = self._reader, None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(error)
        if reader is not None and not reader.get_loop().is_closed():
            reader.cancel()
        if connection is not None and self._loop and not self._loop.is_closed():
            _hang_up(connection)

    async def aclose(self) -> None:
        """Close the connection for good: who asks late, such as a settlement that nobody waits for, opens no other."""
        self._is_closed = True
        self.drop(LineLost("closed"))
        await asyncio.sleep(0)  # the transport says goodbye in the loop's next turn

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> AbstractConnection:
        if self._loop is not loop:
            self.drop(LineLost("the event loop was exchanged"))
            self._loop, self._connecting = loop, asyncio.Lock()
        assert self._connecting is not None
        async with self._connecting:
            if self._connection is None:
                connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
                await connection.connect()  # type: ignore[no-untyped-call]
                if self._is_closed:
                    _hang_up(connection)
                    raise LineLost("closed")
                self._connection = connection
                self._reader = loop.create_task(self._read(connection))
            return self._connection

    async def _read(self, connection: AbstractConnection) -> None:
        try:
            while True:
                reply: Reply
                try:
                    reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                except ResponseError as error:
                    reply = error
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (RedisError, OSError) as error:
            if self._connection is connection:
                self._reader = None
                self.drop(error)


def _hang_up(connection: AbstractConnection) -> None:
    """At once: public `disconnect` is a coroutine, and whoever drops a line may be no task."""
    if connection._writer is not None:
        connection._writer.transport.abort()
        connection._close()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def heard_within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that hears what has arrived before it gives up: a process that was busy for so long finds the
    answer and its timer due in one turn of the loop, and the server was not silent.

    Raises: TimeoutError.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer: asyncio.Handle

        def give_up(turns: int) -> None:
            nonlocal timer
            if turns:
                timer = loop.call_soon(give_up, turns - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds, give_up, TURNS)
        try:
            yield
        finally:
            timer.cancel()
