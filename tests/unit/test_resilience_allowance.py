"""Budgets around an outage of the fleet's store: a share of what was left, debts that are paid, nothing overspent."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest

from shared.errors import BudgetSpent, Throttled
from shared.resilience.allowance import Allowances
from shared.resilience.exchange import Answer, Ask
from shared.resilience.fail_open import FailOpenStore
from shared.resilience.gate import Gate, Permit
from shared.resilience.knobs import KeyRules
from shared.resilience.memory_store import MemoryStore
from shared.resilience.spending import Budget, Left, Spent
from tests.unit.test_resilience_fail_open import Shared

RUN = Budget(level="run", name="r", tokens=1000, money=10.0)
DAY = Budget(level="day", name="d", tokens=1000, period_s=86_400)
RULES = KeyRules()


def gate_over(shared: Shared, *, share: float = 0.25, rest_s: float = 0.0) -> Gate:
    return Gate(FailOpenStore(shared, MemoryStore(share=share), rest_s=rest_s, share=share), lambda _: RULES)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def spend(gate: Gate, tokens: int, *, cost: float = 0.0) -> Permit:
    permit = await gate.admit("k", tokens_in=tokens, cost=cost, budgets=(RUN,))
    await permit.settle("ok")
    return permit


async def spend_all(gate: Gate) -> None:
    with pytest.raises((Throttled, BudgetSpent)):
        await asyncio.gather(*(spend(gate, 10) for _ in range(100)))


async def test_alone_a_process_spends_its_share_of_what_was_left_and_is_then_told_to_wait() -> None:
    shared = Shared()
    gate = gate_over(shared)
    await spend(gate, 600)
    shared.is_away = True
    permit = await spend(gate, 100)
    assert (permit.mode, permit.budget_left[0].tokens) == ("alone", 300)
    with pytest.raises(Throttled, match="this process's share of a budget") as caught:
        await spend(gate, 1)
    assert caught.value.retry_after_s == 5.0, "no budget is spent: the fleet may be there again by then"
    await gate.aclose()


async def test_a_budget_that_is_really_spent_is_spent_without_the_fleet_too() -> None:
    shared = Shared()
    gate = gate_over(shared, share=1.0)
    await spend(gate, 1000)
    shared.is_away = True
    with pytest.raises(BudgetSpent):
        await spend(gate, 1)
    await gate.aclose()


async def test_what_was_spent_alone_is_charged_when_the_fleet_is_there_again_whatever_the_estimates_were() -> None:
    shared = Shared()
    gate = gate_over(shared, share=1.0)
    before = await gate.admit("k", tokens_in=100, cost=1.0, budgets=(RUN,))
    shared.is_away = True
    await before.settle("ok", tokens_in=150, cost=1.5)
    alone = await gate.admit("k", tokens_in=200, cost=2.0, budgets=(RUN,))
    late = await gate.admit("k", tokens_in=50, budgets=(RUN,))
    await alone.settle("ok", tokens_in=120, cost=1.0)
    await gate.charge((RUN,), tokens=7)
    assert spent_now(shared) == Spent(0, 100, 1.0)
    shared.is_away = False
    await until(lambda: spent_now(shared).tokens == 150 + 120 + 50 + 7)
    assert spent_now(shared).money == pytest.approx(2.5)
    await late.settle("ok", tokens_in=10)
    await until(lambda: spent_now(shared).tokens == 150 + 120 + 10 + 7)
    await gate.aclose()


async def test_until_all_have_paid_a_process_keeps_to_its_share_although_the_fleet_would_let_it_spend() -> None:
    shared = Shared()
    gate = gate_over(shared, rest_s=1.0)
    await spend(gate, 600)
    shared.is_away = True
    await spend(gate, 60)
    shared.is_away = False
    await until(lambda: spent_now(shared).tokens == 660)
    permit = await spend(gate, 40)
    assert permit.mode == "shared"
    with pytest.raises(Throttled):
        await spend(gate, 40)
    assert spent_now(shared).tokens == 700, "what was refused costs nothing"
    async with asyncio.timeout(10):
        while True:
            try:
                await spend(gate, 300)
                break
            except Throttled:
                await asyncio.sleep(0.05)
    assert spent_now(shared).tokens == 1000
    await gate.aclose()


async def test_twelve_processes_of_a_share_each_spend_exactly_what_was_left() -> None:
    shared = Shared()
    gates = [gate_over(shared, share=1 / 12, rest_s=0.05) for _ in range(12)]
    for gate in gates:
        await spend(gate, 10)
    shared.is_away = True
    for gate in gates:
        await spend_all(gate)
    shared.is_away = False
    for gate in gates:
        await spend_all(gate)
    await until(lambda: spent_now(shared).tokens > 900)
    for gate in gates:
        await gate.aclose()
    assert spent_now(shared).tokens <= 1000


async def test_a_debt_that_is_made_while_the_last_one_is_paid_does_not_wait_for_the_next_outage() -> None:
    class Flaky(Shared):
        """Is back, but for one call that ends while it is asked whether it is."""

        late: Permit | None = None

        async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
            answer = await super().left(tenant, budgets)
            if self.late is not None:
                late, self.late = self.late, None
                self.is_away = True
                await late.settle("ok", tokens_in=150)
                self.is_away = False
            return answer

    shared = Flaky()
    gate = gate_over(shared, share=1.0)
    late = await gate.admit("k", tokens_in=100, budgets=(RUN,))
    shared.is_away = True
    await spend(gate, 10)
    shared.late, shared.is_away = late, False
    await until(lambda: spent_now(shared).tokens == 150 + 10)
    await gate.aclose()


def test_a_debt_of_yesterday_is_owed_no_more() -> None:
    now = [86_400.0 * 10 + 5]
    mine = Allowances(share=1.0, clock=lambda: now[0])
    mine.take(
        Ask(key="k", permit=uuid4().hex, rules=RULES, tokens_in=9, budgets=(DAY,)), Answer(shared=False), is_owed=True
    )
    assert [amount.tokens for _, _, amount in mine.debts()] == [9]
    now[0] += 86_400
    assert list(mine.debts()) == []
    assert mine.left("default", (DAY,))[0].tokens == 1000


def test_purses_of_runs_that_ended_long_ago_are_forgotten_but_no_debt_is() -> None:
    mine = Allowances(share=1.0)
    mine.charge("t", (RUN,), tokens=5, money=0.0, is_owed=True)
    for number in range(20_001):
        mine.heard("t", (Budget(level="run", name=str(number), tokens=9),), (Spent(0, 1),))
    assert len(mine._pages) <= 10_001
    assert [amount.tokens for _, _, amount in mine.debts()] == [5]


def spent_now(shared: Shared) -> Spent:
    return shared._purses[("default", "run", "r")][0]
