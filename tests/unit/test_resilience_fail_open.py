"""A store that goes away stops nobody: one caller notices, one line a minute tells, memory goes on."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.resilience import fail_open
from shared.resilience.circuit import Operate
from shared.resilience.exchange import Answer, Ask, Settled, Settlement
from shared.resilience.fail_open import FailOpenBlockingStore, FailOpenStore, Rest
from shared.resilience.knobs import KeyRules, Limits
from shared.resilience.memory_store import MemoryStore
from shared.resilience.redis_store import StoreAway
from shared.resilience.spending import Budget, Left

RULES = KeyRules(limits=Limits(concurrency=8))


class Shared(MemoryStore):
    """A shared store that can go away; counts its questions."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.asked = 0

    def admit_now(self, ask: Ask) -> Answer:
        self._count()
        answer = super().admit_now(ask)
        return Answer(**{name: getattr(answer, name) for name in answer.__slots__} | {"shared": True})

    def settle_now(self, settlement: Settlement) -> Settled:
        self._count()
        return super().settle_now(settlement)

    def operate_now(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        self._answer()
        return super().operate_now(key, operate, rules)

    async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
        self._answer()
        return await super().left(tenant, budgets)

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        self._answer()
        await super().charge(tenant, budgets, tokens=tokens, cost=cost)

    def _answer(self) -> None:
        if self.is_away:
            raise StoreAway("Redis does not answer")

    def _count(self) -> None:
        self.asked += 1
        self._answer()


def ask(number: int = 0) -> Ask:
    return Ask(key="k", permit=str(number), rules=RULES)


def end(answer: Answer, learn: Any = "ok") -> Settlement:
    return Settlement(ask=ask(), answer=answer, learn=learn, seconds=0.1, tokens_in=0, tokens_out=0, cost=0.0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(fail_open.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def test_a_store_that_failed_is_asked_again_by_one_caller_after_a_rest() -> None:
    now = [0.0]
    rest = Rest(1.0, lambda: now[0])
    assert rest.may_ask and rest.may_ask
    rest.failed(StoreAway("x"))
    now[0] = 0.99
    assert not rest.may_ask
    now[0] = 1.0
    assert [rest.may_ask for _ in range(5)] == [True, False, False, False, False]
    rest.answered()
    assert rest.may_ask and rest.may_ask


def test_an_outage_is_told_once_a_minute_and_so_is_its_end() -> None:
    now = [0.0]
    rest = Rest(1.0, lambda: now[0])
    with capture_logs() as logs:
        for second in range(150):
            now[0] = float(second)
            rest.failed(StoreAway("refused"))
        rest.answered()
        rest.answered()
    assert [one["event"] for one in logs] == ["resilience.store_away"] * 3 + ["resilience.store_back"]
    assert logs[0]["cause"] == "refused"


async def test_calls_go_on_in_memory_on_a_share_of_the_limits() -> None:
    shared = Shared()
    store = FailOpenStore(shared, MemoryStore(share=0.25))
    shared.is_away = True
    answers = [await store.admit(ask(number)) for number in range(3)]
    assert [(one.denial, one.shared) for one in answers] == [("", False), ("", False), ("concurrency", False)]
    assert shared.asked == 1, "it is left in peace"
    assert (await store.stats("k", RULES)).concurrency == 2


async def test_a_call_is_settled_where_it_was_admitted() -> None:
    shared = Shared()
    store = FailOpenStore(shared, MemoryStore(), rest_s=0.0)
    admitted = await store.admit(ask())
    assert admitted.shared
    shared.is_away = True
    alone = await store.admit(ask(1))
    shared.is_away = False
    await store.settle(end(alone, "failure"))
    assert (await shared.stats("k", RULES)).total_calls == 0
    await store.settle(end(admitted, "failure"))
    assert (await shared.stats("k", RULES)).total_calls == 1


async def test_a_breaker_seen_open_costs_no_question_for_a_second(now: list[float]) -> None:
    shared = Shared()
    store = FailOpenStore(shared, MemoryStore())
    await shared.operate("k", Operate("forced-open", "maintenance"), RULES)
    for _ in range(100):
        assert (await store.admit(ask())).reason == "maintenance"
    assert shared.asked == 1
    await store.admit(Ask(key="k", permit="last", rules=RULES, is_last=True))
    assert shared.asked == 2, "who has no other endpoint asks"
    await shared.operate("k", Operate("closed", "another process's operator"), RULES)
    now[0] += 1.01
    assert (await store.admit(ask())).denial == ""
    await store.operate("k", Operate("forced-open", "ours"), RULES)
    assert (await store.admit(ask())).denial == "breaker", "our own operator is heard at once"


@pytest.mark.parametrize("how", ["forced-open", "disabled", "open"])
async def test_a_breaker_that_the_fleet_has_opened_stays_open_while_the_fleet_cannot_be_asked(
    how: Any, now: list[float]
) -> None:
    shared = Shared()
    store = FailOpenStore(shared, MemoryStore(), rest_s=0.0)
    await shared.operate("k", Operate(how, "it is dead", for_s=60.0), RULES)
    assert (await store.admit(ask())).denial == "breaker"
    shared.is_away = True
    now[0] += 30.0
    answer = await store.admit(ask())
    assert (answer.denial, answer.reason, answer.shared) == ("breaker", "it is dead", False)
    shared.is_away = False
    await shared.operate("k", Operate("closed", "repaired"), RULES)
    now[0] += 1.01
    assert (await store.admit(ask())).shared
    shared.is_away = True
    assert (await store.admit(ask())).denial == "", "and closed once the fleet has closed it"


async def test_a_breaker_that_opens_with_this_process_own_call_is_known_alone_and_probed_after_its_time(
    now: list[float],
) -> None:
    shared = Shared()
    store = FailOpenStore(shared, MemoryStore(), rest_s=0.0)
    admitted = await store.admit(ask())
    while (await store.settle(end(admitted, "failure"))).new == "closed":
        pass
    shared.is_away = True
    assert (await store.admit(ask())).denial == "breaker"
    now[0] += 2 * RULES.breaker.open_s
    assert (await store.admit(ask())).is_probe


def test_threads_do_not_forget_an_open_breaker_either() -> None:
    shared = Shared()
    store = FailOpenBlockingStore(shared, MemoryStore(), rest_s=0.0)
    shared.operate_now("k", Operate("forced-open", "maintenance"), RULES)
    assert store.admit_now(ask()).denial == "breaker"
    shared.is_away = True
    assert store.admit_now(ask()).denial == "breaker"
    with pytest.raises(StoreAway):
        store.operate_now("k", Operate("closed", "ours"), RULES)
    assert store.admit_now(ask()).denial == ""


async def test_concurrent_callers_do_not_all_wait_for_a_store_that_hangs() -> None:
    class Hanging(Shared):
        async def admit(self, ask: Ask) -> Answer:
            self.asked += 1
            await asyncio.sleep(0.01)
            raise StoreAway("hangs")

    shared = Hanging()
    store = FailOpenStore(shared, MemoryStore(), rest_s=60.0)
    await store.admit(ask())
    await asyncio.gather(*(store.admit(ask(number)) for number in range(100)))
    assert shared.asked == 1


def test_threads_go_on_as_well() -> None:
    shared = Shared()
    store = FailOpenBlockingStore(shared, MemoryStore())
    answer = store.admit_now(ask())
    shared.is_away = True
    assert answer.shared and store.settle_now(end(answer, "failure")).new == "closed"
    assert not store.admit_now(ask()).shared
    assert store.stats_now("k", RULES).total_calls == 1
    assert shared.asked == 2
