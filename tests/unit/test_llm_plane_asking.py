"""What one call tells the gate: headers, overloads, retries, usage of answers that broke; seen by what comes of it."""

import asyncio
import time
from contextlib import aclosing

import pytest

from shared.errors import BudgetSpent, LLMUnavailable
from shared.llm.messages import ChatReply, ChatRequest, Message, Usage
from shared.resilience.exchange import LimitsSeen
from tests.fakes.fake_plane import PlaneWorld

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)
NEVER_OPENS = "{failure_threshold: 9999, min_calls: 9999, window: 9999}"


def down(**facts: object) -> LLMUnavailable:
    return LLMUnavailable("it failed", **facts)  # type: ignore[arg-type]


async def test_headers_that_say_nothing_is_left_send_the_next_call_elsewhere() -> None:
    world = PlaneWorld(first="limits: {requests_per_min: 6000}")
    world.first.seen = LimitsSeen(requests_left=0, requests_reset_s=30.0)
    assert (await world.chat(HELLO)).level == "L0"
    assert (await world.plane.gate.stats("first:big-2")).requests_left == pytest.approx(-3000, abs=200)
    assert (await world.chat(HELLO)).level == "L1"
    assert world.asked() == {"first": 1, "second": 1}


async def test_headers_of_a_call_that_failed_count_too_and_only_lower() -> None:
    world = PlaneWorld(first="limits: {requests_per_min: 6000}", retries_before_fallback=0)
    world.first.seen = LimitsSeen(requests_left=0, requests_reset_s=30.0)
    world.first.script.append(down())
    await world.chat(HELLO)
    assert ((await world.plane.gate.stats("first:big-2")).requests_left or 0) < 0
    plenty = PlaneWorld(first="limits: {requests_per_min: 60}")
    plenty.first.seen = LimitsSeen(requests_left=5000)
    await plenty.chat(HELLO)
    assert (await plenty.plane.gate.stats("first:big-2")).requests_left == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("status", [503, 529])
async def test_an_overload_lowers_how_many_calls_the_fleet_has_under_way(status: int) -> None:
    world = PlaneWorld(first="limits: {concurrency: 10}", retries_before_fallback=0)
    world.first.answer_s = 0.02
    world.first.script.extend(down(status=status) for _ in range(10))
    replies = await asyncio.gather(*(world.chat(HELLO) for _ in range(10)))
    assert {reply.level for reply in replies} == {"L1"}
    assert (await world.plane.gate.stats("first:big-2")).concurrency == 7, "0.7 of the ten, once"
    calm = PlaneWorld(first="limits: {concurrency: 10}", retries_before_fallback=0)
    calm.first.script.append(down(status=500))
    await calm.chat(HELLO)
    assert (await calm.plane.gate.stats("first:big-2")).concurrency == 10


async def test_retries_of_guarded_calls_are_bounded_whatever_fails() -> None:
    world = PlaneWorld(breaker=NEVER_OPENS, retries_before_fallback=3)
    calls = 200
    for adapter in (world.first, world.second):
        adapter.script.extend(down() for _ in range(4 * calls))
    began = time.monotonic()
    for _ in range(calls):
        assert (await world.chat(HELLO)).level == "L4"
    allowed = 10 + 0.2 * calls + (time.monotonic() - began) + 1
    for name, requests in world.asked().items():
        assert calls <= requests <= calls + allowed, f"{name}: without a budget {4 * calls}"


async def test_a_broken_answer_of_the_last_model_is_asked_for_once_more() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    world.first.script.append(down())
    world.second.script.extend(down(broken="not_json") for _ in range(4))
    assert (await world.chat(HELLO)).level == "L4"
    assert world.asked() == {"first": 1, "second": 2}


async def test_what_a_cut_stream_has_used_is_charged_and_booked() -> None:
    world = PlaneWorld(
        retries_before_fallback=0, more="budgets: {run: {tokens: 100000}}",
        first="price: {input_per_million: 1000, output_per_million: 1000}",
    )  # fmt: skip
    used = Usage(70, 9, estimated=True)
    world.first.script.append(down(broken="cut", usage=used.to_json()))
    async with aclosing(world.door().stream(HELLO)) as stream:
        *_, reply = [piece async for piece in stream]
    assert isinstance(reply, ChatReply) and reply.level == "L1"
    (left,) = await world.plane.gate.left(world.door().budgets)
    assert left.tokens == 100_000 - (70 + 9) - (reply.usage.input_tokens + reply.usage.output_tokens)
    pages = {key: page for (_, key), page in world.plane.book._open.items()}
    assert (pages["first:big-2"].input_tokens, pages["first:big-2"].output_tokens) == (70, 9)
    assert pages["first:big-2"].money == pytest.approx(0.079)


async def test_a_tenant_of_its_own_budget_has_that_and_not_the_one_of_all() -> None:
    world = PlaneWorld(
        more="budgets: {tenant: {tokens: 5000}}\ntenants: {acme: {budget: {tokens: 0}}, big: {budget: {tokens: 90000}}}"
    )
    assert (await world.chat(HELLO)).level == "L0"
    with pytest.raises(BudgetSpent) as caught:
        await world.chat(HELLO, tenant="acme")
    assert (caught.value.context["level"], caught.value.context["limit"]) == ("tenant", 0)
    await world.plane.gate.charge(world.door().budgets, tenant="default", tokens=4000)
    with pytest.raises(BudgetSpent):
        await world.chat(HELLO)
    await world.plane.gate.charge(world.door(tenant="big").budgets, tenant="big", tokens=80_000)
    assert (await world.chat(HELLO, tenant="big")).level == "L0"
