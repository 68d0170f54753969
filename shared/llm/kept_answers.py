"""One run's door to the answer cache: what may be looked up, what may be kept, and under which key."""

from shared.llm.answer_cache import Kept
from shared.llm.answer_key import Asker, answer_key, is_worth_keeping, may_keep
from shared.llm.call_context import CallContext
from shared.llm.config import AgentPolicy
from shared.llm.messages import ChatReply, ChatRequest
from shared.llm.plane import LLMPlane, Rung
from shared.telemetry import llm_metrics as metrics


class KeptAnswers:
    """Answers to one question of one asker; `first` is the model that would answer at L0."""

    def __init__(
        self, plane: LLMPlane, request: ChatRequest, *, context: CallContext, policy: AgentPolicy, first: Rung
    ) -> None:
        self._plane = plane
        self._request = request
        self._context = context
        self._policy = policy
        self._first = first
        self._may_keep = may_keep(request, mode=policy.cache)

    async def fresh(self) -> ChatReply | None:
        """An answer young enough to be given although models are up, where the agent's policy wants that."""
        if self._policy.cache != "fresh":
            return None
        kept = await self._find(max_age_s=self._plane.config.cache.fresh_s)
        return None if kept is None else kept.reply(now=self._plane.clock.now(), level="L0", reasons=())

    async def stale(self) -> Kept | None:
        """An answer to give when no model is up."""
        return await self._find(max_age_s=self._plane.config.cache.stale_s, is_last=True)

    def keep(self, reply: ChatReply) -> None:
        """Keep an answer if it is worth it; nobody waits for that."""
        if self._may_keep and is_worth_keeping(reply):
            self._plane.aside(self._keep(reply))

    async def _find(self, *, max_age_s: float, is_last: bool = False) -> Kept | None:
        if not self._may_keep or (key := await self._key(is_last=is_last)) is None:
            return None
        kept = await self._plane.cache.find(self._context.tenant, key, max_age_s=max_age_s, is_last=is_last)
        metrics.of(metrics.CACHE, "miss" if kept is None else "hit").inc()
        if kept is not None:
            metrics.CACHED_AGE_SECONDS.observe(kept.age_s(self._plane.clock.now()))
        return kept

    async def _keep(self, reply: ChatReply) -> None:
        key = await self._key()
        if key is not None:
            await self._plane.cache.keep(self._context.tenant, key, Kept.of(reply, now=self._plane.clock.now()))

    async def _key(self, *, is_last: bool = False) -> str | None:
        secret = await self._plane.cache.secret(is_last=is_last)
        if secret is None:
            return None
        context = self._context
        asker = Asker(
            tenant=context.tenant, agent=context.agent, prompt_version=self._policy.prompt_version, scope=context.scope,
            user=context.user, corpus=context.corpus, locale=context.locale,
        )  # fmt: skip
        family = self._first.spec.family or f"{self._first.endpoint_name}:{self._first.name}"
        return answer_key(secret, self._request, asker=asker, family=family)
