"""The gate's contract over a real Redis, and what only Redis can show: expiry, slots, an unknown script, a restart."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
import redis as sync_redis
from redis.asyncio import Redis
from redis.crc import key_slot
from structlog.testing import capture_logs

from shared.resilience import redis_store
from shared.resilience.circuit import Operate
from shared.resilience.fail_open import open_gate_store
from shared.resilience.fleet_breaker import FleetBreaker
from shared.resilience.gate import Gate
from shared.resilience.knobs import KeyRules, StoreKnobs
from shared.resilience.redis_store import BlockingRedisStore, RedisStore, open_redis
from shared.resilience.spending import Budget
from tests.contract.breaker_suite import BreakerSuite
from tests.contract.gate_world import GateWorld
from tests.contract.limits_suite import LimitsSuite
from tests.integration.gate_fleet import OwnRedis
from tests.integration.redis_clock import RedisClock, give_scripts_the_clock
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def knobs(servers: BackgroundSupervisor) -> StoreKnobs:
    return StoreKnobs(redis_url=f"{servers.redis_url.rpartition('/')[0]}/9", timeout_s=5.0)


@pytest_asyncio.fixture
async def redis(knobs: StoreKnobs) -> AsyncIterator[Redis]:
    redis = open_redis(knobs)
    await redis.flushdb()
    yield redis
    await redis.flushdb()
    await redis.aclose()


class TestRedisStore(BreakerSuite, LimitsSuite):
    """Both suites, over Redis."""

    @pytest_asyncio.fixture
    async def world(self, redis: Redis, knobs: StoreKnobs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GateWorld]:
        give_scripts_the_clock(monkeypatch)
        clock = RedisClock(redis)
        await clock.advance(0.0)
        store = RedisStore(redis, knobs=knobs)
        yield GateWorld(store=store, advance=clock.advance)
        await store.aclose()


@pytest_asyncio.fixture
async def world(redis: Redis, knobs: StoreKnobs) -> AsyncIterator[GateWorld]:
    store = RedisStore(redis, knobs=knobs)
    yield GateWorld(store=store, advance=asyncio.sleep)
    await store.aclose()


async def test_all_keys_of_a_script_share_a_slot_and_all_of_them_expire_but_an_operators_word(
    redis: Redis, world: GateWorld
) -> None:
    day = Budget(level="day", name="d", tokens=1000, period_s=86400)
    world.limited(requests_per_min=600, concurrency=5)
    await world.end(await world.ask(budgets=(day,)), "ok")
    flying = await world.ask(budgets=(day,))
    names = [name async for name in redis.scan_iter()]
    gate = [name for name in names if b":gate:" in name]
    assert len(gate) >= 3 and len({key_slot(name) for name in gate}) == 1
    assert len({key_slot(name) for name in names if b":purse:" in name}) == 1
    assert {name for name in names if await redis.ttl(name) == -1} == set()
    await world.store.operate(world.key, Operate("forced-open", "maintenance"), world.rules)
    await world.end(flying, "ok")
    assert [await redis.ttl(name) for name in gate if name.endswith(b"}")] == [-1]


async def test_what_a_process_made_that_died_before_it_settled_anything_is_forgotten(
    redis: Redis, world: GateWorld
) -> None:
    world.limited(requests_per_min=600, concurrency=5)
    world.rules = replace(world.rules, tenant_limits=world.rules.limits)
    await world.ask()
    names = [name async for name in redis.scan_iter()]
    assert len(names) == 4
    assert {name for name in names if await redis.ttl(name) == -1} == set()


async def test_a_window_that_begins_anew_is_forgotten_as_well(redis: Redis, world: GateWorld) -> None:
    await world.calls("failure")
    await world.store.operate(world.key, Operate("closed", "repaired"), world.rules)
    await world.calls("ok")
    (window,) = [name async for name in redis.scan_iter("*:window")]
    assert await redis.ttl(window) > 0


async def test_a_purse_is_remembered_for_the_longest_time_that_anybody_asked_for(
    redis: Redis, world: GateWorld
) -> None:
    for ttl_s in (1000.0, 500.0, 2000.0):
        await world.ask(budgets=(Budget(level="run", name="r", tokens=100, ttl_s=ttl_s),))
        (purse,) = [name async for name in redis.scan_iter("*:purse:*")]
        assert await redis.ttl(purse) == pytest.approx(max(1000.0, ttl_s), abs=5)


async def test_what_a_refused_call_holds_for_a_moment_makes_no_budget_look_spent(
    redis: Redis, world: GateWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(level="run", name="r", tokens=100)
    await world.store.charge(world.tenant, (budget,), tokens=80, cost=0.0)
    really_sleep = asyncio.sleep

    async def given_back(seconds: float) -> None:
        await world.store.charge(world.tenant, (budget,), tokens=-80, cost=0.0)
        await really_sleep(0)

    monkeypatch.setattr(redis_store.asyncio, "sleep", given_back)  # type: ignore[attr-defined]
    _, answer = await world.ask(tokens_in=30, budgets=(budget,))
    assert answer.denial == ""
    assert (await world.store.left(world.tenant, (budget,)))[0].tokens == 70
    assert (await world.store.stats(world.key, world.rules)).in_flight == 1


def test_a_breaker_of_threads_may_have_a_client_that_decodes(knobs: StoreKnobs) -> None:
    client = sync_redis.Redis.from_url(knobs.redis_url, decode_responses=True)
    breaker = FleetBreaker("käse:模型", store=BlockingRedisStore(client))
    client.script_flush()
    for _ in range(2):
        assert breaker.call(lambda: 7) == 7
    breaker.force_open("Wartung \u00fc")
    assert (breaker.get_stats()["state"], breaker.get_stats()["reason"]) == ("forced-open", "Wartung \u00fc")
    breaker.close()
    client.close()


async def test_a_node_of_a_cluster_is_named_as_what_it_is_and_calls_go_on(own_redis: OwnRedis) -> None:
    own_redis.kill()
    own_redis.more = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    own_redis.start()
    for database in (0, 1):
        url = f"{own_redis.url.rpartition('/')[0]}/{database}"
        store = open_gate_store(StoreKnobs(redis_url=url, timeout_s=2.0))
        with capture_logs() as logs:
            permit = await Gate(store, lambda _: KeyRules()).admit("k")
        assert permit.mode == "alone"
        (line,) = [one for one in logs if one["event"] == "resilience.store_away"]
        assert "a node of a cluster" in line["cause"] and "name one primary" in line["cause"]
        await store.aclose()


async def test_scripts_that_the_server_forgot_are_sent_again(redis: Redis, world: GateWorld) -> None:
    budget = Budget(level="run", name="r", tokens=1000)
    for _ in range(2):
        await redis.script_flush()
        call = await world.ask(tokens_in=10, budgets=(budget,))
        await redis.script_flush()
        await world.end(call, "ok")
    assert (await world.store.left(world.tenant, (budget,)))[0].tokens == 980


async def test_a_call_with_budgets_is_one_round_trip_each_way(redis: Redis, world: GateWorld) -> None:
    budget = Budget(level="run", name="r", tokens=10**9)
    for _ in range(5):  # connections are opened, scripts known
        await world.end(await world.ask(budgets=(budget,)), "ok")

    async def reads() -> int:
        return int((await redis.info("stats"))["total_reads_processed"])

    idle = -(await reads()) + await reads()
    before = await reads()
    for _ in range(20):
        await world.end(await world.ask(budgets=(budget,)), "ok")
    assert await reads() - before - idle == 40
