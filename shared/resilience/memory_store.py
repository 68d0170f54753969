"""A gate's state in this process: for tests, for a fleet of one, and for the time without Redis."""

import threading
import time
from collections.abc import Callable

from shared.resilience import circuit as breaker
from shared.resilience import lanes, spending
from shared.resilience.circuit import Circuit, Operate
from shared.resilience.exchange import Answer, Ask, KeyStats, Settled, Settlement
from shared.resilience.knobs import KeyRules
from shared.resilience.spending import Budget, Left, Spent

MANY = 10_000
"""Tenants and budgets that are remembered before those that nobody used for long are forgotten."""

Purse = tuple[str, str, str]


def steady_wall_clock() -> Callable[[], float]:
    """Seconds since the epoch that never step back: the wall clock of now, carried on by the monotonic one."""
    offset = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset


class _Key:
    """Everything known about one key."""

    def __init__(self, rules: KeyRules, now: float) -> None:
        self.circuit = Circuit()
        self.lane = lanes.Lane()
        self.tenants: dict[str, lanes.Lane] = {}
        self.adapted = lanes.Adapted()
        self.retries = lanes.Retries(rules.retry_budget, now)
        self.not_before_s = 0.0

    def tenant(self, name: str, now: float) -> lanes.Lane:
        """The tenant's lane."""
        lane = self.tenants.pop(name, None) or lanes.Lane()
        self.tenants[name] = lane  # the last one used is the last one forgotten
        if len(self.tenants) > MANY:
            for idle in [each for each, one in self.tenants.items() if not one.under_way(now)][: MANY // 2]:
                del self.tenants[idle]
        return lane


class MemoryStore:
    """`GateStore` and `BlockingStore`; safe from any thread. The lock is never held during a guarded call.

    Args:
        share: The part of each limit that this process may take.
        clock: Seconds since the epoch, never stepping back.
    """

    def __init__(self, *, share: float = 1.0, clock: Callable[[], float] | None = None) -> None:
        self._share = share
        self._clock = clock or steady_wall_clock()
        self._lock = threading.Lock()
        self._keys: dict[str, _Key] = {}
        self._purses: dict[Purse, tuple[Spent, float]] = {}

    async def admit(self, ask: Ask) -> Answer:
        """See `GateStore`."""
        return self.admit_now(ask)

    async def settle(self, settlement: Settlement) -> Settled:
        """See `GateStore`."""
        return self.settle_now(settlement)

    async def operate(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `GateStore`."""
        return self.operate_now(key, operate, rules)

    async def stats(self, key: str, rules: KeyRules) -> KeyStats:
        """See `GateStore`."""
        return self.stats_now(key, rules)

    async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
        """See `GateStore`."""
        with self._lock:
            now = self._clock()
            return tuple(spending.left(one, self._spent(tenant, one, now)) for one in budgets)

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        """See `GateStore`."""
        with self._lock:
            now = self._clock()
            for one in budgets:
                self._charge(tenant, one, tokens, cost, now)

    async def aclose(self) -> None:
        """Nothing to close."""

    def close(self) -> None:
        """Nothing to close."""

    def admit_now(self, ask: Ask) -> Answer:
        """See `GateStore.admit`."""
        with self._lock:
            now = self._clock()
            key = self._key(ask.key, ask.rules, now)
            circuit, decision = breaker.step(
                key.circuit, breaker.Ask(ask.permit, ask.is_last), now, ask.rules.breaker
            )  # fmt: skip
            answer = Answer(mode=circuit.mode, at_s=now, generation=circuit.generation, reason=decision.reason)
            if decision.action == "reject":
                return _no(answer, denial="breaker", retry_after_s=decision.retry_after_s)
            return (
                self._limited(key, ask, answer, now)
                or self._unpaid(ask, answer, now)
                or self._admitted(key, circuit, ask, answer, is_probe=decision.action == "probe")
            )

    def settle_now(self, settlement: Settlement) -> Settled:
        """See `GateStore.settle`."""
        ask, answer = settlement.ask, settlement.answer
        with self._lock:
            now = self._clock()
            key = self._key(ask.key, ask.rules, now)
            old = key.circuit.mode
            generation = answer.generation if answer else None
            record = breaker.Record(
                ask.permit, generation, settlement.learn, settlement.seconds, settlement.jitter
            )  # fmt: skip
            key.circuit, decision = breaker.step(key.circuit, record, now, ask.rules.breaker)
            self._adapt(key, settlement, now)
            self._correct(key, settlement, now)
            if settlement.retry_after_s is not None:
                wait_s = min(settlement.retry_after_s, ask.rules.not_before_max_s)
                key.not_before_s = max(key.not_before_s, now + wait_s)
            return Settled(
                old=old, new=key.circuit.mode, reason=decision.reason, retry_after_s=decision.retry_after_s
            )  # fmt: skip

    def operate_now(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `GateStore.operate`."""
        with self._lock:
            now = self._clock()
            one = self._key(key, rules, now)
            old = one.circuit.mode
            one.circuit, decision = breaker.step(one.circuit, operate, now, rules.breaker)
            if operate.mode == "closed":
                one.not_before_s = 0.0
            return Settled(old=old, new=one.circuit.mode, reason=decision.reason, retry_after_s=decision.retry_after_s)

    def stats_now(self, key: str, rules: KeyRules) -> KeyStats:
        """See `GateStore.stats`."""
        with self._lock:
            now = self._clock()
            one = self._key(key, rules, now)
            circuit, calls = one.circuit, len(one.circuit.window)
            left = one.lane.left(rules.limits, self._share, now)
            return KeyStats(
                name=key,
                state=circuit.mode,
                failure_count=circuit.in_a_row,
                total_calls=calls,
                failure_rate=circuit.failures / calls if calls else 0.0,
                avg_latency_s=circuit.micros / 1e6 / calls if calls else 0.0,
                retry_after_s=breaker.retry_after_s(circuit.mode, circuit.until_s, now),
                slow_rate=circuit.slow / calls if calls else 0.0,
                reason=circuit.reason,
                generation=circuit.generation,
                rounds=circuit.rounds,
                probes=sum(expires > now for _, expires in circuit.leases),
                in_flight=one.lane.under_way(now),
                concurrency=lanes.concurrency(one.adapted, lanes.places(rules.limits, self._share)),
                not_before_s=max(0.0, one.not_before_s - now),
                requests_left=left[0],
                input_tokens_left=left[1],
                output_tokens_left=left[2],
                retries_left=one.retries.left(rules.retry_budget, now),
                shared=False,
            )

    def _key(self, name: str, rules: KeyRules, now: float) -> _Key:
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key(rules, now)
        return key

    def _limited(self, key: _Key, ask: Ask, answer: Answer, now: float) -> Answer | None:
        rules = ask.rules
        if key.not_before_s > now:
            return _no(answer, denial="not_before", retry_after_s=key.not_before_s - now)
        if ask.attempt > 1:
            left = key.retries.left(rules.retry_budget, now)
            if left < 1:
                per_s = rules.retry_budget.floor_per_s
                return _no(answer, denial="retry_budget", retry_after_s=(1 - left) / per_s if per_s else None)
        calls = len(key.circuit.window)
        call_s = key.circuit.micros / 1e6 / calls if calls else lanes.GUESS_S
        costs = (1.0, float(ask.tokens_in), float(ask.tokens_out))
        limit = lanes.concurrency(key.adapted, lanes.places(rules.limits, self._share))
        full = key.lane.refused(rules.limits, self._share, costs, now, limit=limit, call_s=call_s)
        if full is not None:
            return _no(answer, denial=full.cause, retry_after_s=full.wait_s)
        limit = lanes.places(rules.tenant_limits, self._share)
        full = key.tenant(ask.tenant, now).refused(
            rules.tenant_limits, self._share, costs, now, limit=limit, call_s=call_s
        )
        return None if full is None else _no(answer, denial=full.cause, retry_after_s=full.wait_s, scope="tenant")

    def _unpaid(self, ask: Ask, answer: Answer, now: float) -> Answer | None:
        spent = [self._spent(ask.tenant, one, now) for one in ask.budgets]
        short = spending.short(ask.budgets, spent, tokens=ask.tokens_in + ask.tokens_out, money=ask.cost)
        return None if short is None else _no(answer, denial="budget", short=short)

    def _admitted(self, key: _Key, circuit: Circuit, ask: Ask, answer: Answer, *, is_probe: bool) -> Answer:
        now, rules = answer.at_s, ask.rules
        key.circuit = circuit
        costs = (1.0, float(ask.tokens_in), float(ask.tokens_out))
        for lane, limits in ((key.lane, rules.limits), (key.tenant(ask.tenant, now), rules.tenant_limits)):
            lane.take(limits, self._share, costs, now)
            lane.flying[ask.permit] = now + ask.lease_s
        key.retries.book(ask.attempt, rules.retry_budget, now)
        spent = [self._charge(ask.tenant, one, ask.tokens_in + ask.tokens_out, ask.cost, now) for one in ask.budgets]
        return Answer(
            mode=answer.mode,
            reason=answer.reason,
            generation=answer.generation,
            at_s=now,
            is_probe=is_probe,
            spent=tuple(spent),
            shared=False,
        )

    def _adapt(self, key: _Key, settlement: Settlement, now: float) -> None:
        rules = settlement.ask.rules
        if settlement.overloaded:
            key.adapted = lanes.cut(
                key.adapted,
                rules.adapt,
                configured=lanes.places(rules.limits, self._share),
                under_way=key.lane.under_way(now),
                began_s=settlement.answer.at_s if settlement.answer else now,
                now=now,
            )
        elif settlement.learn == "ok":
            key.adapted = lanes.grown(key.adapted)

    def _correct(self, key: _Key, settlement: Settlement, now: float) -> None:
        """Give back or take what the estimate was wrong by, and the places."""
        ask, rules, answer = settlement.ask, settlement.ask.rules, settlement.answer
        reserved = (0, 0, 0.0) if answer is None else (ask.tokens_in, ask.tokens_out, ask.cost)
        off_in, off_out = settlement.tokens_in - reserved[0], settlement.tokens_out - reserved[1]
        requests = -1.0 if answer is not None and not settlement.was_sent else 0.0
        for lane, limits in ((key.lane, rules.limits), (key.tenant(ask.tenant, now), rules.tenant_limits)):
            lane.flying.pop(ask.permit, None)
            lane.take(limits, self._share, (requests, float(off_in), float(off_out)), now)
        seen = settlement.limits_seen
        closed_s = key.lane.lower(rules.limits, self._share, seen.left(), seen.resets_s(), now)
        key.not_before_s = max(key.not_before_s, now + min(closed_s, rules.not_before_max_s))
        for position, one in enumerate(ask.budgets):
            if answer is None or self._spent(ask.tenant, one, now).period == answer.spent[position].period:
                self._charge(ask.tenant, one, off_in + off_out, settlement.cost - reserved[2], now)

    def _spent(self, tenant: str, budget: Budget, now: float) -> Spent:
        spent, expires = self._purses.get((tenant, budget.level, budget.name), (Spent(), 0.0))
        return spending.in_period(spent if expires > now else Spent(), spending.period_of(budget, now))

    def _charge(self, tenant: str, budget: Budget, tokens: int, cost: float, now: float) -> Spent:
        spent = spending.charged(self._spent(tenant, budget, now), tokens=tokens, money=cost)
        self._keep((tenant, budget.level, budget.name), spent, budget, now)
        return spent

    def _keep(self, purse: Purse, spent: Spent, budget: Budget, now: float) -> None:
        _, expires = self._purses.get(purse, (spent, 0.0))
        self._purses[purse] = (spent, max(expires, now + budget.ttl_s))
        if len(self._purses) > MANY:
            forgotten = [each for each, (_, expires) in self._purses.items() if expires <= now]
            for each in forgotten or list(self._purses)[: MANY // 2]:
                del self._purses[each]


def _no(answer: Answer, **more: object) -> Answer:
    """The same, refused."""
    facts = {"mode": answer.mode, "reason": answer.reason, "generation": answer.generation, "at_s": answer.at_s}
    return Answer(**{**facts, "shared": False, **more})  # type: ignore[arg-type]
