"""The gate before a key: breaker, limits, retry budget and budgets, asked at once and told at once how a call ended."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog

from shared.errors import BreakerOpen, BudgetSpent, FleetError, Throttled
from shared.resilience import spending
from shared.resilience.circuit import Mode, Operate
from shared.resilience.deadline import clamped
from shared.resilience.engines import new_permit
from shared.resilience.exchange import (
    NOTHING_SEEN,
    Answer,
    Ask,
    GateStore,
    KeyStats,
    LimitsSeen,
    Settled,
    Settlement,
    unsent,
)
from shared.resilience.fleet_breaker import FleetBreaker, circuit_open
from shared.resilience.holds import HELD_WAIT_S, Holds
from shared.resilience.knobs import KeyRules
from shared.resilience.outcome import Learn
from shared.resilience.spending import Budget, Left
from shared.resilience.unbroken import started, to_its_end

log = structlog.get_logger()

WAIT_SPREAD = 0.1
"""Share by which a wait for a limit is stretched at random."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker that changed its state, as this process noticed it."""

    key: str
    old: Mode
    new: Mode
    reason: str
    retry_after_s: float | None


class Permit:
    """One admitted call; settle it once, with what it really used. A second settlement does nothing."""

    def __init__(self, gate: "Gate", ask: Ask, answer: Answer) -> None:
        self._gate = gate
        self._ask = ask
        self._answer = answer
        self._began_s = time.perf_counter()
        self._is_settled = False

    @property
    def key(self) -> str:
        """What it is for."""
        return self._ask.key

    @property
    def attempt(self) -> int:
        """Which try, from 1."""
        return self._ask.attempt

    @property
    def is_probe(self) -> bool:
        """Whether the breaker is not closed and this call decides."""
        return self._answer.is_probe

    @property
    def generation(self) -> int:
        """The breaker's era: calls of one round of probes share it."""
        return self._answer.generation

    @property
    def mode(self) -> Literal["shared", "alone"]:
        """Whether the fleet knows of this call."""
        return "shared" if self._answer.shared else "alone"

    @property
    def budget_left(self) -> tuple[Left, ...]:
        """What remains of the budgets after this call's estimate."""
        return tuple(map(spending.left, self._ask.budgets, self._answer.spent))

    @property
    def is_settled(self) -> bool:
        """Whether it was settled or cancelled."""
        return self._is_settled

    async def settle(
        self,
        learn: Learn,
        *,
        seconds: float | None = None,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        cost: float | None = None,
        retry_after_s: float | None = None,
        overloaded: bool = False,
        limits_seen: LimitsSeen | None = None,
        error: BaseException | None = None,
    ) -> Settled | None:
        """Tell how the call ended. Runs to its end even when the caller is cancelled meanwhile.

        Args:
            learn: What the breaker learns.
            seconds: How long the call took; None: since it was admitted.
            tokens_in: None, as the others: as it was estimated.
            retry_after_s: Closes the key until then, for the whole fleet.
            overloaded: The endpoint said 429, 503 or 529.
            limits_seen: From the provider's headers; only lowers what is left.
            error: For the breaker's listeners.
        """
        ask = self._ask
        settlement = Settlement(
            ask=ask,
            answer=self._answer,
            learn=learn,
            seconds=time.perf_counter() - self._began_s if seconds is None else seconds,
            tokens_in=ask.tokens_in if tokens_in is None else tokens_in,
            tokens_out=ask.tokens_out if tokens_out is None else tokens_out,
            cost=ask.cost if cost is None else cost,
            retry_after_s=retry_after_s,
            overloaded=overloaded,
            limits_seen=limits_seen or NOTHING_SEEN,
            jitter=random.uniform(-1.0, 1.0),
        )
        return await self._settle(settlement, error)

    async def cancel(self, *, sent: bool = True) -> None:
        """The call says nothing about the endpoint.

        Args:
            sent: False: it never left, so everything reserved is given back. A call that was sent may be billed: it
                stays charged as estimated.
        """
        ask = self._ask
        settlement = Settlement(
            ask=ask,
            answer=self._answer,
            learn="neutral",
            seconds=0.0,
            tokens_in=ask.tokens_in if sent else 0,
            tokens_out=ask.tokens_out if sent else 0,
            cost=ask.cost if sent else 0.0,
            was_sent=sent,
        )
        await self._settle(settlement, None)

    async def _settle(self, settlement: Settlement, error: BaseException | None) -> Settled | None:
        if self._is_settled:
            return None
        self._is_settled = True
        return await to_its_end(self._gate.settle(settlement, error))


class Gate:
    """Guards calls to keys.

    Args:
        store: Where the state lives.
        rules: The rules of a key.
        on_transition: Told of every change of a breaker that this process notices.
    """

    def __init__(
        self,
        store: GateStore,
        rules: Callable[[str], KeyRules],
        *,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._on_transition = on_transition
        self._modes: dict[str, Mode] = {}
        self._breakers: dict[str, FleetBreaker] = {}
        self._holds = Holds()

    async def admit(
        self,
        key: str,
        *,
        tenant: str = "default",
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost: float = 0.0,
        budgets: Sequence[Budget] = (),
        attempt: int = 1,
        lease_s: float = 60.0,
        is_last: bool = False,
        wait_up_to_s: float = 0.0,
    ) -> Permit:
        """Reserve everything a call needs, or nothing. One round trip.

        Args:
            tokens_in: Estimated, as `tokens_out` and `cost`.
            budgets: Of one tenant; each is charged.
            attempt: From 1; retries are paid from the key's retry budget.
            lease_s: Seconds after which the place of a call whose process died is free again.
            is_last: The caller has no other endpoint: an open breaker lets one call a second through.
            wait_up_to_s: Seconds that may be slept here for a limit; the current deadline holds as well.

        Raises:
            CircuitOpen: the breaker refuses (a BreakerOpen and a pybreaker CircuitBreakerError).
            Throttled: a limit refuses, or calls under way hold what is left of a budget, or this process's share of one
                is spent while the fleet cannot be asked; and the wait is too long.
            BudgetSpent: a budget has not enough left.
        """
        ask = Ask(
            key=key, permit=new_permit(), rules=self._rules(key), tenant=tenant, tokens_in=tokens_in,
            tokens_out=tokens_out, cost=cost, budgets=tuple(budgets), attempt=attempt, lease_s=lease_s, is_last=is_last,
        )  # fmt: skip
        patience_s = clamped(wait_up_to_s)
        while True:
            answer = await self._asked(ask)
            permit = None if answer.denial else self._permit(ask, answer)
            if self._holds.will_do(ask, answer):
                answer = replace(answer, denial="budget_held", retry_after_s=HELD_WAIT_S)
            try:
                self._saw(key, answer.mode, answer.reason, answer.retry_after_s)
                if permit is not None:
                    self._tell(key, lambda breaker: breaker.began(self.admit, key))
            except BaseException:  # a listener's: what was reserved for the call goes back
                if permit is not None:
                    await permit.cancel(sent=False)
                raise
            if permit is not None:
                return permit
            error = refusal(ask, answer)
            wait_s = answer.retry_after_s
            if not isinstance(error, Throttled) or answer.denial == "retry_budget" or wait_s is None:
                raise error
            wait_s += random.uniform(0.0, WAIT_SPREAD) * min(wait_s, 1.0) + 0.001
            if wait_s > patience_s:
                raise error
            patience_s -= wait_s
            await asyncio.sleep(wait_s)

    @asynccontextmanager
    async def admitted(self, key: str, **wishes: Any) -> AsyncIterator[Permit]:
        """`admit`, and cancel when the block ends without having settled."""
        permit = await self.admit(key, **wishes)
        try:
            yield permit
        finally:
            await permit.cancel()

    async def settle(self, settlement: Settlement, error: BaseException | None = None) -> Settled:
        """Book how a call ended; called by permits."""
        key = settlement.ask.key
        self._holds.release(settlement.ask)
        settled = await self._store.settle(settlement)
        self._tell(key, lambda breaker: breaker.learned(settlement.learn, error))
        self._saw(key, settled.old, settled.reason, None)
        self._saw(key, settled.new, settled.reason, settled.retry_after_s)
        return settled

    async def stats(self, key: str) -> KeyStats:
        """How things stand."""
        return await self._store.stats(key, self._rules(key))

    async def force_open(self, key: str, *, reason: str) -> None:
        """Refuse every call until `close`."""
        await self._operate(key, Operate("forced-open", reason))

    async def disable(self, key: str, *, reason: str, for_s: float | None = None) -> None:
        """Refuse every call: for a time and then probe, or until `close`."""
        await self._operate(key, Operate("disabled", reason, for_s))

    async def close(self, key: str, *, reason: str = "closed by an operator") -> None:
        """Let every call through, and forget failures and Retry-After."""
        await self._operate(key, Operate("closed", reason))

    async def left(self, budgets: Sequence[Budget], *, tenant: str = "default") -> tuple[Left, ...]:
        """What remains of budgets."""
        return await self._store.left(tenant, tuple(budgets))

    async def charge(
        self, budgets: Sequence[Budget], *, tenant: str = "default", tokens: int = 0, cost: float = 0.0
    ) -> None:
        """Charge what needed no permit."""
        await self._store.charge(tenant, tuple(budgets), tokens=tokens, cost=cost)

    def breaker(self, key: str) -> FleetBreaker:
        """The key's breaker: add listeners there, they hear of the gate's calls; or guard other calls with it."""
        if key not in self._breakers:
            self._breakers[key] = FleetBreaker(key, knobs=self._rules(key).breaker, async_store=self._store)
        return self._breakers[key]

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()

    def _permit(self, ask: Ask, answer: Answer) -> Permit:
        self._holds.hold(ask)
        return Permit(self, ask, answer)

    async def _asked(self, ask: Ask) -> Answer:
        """Ask to the end also when the caller is cancelled meanwhile: what it is then admitted with must go back."""
        asking = started(self._store.admit(ask))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            started(self._give_back(ask, asking))
            raise

    async def _give_back(self, ask: Ask, asking: Awaitable[Answer]) -> None:
        answer = await asking
        if not answer.denial:
            await self._store.settle(unsent(ask, answer))

    async def _operate(self, key: str, operate: Operate) -> None:
        settled = await self._store.operate(key, operate, self._rules(key))
        self._saw(key, settled.old, settled.reason, None)
        self._saw(key, settled.new, settled.reason, settled.retry_after_s)

    def _tell(self, key: str, what: Callable[[FleetBreaker], None]) -> None:
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.listeners:
            what(breaker)

    def _saw(self, key: str, mode: Mode, reason: str, retry_after_s: float | None) -> None:
        old = self._modes.get(key, "closed")
        if mode == old:
            return
        self._modes[key] = mode
        log.warning("resilience.breaker_changed", key=key, old=old, new=mode, reason=reason, wait_s=retry_after_s)
        if self._on_transition is not None:
            self._on_transition(Transition(key, old, mode, reason, retry_after_s))
        self._tell(key, lambda breaker: breaker.saw(mode))


def refusal(ask: Ask, answer: Answer) -> BreakerOpen | Throttled | BudgetSpent:
    """The error of a call that was not admitted."""
    wait_s = answer.retry_after_s
    if answer.denial == "breaker":
        error: FleetError = circuit_open(ask.key, mode=answer.mode, reason=answer.reason, retry_after_s=wait_s)
        return error  # type: ignore[return-value]
    if answer.denial == "budget" and answer.short is not None:
        short, budget = answer.short, ask.budgets[answer.short.position]
        limit = budget.limit(short.kind)
        return BudgetSpent(
            f"The {budget.level} budget of {budget.name} has {short.left:g} of {limit:g} {short.kind} left: too little",
            level=budget.level, name=budget.name, kind=short.kind, limit=limit, left=short.left,
        )  # fmt: skip
    words = {
        "not_before": "asked not to be called",
        "retry_budget": "has no retries left",
        "budget_held": "must wait for calls under way: they hold what is left of a budget",
        "budget_share": "would cost more than this process's share of a budget, and the fleet cannot be asked for more",
    }
    what = words.get(answer.denial, f"is at its limit of {answer.denial.replace('_', ' ')}")
    whose = ask.key if answer.scope == "key" else f"{ask.key} for tenant {ask.tenant}"
    when = "" if wait_s is None else f"; retry after {wait_s:.2f} s"
    return Throttled(
        f"{whose} {what}{when}", retry_after_s=wait_s, key=ask.key, cause=answer.denial, scope=answer.scope
    )  # fmt: skip
