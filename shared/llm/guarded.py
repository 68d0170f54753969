"""The guarded chat port: deadline, ladder, retry, admission, breaker, timeouts, and then one request at a time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain

import structlog

from shared.errors import FleetError, LLMUnavailable
from shared.llm.asking import Ask
from shared.llm.call_context import CallContext
from shared.llm.messages import ChatReply, ChatRequest, Usage
from shared.llm.plane import LLMPlane
from shared.llm.port import Adapter
from shared.llm.prices import cost
from shared.llm.rules import purses, run_purse
from shared.llm.walk import Walk
from shared.resilience.deadline import within
from shared.resilience.spending import Budget
from shared.telemetry import llm_metrics as metrics

log = structlog.get_logger()

PIECES_AHEAD = 64
"""Pieces of a streamed answer that wait for a slow reader before the model is kept waiting as well."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was streamed so far is void: its model failed, and the answer starts again from its first word."""

    reason: str


class GuardedChat:
    """A `ChatPort` for one run; cheap, build one per run."""

    def __init__(self, plane: LLMPlane, context: CallContext) -> None:
        self._plane = plane
        self._context = context
        config, left_s = plane.config, self._left_s()
        own = purses(config, tenant=context.tenant, agent=context.agent, run=context.run, left_s=left_s)
        above = (run_purse(config, agent=one.agent, run=one.run, left_s=left_s) for one in context.forebears)
        self.budgets: tuple[Budget, ...] = (*own, *chain.from_iterable(above), *context.inherited)
        """What calls draw on."""

    @property
    def must_act(self) -> bool:
        """Whether words alone are no answer to this run's task."""
        asked = self._context.must_act
        return self._plane.config.policy(self._context.agent).must_act if asked is None else asked

    def sorry(self, reason: str) -> str:
        """What is said for a task that had to act, could not, and has changed nothing."""
        return self._plane.config.ladder.could_not_act.replace("{reason}", reason)

    def price(self, request: ChatRequest, usage: Usage) -> float | None:
        """What these tokens cost with the model that is asked first; None: it has no price."""
        price = self._plane.rungs(self._context.agent, model=request.model)[0].spec.price
        if price is None:
            return None
        return cost(price, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Ask, and say at which level of the ladder the answer was given and why.

        Raises:
            RetryLater: worth waiting for, but not in a worker's slot.
            LLMRefused: the request itself was refused; another model would not help.
            BadInput, PromptTooLong, BudgetSpent, DeadlineSpent: before anything is sent.
        """
        return await self.chat_by(request, ask=lambda adapter, bounded: adapter.chat(bounded))

    async def chat_by(self, request: ChatRequest, *, ask: Ask) -> ChatReply:
        """The same, with another way to ask an adapter."""
        began = self._plane.clock.monotonic()
        agent = self._context.agent
        try:
            with within(self._left_s()) as deadline:
                if deadline is not None:
                    deadline.check()
                walk = Walk(
                    self._plane, request, context=self._context, budgets=self.budgets, ask=ask, deadline=deadline
                )
                reply = await walk.answer()
        except FleetError as error:
            metrics.of(metrics.ENDED_WITHOUT, agent, error.code).inc()
            raise
        metrics.of(metrics.ANSWERS, agent, reply.level, reply.endpoint, walk.reason(reply)).inc()
        if reply.could_not_act:
            metrics.of(metrics.COULD_NOT_ACT, agent, "models").inc()
        metrics.of(metrics.ANSWER_SECONDS, agent).observe(self._plane.clock.monotonic() - began)
        if reply.level != "L0":
            log.info("llm.degraded", level=reply.level, endpoint=reply.endpoint, model=reply.model, why=reply.reasons)
        return reply

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | Restarted | ChatReply, None]:
        """The answer piece by piece, and last of all whole; a stream that breaks goes on down the ladder like any call.

        Iterate under `contextlib.aclosing`. Raises: what `chat` raises.
        """
        pieces = asyncio.Queue[str | Restarted](PIECES_AHEAD)
        answering = asyncio.create_task(self._stream_into(pieces, request))
        try:
            has_shown = False
            while not answering.done() or not pieces.empty():
                piece = await _next(pieces, answering)
                if piece is not None:
                    has_shown = isinstance(piece, str)
                    yield piece
            reply = await answering
            if not has_shown and reply.text:
                yield reply.text
            yield reply
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _stream_into(self, pieces: "asyncio.Queue[str | Restarted]", request: ChatRequest) -> ChatReply:
        shown = 0
        void: str | None = None

        async def put(piece: str) -> None:
            nonlocal shown, void
            if void is not None:
                await pieces.put(Restarted(void))
                shown, void = 0, None
            shown += 1
            await pieces.put(piece)

        async def ask(adapter: Adapter, bounded: ChatRequest) -> ChatReply:
            nonlocal void
            try:
                async with aclosing(adapter.stream(bounded)) as stream:
                    async for piece in stream:
                        if isinstance(piece, ChatReply):
                            return piece
                        await put(piece)
                raise LLMUnavailable(f"{adapter.endpoint} ended its stream without an answer", broken="no answer")
            except FleetError as error:
                void = error.message if shown else None
                raise

        reply = await self.chat_by(request, ask=ask)
        if void is not None:  # what was shown is not this answer: it came from the cache, or nobody gave it
            await pieces.put(Restarted(void))
        return reply

    def _left_s(self) -> float | None:
        at = self._context.deadline_at
        return None if at is None else (at - self._plane.clock.now()).total_seconds()


async def _next(
    pieces: "asyncio.Queue[str | Restarted]", answering: "asyncio.Task[ChatReply]"
) -> str | Restarted | None:
    """The next piece; None when there will be none."""
    if not pieces.empty():
        return pieces.get_nowait()
    getting = asyncio.ensure_future(pieces.get())
    await asyncio.wait({getting, answering}, return_when=asyncio.FIRST_COMPLETED)
    if getting.done():
        return getting.result()
    getting.cancel()
    await asyncio.gather(getting, return_exceptions=True)
    return None
