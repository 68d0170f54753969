"""One rung of the ladder: retry around admission around the breaker around one request to one model."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from shared.errors import FleetError, RetryLater, Throttled
from shared.llm.classify import Outcome, classify
from shared.llm.messages import ChatReply, ChatRequest, Usage
from shared.llm.plane import SEEN, LLMPlane, Rung
from shared.llm.port import Adapter
from shared.llm.prices import cost
from shared.llm.rules import lease_s, retry_knobs
from shared.resilience.deadline import current
from shared.resilience.exchange import LimitsSeen
from shared.resilience.gate import Permit
from shared.resilience.retry import Again, retried
from shared.resilience.spending import Budget
from shared.telemetry import llm_metrics as metrics

Ask = Callable[[Adapter, ChatRequest], Awaitable[ChatReply]]

SHORT_WAIT_S = 1.0
"""A full limit is waited for this long where another model is next."""
BILLED = ("timeout", "invalid_answer", "filtered", "clamped", "cancelled", "unknown")
"""Ends of a call after which the provider may have worked, and send the bill."""


class Asking:
    """Asks one model on behalf of one run."""

    def __init__(
        self, plane: LLMPlane, rung: Rung, *, tenant: str, budgets: Sequence[Budget], input_tokens: int, is_last: bool
    ) -> None:
        self._plane = plane
        self._rung = rung
        self._tenant = tenant
        self._budgets = budgets
        self._input_tokens = input_tokens
        self._is_last = is_last
        self._failed = 0

    async def reply(self, request: ChatRequest, *, ask: Ask) -> ChatReply:
        """Ask until there is an answer or trying again here is no use.

        Raises: the provider's error, RetryLater, BreakerOpen, Throttled, BudgetSpent, DeadlineSpent.
        """
        bounded = self._bounded(request)

        async def attempt(number: int) -> ChatReply:
            try:
                async with self._plane.gate.admitted(self._rung.key, **self._wishes(bounded, number)) as permit:
                    if permit.is_probe:
                        self._plane.note_away(self._rung)
                    return await self._request(permit, bounded, ask=ask)
            except Throttled as error:
                if not self._is_last and (error.retry_after_s or 0.0) > SHORT_WAIT_S:
                    raise RetryLater(error.message, retry_after_s=error.retry_after_s) from error
                raise

        return await retried(
            attempt,
            judge=self._judge,
            knobs=retry_knobs(self._rung.endpoint.retry, has_fallback=not self._is_last),
            what=self._rung.key,
            before_wait=self._count_wait,
        )

    def _wishes(self, request: ChatRequest, attempt: int) -> dict[str, Any]:
        """What the gate is to reserve: the prompt as counted here, and the longest answer that was asked for."""
        return {
            "tenant": self._tenant,
            "tokens_in": self._input_tokens,
            "tokens_out": request.max_tokens or 0,
            "cost": self._cost(self._input_tokens, request.max_tokens or 0),
            "budgets": self._budgets,
            "attempt": attempt,
            "lease_s": lease_s(self._rung.endpoint),
            "is_last": self._is_last,
        }

    def _bounded(self, request: ChatRequest) -> ChatRequest:
        """The request as this model gets it: under its own name, with an answer that fits its context."""
        spec = self._rung.spec
        max_tokens = request.max_tokens or spec.max_tokens
        if spec.context_tokens is not None:
            max_tokens = max(1, min(max_tokens, spec.context_tokens - self._input_tokens))
        wanted_s = self._rung.endpoint.timeouts.total_s
        timeout_s = wanted_s if request.timeout_s is None else min(wanted_s, request.timeout_s)
        return replace(request, model=self._rung.name, max_tokens=max_tokens, timeout_s=timeout_s)

    async def _request(self, permit: Permit, request: ChatRequest, *, ask: Ask) -> ChatReply:
        began = self._plane.clock.monotonic()
        token = SEEN.set([])
        try:
            reply = await ask(self._plane.adapter(self._rung), request)
        except (FleetError, asyncio.CancelledError) as error:
            outcome = classify(error, usual_s=self._plane.usual_s(self._rung))
            await self._settle_failure(permit, outcome, seconds=self._plane.clock.monotonic() - began)
            raise
        else:
            seconds = self._plane.clock.monotonic() - began
            return await self._settle_answer(permit, reply, seconds=seconds)
        finally:
            SEEN.reset(token)

    async def _settle_answer(self, permit: Permit, reply: ChatReply, *, seconds: float) -> ChatReply:
        money = self._book(reply.usage)
        self._count("ok", seconds=seconds)
        self._plane.note_answer(self._rung, seconds=seconds)
        await permit.settle(
            "ok", seconds=seconds, tokens_in=reply.usage.input_tokens, tokens_out=reply.usage.output_tokens,
            cost=money, limits_seen=_seen(),
        )  # fmt: skip
        return replace(reply, cost=money if self._rung.spec.price is not None else None)

    async def _settle_failure(self, permit: Permit, outcome: Outcome, *, seconds: float) -> None:
        usage = outcome.usage or Usage(self._input_tokens if outcome.kind in BILLED else 0, 0, estimated=True)
        money = self._book(usage)
        self._failed += 1
        self._count(outcome.kind, seconds=seconds)
        await permit.settle(
            outcome.learn, seconds=seconds, tokens_in=usage.input_tokens, tokens_out=usage.output_tokens, cost=money,
            retry_after_s=outcome.retry_after_s if outcome.kind == "rate_limited" else None,
            overloaded=outcome.slows, limits_seen=_seen(),
        )  # fmt: skip
        if outcome.next == "disable":
            await self._plane.take_out(self._rung, kind=outcome.kind, reason=outcome.reason)

    def _judge(self, error: BaseException) -> Again:
        outcome = classify(error, usual_s=self._plane.usual_s(self._rung))
        may_retry = outcome.retry_here and (outcome.retries_at_most is None or self._failed <= outcome.retries_at_most)
        if outcome.kind == "timeout" and not self._is_last:
            may_retry = False  # the next model answers sooner than this one times out again
        return Again(may_retry, outcome.retry_after_s, outcome.reason)

    def _count_wait(self, _attempt: int, wait_s: float, _error: BaseException) -> None:
        metrics.of(metrics.RETRIES, *self._rung.labels).inc()
        metrics.of(metrics.RETRY_WAIT_SECONDS, *self._rung.labels).inc(wait_s)

    def _count(self, kind: str, *, seconds: float) -> None:
        metrics.of(metrics.CALLS, *self._rung.labels, kind).inc()
        metrics.of(metrics.CALL_SECONDS, *self._rung.labels).observe(seconds)

    def _book(self, usage: Usage) -> float:
        money = self._cost(usage.input_tokens, usage.output_tokens)
        for direction, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            metrics.of(metrics.TOKENS, *self._rung.labels, direction, "estimated" if usage.estimated else "told").inc(
                tokens
            )
        metrics.of(metrics.COST, *self._rung.labels).inc(money)
        self._plane.book.note(self._rung.key, usage, money=money, now=self._plane.clock.now())
        return money

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        return cost(self._rung.spec.price, input_tokens=input_tokens, output_tokens=output_tokens)


def fits(rung: Rung, *, input_tokens: int) -> bool:
    """Whether a prompt leaves room for at least one token of an answer."""
    return rung.spec.context_tokens is None or input_tokens < rung.spec.context_tokens


def share_s(rungs_left: int) -> float | None:
    """Seconds for one model: an equal part of what is left, so that a slow one leaves time for those behind it."""
    deadline = current()
    return None if deadline is None else deadline.left_s() / max(1, rungs_left)


def _seen() -> LimitsSeen | None:
    notes = SEEN.get()
    return notes[-1] if notes else None
