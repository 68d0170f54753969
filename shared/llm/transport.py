"""Many small connection pools instead of one large: what keeps thousands of calls in flight cheap."""

from collections.abc import AsyncIterator

import httpx2

POOL_CONNECTIONS = 16
"""Connections per pool. A pool walks over all its connections whenever a request starts or ends. Measured with 1000
calls in flight: 3.7 ms of CPU a call in pools of 256, 2.2 in pools of 64, 1.7 in pools of 16 and no better below; in
a single pool the loop starves until connections time out."""


class PooledTransport(httpx2.AsyncBaseTransport):
    """Spreads requests over pools of `POOL_CONNECTIONS`, least busy first, and adds a pool when all are full."""

    def __init__(self, *, max_connections: int, keepalive_s: float, proxy_url: str | None = None) -> None:
        self._ssl_context = httpx2.create_ssl_context(trust_env=False)  # once: tens of milliseconds each
        self._limits = httpx2.Limits(
            max_connections=min(POOL_CONNECTIONS, max_connections),
            max_keepalive_connections=POOL_CONNECTIONS,
            keepalive_expiry=keepalive_s,
        )
        self._proxy_url = proxy_url
        self._max_pools = -(-max_connections // POOL_CONNECTIONS)
        self._pools: list[httpx2.AsyncHTTPTransport] = []
        self._in_flight: list[int] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send over the least busy pool; the place is taken until the response is closed."""
        index = self._least_busy()
        self._in_flight[index] += 1
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
