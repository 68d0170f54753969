"""The connections to one endpoint: aiohttp under the SDK's HTTP client, and turns for a burst of calls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from types import SimpleNamespace

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler

OnEnd = Callable[[ResponseHandler], Awaitable[None]]

STARTS_AT_ONCE = 32
"""Calls of a process that are being built, connected and sent at the same time. A burst of thousands would otherwise
keep the loop from its sockets until connections that were accepted long ago count as timed out."""

LISTEN_S = 0.1
"""Seconds for which the first stream of each transport is listened to after its end. A server that hangs up behind each
stream without having said so, as llama.cpp's does, has done it by then: on loopback within 2 ms."""

KEPT_HEADERS = ("content-type", "content-length", "transfer-encoding", "accept-encoding")
"""What the HTTP client itself must say."""


class EndpointTransport(httpx2.AsyncBaseTransport):
    """Sends requests over kept connections of one session of aiohttp; belongs to the loop of its first request.

    Why aiohttp below httpx2: with 1000 calls in flight through the SDK a call takes 1.9 ms of CPU and 32 kB, over
    httpcore's pools 3.1 ms and 34 kB as long as they are kept small; a large pool of httpcore's starves the loop.

    Requests leave with `headers` and nothing else: the SDKs add what they know of the machine, and whatever the
    environment of the process tells them to (`OPENAI_CUSTOM_HEADERS`), to any endpoint.

    Nothing is sent twice: whether an endpoint that hung up has begun to work cannot be known (RFC 9110, 9.2.2). So a
    request looks first whether the kept connections are still there, and whoever hangs up behind a stream without
    saying so is asked over a new connection each time from then on.
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
        self._headers = dict(headers)
        self._ssl_context = httpx2.create_ssl_context(trust_env=False)  # once: tens of milliseconds each
        self._max_connections = max_connections
        self._keepalive_s = keepalive_s
        self._proxy_url = proxy_url
        self._turns = _Turns(stall_s)
        self._session: aiohttp.ClientSession | None = None
        self._keeps_streams: bool | None = None  # not known before the first stream has ended

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; the connection is taken until the response is closed."""
        limits = request.extensions.get("timeout", {})
        kept = {name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}
        closes = {"connection": "close"} if self._keeps_streams is False else {}
        await _look_at_sockets()
        with _as_httpx():
            response = await self._opened().request(
                request.method,
                str(request.url),
                headers={**kept, **self._headers, **closes},
                data=await request.aread(),
                allow_redirects=False,  # a redirected POST turns into a GET or takes the key to another host
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=limits.get("pool"),
                    sock_connect=limits.get("connect"),
                    sock_read=limits.get("read"),
                ),
                proxy=self._proxy_url,
            )
        # None: the body has come with its headers, and the connection may be somebody else's by now.
        protocol = response.connection.protocol if response.connection is not None else None
        if closes and protocol is not None:
            protocol.force_close()  # whatever the endpoint says: who has announced the end sends nothing more
        body = _Body(response, protocol=protocol, on_end=self._listen)
        return httpx2.Response(response.status, headers=response.raw_headers, stream=body, request=request)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

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

    async def _listen(self, protocol: ResponseHandler) -> None:
        """Learn from its first stream whether the endpoint hangs up behind each."""
        if self._keeps_streams is not None:
            return
        if (closed := protocol.closed) is not None:  # None: it is closed already
            with suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(LISTEN_S):
                    await asyncio.shield(closed)
        self._keeps_streams = protocol.is_connected()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            watch = aiohttp.TraceConfig()
            watch.on_connection_create_start.append(_begin_turn)
            watch.on_connection_reuseconn.append(_begin_turn)
            watch.on_request_headers_sent.append(_end_turn)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._max_connections, keepalive_timeout=self._keepalive_s, ssl=self._ssl_context
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding"),
                trace_configs=[watch],
                trust_env=False,
            )
        return self._session


class _Body(httpx2.AsyncByteStream):
    """A response body; the connection is kept once it is read to its end, and cut when it is closed before."""

    def __init__(self, response: aiohttp.ClientResponse, *, protocol: ResponseHandler | None, on_end: OnEnd) -> None:
        self._response = response
        self._protocol = protocol
        self._on_end = on_end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for block in self._response.content.iter_any():
                yield block

    async def aclose(self) -> None:
        """Keep the connection or cut it."""
        if self._response.content.at_eof():
            self._response.release()
            if self._protocol is not None and _is_to_be_kept_stream(self._response):
                await self._on_end(self._protocol)
        else:
            self._response.close()


def _is_to_be_kept_stream(response: aiohttp.ClientResponse) -> bool:
    headers = response.headers
    return response.content_type == "text/event-stream" and headers.get("connection", "").lower() != "close"


async def _look_at_sockets() -> None:
    """Let the loop read what is there: aiohttp then drops the kept connections that were closed from the other side.

    Two turns: the first only asks the selector, and what it found runs in the second. Without them a call that follows
    close upon another is written into a connection whose end has long arrived.
    """
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@contextmanager
def _as_httpx() -> Iterator[None]:
    """aiohttp's errors as those that the SDKs know."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx2.ConnectTimeout(str(error)) from None
    except TimeoutError as error:
        raise httpx2.ReadTimeout(str(error)) from None
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error)) from None
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        raise httpx2.RemoteProtocolError(str(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise httpx2.ReadError(str(error)) from None


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
    """One place, given back once; `has_begun` once a connection is there or being made, `is_sent` once the request has
    left.
    """

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns
        self._is_taken = False
        self.has_begun = False
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


async def _begin_turn(_session: aiohttp.ClientSession, _context: SimpleNamespace, _facts: object) -> None:
    """aiohttp tells it within the call that it tells about."""
    if (turn := _TURN.get()) is not None:
        turn.has_begun = True


async def _end_turn(_session: aiohttp.ClientSession, _context: SimpleNamespace, _facts: object) -> None:
    if (turn := _TURN.get()) is not None:
        turn.sent()
