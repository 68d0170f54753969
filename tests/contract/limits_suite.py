"""What a gate's limits, retry budget and budgets promise, wherever their state lives; the clock belongs to the test."""

import asyncio
from dataclasses import replace

import pytest

from shared.resilience.circuit import Operate
from shared.resilience.exchange import LimitsSeen
from shared.resilience.knobs import AdaptKnobs, Limits, RetryBudgetKnobs
from shared.resilience.spending import Budget, Left
from tests.contract.gate_world import GateWorld

DAY_S = 86400.0


class LimitsSuite:
    """Subclass it with a `world` fixture."""

    async def test_requests_a_minute_are_a_bucket_and_waits_come_back_as_seconds_one_after_the_other(
        self, world: GateWorld
    ) -> None:
        world.limited(requests_per_min=120, burst_s=2.0)
        answers = [(await world.ask())[1] for _ in range(7)]
        assert [answer.denial for answer in answers] == ["", "", "", "", "requests", "requests", "requests"]
        waits = [answer.retry_after_s for answer in answers[4:]]
        assert waits == pytest.approx([0.5, 1.0, 1.5], abs=0.02)
        await world.advance(0.51)
        assert [(await world.ask())[1].denial for _ in range(2)] == ["", "requests"]

    async def test_calls_that_took_no_time_at_all_count_like_any_other(self, world: GateWorld) -> None:
        world.limited(concurrency=1)
        await world.calls("ok", "ok", "ok", seconds=0.0)
        stats = await world.store.stats(world.key, world.rules)
        assert (stats.failure_rate, stats.avg_latency_s) == (0.0, 0.0)
        call = await world.ask()
        assert [call[1].denial, (await world.ask())[1].denial] == ["", "concurrency"]
        await world.end(call, "failure", seconds=0.0)
        assert (await world.ask())[1].denial == ""

    async def test_a_wait_is_never_told_longer_than_a_minute_by_callers_who_never_return(
        self, world: GateWorld
    ) -> None:
        world.limited(requests_per_min=60)
        waits = [(await world.ask())[1].retry_after_s for _ in range(200)]
        assert max(wait or 0.0 for wait in waits) <= 60.0

    async def test_tokens_are_reserved_and_corrected_when_the_call_has_ended(self, world: GateWorld) -> None:
        world.limited(input_tokens_per_min=6000, output_tokens_per_min=60000, burst_s=60.0)
        call = await world.ask(tokens_in=5000, tokens_out=1000)
        assert (await world.ask(tokens_in=2000))[1].denial == "input_tokens"
        await world.end(call, "ok", tokens_in=1000, tokens_out=2000)
        stats = await world.store.stats(world.key, world.rules)
        assert (stats.input_tokens_left, stats.output_tokens_left) == pytest.approx((5000, 58000), abs=20)
        assert (await world.ask(tokens_in=4500))[1].denial == ""

    async def test_a_call_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt(
        self, world: GateWorld
    ) -> None:
        world.limited(input_tokens_per_min=6000, burst_s=1.0)
        assert (await world.ask(tokens_in=1000))[1].denial == ""
        _, answer = await world.ask(tokens_in=50)
        assert answer.denial == "input_tokens"
        assert answer.retry_after_s == pytest.approx(9.5, abs=0.05)

    async def test_an_unsent_call_gives_everything_back(self, world: GateWorld) -> None:
        world.limited(requests_per_min=60, input_tokens_per_min=6000, concurrency=1)
        call = await world.ask(tokens_in=100)
        assert (await world.ask(tokens_in=100))[1].denial == "requests"
        await world.end(call, "neutral", tokens_in=0, was_sent=False)
        assert (await world.ask(tokens_in=100))[1].denial == ""

    async def test_places_are_taken_and_free_again_after_the_call_or_its_lease(self, world: GateWorld) -> None:
        world.limited(concurrency=2)
        calls = [await world.ask(lease_s=10.0), await world.ask(lease_s=100.0)]
        _, full = await world.ask()
        assert (full.denial, full.scope) == ("concurrency", "key")
        assert full.retry_after_s is not None and 0 < full.retry_after_s <= 1.0
        await world.end(calls[1], "ok")
        assert (await world.ask(lease_s=100.0))[1].denial == ""
        assert (await world.ask())[1].denial == "concurrency"
        await world.advance(10.01)
        assert (await world.ask())[1].denial == "", "the first one's process died"

    async def test_a_tenant_has_limits_of_its_own(self, world: GateWorld) -> None:
        world.rules = replace(world.rules, tenant_limits=Limits(requests_per_min=60, concurrency=1))
        assert (await world.ask())[1].denial == ""
        _, answer = await world.ask()
        assert (answer.denial, answer.scope) == ("requests", "tenant")
        assert (await world.ask(tenant="another"))[1].denial == ""
        await world.advance(1.01)
        assert (await world.ask())[1].denial == "concurrency"

    async def test_a_refused_call_reserves_nothing(self, world: GateWorld) -> None:
        budget = Budget(level="run", name="r", tokens=1000)
        world.rules = replace(
            world.rules, limits=Limits(requests_per_min=600), tenant_limits=Limits(input_tokens_per_min=60)
        )
        await world.ask(tokens_in=1, budgets=(budget,))
        before = await world.store.stats(world.key, world.rules)
        for _ in range(5):
            assert (await world.ask(tokens_in=100, budgets=(budget,)))[1].denial == "input_tokens"
        after = await world.store.stats(world.key, world.rules)
        assert (after.requests_left or 0) >= (before.requests_left or 0)
        assert (after.in_flight, after.retries_left) == (before.in_flight, before.retries_left)
        assert await world.store.left(world.tenant, (budget,)) == (Left("run", "r", 999, None),)
        empty = Budget(level="run", name="empty", tokens=0)
        await world.advance(60.0)
        assert (await world.ask(budgets=(empty,)))[1].denial == "budget"
        assert (await world.store.stats(world.key, world.rules)).in_flight == 0

    async def test_retry_after_closes_the_key_for_all_and_is_never_shortened(self, world: GateWorld) -> None:
        calls = [await world.ask() for _ in range(3)]
        await world.end(calls[0], "neutral", retry_after_s=20.0)
        await world.end(calls[1], "neutral", retry_after_s=5.0)
        _, answer = await world.ask()
        assert (answer.denial, answer.mode) == ("not_before", "closed")
        assert answer.retry_after_s == pytest.approx(20.0, abs=0.01)
        await world.end(calls[2], "neutral", retry_after_s=1e9)
        assert (await world.ask())[1].retry_after_s == pytest.approx(3600.0, abs=0.01), "no server is believed for ever"
        await world.store.operate(world.key, Operate("closed", "operator"), world.rules)
        assert (await world.ask())[1].denial == ""

    async def test_an_overload_cuts_the_places_once_and_successes_give_them_back(self, world: GateWorld) -> None:
        world.rules = replace(world.rules, limits=Limits(concurrency=10), adapt=AdaptKnobs(factor=0.7))
        calls = [await world.ask() for _ in range(10)]
        for call in calls[:5]:
            await world.advance(0.01)
            await world.end(call, "neutral", overloaded=True)
        stats = await world.store.stats(world.key, world.rules)
        assert stats.concurrency == 7, "five calls that were under way together are one overload"
        assert [(await world.ask())[1].denial for _ in range(3)] == ["", "", "concurrency"]
        for call in calls[5:]:
            await world.end(call, "neutral")
        for _ in range(40):
            await world.calls("ok")
        assert (await world.store.stats(world.key, world.rules)).concurrency == 10
        world.rules = replace(world.rules, adapt=AdaptKnobs(enabled=False))
        await world.end(await world.ask(), "neutral", overloaded=True)
        assert (await world.store.stats(world.key, world.rules)).concurrency == 10

    async def test_without_a_limit_an_overload_sets_one_from_the_calls_under_way(self, world: GateWorld) -> None:
        calls = [await world.ask() for _ in range(10)]
        await world.end(calls[0], "failure", overloaded=True)
        assert (await world.store.stats(world.key, world.rules)).concurrency == 7
        for _ in range(30):
            await world.advance(1.0)
            await world.end(await world.ask(), "neutral", overloaded=True)
        for call in calls[1:]:
            await world.end(call, "neutral")
        for _ in range(10):
            await world.advance(1.0)
            await world.end(await world.ask(), "neutral", overloaded=True)
        assert (await world.store.stats(world.key, world.rules)).concurrency == 1, "never below the floor"

    async def test_those_whom_a_cut_key_without_limits_refuses_are_told_to_come_one_after_the_other(
        self, world: GateWorld
    ) -> None:
        calls = [await world.ask() for _ in range(2)]
        await world.end(calls[0], "ok", overloaded=True)
        waits = [(await world.ask())[1].retry_after_s for _ in range(3)]
        assert waits == pytest.approx([0.5, 1.0, 1.5], abs=0.05)

    async def test_what_a_provider_says_only_lowers(self, world: GateWorld) -> None:
        world.limited(requests_per_min=6000, input_tokens_per_min=60000, burst_s=6.0)
        call = await world.ask(tokens_in=10)
        await world.end(call, "ok", limits_seen=LimitsSeen(requests_left=1e6, input_tokens_left=100))
        stats = await world.store.stats(world.key, world.rules)
        assert (stats.requests_left, stats.input_tokens_left) == pytest.approx((599, 100), abs=2)
        await world.end(await world.ask(), "ok", limits_seen=LimitsSeen(requests_left=0, requests_reset_s=3.0))
        _, answer = await world.ask()
        assert answer.denial == "requests"
        assert answer.retry_after_s == pytest.approx(3.01, abs=0.02)

    async def test_a_provider_that_has_nothing_left_closes_a_key_without_limits_until_its_reset(
        self, world: GateWorld
    ) -> None:
        seen = LimitsSeen(output_tokens_left=0, output_tokens_reset_s=7.0)
        await world.end(await world.ask(), "ok", limits_seen=seen)
        _, answer = await world.ask()
        assert answer.denial == "not_before"
        assert answer.retry_after_s == pytest.approx(7.0, abs=0.01)

    async def test_retries_are_paid_from_what_first_attempts_earn(self, world: GateWorld) -> None:
        budget = RetryBudgetKnobs(ratio=0.25, floor_per_s=0.0, cap=10)
        world.rules = replace(world.rules, retry_budget=budget)
        retries = [(await world.ask(attempt=2))[1].denial for _ in range(12)]
        assert retries == [""] * 10 + ["retry_budget"] * 2
        for _ in range(8):
            await world.ask()
        retries = [(await world.ask(attempt=3))[1].denial for _ in range(3)]
        assert retries == ["", "", "retry_budget"]

    async def test_a_retry_a_second_is_always_there(self, world: GateWorld) -> None:
        retries = [(await world.ask(attempt=2))[1].denial for _ in range(11)]
        assert retries[-1] == "retry_budget"
        await world.advance(1.01)
        assert [(await world.ask(attempt=2))[1].denial for _ in range(2)] == ["", "retry_budget"]

    async def test_budgets_are_charged_as_estimated_and_corrected(self, world: GateWorld) -> None:
        run = Budget(level="run", name="r1", tokens=1000, money=1.0)
        tenant = Budget(level="tenant", name="t", tokens=5000)
        call = await world.ask(tokens_in=100, tokens_out=400, cost=0.25, budgets=(run, tenant))
        assert await world.store.left(world.tenant, (run, tenant)) == (
            Left("run", "r1", 500, 0.75),
            Left("tenant", "t", 4500, None),
        )
        await world.end(call, "ok", tokens_in=100, tokens_out=50, cost=0.5)
        left = await world.store.left(world.tenant, (run, tenant))
        assert left == (Left("run", "r1", 850, 0.5), Left("tenant", "t", 4850, None))
        assert [(one.tokens, one.money) for one in call[1].spent] == [(500, 0.25), (500, 0.25)]

    @pytest.mark.parametrize(("kind", "position"), [("tokens", 0), ("money", 1)])
    async def test_a_budget_that_cannot_pay_is_named_and_none_is_charged(
        self, world: GateWorld, kind: str, position: int
    ) -> None:
        budgets = (
            Budget(level="run", name="r", tokens=100 if kind == "tokens" else None),
            Budget(level="day", name="d", money=0.1, period_s=DAY_S),
        )
        _, answer = await world.ask(tokens_in=101, cost=0.2 if kind == "money" else 0.0, budgets=budgets)
        assert answer.denial == "budget" and answer.short is not None
        assert (answer.short.position, answer.short.kind) == (position, kind)
        left = await world.store.left(world.tenant, budgets)
        assert [one.money for one in left] == [None, 0.1]

    async def test_children_inherit_what_remains_of_their_parents(self, world: GateWorld) -> None:
        parent = Budget(level="run", name="parent", tokens=1000)
        child = Budget(level="run", name="child", tokens=900)
        await world.end(await world.ask(tokens_in=600, budgets=(parent,)), "ok")
        _, answer = await world.ask(tokens_in=500, budgets=(child, parent))
        assert answer.short is not None and answer.short.position == 1
        assert (await world.ask(tokens_in=400, budgets=(child, parent)))[1].denial == ""

    async def test_a_day_is_full_again_tomorrow_and_a_late_refund_stays_in_its_day(self, world: GateWorld) -> None:
        day = Budget(level="day", name="d", tokens=1000, period_s=DAY_S)
        call = await world.ask(tokens_in=1000, budgets=(day,))
        assert (await world.ask(tokens_in=1, budgets=(day,)))[1].denial == "budget"
        await world.advance(DAY_S)
        assert (await world.ask(tokens_in=600, budgets=(day,)))[1].denial == ""
        await world.end(call, "ok", tokens_in=0)
        assert (await world.store.left(world.tenant, (day,)))[0].tokens == 400

    async def test_tenants_have_purses_of_their_own_and_a_charge_needs_no_permit(self, world: GateWorld) -> None:
        run = Budget(level="run", name="r:1{x}", tokens=1000)
        await world.store.charge(world.tenant, (run,), tokens=990, cost=0.0)
        assert (await world.ask(tokens_in=20, budgets=(run,)))[1].denial == "budget"
        assert (await world.ask(tokens_in=20, budgets=(run,), tenant=f"other-{world.tenant}"))[1].denial == ""

    async def test_two_hundred_concurrent_calls_never_overspend(self, world: GateWorld) -> None:
        run = Budget(level="run", name="busy", tokens=1000)
        answers = await asyncio.gather(*(world.ask(tokens_in=30, budgets=(run,)) for _ in range(200)))
        assert sum(not answer.denial for _, answer in answers) == 33
