"""A gate's store under a contract, with the hands of its clock and short ways to ask it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import uuid4

from shared.resilience.exchange import Answer, Ask, GateStore, Settled, Settlement
from shared.resilience.knobs import BreakerKnobs, KeyRules, Limits
from shared.resilience.outcome import Learn


@dataclass
class GateWorld:
    """A store, and the hands of its clock."""

    store: GateStore
    advance: Callable[[float], Awaitable[None]]
    rules: KeyRules = field(default_factory=lambda: KeyRules(breaker=BreakerKnobs(jitter=0.0)))
    key: str = field(default_factory=lambda: f"endpoint-{uuid4().hex[:8]}:model")
    tenant: str = field(default_factory=lambda: f"tenant-{uuid4().hex[:8]}")

    async def ask(self, **more: Any) -> tuple[Ask, Answer]:
        """One question."""
        facts = {"key": self.key, "permit": uuid4().hex, "rules": self.rules, "tenant": self.tenant}
        ask = Ask(**{**facts, **more})
        return ask, await self.store.admit(ask)

    async def end(self, asked: tuple[Ask, Answer], learn: Learn, seconds: float = 0.5, **more: Any) -> Settled:
        """One end, with what was estimated unless told otherwise."""
        ask, answer = asked
        used = {"tokens_in": ask.tokens_in, "tokens_out": ask.tokens_out, "cost": ask.cost}
        settlement = Settlement(ask=ask, answer=answer, learn=learn, seconds=seconds, **{**used, **more})
        return await self.store.settle(settlement)

    async def calls(self, *learns: str, seconds: float = 0.5) -> Settled | None:
        """Whole calls, one after the other."""
        settled = None
        for learn in learns:
            settled = await self.end(await self.ask(), cast(Learn, learn), seconds)
        return settled

    async def dies(self) -> None:
        """Five failures in a row."""
        await self.calls(*["failure"] * 5)

    def limited(self, **limits: Any) -> None:
        """Set limits of the key."""
        self.rules = replace(self.rules, limits=Limits(**limits))
