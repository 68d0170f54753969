"""The scripts in Redis and the pure machine in memory answer alike, whatever they are asked."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.resilience.circuit import Operate
from shared.resilience.exchange import Answer, Ask, GateStore, LimitsSeen, Settlement
from shared.resilience.knobs import AdaptKnobs, BreakerKnobs, KeyRules, Limits, RetryBudgetKnobs, StoreKnobs
from shared.resilience.memory_store import MemoryStore
from shared.resilience.redis_store import RedisStore, open_redis
from shared.resilience.spending import Budget
from tests.integration.redis_clock import RedisClock, give_scripts_the_clock
from workers.ops.background import BackgroundSupervisor

RULES = [
    KeyRules(
        breaker=BreakerKnobs(failures_in_a_row=3, window=8, min_calls=4, slow_call_s=5.0, probe_lease_s=7.0),
        retry_budget=RetryBudgetKnobs(ratio=0.25, floor_per_s=0.125, cap=2.0),
    ),
    KeyRules(
        breaker=BreakerKnobs(failures_in_a_row=4, window=6, min_calls=6),
        limits=Limits(requests_per_min=30, input_tokens_per_min=600, concurrency=4, burst_s=8.0),
        tenant_limits=Limits(output_tokens_per_min=300, concurrency=2, burst_s=4.0),
        adapt=AdaptKnobs(factor=0.5),
    ),
]
BUDGETS = (
    Budget(level="run", name="r", tokens=400, money=4.0),
    Budget(level="day", name="d", money=8.0, period_s=64.0),
)
numbers = st.sampled_from([None, 0.0, 3.0, 1000.0])
EVENTS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "is_last": st.booleans(),
                "attempt": st.sampled_from([1, 1, 2]),
                "tenant": st.sampled_from(["a", "b"]),
                "tokens_in": st.sampled_from([0, 8, 64]),
                "tokens_out": st.sampled_from([0, 8, 16]),
                "cost": st.sampled_from([0.0, 0.25]),
                "lease_s": st.sampled_from([4.0, 60.0]),
                "budgets": st.sampled_from([(), BUDGETS]),
            }
        ),
        st.fixed_dictionaries(
            {
                "which": st.integers(0, 3),
                "learn": st.sampled_from(["ok", "failure", "neutral"]),
                "seconds": st.sampled_from([0.5, 6.0]),
                "tokens_in": st.sampled_from([0, 8, 100]),
                "tokens_out": st.sampled_from([0, 30]),
                "cost": st.sampled_from([0.0, 0.5]),
                "was_sent": st.booleans(),
                "retry_after_s": st.sampled_from([None, None, 2.0, 1e9]),
                "overloaded": st.sampled_from([False, False, True]),
                "jitter": st.sampled_from([-1.0, 0.0, 0.5]),
                "limits_seen": st.builds(
                    LimitsSeen, requests_left=numbers, requests_reset_s=numbers, output_tokens_left=numbers
                ),
            }
        ),
        st.sampled_from([0.25, 1.0, 8.0, 30.0, 64.0]),
        st.sampled_from([Operate("closed", "c"), Operate("disabled", "d", 8.0), Operate("open", "o")]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(events=EVENTS, which=st.sampled_from([0, 1]))
def test_memory_and_redis_answer_alike(
    servers: BackgroundSupervisor, monkeypatch: pytest.MonkeyPatch, events: list[Any], which: int
) -> None:
    with monkeypatch.context() as patch:
        give_scripts_the_clock(patch)
        asyncio.run(compare(f"{servers.redis_url.rpartition('/')[0]}/9", RULES[which], events))


async def compare(url: str, rules: KeyRules, events: list[Any]) -> None:
    """Ask both the same and hold the answers against one another."""
    knobs = StoreKnobs(redis_url=url, timeout_s=5.0, prefix=uuid4().hex)
    redis = open_redis(knobs)
    clock = RedisClock(redis, start_s=1_780_000_000.0)
    await clock.advance(0.0)
    memory, shared = MemoryStore(clock=lambda: clock.now_s), RedisStore(redis, knobs=knobs)
    flying: list[tuple[Ask, Answer, Answer]] = []
    for event in events:
        if isinstance(event, float):
            await clock.advance(event)
        elif isinstance(event, Operate):
            assert await memory.operate("k", event, rules) == await shared.operate("k", event, rules)
        elif "which" not in event:
            ask = Ask(key="k", permit=uuid4().hex, rules=rules, **event)
            here, there = await memory.admit(ask), await shared.admit(ask)
            assert_same(here, there)
            if not here.denial:
                flying.append((ask, here, there))
        elif flying:
            ask, here, there = flying.pop(event["which"] % len(flying))
            facts = {name: value for name, value in event.items() if name != "which"}
            ended = await memory.settle(Settlement(ask=ask, answer=here, **facts))
            assert ended == await shared.settle(Settlement(ask=ask, answer=there, **facts))
        await assert_same_stats(memory, shared, rules)
    async for name in redis.scan_iter(f"{knobs.prefix}:*"):
        await redis.unlink(name)
    await shared.aclose()


def assert_same(here: Answer, there: Answer) -> None:
    """But for which store answered."""
    for name in ("denial", "scope", "reason", "generation", "is_probe", "short"):
        if name != "generation" or not here.denial:
            assert getattr(here, name) == getattr(there, name), name
    assert here.retry_after_s == pytest.approx(there.retry_after_s, abs=1e-5)
    if not here.denial:
        assert here.mode == there.mode
        assert here.spent == there.spent


async def assert_same_stats(memory: GateStore, shared: GateStore, rules: KeyRules) -> None:
    """All figures."""
    here, there = (await memory.stats("k", rules)).as_dict(), (await shared.stats("k", rules)).as_dict()
    for name in here:
        if name != "shared":
            assert here[name] == pytest.approx(there[name], abs=1e-5), name
