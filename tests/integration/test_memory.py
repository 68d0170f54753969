"""Session memory over a real PostgreSQL and a real Redis, and what remains of it when Redis dies."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.db.tokens import carrying
from shared.errors import DatabaseUnavailable
from shared.llm.messages import Message
from shared.memory.cache import RedisCache, open_redis
from shared.memory.knobs import MemoryKnobs
from shared.memory.ports import StoredMessage
from shared.memory.session import SessionMemory
from shared.memory.truth import PostgresTruth
from tests.contract.session_suite import SessionSuite, SessionWorld, at, says, texts
from workers.ops.background import BackgroundSupervisor

HELLO = Message("user", "hello")
PATIENT_S = 30.0
"""A Redis that answers late on a busy machine is not away."""


@pytest.fixture
def knobs(servers: BackgroundSupervisor) -> MemoryKnobs:
    return MemoryKnobs(redis_url=f"{servers.redis_url.rpartition('/')[0]}/7", rest_s=0.1, timeout_s=PATIENT_S)


@pytest_asyncio.fixture
async def engine(database: object) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database.url, pool_size=5, max_overflow=5)  # type: ignore[attr-defined]
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture
async def redis(knobs: MemoryKnobs) -> AsyncIterator[Redis]:
    redis = open_redis(knobs)
    await redis.flushdb()
    yield redis
    await redis.aclose()


@pytest.fixture
def memory(engine: AsyncEngine, redis: Redis, knobs: MemoryKnobs) -> SessionMemory:
    return SessionMemory(PostgresTruth(engine), RedisCache(redis, knobs=knobs), knobs=knobs)


class TestSessionMemoryOverServers(SessionSuite):
    """The suite, over PostgreSQL and Redis."""

    @pytest.fixture
    def world(self, engine: AsyncEngine, redis: Redis, knobs: MemoryKnobs) -> SessionWorld:
        truth = PostgresTruth(engine)

        async def wipe() -> None:
            await redis.flushdb()

        return SessionWorld(
            truth=truth,
            cache=RedisCache(redis, knobs=knobs),
            worker=lambda: SessionMemory(truth, RedisCache(redis, knobs=knobs), knobs=knobs),
            wipe=wipe,
        )


async def test_session_lives_an_hour_in_the_cache_under_its_documented_key(memory: SessionMemory, redis: Redis) -> None:
    for tenant, key in (("default", "ctx:s1"), ("acme", "ctx:acme:s1")):
        await memory.append(tenant, "s1", [HELLO], task_id=uuid4())
        assert 3590 < await redis.ttl(key) <= 3600
        await memory.context(tenant, "s1")
        assert 3590 < await redis.ttl(key) <= 3600


async def test_push_does_not_prolong_an_entry_so_that_a_wrong_one_ends(memory: SessionMemory, redis: Redis) -> None:
    await memory.context("default", "s1")
    await redis.expire("ctx:s1", 100)
    await memory.append("default", "s1", [HELLO], task_id=uuid4())
    assert await redis.ttl("ctx:s1") <= 100


@pytest.mark.parametrize("garbage", ["text", "list", "other shape"])
async def test_entry_written_by_other_hands_is_rebuilt(memory: SessionMemory, redis: Redis, garbage: str) -> None:
    await memory.append("default", "s1", [HELLO], task_id=uuid4())
    await redis.delete("ctx:s1")
    if garbage == "text":
        await redis.set("ctx:s1", '[{"role": "user"}]')
    elif garbage == "list":
        await redis.rpush("ctx:s1", "x")
    else:
        await redis.zadd("ctx:s1", {"complete": -1, '{"role": "user"}': 5})
    assert await memory.context("default", "s1") == (HELLO,)
    assert await memory.context("default", "s1") == (HELLO,)
    assert await redis.zcard("ctx:s1") == 2


async def test_redis_killed_midway_costs_no_message_and_is_used_again_when_it_is_back(
    memory: SessionMemory, redis: Redis, breakable: BackgroundSupervisor
) -> None:
    await memory.append("default", "s1", [says("before")], task_id=uuid4())
    await memory.context("default", "s1")
    while (await redis.info("persistence"))["aof_buffer_length"]:  # held back for 2 s while its disk is slow
        await asyncio.sleep(0.01)
    breakable.kill("redis")
    await memory.append("default", "s1", [says("during")], task_id=uuid4())
    assert texts(await memory.context("default", "s1")) == ["before", "during"]
    breakable.start("redis")  # append-only: it still holds the entry from before
    assert await redis.zcard("ctx:s1") == 2
    assert texts(await memory.context("default", "s1")) == ["before", "during"]
    await memory.append("default", "s1", [says("after")], task_id=uuid4())
    assert texts(await memory.context("default", "s1")) == ["before", "during", "after"]
    assert await redis.zcard("ctx:s1") == 4


async def test_redis_that_hangs_holds_no_task_up_for_ever(
    engine: AsyncEngine, redis: Redis, knobs: MemoryKnobs, breakable: BackgroundSupervisor
) -> None:
    hasty = replace(knobs, timeout_s=MemoryKnobs().timeout_s)
    memory = SessionMemory(PostgresTruth(engine), RedisCache(redis, knobs=hasty), knobs=hasty)
    await memory.append("default", "s1", [HELLO], task_id=uuid4())
    breakable.freeze("redis")
    async with asyncio.timeout(60):
        assert await memory.context("default", "s1") == (HELLO,)
        await memory.append("default", "s1", [HELLO], task_id=uuid4())
    breakable.thaw("redis")


async def test_cancelled_call_to_redis_is_cancelled_wherever_it_was(redis: Redis, knobs: MemoryKnobs) -> None:
    cache = RedisCache(redis, knobs=knobs)
    stored = [StoredMessage(1, HELLO)]
    for turns in range(300):
        call = asyncio.create_task(cache.push("ctx:s1", stored, is_fill=True))
        for _ in range(turns % 60):
            await asyncio.sleep(0)
        if call.cancel():
            with pytest.raises(asyncio.CancelledError):
                await call
    await cache.push("ctx:s1", stored, is_fill=True)
    assert (await cache.read("ctx:s1")).messages == tuple(stored)


async def test_postgres_out_of_reach_is_said_with_the_error_that_is_tried_again() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 2})
    with pytest.raises(DatabaseUnavailable):
        await PostgresTruth(engine).latest("default", "s", limit=1, characters=1)
    await engine.dispose()


async def test_a_sessions_token_outlives_its_entry_and_what_other_hands_wrote_there_is_dropped(
    memory: SessionMemory, redis: Redis
) -> None:
    for garbage in (b"", b"\xff\xfe", b"wt1.x", b"wt1.7.1.ffff.5 "):
        await redis.set("wt:acme:s1", garbage)
        with carrying(at(0xFF)):
            await memory.append("acme", "s1", [HELLO], task_id=uuid4())
        assert await redis.get("wt:acme:s1") == str(at(0xFF)).encode()
        assert await redis.ttl("ctx:acme:s1") < await redis.ttl("wt:acme:s1") <= 7200
    await redis.delete("wt:acme:s1")
    await redis.rpush("wt:acme:s1", "x")
    assert len(await memory.context("acme", "s1")) == 4
    assert not await redis.exists("wt:acme:s1")
