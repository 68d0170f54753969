"""The way of a guarded call down the ladder, with the real gate in memory and models that say what they are told."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import (
    BadInput,
    BudgetSpent,
    DeadlineSpent,
    FleetError,
    LLMRateLimited,
    LLMRefused,
    LLMTimeout,
    LLMUnavailable,
    PromptTooLong,
    RetryLater,
)
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall, ToolSpec
from tests.fakes.fake_plane import PlaneWorld

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)
TOOL = ToolSpec("book", "Book a room.")
ACT = ChatRequest((Message("user", "Book room 7."),), tools=(TOOL,))


def down(words: str = "it hung up") -> FleetError:
    return LLMUnavailable(words, endpoint="x")


async def test_the_first_model_answers_at_l0() -> None:
    world = PlaneWorld()
    reply = await world.chat(HELLO)
    assert (reply.level, reply.endpoint, reply.reasons) == ("L0", "first", ())
    assert world.asked() == {"first": 1, "second": 0}


async def test_a_model_is_asked_under_its_own_name_with_a_bounded_answer() -> None:
    world = PlaneWorld()
    await world.chat(HELLO)
    (sent,) = world.first.requests
    assert (sent.model, sent.max_tokens, sent.timeout_s) == ("big-2", 1024, 60.0)


async def test_a_timeout_goes_to_the_backup_at_once_as_l1_with_its_reason() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMTimeout("first gave no answer within 60 s", phase="total", limit_s=60.0))
    reply = await world.chat(HELLO)
    assert (reply.level, reply.endpoint) == ("L1", "second")
    assert reply.reasons == ("big: first gave no answer within 60 s",)
    assert world.asked() == {"first": 1, "second": 1}


async def test_an_open_breaker_costs_the_dead_model_nothing() -> None:
    world = PlaneWorld()
    world.first.script.extend(down() for _ in range(100))
    for _ in range(20):
        assert (await world.chat(HELLO)).level == "L1"
    assert world.asked()["first"] == 5
    reply = await world.chat(HELLO)
    assert "big: " in reply.reasons[0]


async def test_every_message_does_not_replay_the_dead_chain() -> None:
    """The memory of failures outlives a call: the second one goes straight to the backup."""
    world = PlaneWorld()
    world.first.script.extend(down() for _ in range(100))
    for _ in range(10):
        await world.chat(HELLO)
    before = world.asked()["first"]
    for _ in range(10):
        await world.chat(HELLO)
    assert world.asked()["first"] == before


async def test_a_fallback_that_fails_is_cooled_down_as_well() -> None:
    world = PlaneWorld()
    world.first.script.extend(down() for _ in range(100))
    world.second.script.extend(down() for _ in range(100))
    for _ in range(10):
        await world.chat(HELLO)
    assert world.asked()["second"] <= 5 + 2, "five failures open it; the last model of a chain is probed once a second"


async def test_a_connection_error_falls_back_too() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    world.first.script.append(LLMUnavailable("first could not be reached (ConnectError)", cause="ConnectError"))
    assert (await world.chat(HELLO)).level == "L1"


async def test_a_rate_limit_of_the_first_model_is_no_outage_of_it() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRateLimited("slow down", retry_after_s=30.0))
    reply = await world.chat(HELLO)
    assert (reply.level, reply.reasons) == ("L1", ("big: slow down",))
    again = await world.chat(HELLO)
    assert again.level == "L1" and world.asked()["first"] == 1, "closed for the whole fleet until then"
    assert (await world.plane.gate.stats("first:big-2")).state == "closed"


async def test_when_all_are_busy_the_task_is_put_back_until_the_first_is_due() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRateLimited("slow", retry_after_s=50.0))
    world.second.script.append(LLMRateLimited("slow", retry_after_s=20.0))
    with pytest.raises(RetryLater) as caught:
        await world.chat(HELLO)
    assert caught.value.retry_after_s == pytest.approx(21.0, abs=1.1)


async def test_when_all_are_down_a_cached_answer_is_given_with_its_age() -> None:
    world = PlaneWorld()
    first = await world.chat(HELLO)
    await world.plane.settled()
    world.clock.pass_s(90.0)
    world.all_down()
    reply = await world.chat(HELLO)
    assert (reply.level, reply.text, reply.endpoint, reply.age_s) == ("L2", first.text, "first", 90.0)
    assert reply.cached_at is not None and reply.usage.output_tokens == 0
    assert reply.reasons[-1] == "no language model is up: a cached answer is given"


async def test_when_all_are_down_and_nothing_is_kept_the_answer_is_friendly_and_static() -> None:
    world = PlaneWorld()
    world.all_down()
    reply = await world.chat(HELLO)
    assert (reply.level, reply.endpoint, reply.could_not_act) == ("L4", "static", False)
    assert reply.text.startswith("I cannot answer right now") and len(reply.reasons) == 3


async def test_an_answer_older_than_the_stale_age_is_not_given() -> None:
    world = PlaneWorld(more="cache: {stale_s: 60}")
    await world.chat(HELLO)
    await world.plane.settled()
    world.clock.pass_s(61.0)
    world.all_down()
    assert (await world.chat(HELLO)).level == "L4"


async def test_a_degraded_answer_is_never_kept() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    world.first.script.append(down())
    assert (await world.chat(HELLO)).level == "L1"
    await world.plane.settled()
    assert world.answers.kept == {}


async def test_an_agent_may_be_given_fresh_answers_again() -> None:
    world = PlaneWorld(more="agents: {chat: {cache: fresh}}\ncache: {fresh_s: 60}")
    once = await world.chat(HELLO)
    await world.plane.settled()
    again = await world.chat(HELLO)
    assert (again.text, again.level, again.age_s) == (once.text, "L0", 0.0)
    assert world.asked()["first"] == 1
    world.clock.pass_s(61.0)
    await world.chat(HELLO)
    assert world.asked()["first"] == 2


@pytest.mark.parametrize("temperature", [None, 0.7])
async def test_answers_of_a_lively_model_are_kept_only_where_the_agent_says_so(temperature: float | None) -> None:
    question = ChatRequest(HELLO.messages, temperature=temperature)
    for policy, count in (("auto", 0), ("degraded", 1), ("never", 0)):
        world = PlaneWorld(more=f"agents: {{chat: {{cache: {policy}}}}}")
        await world.chat(question)
        await world.plane.settled()
        assert len(world.answers.kept) == count


async def test_a_task_that_must_act_says_that_it_could_not() -> None:
    world = PlaneWorld(more="agents: {chat: {must_act: true, cache: degraded}}")
    world.all_down()
    reply = await world.chat(ACT)
    assert reply.could_not_act and reply.level == "L4" and not reply.tool_calls
    assert reply.text.startswith("I could not do what you asked: ") and "must act" in reply.reasons[-1]


async def test_a_task_that_must_act_never_goes_to_a_model_without_tools() -> None:
    world = PlaneWorld(more="agents: {chat: {must_act: true}}", second="tools: false")
    world.first.script.extend(down() for _ in range(100))
    reply = await world.chat(ACT)
    assert reply.could_not_act and world.asked()["second"] == 0
    assert "small: it cannot call tools" in reply.reasons


async def test_a_chat_that_may_do_without_tools_is_plain_conversation_and_says_so() -> None:
    world = PlaneWorld(second="tools: false", retries_before_fallback=0)
    world.first.script.append(down())
    reply = await world.chat(ACT)
    assert (reply.level, reply.endpoint) == ("L3", "second")
    assert world.second.requests[0].tools == ()
    assert reply.reasons == ("big: it hung up", "small cannot call tools", "tools are unavailable: plain conversation")


async def test_a_tool_calling_answer_is_never_kept() -> None:
    world = PlaneWorld()
    world.first.script.append(ToolCall("c1", "book", "{}"))
    await world.chat(ChatRequest(ACT.messages, temperature=0.0, tools=(TOOL,)))
    used = (
        *ACT.messages,
        Message("assistant", "", tool_calls=(ToolCall("c1", "book", "{}"),)),
        Message("tool", "done"),
    )
    await world.chat(ChatRequest(used, temperature=0.0))
    await world.plane.settled()
    assert world.answers.kept == {}


async def test_a_refused_request_is_not_shopped_around() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRefused("first refused the request with 400", status=400))
    with pytest.raises(LLMRefused):
        await world.chat(HELLO)
    assert world.asked()["second"] == 0


async def test_a_refused_key_takes_the_endpoint_out_and_the_chain_goes_on() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRefused("first refused the key with 401", status=401))
    assert (await world.chat(HELLO)).level == "L1"
    assert (await world.chat(HELLO)).level == "L1"
    assert world.asked()["first"] == 1
    assert (await world.plane.gate.stats("first:big-2")).state == "disabled"


async def test_a_prompt_over_every_context_is_refused_before_anything_is_sent() -> None:
    world = PlaneWorld(first="context_tokens: 100", second="context_tokens: 200")
    with pytest.raises(PromptTooLong, match="about 254 tokens, the widest model of its chain takes 200: shorten it"):
        await world.chat(ChatRequest((Message("user", "x" * 1000),)))
    assert world.asked() == {"first": 0, "second": 0}


async def test_a_prompt_over_the_first_context_goes_to_the_wider_model() -> None:
    world = PlaneWorld(first="context_tokens: 100", second="context_tokens: 300")
    reply = await world.chat(ChatRequest((Message("user", "x" * 1000),)))
    assert (reply.level, reply.endpoint) == ("L1", "second")
    assert world.second.requests[0].max_tokens == 300 - 254, "the answer is bounded by what the prompt leaves"


async def test_a_context_overflow_told_by_the_provider_goes_only_to_a_wider_model() -> None:
    overflow = LLMRefused("too long", status=400, subject="context")
    world = PlaneWorld(first="context_tokens: 1000", second="context_tokens: 2000")
    world.first.script.append(overflow)
    assert (await world.chat(HELLO)).level == "L1"
    narrow = PlaneWorld(first="context_tokens: 1000", second="context_tokens: 500")
    narrow.first.script.append(overflow)
    with pytest.raises(LLMRefused):
        await narrow.chat(HELLO)


async def test_a_model_that_nobody_configured_is_refused_with_what_there_is() -> None:
    world = PlaneWorld()
    with pytest.raises(BadInput, match="no model is named 'bgi'; did you mean big"):
        await world.chat(ChatRequest(HELLO.messages, model="bgi"))


async def test_a_request_that_names_a_model_gets_that_one_first() -> None:
    world = PlaneWorld()
    reply = await world.chat(ChatRequest(HELLO.messages, model="small"))
    assert (reply.endpoint, reply.level) == ("second", "L0")


async def test_a_spent_budget_is_refused_by_default() -> None:
    world = PlaneWorld(more="budgets: {run: {tokens: 1500}}")
    await world.chat(HELLO)
    await world.plane.gate.charge(world.door().budgets, tenant="default", tokens=1400)
    with pytest.raises(BudgetSpent) as caught:
        await world.chat(HELLO)
    assert caught.value.context["level"] == "run"


@pytest.mark.parametrize(("step", "level"), [("L1", "L1"), ("L2", "L2"), ("L4", "L4")])
async def test_a_spent_budget_leads_to_the_step_that_the_agent_declared(step: str, level: str) -> None:
    world = PlaneWorld(
        first="price: {input_per_million: 1000, output_per_million: 1000}",
        second="price: {input_per_million: 0, output_per_million: 0}",
        more=f"agents: {{chat: {{cache: degraded, when_budget_spent: {step}}}}}\nbudgets: {{day: {{money: 1.03}}}}",
    )
    await world.chat(HELLO)
    await world.plane.settled()
    await world.plane.gate.charge(world.door().budgets, tenant="default", cost=1.0)
    reply = await world.chat(HELLO)
    assert (reply.level, world.asked()["first"]) == (level, 1)
    assert "budget" in reply.reasons[0]


async def test_a_child_run_inherits_what_its_parent_has_left() -> None:
    world = PlaneWorld(more="budgets: {run: {tokens: 3000}}")
    parent = world.door(run="parent")
    child = world.door(run="child", inherited=tuple(one for one in parent.budgets if one.level == "run"))
    await world.plane.gate.charge(parent.budgets, tenant="default", tokens=2500)
    with pytest.raises(BudgetSpent) as caught:
        await child.chat(HELLO)
    assert caught.value.context["name"] == "parent"


async def test_money_and_tokens_of_a_call_are_on_the_answer_and_in_the_book() -> None:
    world = PlaneWorld(first="price: {input_per_million: 1000, output_per_million: 2000}")
    reply = await world.chat(HELLO)
    assert reply.cost == pytest.approx((reply.usage.input_tokens * 1000 + reply.usage.output_tokens * 2000) / 1e6)


async def test_no_time_left_means_no_call() -> None:
    world = PlaneWorld()
    late = world.door(deadline_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(DeadlineSpent):
        await late.chat(HELLO)
    assert world.asked() == {"first": 0, "second": 0}


async def test_a_slow_first_model_leaves_time_for_the_one_behind_it() -> None:
    world = PlaneWorld()
    world.first.hangs = True
    reply = await world.chat(ChatRequest(HELLO.messages, timeout_s=2.0))
    assert (reply.level, reply.endpoint) == ("L1", "second")


async def test_a_caller_that_waits_no_longer_still_gets_static_words() -> None:
    world = PlaneWorld()
    world.first.hangs = world.second.hangs = True
    reply = await world.chat(ChatRequest(HELLO.messages, timeout_s=0.05))
    assert reply.level == "L4"


async def test_a_deadline_of_the_run_that_passes_is_an_error_and_no_answer() -> None:
    world = PlaneWorld()
    world.first.hangs = world.second.hangs = True
    door = world.door(deadline_at=datetime.now(UTC) + timedelta(seconds=0.05))
    with pytest.raises((DeadlineSpent, LLMTimeout)):
        await door.chat(HELLO)


async def test_a_cancelled_call_is_neutral_and_gives_its_place_back() -> None:
    world = PlaneWorld(first="limits: {concurrency: 1}")
    world.first.hangs = True
    call = asyncio.create_task(world.chat(HELLO))
    while not world.asked()["first"]:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    stats = await world.plane.gate.stats("first:big-2")
    assert (stats.in_flight, stats.failure_count, stats.total_calls) == (0, 0, 0)


async def test_a_model_that_returns_is_given_its_calls_by_and_by() -> None:
    world = PlaneWorld(more="ladder: {recover_over_s: 10}", breaker="{recovery_timeout_s: 0.01}")
    world.draw = lambda: 0.0
    world.first.script.extend(down() for _ in range(5))
    for _ in range(6):
        await world.chat(HELLO)
    await asyncio.sleep(0.03)
    while (await world.plane.gate.stats("first:big-2")).state != "closed":
        await world.chat(HELLO)
    world.draw = lambda: 0.99
    before = world.asked()["first"]
    spared = await world.chat(HELLO)
    assert (spared.level, world.asked()["first"]) == ("L1", before)
    assert spared.reasons == ("big: it is coming back and gets 10% of the calls",)
    world.clock.pass_s(11.0)
    assert (await world.chat(HELLO)).level == "L0"
    assert (await world.chat(HELLO)).level == "L0"


async def test_the_static_answer_needs_nothing_but_the_configuration() -> None:
    """No Redis for the gate, none for the cache, no network to any model: every port raises, and words come back."""
    world = PlaneWorld(more="agents: {chat: {cache: degraded}}")
    world.answers.is_away = True
    world.all_down()
    assert (await world.chat(HELLO)).level == "L4"


async def test_levels_and_reasons_survive_the_journal() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    world.first.script.append(down())
    reply = await world.chat(HELLO)
    assert ChatReply.from_json(reply.to_json()) == reply
