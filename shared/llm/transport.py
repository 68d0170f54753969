"""Many small connection pools instead of one large: what keeps thousands of calls in flight cheap."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import httpx2

POOL_CONNECTIONS = 16
"""Connections per pool. A pool walks over all its connections whenever a request starts or ends. Measured with 1000
calls in flight: 3.7 ms of CPU a call in pools of 256, 2.2 in pools of 64, 1.7 in pools of 16 and no better below; in
a single pool the loop starves until connections time out."""

STARTS_AT_ONCE = 32
"""Calls of a process that are being built, connected and sent at the same time. A burst of thousands would otherwise
keep the loop from its sockets until connections that were accepted long ago count as timed out."""

KEPT_HEADERS = ("host", "content-type", "content-length", "transfer-encoding", "accept-encoding")
"""What the HTTP client itself must say."""


class PooledTransport(httpx2.AsyncBaseTransport):
    """Spreads requests over pools of `POOL_CONNECTIONS`, least busy first, and adds a pool when all are full.

    Requests leave with `headers` and nothing else: the SDKs add what they know of the machine, and whatever the
    environment of the process tells them to (`OPENAI_CUSTOM_HEADERS`), to any endpoint.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        keepalive_s: float,
        stall_s: float,
        headers: Mapping[str, str],
        proxy_url: str | None = None,
    ) -> None:
        self._headers = headers
        self._ssl_context = httpx2.create_ssl_context(trust_env=False)  # once: tens of milliseconds each
        self._limits = httpx2.Limits(
            max_connections=min(POOL_CONNECTIONS, max_connections),
            max_keepalive_connections=POOL_CONNECTIONS,
            keepalive_expiry=keepalive_s,
        )
        self._proxy_url = proxy_url
        self._max_pools = -(-max_connections // POOL_CONNECTIONS)
        self._turns = _Turns(stall_s)
        self._pools: list[httpx2.AsyncHTTPTransport] = []
        self._in_flight: list[int] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send over the least busy pool; the place is taken until the response is closed."""
        index = self._least_busy()
        self._in_flight[index] += 1
        request.extensions = {**request.extensions, "trace": _end_turn_when_sent}
        request.headers = httpx2.Headers(
            {**{name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}, **self._headers}
        )
        try:
            response = await self._pools[index].handle_async_request(request)
        except BaseException:
            self._in_flight[index] -= 1
            raise
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)  # what an async transport returns, by its contract
        response.stream = _CountedStream(stream, in_flight=self._in_flight, index=index)
        return response

    async def aclose(self) -> None:
        """Close every pool."""
        for pool in self._pools:
            await pool.aclose()

    @asynccontextmanager
    async def starting(self) -> AsyncIterator["Turn"]:
        """Wait for a turn to start a request within this block; the turn ends when the request is sent."""
        turn = Turn(self._turns)
        await turn.take()
        token = _TURN.set(turn)
        try:
            yield turn
        finally:
            _TURN.reset(token)
            turn.end()

    def _least_busy(self) -> int:
        busy = min(self._in_flight, default=POOL_CONNECTIONS)
        if busy >= POOL_CONNECTIONS and len(self._pools) < self._max_pools:
            self._pools.append(
                httpx2.AsyncHTTPTransport(
                    verify=self._ssl_context, trust_env=False, limits=self._limits, proxy=self._proxy_url
                )
            )
            self._in_flight.append(0)
            return len(self._pools) - 1
        return self._in_flight.index(busy)


class _CountedStream(httpx2.AsyncByteStream):
    """A response body that gives its place back when it is closed, once."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, in_flight: list[int], index: int) -> None:
        self._stream = stream
        self._in_flight = in_flight
        self._index = index
        self._is_open = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        """Close the body and leave the pool."""
        if self._is_open:
            self._is_open = False
            self._in_flight[self._index] -= 1
        await self._stream.aclose()


class _Turns:
    """`STARTS_AT_ONCE` places; politeness, not a limit.

    Whoever has waited `stall_s` while no request at all was sent goes ahead: an endpoint that takes no connections
    delays the calls behind it by no more than that.
    """

    def __init__(self, stall_s: float) -> None:
        self.places = asyncio.Semaphore(STARTS_AT_ONCE)
        self.stall_s = stall_s
        self.sent_at = float("-inf")


class Turn:
    """One place, given back once; `is_sent` once the request has left."""

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns
        self._is_taken = False
        self.is_sent = False

    async def take(self) -> None:
        """Wait for the place."""
        now = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(self._turns.stall_s):
                    await self._turns.places.acquire()
            except TimeoutError:
                if now() - self._turns.sent_at >= self._turns.stall_s:
                    return
            else:
                self._is_taken = True
                return

    def sent(self) -> None:
        """The request has left: the next one may start."""
        self.is_sent = True
        self._turns.sent_at = asyncio.get_running_loop().time()
        self.end()

    def end(self) -> None:
        """Give the place back."""
        if self._is_taken:
            self._is_taken = False
            self._turns.places.release()


_TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)


async def _end_turn_when_sent(event: str, _facts: dict[str, Any]) -> None:
    """What httpcore tells before and after each thing it does; it runs within the call that it tells about."""
    if event == "http11.send_request_headers.complete" and (turn := _TURN.get()) is not None:
        turn.sent()
