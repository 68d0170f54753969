"""What users of gateways complain about, where it concerns fallbacks, ladders, budgets and cool-downs: each is a test.

Numbered as the twenty most common ones; those about sockets are in the integration tests of the same name.
"""

import asyncio
from contextlib import aclosing

import pytest

from shared.errors import BudgetSpent, FleetError, LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable
from shared.llm.messages import ChatReply, ChatRequest, Message
from tests.fakes.fake_plane import PlaneWorld

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)


def down() -> LLMUnavailable:
    return LLMUnavailable("it hung up")


@pytest.mark.parametrize(
    "error",
    [
        LLMRefused("the key is refused", status=401),
        LLMRefused("the account is empty", status=429, subject="account"),
        LLMRateLimited("this key is limited", retry_after_s=60.0),
    ],
)
async def test_complaint_05_the_stream_path_ignores_the_fallbacks_of_a_key(error: FleetError) -> None:
    """A key that is refused, empty or limited sends a stream to the backup, and the next one at once."""
    world = PlaneWorld()
    world.first.script.append(error)
    for _ in range(2):
        async with aclosing(world.door().stream(HELLO)) as stream:
            pieces = [piece async for piece in stream]
        assert isinstance(pieces[-1], ChatReply) and pieces[-1].level == "L1"
        assert pieces[:-1] == ["second:", "Hello?"]
    assert world.asked() == {"first": 1, "second": 2}


async def test_complaint_06_a_timeout_of_20_s_took_over_a_minute_before_the_fallback() -> None:
    """A timeout is not repeated at the model that timed out while another one waits: one call each."""
    world = PlaneWorld()
    world.first.script.extend(LLMTimeout("no answer within 20 s", phase="total", limit_s=20.0) for _ in range(4))
    assert (await world.chat(HELLO)).level == "L1"
    assert world.asked() == {"first": 1, "second": 1}


async def test_complaint_18_timeouts_multiply_by_retries() -> None:
    """Three retries of a chain that hangs end with the caller's time, not with a multiple of it."""
    world = PlaneWorld()
    world.first.hangs = world.second.hangs = True
    await world.chat(ChatRequest(HELLO.messages, timeout_s=0.2))
    assert 0 < world.first.hung_s + world.second.hung_s <= 0.2


async def test_complaint_07_cooling_down_again_keeps_the_shorter_time() -> None:
    """Of two Retry-Afters the later moment holds."""
    world = PlaneWorld()
    early, late = [await world.plane.gate.admit("first:big-2") for _ in range(2)]
    await early.settle("neutral", seconds=0.1, retry_after_s=60.0)
    await late.settle("neutral", seconds=0.1, retry_after_s=6.0)
    assert (await world.plane.gate.stats("first:big-2")).not_before_s > 50.0


async def test_complaint_08_a_cool_down_reaches_the_next_call_late() -> None:
    """The very next call knows."""
    world = PlaneWorld()
    world.first.script.append(LLMRateLimited("slow down", retry_after_s=30.0))
    await world.chat(HELLO)
    await world.chat(HELLO)
    assert world.asked()["first"] == 1


async def test_complaint_09_a_failed_fallback_target_is_never_cooled_down() -> None:
    world = PlaneWorld()
    world.first.script.extend(down() for _ in range(200))
    world.second.script.extend(LLMRateLimited("slow", retry_after_s=1000.0) for _ in range(200))
    for _ in range(5):
        assert (await world.chat(HELLO)).level in ("L1", "L4")
    assert world.asked()["second"] == 1


async def test_complaint_11_the_cache_gives_a_tenant_the_answer_of_another() -> None:
    """Byte for byte the same question: kept answers are a tenant's own, in L2 as in the fresh ones."""
    world = PlaneWorld(more="agents: {chat: {cache: fresh}}")
    mine = await world.chat(HELLO, tenant="acme")
    await world.plane.settled()
    assert (await world.chat(HELLO, tenant="acme")).cached_at is not None
    theirs = await world.chat(HELLO, tenant="rival")
    assert theirs.cached_at is None and world.asked()["first"] == 2
    await world.plane.settled()
    world.answers.kept = {name: kept for name, kept in world.answers.kept.items() if name[0] == "acme"}
    world.all_down()
    mine_again, theirs_again = await world.chat(HELLO, tenant="acme"), await world.chat(HELLO, tenant="rival")
    assert (mine_again.text, theirs_again.level) == (mine.text, "L4")
    keys = [name[1] for name in world.answers.kept]
    world.answers.kept |= {("rival", key): kept for key, kept in zip(keys, world.answers.kept.values(), strict=True)}
    assert (await world.chat(HELLO, tenant="rival")).level == "L4", "not even under the same key: it is another one"


async def test_complaint_17_fallbacks_and_limits_are_configured_and_inert() -> None:
    """A limit of one call at a time sends the second call to the backup; a budget of nothing lets nothing through."""
    world = PlaneWorld(first="limits: {concurrency: 1}")
    world.first.hangs = True
    holding = asyncio.create_task(world.chat(ChatRequest(HELLO.messages, timeout_s=5.0)))
    while not world.asked()["first"]:
        await asyncio.sleep(0)
    assert (await world.chat(HELLO)).level == "L1"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    broke = PlaneWorld(more="budgets: {tenant: {tokens: 0}}")
    with pytest.raises(BudgetSpent):
        await broke.chat(HELLO)
    assert broke.asked() == {"first": 0, "second": 0}


@pytest.mark.parametrize("cause", ["ConnectError", "ReadError", "RemoteProtocolError"])
async def test_complaint_19_the_fallback_ignores_connection_errors(cause: str) -> None:
    world = PlaneWorld()
    world.first.script.extend(LLMUnavailable("could not be reached", cause=cause) for _ in range(2))
    assert (await world.chat(HELLO)).level == "L1"


async def test_complaint_16_state_left_over_between_attempts_kills_retries() -> None:
    """A retry sends the very same request again, whole."""
    world = PlaneWorld()
    world.first.script.append(down())
    assert (await world.chat(HELLO)).level == "L0"
    assert world.first.requests[0] == world.first.requests[1]


async def test_complaint_20_a_rate_limit_is_treated_as_final() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRateLimited("slow down", retry_after_s=0.01))
    assert (await world.chat(HELLO)).level == "L0"


async def test_complaint_20_every_message_replays_the_dead_chain() -> None:
    world = PlaneWorld()
    for adapter in (world.first, world.second):
        adapter.script.extend(down() for _ in range(500))
    for _ in range(10):
        await world.chat(HELLO)
    settled = sum(world.asked().values())
    for _ in range(50):
        assert (await world.chat(HELLO)).level == "L4"
    assert sum(world.asked().values()) - settled <= 3, "one probe a second at the last model"


async def test_complaint_03_failures_in_the_midst_of_a_429_loop_burn_the_processor() -> None:
    """A model that answers 429 without a time, for ever: a bounded number of calls, then the backup."""
    world = PlaneWorld()
    world.first.script.extend(LLMRateLimited("slow down") for _ in range(500))
    assert (await world.chat(HELLO)).level == "L1"
    assert world.asked()["first"] <= 2


async def test_safety_refusals_are_not_shopped_around() -> None:
    world = PlaneWorld()
    world.first.script.append(LLMRefused("filtered", subject="content"))
    with pytest.raises(LLMRefused):
        await world.chat(HELLO)
    assert world.asked()["second"] == 0
