"""Guarded calls end to end: two providers on real sockets, a real Redis, counts from the providers' own journals."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.errors import FleetError
from shared.llm.call_context import CallContext
from shared.llm.config_file import read_text
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatReply, ChatRequest, Message
from shared.llm.plane import LLMPlane, open_plane
from shared.memory.cache import open_redis
from shared.memory.knobs import MemoryKnobs
from shared.resilience.fail_open import open_gate_store
from shared.resilience.knobs import StoreKnobs
from tests.fakes.provider import Provider
from workers.ops.background import BackgroundSupervisor

CALLERS = 200
TIMEOUT_S = 12.0
"""Of a call to a silent endpoint; a healthy answer takes seconds where 200 ask at once on a busy machine."""
PATIENT_S = 120.0
"""Of a call where no test waits for a timeout."""
RECOVERY_S = 1.0
PROBES = 3
FILE = """\
version: 1
endpoints:
  first:
    base_url: FIRST
    timeouts: &times {connect_s: TIMEOUT, total_s: TIMEOUT}
    breaker: &breaker {recovery_timeout_s: RECOVERY, max_recovery_timeout_s: 2, slow_call_s: 120}
    retry: &retry {base_s: 0.2}
  second: {base_url: SECOND, timeouts: *times, breaker: *breaker, retry: *retry}
models:
  big: {endpoint: first, price: {input_per_million: 1, output_per_million: 2}}
  small: {endpoint: second, price: {input_per_million: 0, output_per_million: 0}}
chains: {default: [big, small]}
agents: {chat: {cache: degraded}}
ladder: {recover_over_s: 1}
"""


def asks(text: str) -> ChatRequest:
    """A question."""
    return ChatRequest((Message("user", text),))


@dataclass
class World:
    """Two providers, a plane, and what came of every call."""

    first: Provider
    second: Provider
    plane: LLMPlane
    redis: Redis
    ends: list[tuple[float, ChatReply]] = field(default_factory=list)
    errors: list[FleetError] = field(default_factory=list)

    async def chat(self, text: str, *, run: str = "r") -> ChatReply:
        """One guarded call."""
        return await GuardedChat(self.plane, CallContext(run=run)).chat(asks(text))

    async def find_out(self, calls: int) -> None:
        """Let calls find out who is down, whatever becomes of them."""
        await asyncio.gather(*(self.chat(f"wake {number}") for number in range(calls)), return_exceptions=True)

    async def caller(self, number: int, stop: asyncio.Event) -> None:
        """Ask, again and again, a question of one's own."""
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                reply = await self.chat(f"question {number}/{turn}", run=f"run-{number}")
            except FleetError as error:
                self.errors.append(error)
            else:
                self.ends.append((time.monotonic(), reply))

    @asynccontextmanager
    async def callers(self, count: int) -> AsyncIterator[None]:
        """So many callers inside the block; each ends with its last call."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self.caller(number, stop)) for number in range(count)]
        try:
            yield
            stop.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def levels(self, since: float = 0.0) -> Counter[str]:
        """How many answers there were at each level."""
        return Counter(reply.level for at, reply in self.ends if at > since)

    def first_at(self, level: str, since: float) -> float:
        """Seconds from a moment to the first answer at a level."""
        return min(at for at, reply in self.ends if at > since and reply.level == level) - since


@pytest.fixture
def redis_url(servers: BackgroundSupervisor) -> str:
    return f"{servers.redis_url.rpartition('/')[0]}/9"


@pytest.fixture
def timeout_s(request: pytest.FixtureRequest) -> float:
    return float(getattr(request, "param", PATIENT_S))


def text_for(first: Provider, second: Provider, timeout_s: float) -> str:
    text = FILE.replace("FIRST", first.base_url).replace("SECOND", second.base_url)
    return text.replace("TIMEOUT", str(timeout_s)).replace("RECOVERY", str(RECOVERY_S))


@pytest_asyncio.fixture
async def world(redis_url: str, timeout_s: float) -> AsyncIterator[World]:
    redis = open_redis(MemoryKnobs(redis_url=redis_url))
    await redis.flushdb()
    store = open_gate_store(StoreKnobs(redis_url=redis_url, timeout_s=2.0))
    async with Provider("first", delay_s=2.0) as first, Provider("second", delay_s=1.0) as second:
        text = text_for(first, second, timeout_s)
        plane = open_plane(read_text(text, source="llm.yaml", environment={}), store=store, redis=redis)
        yield World(first, second, plane, redis)
        await plane.aclose()
    await store.aclose()
    await redis.aclose()


async def until(condition: object, *, within_s: float) -> float:
    """Wait for a condition; seconds that it took."""
    began = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("how", "timeout_s"),
    [("silent", TIMEOUT_S), ("cut", PATIENT_S), ("broken", PATIENT_S), ("gone", PATIENT_S)],
    indirect=["timeout_s"],
)
async def test_the_primary_dies_under_200_concurrent_calls_and_no_call_fails(
    world: World, how: Literal["silent", "cut", "broken", "gone"]
) -> None:
    await world.chat("a worker has asked Redis and its model before it has 200 runs")
    async with world.callers(CALLERS):
        await until(lambda: world.levels()["L0"] >= CALLERS, within_s=60)
        assert world.levels().keys() == {"L0"}

        died, in_flight, port = time.monotonic(), world.first.in_flight, world.first.port
        if how == "gone":
            await world.first.close()  # connections are cut, and new ones refused
        else:
            world.first.die(how)
        await until(lambda: world.levels(died)["L1"] > 0, within_s=60)
        rest_s = TIMEOUT_S + RECOVERY_S if how == "silent" else 3 * RECOVERY_S
        await asyncio.sleep(max(0.0, died + rest_s - time.monotonic()))
        extra, dead_s = world.first.since(died), time.monotonic() - died
        stats = await world.plane.gate.stats("first:big")

        if how == "gone":
            await world.first.open(port)
        world.first.health, world.first.delay_s = "well", 0.2  # the sooner it answers, the sooner its limit has grown
        returned = time.monotonic()
        back_s = await until(lambda: world.levels(returned)["L0"] > CALLERS, within_s=120)

    assert world.errors == []
    assert world.levels().keys() <= {"L0", "L1"}
    first_l1_s = world.first_at("L1", died)
    assert first_l1_s < 2 * TIMEOUT_S, "the call's timeout and the backup's own time, not a second timeout"
    rounds = dead_s / RECOVERY_S + 1
    assert extra <= CALLERS + PROBES * rounds, "each caller finds out once at most; then only probes go there"
    print(
        f"{how}: {in_flight} in flight, {extra} extra calls in {dead_s:.0f} s, L1 after {first_l1_s:.2f} s, "
        f"{stats.state}, L0 for all {back_s:.1f} s after the return"
    )


async def test_all_die_and_the_ladder_gives_l2_and_l4_until_they_return_to_l0(world: World) -> None:
    world.first.delay_s = world.second.delay_s = 0.05
    known = await world.chat("known question")
    await world.plane.settled()
    world.first.die("broken")
    world.second.die("cut")
    await world.find_out(20)

    died = time.monotonic()
    cached, static = await world.chat("known question"), await world.chat("new question")
    assert (cached.level, cached.text, cached.endpoint) == ("L2", known.text, "first")
    assert cached.cached_at is not None and cached.age_s is not None and cached.age_s >= 0
    assert (static.level, static.could_not_act, static.endpoint) == ("L4", False, "static")
    assert world.first.since(died) + world.second.since(died) <= 2 * (PROBES + 3)

    world.first.health = world.second.health = "well"
    returned = time.monotonic()
    while (reply := await world.chat(f"back? {time.monotonic()}")).level != "L0":
        assert time.monotonic() - returned < 60, reply.reasons
        await asyncio.sleep(0.05)
    print(f"L0 again after {time.monotonic() - returned:.2f} s")


async def test_200_calls_while_everything_is_down_end_at_once_without_asking_the_dead(world: World) -> None:
    world.first.die("cut")
    world.second.die("cut")
    await world.find_out(20)
    asked_before = len(world.first.journal) + len(world.second.journal)
    began = time.monotonic()
    replies = await asyncio.gather(*(world.chat(f"storm {number}") for number in range(CALLERS)))
    took_s = time.monotonic() - began
    asked = len(world.first.journal) + len(world.second.journal) - asked_before
    assert Counter(reply.level for reply in replies).keys() == {"L4"}
    assert asked <= 2 * PROBES * (took_s / RECOVERY_S + 1) + took_s + 2, "probes, and one a second to the last model"


async def test_an_agent_is_told_at_l2_only_by_its_own_tenants_answers(world: World) -> None:
    world.first.delay_s = world.second.delay_s = 0.01
    mine = GuardedChat(world.plane, CallContext(tenant="acme", run="a"))
    await mine.chat(asks("what is our secret?"))
    await world.plane.settled()
    world.first.die("cut")
    world.second.die("cut")
    await world.find_out(10)
    theirs = GuardedChat(world.plane, CallContext(tenant="rival", run="b"))
    assert (await mine.chat(asks("what is our secret?"))).level == "L2"
    assert (await theirs.chat(asks("what is our secret?"))).level == "L4"
    assert await world.plane.cache.erase("acme") == 1
    assert (await mine.chat(asks("what is our secret?"))).level == "L4"


async def test_redis_stops_in_the_middle_and_calls_go_on(world: World, breakable: BackgroundSupervisor) -> None:
    world.first.delay_s = world.second.delay_s = 0.05
    assert (await world.chat("before")).level == "L0"
    breakable.freeze("redis")
    async with asyncio.timeout(60):
        replies = await asyncio.gather(*(world.chat(f"meanwhile {number}") for number in range(50)))
    assert {reply.level for reply in replies} == {"L0"}
    world.first.die("cut")
    assert (await world.chat("alone")).level == "L1"
    world.second.die("cut")
    await world.find_out(10)
    assert (await world.chat("nothing at all")).level == "L4", "no model and no Redis: words remain"


@asynccontextmanager
async def another_worker(world: World, redis_url: str) -> AsyncIterator[LLMPlane]:
    store = open_gate_store(StoreKnobs(redis_url=redis_url, timeout_s=2.0))
    text = text_for(world.first, world.second, PATIENT_S)
    other = open_plane(read_text(text, source="llm.yaml", environment={}), store=store, redis=world.redis)
    yield other
    await other.aclose()
    await store.aclose()


async def test_a_refused_key_takes_the_endpoint_out_for_every_process(world: World, redis_url: str) -> None:
    world.first.delay_s = world.second.delay_s = 0.01
    world.first.die("refuses")
    assert (await world.chat("hello")).level == "L1"
    asked = len(world.first.journal)
    async with another_worker(world, redis_url) as other:
        reply = await GuardedChat(other, CallContext(run="x")).chat(asks("hello from another worker"))
    assert reply.level == "L1" and len(world.first.journal) == asked


async def test_complaint_08_a_cool_down_reaches_other_replicas_seconds_late(world: World, redis_url: str) -> None:
    """A 429 that one worker gets closes the key for all: the very next call of another one does not go there."""
    world.first.delay_s = world.second.delay_s = 0.01
    async with another_worker(world, redis_url) as other:
        guarded = GuardedChat(other, CallContext(run="x"))
        assert (await guarded.chat(asks("all is well"))).level == "L0"
        asked = len(world.first.journal)
        world.first.die("paced")
        assert (await world.chat("hello")).level == "L1"
        assert len(world.first.journal) == asked + 1
        for number in range(5):
            reply = await guarded.chat(asks(f"hello from another worker {number}"))
            assert (reply.level, reply.endpoint) == ("L1", "second")
        assert len(world.first.journal) == asked + 1
        assert (await other.gate.stats("first:big")).not_before_s > 50


async def guarded_reads(world: World, redis: Redis, calls: int) -> int:
    """How often the server read from its sockets for so many guarded calls."""

    async def reads() -> int:
        return int((await redis.info("stats"))["total_reads_processed"])

    idle = -(await reads()) + await reads()
    before = await reads()
    for number in range(calls):
        assert (await world.chat(f"counted {number}")).level == "L0"
    return await reads() - before - idle


async def test_a_guarded_call_is_two_round_trips_to_redis(world: World) -> None:
    """Of the call as agents make it, through ladder, retry, gate and adapter; the answer cache asks when it must."""
    world.first.delay_s = 0.0
    config = world.plane.config
    agents = {"chat": config.policy("chat").model_copy(update={"cache": "never"})}
    world.plane.config = config.model_copy(update={"agents": agents})
    await guarded_reads(world, world.redis, 5)  # connections are opened, scripts known
    assert await guarded_reads(world, world.redis, 20) == 40
