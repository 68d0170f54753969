"""Outages seen from the plane: the fleet's store is away, all models are away for long, an account is closed."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from shared.errors import LLMRateLimited, LLMRefused, LLMUnavailable, RetryLater
from shared.llm.messages import ChatRequest, Message
from shared.resilience.circuit import Operate
from shared.resilience.exchange import Answer, Ask, KeyStats, Settled, Settlement
from shared.resilience.fail_open import FailOpenStore
from shared.resilience.knobs import KeyRules
from shared.resilience.memory_store import MemoryStore
from shared.resilience.redis_store import StoreAway
from shared.telemetry import llm_metrics as metrics
from tests.fakes.fake_plane import PlaneWorld

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)
KEY_REFUSED = LLMRefused("first refused the key with 401", status=401)
UNPAID = LLMRefused("first wants to be paid", status=402)
SPENT = LLMRefused("no quota", status=429, subject="account")


class Away(MemoryStore):
    """A shared store that does not answer."""

    async def admit(self, ask: Ask) -> Answer:
        raise StoreAway("Redis does not answer")

    async def settle(self, settlement: Settlement) -> Settled:
        raise StoreAway("Redis does not answer")

    async def operate(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        raise StoreAway("Redis does not answer")

    async def stats(self, key: str, rules: KeyRules) -> KeyStats:
        raise StoreAway("Redis does not answer")


@pytest.mark.parametrize("error", [KEY_REFUSED, UNPAID, SPENT])
async def test_an_account_that_is_refused_while_redis_is_away_is_taken_out_here_and_the_backup_answers(
    error: Any,
) -> None:
    world = PlaneWorld(store=FailOpenStore(Away(), MemoryStore()))
    world.first.script.append(error)
    replies = [await world.chat(HELLO) for _ in range(3)]
    assert {(reply.level, reply.endpoint) for reply in replies} == {("L1", "second")}
    assert world.asked()["first"] == 1, "this process knows, if nobody else"


async def test_a_task_whose_models_are_full_for_just_its_patience_is_put_back_and_not_answered_with_static_words() -> (
    None
):
    world = PlaneWorld()
    world.plane.draw = lambda: 1.0
    for adapter in (world.first, world.second):
        adapter.script.append(LLMRateLimited("slow", retry_after_s=60.0))
    with pytest.raises(RetryLater) as caught:
        await world.chat(HELLO)
    assert caught.value.retry_after_s == pytest.approx(66.0, abs=0.1), "a tenth later, by chance"


async def test_a_model_that_is_overloaded_and_says_for_how_long_is_waited_for() -> None:
    world = PlaneWorld()
    for adapter in (world.first, world.second):
        adapter.script.append(LLMUnavailable("overloaded", status=503, retry_after_s=30.0))
    with pytest.raises(RetryLater) as caught:
        await world.chat(HELLO)
    assert 30.0 <= (caught.value.retry_after_s or 0) <= 33.0
    silent = PlaneWorld(retries_before_fallback=0)
    for adapter in (silent.first, silent.second):
        adapter.script.extend(LLMUnavailable("overloaded", status=503) for _ in range(9))
    assert (await silent.chat(HELLO)).level == "L4", "one that does not say is down"


async def test_a_task_that_had_better_wait_is_put_back_for_ten_seconds_at_least_all_through_a_silent_outage() -> None:
    """Between two probes a breaker says "in a second"; a task that believed it would ask hundreds of times."""
    world = PlaneWorld(more="agents: {chat: {when_down: wait}}", breaker="{half_open_max_calls: 2}")
    for key in ("first:big-2", "second:small-1"):
        await world.plane.gate.disable(key, reason="silent", for_s=0.0)
        for _ in range(2):
            assert (await world.plane.gate.admit(key)).is_probe
    waits = []
    for chance in (0.0, 0.5, 1.0):
        world.draw = lambda chance=chance: chance  # type: ignore[misc]
        with pytest.raises(RetryLater) as caught:
            await world.chat(HELLO)
        waits.append(caught.value.retry_after_s)
    assert waits == pytest.approx([10.0, 10.5, 11.0])


@pytest.mark.parametrize(
    ("error", "kind"), [(KEY_REFUSED, "unauthorized"), (UNPAID, "quota_spent"), (SPENT, "quota_spent")]
)
async def test_an_account_that_is_refused_takes_every_model_of_its_endpoint_out_and_alerts_once(
    error: Any, kind: str
) -> None:
    world = PlaneWorld(more="unlisted_models: true", first="limits: {concurrency: 9}}\n  huge: {endpoint: first")
    before = alerts(kind)
    world.first.script.append(error)
    assert (await world.chat(HELLO)).level == "L1"
    states = {key: (await world.plane.gate.stats(key)).state for key in world.plane.config.every_key()}
    assert states == {
        "first:big-2": "disabled", "first:huge": "disabled", "first:*": "disabled", "second:small-1": "closed",
    }  # fmt: skip
    for model in ("huge", "whatever"):
        assert (await world.chat(ChatRequest(HELLO.messages, model=model))).level == "L1"
    assert world.asked()["first"] == 1
    assert alerts(kind) - before == 1


async def test_refusals_of_calls_that_were_under_way_together_are_one_alert() -> None:
    world = PlaneWorld()
    before = alerts("unauthorized")
    world.first.script.extend([KEY_REFUSED] * 20)
    world.first.answer_s = 0.01
    replies = await asyncio.gather(*(world.chat(HELLO) for _ in range(20)))
    assert {reply.level for reply in replies} == {"L1"} and world.asked()["first"] == 20
    assert alerts("unauthorized") - before == 1


async def test_models_that_requests_make_up_share_one_key_and_one_label() -> None:
    world = PlaneWorld(more="unlisted_models: true")
    before = set(calls_by_model())
    for number in range(50):
        reply = await world.chat(ChatRequest(HELLO.messages, model=f"made-up-{number}"))
        assert reply.level == "L0" and world.first.requests[-1].model == f"made-up-{number}"
    assert (await world.plane.gate.stats("first:*")).total_calls == 50
    assert set(calls_by_model()) - before <= {"*"}


def alerts(kind: str) -> float:
    return REGISTRY.get_sample_value("fleet_llm_endpoint_disabled_total", {"endpoint": "first", "kind": kind}) or 0.0


def calls_by_model() -> list[str]:
    return [sample.labels["model"] for sample in next(iter(metrics.CALLS.collect())).samples]
