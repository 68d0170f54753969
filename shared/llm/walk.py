"""One question's way down the ladder: each model of the chain in turn, then waiting, the cache, or static words."""

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import BreakerOpen, BudgetSpent, DeadlineSpent, FleetError, PromptTooLong, RetryLater, Throttled
from shared.llm.asking import Ask, Asking, fits, share_s
from shared.llm.call_context import CallContext
from shared.llm.classify import classify
from shared.llm.kept_answers import KeptAnswers
from shared.llm.ladder import Capabilities, Passed, decide, spread, worth_waiting
from shared.llm.messages import ChatReply, ChatRequest, Usage
from shared.llm.plane import LLMPlane, Rung
from shared.llm.prices import prompt_tokens
from shared.resilience.deadline import Deadline, within
from shared.resilience.spending import Budget
from shared.telemetry import llm_metrics as metrics

NOBODY = "static"
"""Model and endpoint of an answer that no model gave."""


class Walk:
    """Walks once."""

    def __init__(
        self, plane: LLMPlane, request: ChatRequest, *, context: CallContext, budgets: Sequence[Budget], ask: Ask,
        deadline: Deadline | None,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._request = request
        self._tenant = context.tenant
        self._budgets = budgets
        self._ask_by = ask
        self._deadline = deadline
        self._policy = plane.config.policy(context.agent)
        self._must_act = self._policy.must_act if context.must_act is None else context.must_act
        self._rungs = plane.rungs(context.agent, model=request.model)
        self._first = self._rungs[0]
        self._kept = KeptAnswers(plane, request, context=context, policy=self._policy, first=self._first)
        self._tokens = prompt_tokens(request)
        self._passed: list[Passed] = []

    async def answer(self) -> ChatReply:
        """Go down until there is an answer. See `GuardedChat.chat` for what it raises."""
        fresh = await self._kept.fresh()
        if fresh is not None:
            return fresh
        order, spared = self._plane.order(self._able())
        self._passed += spared
        with within(self._request.timeout_s):
            for position, rung in enumerate(order):
                try:
                    return self._given(rung, await self._ask(rung, rungs_left=len(order) - position))
                except FleetError as error:
                    passed = self._passed_over(rung, error, later=order[position + 1 :])
                self._passed.append(passed)
                metrics.of(metrics.PASSED, *rung.labels, passed.way).inc()
                if passed.way == "budget" and self._policy.when_budget_spent != "L1":
                    break
        return await self._below()

    def reason(self, reply: ChatReply) -> str:
        """Why this answer is not the first model's, in a word for metrics."""
        if reply.level == "L0":
            return "none" if reply.cached_at is None else "fresh"
        return self._passed[0].way if self._passed else "tools"

    def _able(self) -> list[Rung]:
        """The models that can take this request. Raises: PromptTooLong when none has room for the prompt."""
        roomy = [rung for rung in self._rungs if fits(rung, input_tokens=self._tokens)]
        if not roomy:
            widest = max(rung.spec.context_tokens or 0 for rung in self._rungs)
            raise PromptTooLong(
                f"the prompt has about {self._tokens} tokens, the widest model of its chain takes {widest}: shorten it",
                tokens=self._tokens, context_tokens=widest,
            )  # fmt: skip
        needs_tools = bool(self._request.tools) and self._must_act
        able = [rung for rung in roomy if rung.spec.tools or not needs_tools]
        for rung in self._rungs:
            if rung not in roomy:
                self._pass(rung, f"the prompt of about {self._tokens} tokens is too long for it")
            elif rung not in able:
                self._pass(rung, "it cannot call tools")
        return able

    def _pass(self, rung: Rung, why: str) -> None:
        self._passed.append(Passed(model=rung.model, way="unfit", reason=f"{rung.model}: {why}"))

    async def _ask(self, rung: Rung, *, rungs_left: int) -> ChatReply:
        offered = self._request if rung.spec.tools else replace(self._request, tools=())
        asking = Asking(
            self._plane, rung, tenant=self._tenant, budgets=self._budgets, input_tokens=prompt_tokens(offered),
            is_last=rungs_left == 1,
        )  # fmt: skip
        with within(share_s(rungs_left)):
            return await asking.reply(offered, ask=self._ask_by)

    def _passed_over(self, rung: Rung, error: FleetError, *, later: Sequence[Rung]) -> Passed:
        """Why the chain goes on from here. Raises: the error itself when another model would not help."""
        if self._deadline is not None and self._deadline.is_past:
            raise error
        if isinstance(error, BudgetSpent):
            if self._policy.when_budget_spent == "refuse":
                raise error
            metrics.of(metrics.REFUSED, *rung.labels, "budget").inc()
            return Passed(model=rung.model, way="budget", reason=f"{rung.model}: {error.message}")
        if isinstance(error, BreakerOpen):
            self._plane.note_away(rung)
            metrics.of(metrics.REFUSED, *rung.labels, "breaker").inc()
            return _down(rung, error.message, retry_after_s=error.retry_after_s)
        if isinstance(error, Throttled):
            metrics.of(metrics.REFUSED, *rung.labels, str(error.context.get("cause", "limit"))).inc()
            return _busy(rung, error.message, retry_after_s=error.retry_after_s)
        if isinstance(error, DeadlineSpent):
            return _down(rung, "its part of the time that the caller waits passed", retry_after_s=None)
        return self._judged(rung, error, later=later)

    def _judged(self, rung: Rung, error: FleetError, *, later: Sequence[Rung]) -> Passed:
        told = error.__cause__ if isinstance(error, RetryLater) and error.__cause__ is not None else error
        outcome = classify(told, usual_s=self._plane.usual_s(rung))
        wait_s = outcome.retry_after_s  # as it was told: what chance made of it decides nothing
        if wait_s is None and isinstance(error, RetryLater):
            wait_s = error.retry_after_s
        if outcome.kind == "context_too_long":
            if not any(_is_wider(one, rung) for one in later):
                raise error
            return Passed(model=rung.model, way="unfit", reason=f"{rung.model}: {outcome.reason}")
        if outcome.next == "stop" and outcome.kind not in ("timeout", "clamped", "local"):
            raise error
        is_paced = outcome.kind == "overloaded" and outcome.retry_after_s is not None  # it is up, and said when
        if is_paced or outcome.kind in ("rate_limited", "local"):
            return _busy(rung, outcome.reason, retry_after_s=wait_s)
        return _down(rung, outcome.reason, retry_after_s=wait_s)

    def _given(self, rung: Rung, reply: ChatReply) -> ChatReply:
        """A model's answer with its level."""
        is_first = rung.model == self._first.model
        why = [] if is_first else [one.reason for one in self._passed]
        has_tools = rung.spec.tools or not self._request.tools
        if not has_tools:
            why.append(f"{rung.model} cannot call tools")
        decision = decide(Capabilities(llm="first" if is_first else "backup", tools=has_tools), reasons=why)
        reply = replace(reply, level=decision.level, reasons=decision.reasons)
        self._kept.keep(reply)
        return reply

    async def _below(self) -> ChatReply:
        """No model answered: wait, or go on down. Raises: RetryLater."""
        left_s = None if self._deadline is None else self._deadline.left_s()
        wait = worth_waiting(
            self._passed, when_down=self._policy.when_down, patience_s=self._policy.patience_s, left_s=left_s,
            usual_wait_s=self._first.endpoint.breaker.recovery_timeout_s,
        )  # fmt: skip
        if wait is not None:
            wait_s = spread(wait.retry_after_s, left_s=left_s, draw=self._plane.draw)
            raise RetryLater(wait.reason, retry_after_s=wait_s)
        is_spent = any(one.way == "budget" for one in self._passed)
        may_look = not self._must_act and not (is_spent and self._policy.when_budget_spent == "L4")
        kept = await self._kept.stale() if may_look else None
        decision = decide(
            Capabilities(llm="none", cache=kept is not None),
            must_act=self._must_act,
            reasons=[one.reason for one in self._passed],
        )
        if kept is not None:
            return kept.reply(now=self._plane.clock.now(), level=decision.level, reasons=decision.reasons)
        ladder = self._plane.config.ladder
        if decision.action == "say_could_not_act":
            why = self._passed[-1].reason if self._passed else decision.reasons[-1]
            return static(ladder.could_not_act.replace("{reason}", why), reasons=decision.reasons, could_not_act=True)
        return static(self._policy.static_answer or ladder.static_answer, reasons=decision.reasons)


def static(words: str, *, reasons: tuple[str, ...], could_not_act: bool = False) -> ChatReply:
    """An answer that no model gave: made of the configuration alone, it needs no server at all."""
    return ChatReply(
        text=words, tool_calls=(), model=NOBODY, endpoint=NOBODY, usage=Usage(0, 0), finish_reason="stop", seconds=0.0,
        level="L4", reasons=reasons, could_not_act=could_not_act, cost=0.0,
    )  # fmt: skip


def _down(rung: Rung, reason: str, *, retry_after_s: float | None) -> Passed:
    return Passed(model=rung.model, way="down", reason=f"{rung.model}: {reason}", retry_after_s=retry_after_s)


def _busy(rung: Rung, reason: str, *, retry_after_s: float | None) -> Passed:
    return Passed(model=rung.model, way="busy", reason=f"{rung.model}: {reason}", retry_after_s=retry_after_s)


def _is_wider(one: Rung, other: Rung) -> bool:
    """Whether a prompt that was too long for the other may fit."""
    if one.spec.context_tokens is None or other.spec.context_tokens is None:
        return one.model != other.model
    return one.spec.context_tokens > other.spec.context_tokens
