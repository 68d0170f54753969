"""The fleet's store as long as it answers, this process's own knowledge while it does not.

A breaker that nobody can ask must not stop the calls it guards. While Redis is away the same state machine runs in
memory, on a share of the limits, from what the fleet said last of its sick keys; one log line a minute says so. A store
that failed is left in peace for `rest_s`, then one caller tries it while the others go on without. Of budgets each
process spends its share of what was left; it pays when Redis is back, and keeps to its share until all have paid.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from shared.resilience.allowance import Allowances
from shared.resilience.circuit import Mode, Operate
from shared.resilience.exchange import Answer, Ask, BlockingStore, GateStore, KeyStats, Settled, Settlement, unsent
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
from shared.resilience.unbroken import started

log = structlog.get_logger()
T = TypeVar("T")

TOLD_EVERY_S = 60.0
KNOWN_CLOSED_S = 1.0
"""How long a breaker that was seen open is refused without asking again; an operator's word takes that long."""
ALL_PAID_RESTS = 3
"""Rests after the store is back within which every process has found it and paid what it owes."""
LEAST_PAUSE_S = 0.05
NOBODYS = Budget(level="nobody", name="nobody", tokens=0)
"""A purse to ask for when nothing is owed: whether the store is back."""


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
        alone: Takes over meanwhile, but for budgets.
        share: Of what is left of a budget that this process may spend meanwhile.
    """

    def __init__(self, shared: GateStore, alone: MemoryStore, *, rest_s: float = 1.0, share: float = 1.0) -> None:
        self._shared = shared
        self._alone = alone
        self._rest_s = rest_s
        self._rest = Rest(rest_s)
        self._heard = Heard(alone)
        self._allowances = Allowances(share=share)
        self._reuniting: asyncio.Task[None] | None = None
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
            return await self._allowed(ask, await self._alone.admit(replace(ask, budgets=())))
        self._heard.answered(ask, answer)
        self._allowances.heard(ask.tenant, ask.budgets, answer.spent)
        if self._allowances.is_apart:
            return await self._allowed(ask, answer)
        if answer.denial == "breaker" and answer.mode != "half-open":
            wait_s = KNOWN_CLOSED_S if answer.retry_after_s is None else min(KNOWN_CLOSED_S, answer.retry_after_s)
            self._open[ask.key] = (time.monotonic() + wait_s, answer)
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        """See `GateStore`; a call that the fleet admitted and cannot settle teaches this process."""
        answer = settlement.answer
        settled = None
        if answer is None or answer.shared:
            settled = await self._try(lambda: self._shared.settle(settlement))
            answer = None
        if settled is None:
            self._part(settlement.ask.budgets)
            self._allowances.correct(settlement, is_owed=True)
            return await self._alone.settle(
                replace(settlement, answer=answer, ask=replace(settlement.ask, budgets=()))
            )  # fmt: skip
        if self._allowances.is_apart:
            self._allowances.correct(settlement, is_owed=False)
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
        if not budgets:
            return ()
        left = await self._try(lambda: self._shared.left(tenant, budgets))
        return self._allowances.left(tenant, budgets) if left is None else left

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        """See `GateStore`."""
        if not budgets:
            return
        is_charged = await self._charge(tenant, budgets, tokens=tokens, cost=cost)
        if not is_charged:
            self._part(budgets)
        if self._allowances.is_apart:
            self._allowances.charge(tenant, budgets, tokens=tokens, money=cost, is_owed=not is_charged)

    async def aclose(self) -> None:
        """Pay what is owed, if that is possible, and close the shared store."""
        if self._reuniting is not None:
            self._reuniting.cancel()
            await asyncio.gather(self._reuniting, return_exceptions=True)
            await self._pay()
        await self._shared.aclose()

    async def _allowed(self, ask: Ask, answer: Answer) -> Answer:
        """An admission, if this process's own share of the budgets allows it."""
        if answer.denial or not ask.budgets:
            return answer
        self._part(ask.budgets)
        charged = self._allowances.take(ask, answer, is_owed=not answer.shared)
        if charged.denial:
            await self.settle(unsent(ask, replace(charged, denial="")))
        return charged

    def _part(self, budgets: tuple[Budget, ...]) -> None:
        """From now on count what is spent."""
        if budgets and (self._reuniting is None or self._reuniting.done()):
            self._allowances.is_apart = True
            self._reuniting = started(self._reunite())

    async def _reunite(self) -> None:
        """Pay as soon as the store is back; rely on it alone once everybody has had the time to pay."""
        back_s: float | None = None
        while (
            back_s is None
            or time.monotonic() - back_s < ALL_PAID_RESTS * self._rest_s
            or any(self._allowances.debts())  # made while the last ones were being paid
        ):
            await asyncio.sleep(max(self._rest_s, LEAST_PAUSE_S))
            if not await self._pay():
                back_s = None
            elif back_s is None:
                back_s = time.monotonic()
        self._allowances.rejoin()
        self._reuniting = None

    async def _pay(self) -> bool:
        """Charge what is owed; False while that is not possible."""
        for tenant, budget, owed in self._allowances.debts():
            if not await self._charge(tenant, (budget,), tokens=owed.tokens, cost=owed.money):
                return False
            self._allowances.paid(tenant, budget, owed)
        return await self._try(lambda: self._shared.left("", (NOBODYS,))) is not None

    async def _charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> bool:
        async def charged() -> bool:
            await self._shared.charge(tenant, budgets, tokens=tokens, cost=cost)
            return True

        return bool(await self._try(charged))

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
    alone = MemoryStore(share=knobs.alone_share)
    return FailOpenStore(shared, alone, rest_s=knobs.rest_s, share=knobs.alone_share)


def open_blocking_store(knobs: StoreKnobs) -> FailOpenBlockingStore:
    """The store of threads."""
    shared = BlockingRedisStore(open_blocking_redis(knobs), knobs=knobs)
    return FailOpenBlockingStore(shared, MemoryStore(share=knobs.alone_share), rest_s=knobs.rest_s)
