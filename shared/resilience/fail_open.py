"""The fleet's store as long as it answers, this process's own knowledge while it does not.

A breaker that nobody can ask must not stop the calls it guards. While Redis is away the same state machine runs in
memory, on a share of the limits, from what the fleet said last of its sick keys; one log line a minute says so. A store
that failed is left in peace for `rest_s`, then one caller tries it while the others go on without.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from shared.resilience.circuit import Mode, Operate
from shared.resilience.exchange import Answer, Ask, BlockingStore, GateStore, KeyStats, Settled, Settlement
from shared.resilience.knobs import KeyRules, StoreKnobs
from shared.resilience.memory_store import MemoryStore
from shared.resilience.redis_store import (
    BlockingRedisStore,
    RedisStore,
    StoreAway,
    open_blocking_redis,
    open_redis,
)
from shared.resilience.spending import Budget, Left

log = structlog.get_logger()
T = TypeVar("T")

TOLD_EVERY_S = 60.0
KNOWN_CLOSED_S = 1.0
"""How long a breaker that was seen open is refused without asking again; an operator's word takes that long."""


class Rest:
    """When a store that failed may be asked again. Reads and writes of single attributes: safe from threads."""

    def __init__(self, rest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rest_s = rest_s
        self._clock = clock
        self._until_s: float | None = None
        self._told_s = float("-inf")

    @property
    def may_ask(self) -> bool:
        """Whether to ask now; after a rest, one caller gets a yes."""
        if self._until_s is None:
            return True
        now = self._clock()
        if now < self._until_s:
            return False
        self._until_s = now + self._rest_s
        return True

    def failed(self, error: Exception) -> None:
        """The store did not answer."""
        now = self._clock()
        self._until_s = now + self._rest_s
        if now - self._told_s >= TOLD_EVERY_S:
            self._told_s = now
            log.warning("resilience.store_away", cause=str(error), effect="limits and breakers of this process alone")

    def answered(self) -> None:
        """The store is there."""
        if self._until_s is not None:
            self._until_s = None
            log.info("resilience.store_back")


class Heard:
    """What the fleet said last of keys that it keeps calls from: a breaker does not close because Redis is late.

    Reads and writes of single entries: safe from threads.
    """

    def __init__(self, alone: MemoryStore) -> None:
        self._alone = alone
        self._sick: dict[str, tuple[Mode, str, float | None]] = {}
        self._told: set[str] = set()

    def answered(self, ask: Ask, answer: Answer) -> None:
        """The fleet was asked about a call."""
        if answer.mode == "closed":
            self._is_well(ask.key, ask.rules)
        elif answer.denial == "breaker" or answer.mode == "half-open":
            self._is_sick(ask.key, answer.mode, answer.reason, answer.retry_after_s)

    def settled(self, settlement: Settlement, settled: Settled) -> None:
        """The fleet has learned how a call ended."""
        if settled.new == "closed":
            self._is_well(settlement.ask.key, settlement.ask.rules)
        elif settled.new != settled.old:
            self._is_sick(settlement.ask.key, settled.new, settled.reason, settled.retry_after_s)

    def forget(self, key: str) -> None:
        """An operator has spoken here: this process knows better."""
        self._sick.pop(key, None)

    def tell_alone(self, key: str, rules: KeyRules) -> None:
        """The fleet cannot be asked: let this process go on from there."""
        sick = self._sick.get(key)
        if sick is None:
            return
        mode, reason, until_s = sick
        for_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        self._told.add(key)
        self._alone.operate_now(key, Operate(mode, reason, for_s), rules)
        self.forget(key)

    def _is_sick(self, key: str, mode: Mode, reason: str, retry_after_s: float | None) -> None:
        if mode == "half-open":  # probes are due: this process would send its own
            mode, retry_after_s = "open", 0.0
        self._sick[key] = (mode, reason, None if retry_after_s is None else time.monotonic() + retry_after_s)

    def _is_well(self, key: str, rules: KeyRules) -> None:
        self._sick.pop(key, None)
        if key in self._told:
            self._told.discard(key)
            self._alone.operate_now(key, Operate("closed", "the fleet has closed it"), rules)


class FailOpenStore:
    """`GateStore` that never fails.

    Args:
        shared: Raises StoreAway when it does not answer.
        alone: Takes over meanwhile.
    """

    def __init__(self, shared: GateStore, alone: MemoryStore, *, rest_s: float = 1.0) -> None:
        self._shared = shared
        self._alone = alone
        self._rest = Rest(rest_s)
        self._heard = Heard(alone)
        self._open: dict[str, tuple[float, Answer]] = {}

    async def admit(self, ask: Ask) -> Answer:
        """See `GateStore`; a breaker that was seen open a moment ago costs no round trip."""
        known = None if ask.is_last else self._open.get(ask.key)
        if known is not None:
            left_s = known[0] - time.monotonic()
            if left_s > 0:
                return known[1]
            del self._open[ask.key]
        answer = await self._try(lambda: self._shared.admit(ask))
        if answer is None:
            self._heard.tell_alone(ask.key, ask.rules)
            return await self._alone.admit(ask)
        self._heard.answered(ask, answer)
        for budget, spent in zip(ask.budgets, answer.spent, strict=False):
            self._alone.remember(ask.tenant, budget, spent)
        if answer.denial == "breaker" and answer.mode != "half-open":
            wait_s = KNOWN_CLOSED_S if answer.retry_after_s is None else min(KNOWN_CLOSED_S, answer.retry_after_s)
            self._open[ask.key] = (time.monotonic() + wait_s, answer)
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        """See `GateStore`; a call that the fleet admitted and cannot settle teaches this process."""
        answer = settlement.answer
        if answer is not None and not answer.shared:
            return await self._alone.settle(settlement)
        settled = await self._try(lambda: self._shared.settle(settlement))
        if settled is None:
            return await self._alone.settle(replace(settlement, answer=None))
        self._heard.settled(settlement, settled)
        return settled

    async def operate(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `GateStore`; done in both.

        Raises: StoreAway when only this process heard it: an operator must know.
        """
        self._open.pop(key, None)
        self._heard.forget(key)
        await self._alone.operate(key, operate, rules)
        return await self._shared.operate(key, operate, rules)

    async def stats(self, key: str, rules: KeyRules) -> KeyStats:
        """See `GateStore`."""
        stats = await self._try(lambda: self._shared.stats(key, rules))
        return stats or await self._alone.stats(key, rules)

    async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
        """See `GateStore`."""
        left = await self._try(lambda: self._shared.left(tenant, budgets))
        return await self._alone.left(tenant, budgets) if left is None else left

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        """See `GateStore`."""

        async def shared() -> bool:
            await self._shared.charge(tenant, budgets, tokens=tokens, cost=cost)
            return True

        if not await self._try(shared):
            await self._alone.charge(tenant, budgets, tokens=tokens, cost=cost)

    async def aclose(self) -> None:
        """Close the shared store."""
        await self._shared.aclose()

    async def _try(self, call: Callable[[], Awaitable[T]]) -> T | None:
        if not self._rest.may_ask:
            return None
        try:
            answer = await call()
        except StoreAway as error:
            self._rest.failed(error)
            return None
        self._rest.answered()
        return answer


class FailOpenBlockingStore:
    """`BlockingStore` that never fails; see `FailOpenStore`."""

    def __init__(self, shared: BlockingStore, alone: MemoryStore, *, rest_s: float = 1.0) -> None:
        self._shared = shared
        self._alone = alone
        self._rest = Rest(rest_s)
        self._heard = Heard(alone)

    def admit_now(self, ask: Ask) -> Answer:
        """See `BlockingStore`."""
        answer = self._try(lambda: self._shared.admit_now(ask))
        if answer is None:
            self._heard.tell_alone(ask.key, ask.rules)
            return self._alone.admit_now(ask)
        self._heard.answered(ask, answer)
        return answer

    def settle_now(self, settlement: Settlement) -> Settled:
        """See `BlockingStore`."""
        if settlement.answer is not None and not settlement.answer.shared:
            return self._alone.settle_now(settlement)
        settled = self._try(lambda: self._shared.settle_now(settlement))
        if settled is None:
            return self._alone.settle_now(replace(settlement, answer=None))
        self._heard.settled(settlement, settled)
        return settled

    def operate_now(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `BlockingStore`.

        Raises: StoreAway when only this process heard it.
        """
        self._heard.forget(key)
        self._alone.operate_now(key, operate, rules)
        return self._shared.operate_now(key, operate, rules)

    def stats_now(self, key: str, rules: KeyRules) -> KeyStats:
        """See `BlockingStore`."""
        return self._try(lambda: self._shared.stats_now(key, rules)) or self._alone.stats_now(key, rules)

    def close(self) -> None:
        """Close the shared store."""
        self._shared.close()

    def _try(self, call: Callable[[], T]) -> T | None:
        if not self._rest.may_ask:
            return None
        try:
            answer = call()
        except StoreAway as error:
            self._rest.failed(error)
            return None
        self._rest.answered()
        return answer


def open_gate_store(knobs: StoreKnobs) -> FailOpenStore:
    """The store of a process with an event loop."""
    shared = RedisStore(open_redis(knobs), knobs=knobs)
    return FailOpenStore(shared, MemoryStore(share=knobs.alone_share), rest_s=knobs.rest_s)


def open_blocking_store(knobs: StoreKnobs) -> FailOpenBlockingStore:
    """The store of threads."""
    shared = BlockingRedisStore(open_blocking_redis(knobs), knobs=knobs)
    return FailOpenBlockingStore(shared, MemoryStore(share=knobs.alone_share), rest_s=knobs.rest_s)
