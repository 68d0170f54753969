"""One endpoint over HTTP, whatever its dialect: bounded in time, strictly read, every failure named."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import httpx2

from shared.clock import Clock
from shared.errors import FleetError, LLMTimeout, LLMUnavailable
from shared.llm.answer import estimated_usage
from shared.llm.dialect import Dialect
from shared.llm.knobs import LLMKnobs
from shared.llm.limits_seen import limits_seen
from shared.llm.messages import ChatReply, ChatRequest, Json, Usage
from shared.llm.reading import Reader
from shared.llm.sse import EventReader
from shared.llm.timeouts import Limit, Pace, TotalLimit, total_limit
from shared.llm.transport import EndpointTransport, Turn
from shared.resilience import deadline
from shared.resilience.exchange import LimitsSeen

T = TypeVar("T")
Blocks = AsyncGenerator[bytes, None]
OnLimits = Callable[[LimitsSeen], None]

FINISH_GRACE_S = 2.0
"""Seconds that a stream gets after the reason it stopped, for its token counts and its goodbye. The answer is whole by
then: whatever happens in these seconds, it is kept."""

STREAM_TYPES = ("text/event-stream", "text/plain", "application/octet-stream")


class Send(Protocol):
    """The SDK, as the wire sees it: one request, any status is a response."""

    async def __call__(self, body: Json, *, stream: bool) -> httpx2.Response:
        """Raises: httpx2.HTTPError when there is no response."""


@dataclass(slots=True)
class Call:
    """One call under way."""

    request: ChatRequest
    model: str
    total: TotalLimit
    started_s: float
    turn: Turn | None = None
    tokens: int = 0
    written: int = 0

    @property
    def has_begun(self) -> bool:
        """Whether anything was done for it: until then it waits for a turn, or for a connection of this process."""
        return self.turn is not None and self.turn.has_begun

    @property
    def may_be_billed(self) -> bool:
        """Whether the endpoint has the request: it may be working, and counting."""
        return self.turn is not None and self.turn.is_sent


class WireChat:
    """An `Adapter`. Build one per process and endpoint (a client costs tens of milliseconds), close it at the end."""

    def __init__(
        self,
        knobs: LLMKnobs,
        *,
        endpoint: str,
        dialect: Dialect,
        send: Send,
        transport: EndpointTransport,
        close: Callable[[], Awaitable[None]],
        clock: Clock,
        on_limits: OnLimits | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._knobs = knobs
        self._dialect = dialect
        self._send = send
        self._transport = transport
        self._close = close
        self._clock = clock
        self._on_limits = on_limits
        self._reader = Reader(knobs, dialect=dialect, endpoint=endpoint, clock=clock)

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Ask once; see `ChatPort.chat`."""
        if self._knobs.stream_answers:
            return await _collected(self.stream(request))
        call = self._call(request)
        limit = Limit(asyncio.get_running_loop().time() + call.total.seconds, call.total.phase, call.total.seconds)
        try:
            response = await self._opened(limit, call, stream=False)
            return self._reader.reply(response, request=request, model=call.model, seconds=self._seconds(call))
        except FleetError as failure:
            self._book(failure, call)
            raise self._reader.without_key(failure) from None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        """Ask once, piece by piece; see `StreamPort.stream`."""
        now = asyncio.get_running_loop().time
        call = self._call(request)
        pace = Pace(self._knobs, started_s=now(), total=call.total)
        try:
            response = await self._opened(pace.limit(), call, stream=True)
            try:
                if _is_stream(response):
                    async with aclosing(self._pieces(response, call, pace)) as pieces:
                        async for piece in pieces:
                            held_s = now()
                            yield piece
                            pace.held(now() - held_s)
                else:  # the whole answer at once, an error or a page of HTML
                    await self._within(pace.limit(), self._read_whole(response))
                    reply = self._reader.reply(response, request=request, model=call.model, seconds=self._seconds(call))
                    if reply.text:
                        yield reply.text
                    yield reply
            finally:
                await response.aclose()
        except FleetError as failure:
            self._book(failure, call)
            raise self._reader.without_key(failure) from None

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
        await self._close()

    def _call(self, request: ChatRequest) -> Call:
        work = deadline.current()
        left_s = None if work is None else work.left_s()
        total = total_limit(self._knobs, wanted_s=request.timeout_s, left_s=left_s)
        return Call(request, request.model or self._knobs.model, total, self._clock.monotonic())

    async def _opened(self, limit: Limit, call: Call, *, stream: bool) -> httpx2.Response:
        """Open in time; a call that this process itself kept back until then says nothing about the endpoint."""
        try:
            return await self._within(limit, self._open(call, stream=stream))
        except LLMTimeout:
            if call.has_begun:
                raise
            raise self._too_late(replace(limit, phase="pool")) from None

    async def _open(self, call: Call, *, stream: bool) -> httpx2.Response:
        async with self._transport.starting() as call.turn:
            max_tokens = call.request.max_tokens or self._knobs.max_tokens
            body = self._dialect.body(call.request, model=call.model, max_tokens=max_tokens, stream=stream)
            try:
                response = await self._send(body, stream=stream)
                if not response.is_success:
                    await response.aread()
            except httpx2.HTTPError as error:
                raise self._transport_failure(error, call) from None
        if self._on_limits is not None and (seen := limits_seen(response.headers, now=self._clock.now())) is not None:
            self._on_limits(seen)
        if not response.is_success:
            raise self._reader.status_failure(response)
        return response

    async def _pieces(self, response: httpx2.Response, call: Call, pace: Pace) -> AsyncGenerator[str | ChatReply, None]:
        fold, events, now = self._dialect.fold(), EventReader(), asyncio.get_running_loop().time
        async with aclosing(response.aiter_bytes()) as blocks:
            while not fold.is_over:
                block = await self._block(blocks, call, pace, is_whole=fold.is_whole)
                for event in self._reader.events(events, block):
                    if event.data.startswith("[DONE]"):
                        fold.is_over = True
                        break
                    heard = self._reader.add(fold, event, headers=response.headers)
                    call.tokens += heard.tokens
                    broken = pace.heard(now(), tokens=heard.tokens) if heard.tokens else None
                    if broken is not None and not fold.is_whole:
                        raise self._too_late(broken)
                    if heard.text:
                        call.written += len(heard.text)
                        yield heard.text
                if block is None:
                    break
            else:
                await self._block(blocks, call, pace, is_whole=True)  # the last chunk: the connection can be used again
        reply = self._reader.end(
            fold, request=call.request, model=call.model, seconds=self._seconds(call), tokens=call.tokens
        )
        yield reply

    async def _block(self, blocks: Blocks, call: Call, pace: Pace, *, is_whole: bool) -> bytes | None:
        """The next bytes, None at the end; an answer that is whole ends when nothing more comes."""
        limit = pace.limit()
        if is_whole:
            grace_s = asyncio.get_running_loop().time() + FINISH_GRACE_S
            limit = min(limit, Limit(grace_s, "idle", FINISH_GRACE_S), key=lambda one: one.at_s)
        try:
            return await self._within(limit, anext(blocks, None))
        except httpx2.HTTPError as error:
            if is_whole:
                return None
            raise self._transport_failure(error, call) from None
        except LLMTimeout:
            if is_whole:
                return None
            raise

    async def _within(self, limit: Limit, result: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(limit.at_s):
                return await result
        except TimeoutError:
            raise self._too_late(limit) from None

    async def _read_whole(self, response: httpx2.Response) -> None:
        try:
            await response.aread()
        except httpx2.HTTPError as error:
            raise self._transport_failure(error, None) from None

    def _too_late(self, limit: Limit) -> LLMTimeout:
        return LLMTimeout(
            f"{self.endpoint} gave no complete answer within {limit.limit_s:g} s ({limit.phase})",
            endpoint=self.endpoint,
            phase=limit.phase,
            limit_s=limit.limit_s,
        )

    def _transport_failure(self, error: httpx2.HTTPError, call: Call | None) -> FleetError:
        cause = type(error).__name__
        if isinstance(error, httpx2.TimeoutException):
            phase = cause.removesuffix("Timeout").lower()
            return LLMTimeout(f"{self.endpoint} gave no complete answer ({phase})", endpoint=self.endpoint, phase=phase)
        facts: dict[str, Any] = {"endpoint": self.endpoint, "cause": cause}
        if isinstance(error, httpx2.DecodingError) or (call is not None and call.tokens):
            return LLMUnavailable(f"{self.endpoint} broke off its answer ({cause})", broken="cut", **facts)
        return LLMUnavailable(f"{self.endpoint} could not be reached or hung up ({cause})", **facts)

    def _seconds(self, call: Call) -> float:
        return round(self._clock.monotonic() - call.started_s, 6)

    def _book(self, failure: FleetError, call: Call) -> None:
        """Say what a failed call has cost, as far as anybody knows, and what its caller has already seen."""
        if call.written:
            failure.context["written"] = call.written
        is_late = isinstance(failure, LLMTimeout) and "status" not in failure.context
        if is_late and not call.may_be_billed:
            failure.context["usage"] = Usage(0, 0).to_json()
        if "usage" not in failure.context and (call.tokens or is_late):
            usage = replace(estimated_usage(call.request, written=""), output_tokens=call.tokens)
            failure.context["usage"] = usage.to_json()


async def _collected(stream: AsyncGenerator[str | ChatReply, None]) -> ChatReply:
    async with aclosing(stream):
        items = [item async for item in stream if isinstance(item, ChatReply)]
    return items[-1]  # a stream that ends without an error ends with the reply


def _is_stream(response: httpx2.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in STREAM_TYPES or not kind
