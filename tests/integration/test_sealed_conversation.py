"""Conversations and kept answers under seal on real servers: nobody reads them there, and their keys rotate."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.ledger.rotation import rotate
from shared.ledger.sealed_text import SealedText
from shared.ledger.vault import Vault
from shared.ledger.vault_knobs import new_key_line, read_keys
from shared.llm.answer_cache import RedisAnswers
from shared.llm.messages import Message
from shared.memory.cache import RedisCache, open_redis
from shared.memory.knobs import MemoryKnobs
from shared.memory.session import SessionMemory
from shared.memory.truth import PostgresTruth
from tests.contract.answer_suite import KEY, AnswerSuite, AnswerWorld, answer
from tests.integration.live import Database as Place
from workers.ops.background import BackgroundSupervisor

(OLD, NEW) = read_keys(f"{new_key_line()},{new_key_line()}")
LARGE = "é" * 50_000
PATIENT = MemoryKnobs(timeout_s=30.0)
"""However busy the machine is, the cache does not seem away."""
ODD = ['{"$sealed"', '{"$sealed":{"v":1,"kid":"k","key":"AAAA","data":"AAAA"}} ', '{"$sealed" : {}}', "{}", 'a "b" \\']


@pytest.fixture
async def ledger(database: Place) -> AsyncIterator[Database]:
    ledger = Database(DbKnobs(url=database.url))
    yield ledger
    await ledger.close()


@pytest.fixture
async def redis(servers: BackgroundSupervisor) -> AsyncIterator[Redis]:
    redis = open_redis(replace(PATIENT, redis_url=f"{servers.redis_url.rpartition('/')[0]}/9"))
    await redis.flushdb()
    yield redis
    await redis.aclose()


def memory_of(ledger: Database, redis: Redis, vault: Vault) -> SessionMemory:
    cache = RedisCache(redis, knobs=PATIENT)
    return SessionMemory(PostgresTruth(ledger.engine), cache, seal=SealedText(vault, kind="message"))


async def said(memory: SessionMemory) -> list[str]:
    return [message.content for message in await memory.context("acme", "s")]


async def tell(memory: SessionMemory, *texts: str) -> None:
    await memory.append("acme", "s", [Message("user", one) for one in texts], task_id=uuid4())


async def contents(ledger: Database) -> list[str]:
    async with ledger.unit() as unit:
        return list((await unit.execute(text("SELECT content FROM messages ORDER BY id"))).scalars())


async def test_no_word_of_a_conversation_lies_in_either_store_and_any_worker_with_the_key_goes_on(
    ledger: Database, redis: Redis
) -> None:
    word = f"word{uuid4().hex}"
    first, second = (memory_of(ledger, redis, Vault([OLD])) for _ in range(2))
    await tell(first, word, LARGE)
    assert await said(second) == [LARGE[: MemoryKnobs().context_characters]], "cut only once it is open"
    await tell(second, "short", word)
    assert (await said(first))[-2:] == ["short", word]
    cached = str([await redis.zrange(key, 0, -1) for key in await redis.keys("ctx:*")])
    assert word not in cached and cached.count("$sealed") == 4
    assert not any(word in one for one in await contents(ledger))


async def test_a_conversation_is_put_under_a_new_key_and_odd_words_of_before_are_left_alone(
    ledger: Database, redis: Redis
) -> None:
    plain = memory_of(ledger, redis, Vault())
    await tell(plain, *ODD)
    await tell(memory_of(ledger, redis, Vault([OLD])), "one", "two")
    before = await said(memory_of(ledger, redis, Vault([OLD])))
    assert [one.strip() for one in before] == [*(one.strip() for one in ODD), "one", "two"]
    done = await rotate(ledger, Vault([NEW, OLD]), page_rows=3)
    assert (done.is_complete, done.rewrapped, done.plain) == (True, 2, len(ODD))
    assert [json.loads(one)["$sealed"]["kid"] for one in (await contents(ledger))[-2:]] == [NEW.id] * 2
    assert (await contents(ledger))[: len(ODD)] == before[: len(ODD)]
    assert await said(memory_of(ledger, redis, Vault([NEW]))) == before, "although Redis has it under the old key"


class TestSealedAnswers(AnswerSuite):
    """The suite, under seal."""

    @pytest.fixture
    def world(self, redis: Redis) -> AnswerWorld:
        return AnswerWorld(answers(redis, Vault([OLD])), lambda: answers(redis, Vault([NEW, OLD])))

    async def test_an_answer_is_kept_sealed_and_is_none_for_whoever_has_not_the_key(self, redis: Redis) -> None:
        cache = answers(redis, Vault([OLD]))
        await cache.keep("acme", KEY, answer("Paris."))
        (name,) = [one async for one in redis.scan_iter(match=f"*:{KEY}")]
        kept = cast(bytes, await redis.get(name))
        assert b"$sealed" in kept and b"Paris" not in kept
        for stranger in (Vault(), Vault([NEW])):
            assert await answers(redis, stranger).find("acme", KEY, max_age_s=60) is None
        await redis.set(name.decode().replace(KEY, "l" * 64), kept)
        assert await cache.find("acme", "l" * 64, max_age_s=60) is None, "an answer to another question"


def answers(redis: Redis, vault: Vault) -> RedisAnswers:
    return RedisAnswers(redis, timeout_s=30.0, last_timeout_s=30.0, seal=SealedText(vault, kind="answer"))
