"""Every metric of the LLM plane, told by what the plane does, with its value and its labels."""

import asyncio
import math
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from shared.errors import BudgetSpent, LLMRateLimited, LLMRefused, LLMUnavailable
from shared.llm.messages import ChatRequest, Message, ToolSpec
from shared.telemetry import llm_metrics as metrics
from tests.fakes.fake_plane import PlaneWorld
from tests.fakes.fake_world import FakeWorld
from workers.agents.registration import load_agents

load_agents(["workers.agents.chat", "workers.agents.tools"])

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)
ACT = ChatRequest((Message("user", "Book room 7."),), tools=(ToolSpec("book", "Book a room."),))
PRICED = "price: {input_per_million: 1000, output_per_million: 2000}"
FREE = "price: {input_per_million: 0, output_per_million: 0}"
FIRST, SECOND = {"endpoint": "first", "model": "big-2"}, {"endpoint": "second", "model": "small-1"}


class Counted:
    """What has been counted since the beginning, however much other tests have counted before."""

    def __init__(self) -> None:
        self._before = self._now()
        self.asked: set[str] = set()

    def __call__(self, name: str, /, **labels: Any) -> float:
        key = (name, tuple(sorted(labels.items())))
        self.asked.add(name)
        return self._now().get(key, 0.0) - self._before.get(key, 0.0)

    def gauge(self, name: str, /, **labels: Any) -> float | None:
        self.asked.add(name)
        return REGISTRY.get_sample_value(name, labels)

    @staticmethod
    def _now() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in REGISTRY.collect()
            if family.name.startswith("fleet_llm_")
            for sample in family.samples
        }


@pytest.fixture
def counted() -> Counted:
    return Counted()


def down() -> LLMUnavailable:
    return LLMUnavailable("it hung up")


async def answers_at_every_level(counted: Counted) -> None:
    world = PlaneWorld(first=PRICED, more="agents: {chat: {cache: fresh}}")
    await world.chat(HELLO)
    await world.plane.settled()
    await world.chat(HELLO)
    other = ChatRequest((Message("user", "Another?"),), temperature=0.0)
    world.first.script.extend([down(), down()])
    await world.chat(other)
    assert counted("fleet_llm_calls_total", **FIRST, kind="ok") == 1
    assert counted("fleet_llm_calls_total", **FIRST, kind="unreachable") == 2
    assert counted("fleet_llm_call_seconds_count", **FIRST) == 3
    assert counted("fleet_llm_tokens_total", **FIRST, direction="input", basis="told") == 3
    assert counted("fleet_llm_tokens_total", **FIRST, direction="output", basis="told") == 5
    assert counted("fleet_llm_cost_total", **FIRST) == pytest.approx(0.013)
    assert counted("fleet_llm_cache_total", result="miss") == 2
    assert counted("fleet_llm_cache_total", result="hit") == 1
    assert counted("fleet_llm_cached_age_seconds_count") == 1
    assert counted("fleet_llm_retries_total", **FIRST) == 1
    assert 0 < counted("fleet_llm_retry_wait_seconds_total", **FIRST) < 0.01
    assert counted("fleet_llm_passed_total", **FIRST, why="down") == 1
    answers = {"agent": "chat", "endpoint": "first"}
    assert counted("fleet_llm_answers_total", **answers, level="L0", reason="none") == 1
    assert counted("fleet_llm_answers_total", **answers, level="L0", reason="fresh") == 1
    assert counted("fleet_llm_answers_total", agent="chat", endpoint="second", level="L1", reason="down") == 1
    assert counted("fleet_llm_answer_seconds_count", agent="chat") == 3


async def nobody_answers(counted: Counted) -> None:
    world = PlaneWorld(more="agents: {clerk: {must_act: true}}")
    world.all_down()
    for _ in range(5):
        await world.chat(HELLO)
    assert (await world.chat(ACT, agent="clerk")).could_not_act
    static = {"level": "L4", "endpoint": "static", "reason": "down"}
    assert counted("fleet_llm_answers_total", agent="chat", **static) == 5
    assert counted("fleet_llm_could_not_act_total", agent="clerk", missing="models") == 1
    assert counted("fleet_llm_refused_total", **FIRST, cause="breaker") >= 2


async def accounts_and_budgets(counted: Counted) -> None:
    world = PlaneWorld(more="budgets: {day: {tokens: 0}}")
    with pytest.raises(BudgetSpent):
        await world.chat(HELLO)
    assert counted("fleet_llm_unanswered_total", agent="chat", code="budget_spent") == 1
    refused = PlaneWorld()
    refused.first.script.append(LLMRefused("no", status=401))
    await refused.chat(HELLO)
    assert counted("fleet_llm_endpoint_disabled_total", endpoint="first", kind="unauthorized") == 1


async def outages_around_the_models(counted: Counted) -> None:
    world = FakeWorld()
    world.vectors.is_down = True
    answer = await world.execute(world.run(), "chat", {"message": "hi", "passages": 1})
    assert answer["level"] == "L3"
    assert counted("fleet_llm_plain_answers_total", agent="chat", missing="retrieval") == 1
    assert counted("fleet_llm_plain_answers_total", agent="chat", missing="tools") == 0


async def gauges(counted: Counted) -> None:
    budgets = "budgets: {day: {tokens: 9000, money: 5}}\ntenants: {acme: {budget: {tokens: 90}}}"
    limits = "requests_per_min: 600, input_tokens_per_min: 60000, output_tokens_per_min: 60000, concurrency: 9"
    world = PlaneWorld(first=f"{PRICED}, max_tokens: 9, limits: {{{limits}}}", second=FREE, more=budgets)
    await world.chat(HELLO)
    permit = await world.plane.gate.admit("first:big-2", attempt=2)
    world.first.script.append(LLMRateLimited("slow down", retry_after_s=50.0))
    await world.chat(HELLO)
    await world.plane.gate.force_open("second:small-1", reason="a drill")
    away = Redis(port=1, socket_connect_timeout=0.2)
    await world.plane.publish(away)
    await away.aclose()
    await permit.cancel()
    gauge = counted.gauge
    assert gauge("fleet_llm_breaker_state", **FIRST, state="closed") == 1
    assert gauge("fleet_llm_breaker_state", **SECOND, state="forced-open") == 1
    assert gauge("fleet_llm_breaker_state", **SECOND, state="closed") == 0
    assert gauge("fleet_llm_retry_after_seconds", **SECOND) == math.inf, "not before an operator says so"
    assert gauge("fleet_llm_retry_after_seconds", **FIRST) == 0
    assert gauge("fleet_llm_not_before_seconds", **FIRST) == pytest.approx(50.0, abs=5.0)
    assert gauge("fleet_llm_failure_ratio", **FIRST) == 0
    assert gauge("fleet_llm_latency_seconds", **FIRST) == 0, "a hand clock"
    assert gauge("fleet_llm_in_flight", **FIRST) == 1
    assert gauge("fleet_llm_concurrency_limit", **FIRST) == 1, "cut by the 429"
    assert gauge("fleet_llm_concurrency_limit", **SECOND) == -1
    assert gauge("fleet_llm_limit_left", **FIRST, of="requests") == pytest.approx(10.0, abs=4.0)
    assert gauge("fleet_llm_limit_left", **FIRST, of="input_tokens") == pytest.approx(1000.0, abs=20.0)
    assert gauge("fleet_llm_limit_left", **FIRST, of="output_tokens") == pytest.approx(1000.0, abs=20.0)
    assert gauge("fleet_llm_retries_left", **FIRST) == pytest.approx(9.5, abs=0.6)
    day = {"level": "day", "name": "default", "tenant": "default"}
    assert gauge("fleet_llm_budget_left", **day, kind="tokens") == 9000 - 2 * 8
    assert gauge("fleet_llm_budget_left", **day, kind="money") == pytest.approx(5 - 0.013)
    acme = {"tenant": "acme", "level": "tenant", "name": "acme"}
    assert gauge("fleet_llm_budget_left", **acme, kind="tokens") == 90
    assert gauge("fleet_llm_state_is_shared") == 0


async def test_every_metric_is_told_with_its_value_and_its_labels(counted: Counted) -> None:
    await answers_at_every_level(counted)
    await nobody_answers(counted)
    await accounts_and_budgets(counted)
    await outages_around_the_models(counted)
    await gauges(counted)
    declared = {
        family.name + {"counter": "_total", "histogram": "_count"}.get(family.type, "")
        for family in REGISTRY.collect()
        if family.name.startswith("fleet_llm_")
    }
    assert counted.asked == declared


async def test_a_call_that_is_cancelled_is_counted_and_its_question_is_booked(counted: Counted) -> None:
    world = PlaneWorld(first=PRICED, more="budgets: {day: {tokens: 5000}}", second=FREE)
    world.first.hangs = True
    call = asyncio.create_task(world.chat(HELLO))
    while not world.asked()["first"]:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert counted("fleet_llm_calls_total", **FIRST, kind="cancelled") == 1
    tokens = counted("fleet_llm_tokens_total", **FIRST, direction="input", basis="estimated")
    assert tokens > 0
    (page,) = world.plane.book._open.values()
    assert (page.calls, page.input_tokens) == (1, tokens) and page.money == pytest.approx(tokens / 1000)
    (left,) = await world.plane.gate.left(world.door().budgets)
    assert left.tokens == 5000 - tokens


def test_no_label_is_made_of_what_callers_say() -> None:
    labels = {name for metric in vars(metrics).values() for name in getattr(metric, "_labelnames", ())}
    bounded = {"endpoint", "model", "agent", "level", "name", "tenant", "kind", "cause", "why", "reason", "result"}
    assert labels <= bounded | {"state", "direction", "basis", "missing", "of", "code"}
