"""The gate: what it raises, what it waits for, whom it tells, and that nothing reserved is lost."""

import asyncio
import random
import threading
from typing import Any

import pybreaker
import pytest

from shared.errors import BreakerOpen, BudgetSpent, Throttled
from shared.resilience import deadline
from shared.resilience.exchange import Answer, Ask
from shared.resilience.fleet_breaker import CircuitOpen
from shared.resilience.gate import Gate, Transition
from shared.resilience.knobs import BreakerKnobs, KeyRules, Limits
from shared.resilience.memory_store import MemoryStore
from shared.resilience.spending import Budget

KEY = "endpoint:model"


class World:
    """A gate over memory, whose clock moves when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._thread, self._really_sleep = threading.get_ident(), asyncio.sleep
        self.now = 1_780_000_000.0
        self.slept: list[float] = []
        self.rules = KeyRules(breaker=BreakerKnobs(jitter=0.0))
        self.transitions: list[Transition] = []
        self.store = MemoryStore(clock=lambda: self.now)
        self.gate = Gate(self.store, lambda _: self.rules, on_transition=self.transitions.append)
        monkeypatch.setattr(asyncio, "sleep", self.sleep)
        monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)

    async def sleep(self, seconds: float, result: Any = None) -> Any:
        if threading.get_ident() != self._thread:  # a server's loop
            return await self._really_sleep(seconds, result)
        self.slept.append(seconds)
        self.now += seconds
        return result

    async def dies(self) -> None:
        for _ in range(5):
            await (await self.gate.admit(KEY)).settle("failure", seconds=0.1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def test_an_open_breaker_is_an_error_of_ours_and_of_pybreaker(world: World) -> None:
    await world.dies()
    with pytest.raises(BreakerOpen) as caught:
        await world.gate.admit(KEY, wait_up_to_s=100)
    assert isinstance(caught.value, pybreaker.CircuitBreakerError)
    assert caught.value.retry_after_s == pytest.approx(30.0)
    assert caught.value.as_dict() == {
        "code": "breaker_open",
        "message": f"Calls to {KEY} are stopped (open: 5 failures in a row); retry after 30.0 s",
        "context": {"key": KEY, "state": "open", "reason": "5 failures in a row"},
    }
    assert world.slept == [], "an open breaker is for the next endpoint, not to wait for"


async def test_a_limit_is_waited_for_as_long_as_the_caller_and_the_deadline_allow(world: World) -> None:
    world.rules = KeyRules(limits=Limits(requests_per_min=60))
    await world.gate.admit(KEY)
    with pytest.raises(Throttled) as caught:
        await world.gate.admit(KEY)
    assert caught.value.context == {"key": KEY, "cause": "requests", "scope": "key"}
    assert (caught.value.retry_after_s or 0) == pytest.approx(1.0)
    await world.gate.admit(KEY, wait_up_to_s=5.0)
    assert len(world.slept) == 1 and 1.0 <= world.slept[0] <= 2.2
    with deadline.within(0.1), pytest.raises(Throttled):
        await world.gate.admit(KEY, wait_up_to_s=5.0)
    assert len(world.slept) == 1


async def test_a_retry_without_budget_is_not_waited_for(world: World) -> None:
    for _ in range(10):
        await world.gate.admit(KEY, attempt=2)
    with pytest.raises(Throttled) as caught:
        await world.gate.admit(KEY, attempt=2, wait_up_to_s=60.0)
    assert caught.value.context["cause"] == "retry_budget" and world.slept == []


async def test_a_budget_that_cannot_pay_is_named(world: World) -> None:
    budgets = (Budget(level="run", name="r", tokens=1000), Budget(level="day", name="2026", money=0.5))
    permit = await world.gate.admit(KEY, tokens_in=100, tokens_out=50, cost=0.4, budgets=budgets)
    assert [(one.level, one.tokens, one.money) for one in permit.budget_left] == [
        ("run", 850, None),
        ("day", None, 0.5 - 0.4),
    ]
    with pytest.raises(BudgetSpent) as caught:
        await world.gate.admit(KEY, tokens_in=1, cost=0.6, budgets=budgets)
    assert caught.value.message == "The day budget of 2026 has 0.1 of 0.5 money left: too little"
    assert {**caught.value.context, "left": 0} == {
        "level": "day",
        "name": "2026",
        "kind": "money",
        "limit": 0.5,
        "left": 0,
    }
    await permit.settle("ok", tokens_out=0, cost=0.1)
    assert [(one.tokens, one.money) for one in await world.gate.left(budgets)] == [(900, None), (None, 0.4)]
    await world.gate.charge(budgets, tokens=900, cost=0.1)
    assert (await world.gate.left(budgets))[0].tokens == 0


async def test_a_budget_that_calls_under_way_hold_is_not_spent_yet(world: World) -> None:
    run = Budget(level="run", name="r", tokens=1000, money=10.0)
    first = await world.gate.admit(KEY, tokens_out=900, cost=9.0, budgets=(run,))
    for wish in ({"tokens_out": 200}, {"cost": 2.0}):
        with pytest.raises(Throttled, match="hold what is left of a budget") as caught:
            await world.gate.admit(KEY, budgets=(run,), **wish)
        assert caught.value.retry_after_s == 1.0
    with pytest.raises(BudgetSpent):
        await world.gate.admit(KEY, tokens_out=1001, budgets=(run,))
    await first.settle("ok", tokens_out=20, cost=0.1)
    second = await world.gate.admit(KEY, tokens_out=900, budgets=(run,))
    await second.settle("ok", tokens_out=900)
    with pytest.raises(BudgetSpent):
        await world.gate.admit(KEY, tokens_out=200, budgets=(run,))
    assert not world.gate._holds._tokens and not world.gate._holds._money


async def test_a_permit_is_settled_once(world: World) -> None:
    permit = await world.gate.admit(KEY)
    assert await permit.settle("failure", seconds=1.0) is not None
    assert await permit.settle("failure", seconds=1.0) is None
    await permit.cancel()
    assert (await world.gate.stats(KEY)).total_calls == 1


@pytest.mark.parametrize(("sent", "left"), [(True, 900), (False, 1000)])
async def test_a_cancelled_call_is_neutral_and_stays_charged_only_if_it_was_sent(
    world: World, sent: bool, left: int
) -> None:
    run = Budget(level="run", name="r", tokens=1000)
    permit = await world.gate.admit(KEY, tokens_in=100, budgets=(run,))
    await permit.cancel(sent=sent)
    stats = await world.gate.stats(KEY)
    assert (stats.total_calls, stats.in_flight) == (0, 0)
    assert (await world.gate.left((run,)))[0].tokens == left


async def test_a_block_that_ends_without_settling_cancels(world: World) -> None:
    with pytest.raises(ValueError):
        async with world.gate.admitted(KEY):
            raise ValueError
    async with world.gate.admitted(KEY) as permit:
        await permit.settle("ok")
    assert ((await world.gate.stats(KEY)).in_flight, (await world.gate.stats(KEY)).total_calls) == (0, 1)


async def test_a_settlement_ends_though_its_task_is_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, settle = asyncio.Event(), world.store.settle

    async def slow(settlement: Any) -> Any:
        await going_on.wait()
        return await settle(settlement)

    monkeypatch.setattr(world.store, "settle", slow)
    permit = await world.gate.admit(KEY)
    ending = asyncio.create_task(permit.settle("ok"))
    for _ in range(3):
        await asyncio.wait([ending], timeout=0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    going_on.set()
    for _ in range(5):
        await asyncio.wait([asyncio.ensure_future(world.gate.stats(KEY))])
    assert (await world.gate.stats(KEY)).in_flight == 0


async def test_an_answer_that_its_task_did_not_wait_for_keeps_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, going_on = world.store.admit, asyncio.Event()
    run = Budget(level="run", name="r", tokens=1000)

    async def late(ask: Ask) -> Answer:
        answer = await admit(ask)
        await going_on.wait()
        return answer

    monkeypatch.setattr(world.store, "admit", late)
    asking = asyncio.create_task(world.gate.admit(KEY, tokens_in=100, budgets=(run,)))
    while not (await world.gate.stats(KEY)).in_flight:
        await asyncio.wait([asyncio.ensure_future(world.gate.stats(KEY))])
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    going_on.set()
    for _ in range(5):
        await asyncio.wait([asyncio.ensure_future(world.gate.stats(KEY))])
    assert (await world.gate.stats(KEY)).in_flight == 0
    assert (await world.gate.left((run,)))[0].tokens == 1000, "nor does it cost anything"


@pytest.mark.parametrize("told", ["before_call", "state_change"])
async def test_a_listener_that_fails_keeps_neither_a_place_nor_a_probe(world: World, told: str) -> None:
    class Listener(pybreaker.CircuitBreakerListener):  # type: ignore[misc]
        pass

    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    setattr(Listener, told, fails)
    await world.dies()
    world.now += 31
    listener = Listener()
    world.gate.breaker(KEY).add_listener(listener)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await world.gate.admit(KEY)
        world.gate._modes[KEY] = world.gate.breaker(KEY)._seen = "open"  # it is told again
    world.gate.breaker(KEY).remove_listener(listener)
    stats = await world.gate.stats(KEY)
    assert (stats.state, stats.in_flight, stats.probes) == ("half-open", 0, 0)


async def test_changes_of_state_are_told_once_with_their_reason(world: World) -> None:
    await world.dies()
    world.now += 30
    for _ in range(2):
        await (await world.gate.admit(KEY)).settle("ok", seconds=0.1)
    assert [(one.old, one.new, one.reason) for one in world.transitions] == [
        ("closed", "open", "5 failures in a row"),
        ("open", "half-open", "half-open: a probe"),
        ("half-open", "closed", "2 probes succeeded"),
    ]
    assert {one.key for one in world.transitions} == {KEY}


async def test_the_keys_breaker_is_pybreakers_and_hears_of_the_gates_calls(world: World) -> None:
    heard: list[str] = []

    class Listener(pybreaker.CircuitBreakerListener):  # type: ignore[misc]
        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            heard.append(f"before {cb.name}")

        def failure(self, cb: Any, exc: BaseException) -> None:
            heard.append(repr(exc))

        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            heard.append(f"{old_state.name} to {new_state.name}")

    world.gate.breaker(KEY).add_listener(Listener())
    assert world.gate.breaker(KEY) is world.gate.breaker(KEY)
    for _ in range(5):
        await (await world.gate.admit(KEY)).settle("failure", seconds=0.1, error=OSError("x"))
    assert heard == [f"before {KEY}", "OSError('x')"] * 5 + ["closed to open"]
    with pytest.raises(CircuitOpen):
        await world.gate.breaker(KEY).call_async(asyncio.sleep, 0)


async def test_operators_stop_and_release_a_key(world: World) -> None:
    await world.gate.force_open(KEY, reason="maintenance")
    with pytest.raises(CircuitOpen, match="maintenance"):
        await world.gate.admit(KEY, is_last=True)
    await world.gate.disable(KEY, reason="quota", for_s=60.0)
    with pytest.raises(CircuitOpen, match="disabled: quota"):
        await world.gate.admit(KEY)
    await world.gate.close(KEY)
    await world.gate.admit(KEY)
    assert [one.new for one in world.transitions] == ["forced-open", "disabled", "closed"]
    stats = (await world.gate.stats(KEY)).as_dict()
    assert list(stats)[:4] == ["name", "state", "failure_count", "total_calls"]
