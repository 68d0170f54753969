"""The ladder's bottom and its operators, on a real Redis: answers kept, switches of the command line, spending."""

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.errors import SessionUnavailable
from shared.llm.answer_cache import RedisAnswers
from shared.llm.call_context import CallContext
from shared.llm.config_file import read_text
from shared.llm.day_book import DayBook, spent
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatRequest, Message, Usage
from shared.llm.plane import LLMPlane, open_plane
from shared.llm.roster import announced
from shared.memory.cache import open_redis
from shared.memory.knobs import MemoryKnobs
from shared.resilience.fail_open import open_gate_store
from shared.resilience.knobs import StoreKnobs
from tests.contract.answer_suite import AnswerSuite, AnswerWorld, answer
from tests.fakes.provider import Provider
from tests.integration.live import let_midnight_pass
from workers.ops.background import BackgroundSupervisor

HELLO = ChatRequest((Message("user", "Hello?"),), temperature=0.0)
FILE = """\
version: 1
currency: EUR
endpoints:
  first: {base_url: "FIRST", api_key: {env: SECRET_KEY}}
  second: {base_url: "SECOND"}
models:
  big: {endpoint: first, price: {input_per_million: 1000, output_per_million: 2000}, limits: {concurrency: 9}}
  small: {endpoint: second, price: {input_per_million: 0, output_per_million: 0}}
chains: {default: [big, small]}
budgets: {day: {money: 5, tokens: 100000}}
"""


@pytest.fixture
def redis_url(servers: BackgroundSupervisor) -> str:
    return f"{servers.redis_url.rpartition('/')[0]}/10"


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = open_redis(MemoryKnobs(redis_url=redis_url))
    await redis.flushdb()
    yield redis
    await redis.aclose()


answers_in = partial(RedisAnswers, timeout_s=10.0)
"""A Redis that is there is not away, however busy this machine is."""


class TestRedisAnswers(AnswerSuite):
    @pytest.fixture
    def world(self, redis: Redis) -> AnswerWorld:
        return AnswerWorld(answers_in(redis), lambda: answers_in(redis))

    async def test_answers_expire_by_themselves_and_not_all_at_once(self, redis: Redis) -> None:
        cache = answers_in(redis, stale_s=1000)
        for number in range(20):
            await cache.keep("acme", f"{number:064d}", answer())
        names = [name async for name in redis.scan_iter(match="*:answers:*")]
        lives = {await redis.ttl(name) for name in names}
        assert len(names) == 21 and len(lives) > 5 and all(890 <= life <= 1002 for life in lives)

    async def test_a_tenant_keeps_no_more_answers_than_it_may(self, redis: Redis) -> None:
        cache = answers_in(redis, max_answers=10)
        for number in range(30):
            await cache.keep("acme", f"{number:064d}", answer())
        assert await cache.erase("acme") == 10
        assert not [name async for name in redis.scan_iter(match="*:answers:*")]

    async def test_what_other_hands_wrote_is_no_answer(self, redis: Redis) -> None:
        cache = answers_in(redis)
        await cache.keep("acme", "k", answer())
        (name,) = [one async for one in redis.scan_iter(match="*:k")]
        for written in (b"", b"{}", b"[1]", b'{"text": 1}', b"\xff"):
            await redis.set(name, written)
            assert await cache.find("acme", "k", max_age_s=60) is None

    async def test_a_tenants_name_is_in_no_key(self, redis: Redis) -> None:
        await answers_in(redis).keep("acme-corp {x}", "k", answer())
        assert not [one async for one in redis.scan_iter(match="*acme*")]

    async def test_a_redis_that_is_away_is_an_empty_cache_and_is_left_alone_for_a_while(self) -> None:
        callers = []

        async def hangs_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            callers.append(writer)
            writer.close()

        async with await asyncio.start_server(hangs_up, "127.0.0.1") as server:
            away = Redis(port=server.sockets[0].getsockname()[1])
            cache = RedisAnswers(away, rest_s=3600)
            assert await cache.secret() is None
            heard = len(callers)
            for _ in range(1000):
                assert await cache.find("acme", "k", max_age_s=60) is None
                await cache.keep("acme", "k", answer())
            assert 0 < len(callers) == heard
            with pytest.raises(SessionUnavailable):
                await cache.erase("acme")
            await away.aclose()


@pytest_asyncio.fixture
async def plane(redis: Redis, redis_url: str) -> AsyncIterator[LLMPlane]:
    store = open_gate_store(StoreKnobs(redis_url=redis_url, timeout_s=10.0))
    async with Provider("first") as first, Provider("second") as second:
        text = FILE.replace("FIRST", first.base_url).replace("SECOND", second.base_url)
        plane = open_plane(
            read_text(text, source="llm.yaml", environment={"SECRET_KEY": "sk-very-secret"}), store=store, redis=redis
        )
        plane.cache = answers_in(redis)
        async with asyncio.timeout(30):
            while await announced(redis) is None:  # a worker says it again every few seconds
                await plane.publish(redis)
        yield plane
        await plane.aclose()
    await store.aclose()


def fleet_llm(redis_url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as an operator does who has neither the file nor the keys."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    environment |= {"FLEET_MEMORY_REDIS_URL": redis_url, "FLEET_DB_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    return subprocess.run(
        [sys.executable, "-m", "workers.ops.main", "llm", *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


async def at_the_desk(redis_url: str, *arguments: str) -> str:
    done = await asyncio.to_thread(fleet_llm, redis_url, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_an_operator_opens_disables_and_closes_and_running_workers_obey(plane: LLMPlane, redis_url: str) -> None:
    chat = GuardedChat(plane, CallContext(run="r"))
    assert (await chat.chat(HELLO)).level == "L0"
    assert "first:big is open" in await at_the_desk(redis_url, "open", "first", "--reason", "their incident 12")
    stopped = await chat.chat(HELLO)
    assert stopped.level == "L1" and "their incident 12" in stopped.reasons[0]
    assert "first:big is closed" in await at_the_desk(redis_url, "close", "big")
    async with asyncio.timeout(30):  # what was seen open is not asked again for a second
        while (await chat.chat(HELLO)).level != "L0":
            await asyncio.sleep(0.05)
    assert "disabled for 60 s" in await at_the_desk(redis_url, "disable", "first:big", "--for", "60")
    assert (await chat.chat(HELLO)).level == "L1"


async def test_status_shows_state_latency_limits_spending_and_what_budgets_have_left(
    plane: LLMPlane, redis: Redis, redis_url: str
) -> None:
    await asyncio.to_thread(let_midnight_pass)
    reply = await GuardedChat(plane, CallContext(tenant="acme", run="r")).chat(HELLO)
    async with asyncio.timeout(30):
        while not await spent(redis, datetime.now(UTC).date()):
            await plane.publish(redis)
    found: dict[str, Any] = json.loads(await at_the_desk(redis_url, "status", "--json", "--tenant", "acme"))
    big = next(one for one in found["models"] if one["model"] == "big")
    assert (big["endpoint"], big["state"], big["total_calls"], big["concurrency"]) == ("first", "closed", 1, 9)
    assert big["spent_today"] == {"calls": 1, "input_tokens": 11, "output_tokens": 7, "money": 0.025}
    assert found["budgets"][0]["level"] == "day" and found["budgets"][0]["tokens_left"] == 100_000 - 18
    assert reply.cost == pytest.approx(0.025)
    shown = await at_the_desk(redis_url, "status")
    assert "closed" in shown and "1 call, 18 tokens, 0.03 EUR" in shown


async def test_an_operator_erases_what_is_kept_of_a_tenant(plane: LLMPlane, redis: Redis, redis_url: str) -> None:
    await GuardedChat(plane, CallContext(tenant="acme", run="r")).chat(HELLO)
    await plane.settled()
    assert await at_the_desk(redis_url, "erase", "acme") == "Erased 1 answers of acme.\n"
    assert await at_the_desk(redis_url, "erase", "acme") == "Erased 0 answers of acme.\n"


async def test_watching_shows_one_picture_a_second_until_it_is_ended(plane: LLMPlane, redis_url: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    environment |= {"FLEET_MEMORY_REDIS_URL": redis_url, "FLEET_DB_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    command = [sys.executable, "-m", "workers.ops.main", "llm", "status", "--watch", "--json"]
    watching = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert watching.stdout is not None
    for _ in range(2):
        assert json.loads(await asyncio.wait_for(watching.stdout.readline(), 60))["models"]
    watching.send_signal(2)
    assert await asyncio.wait_for(watching.wait(), 60) in (0, 130)


async def test_watching_in_a_terminal_is_a_table_that_changes_as_the_models_do(plane: LLMPlane, redis_url: str) -> None:
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    environment |= {
        "FLEET_MEMORY_REDIS_URL": redis_url, "FLEET_DB_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "COLUMNS": "160", "TERM": "xterm",
    }  # fmt: skip
    command = [sys.executable, "-m", "workers.ops.main", "llm", "status", "--watch"]
    watching = await asyncio.create_subprocess_exec(*command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = await asyncio.to_thread(shown_until, ours, "closed", "small")
    assert "endpoint" in screen and "forced-open" not in screen
    await plane.gate.force_open("first:big", reason="seen on the screen")
    await asyncio.to_thread(shown_until, ours, "forced-open", "seen on the screen", "by hand")
    watching.send_signal(2)
    assert await asyncio.wait_for(watching.wait(), 60) in (0, 130)
    os.close(ours)


def shown_until(terminal: int, *words: str) -> str:
    """What a terminal was told until all the words were there."""
    shown, end = "", time.monotonic() + 60
    while not all(word in shown for word in words):
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


async def test_what_operators_see_holds_no_secret(plane: LLMPlane, redis: Redis) -> None:
    names = [name async for name in redis.scan_iter()]
    for name in names:
        if await redis.type(name) == b"string":
            assert b"sk-very-secret" not in (await redis.get(name) or b"")
    config = await announced(redis)
    assert config is not None and config.endpoints["first"].api_key is None
    assert config.key("big") == "first:big"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("open", "frist"), "no endpoint or model is named frist; there are: first, second, big, small")],
)
async def test_an_endpoint_that_is_not_there_is_named(
    plane: LLMPlane, redis_url: str, arguments: tuple[str, ...], words: str
) -> None:
    done = await asyncio.to_thread(fleet_llm, redis_url, *arguments)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr


async def test_a_redis_that_is_not_there_or_empty_is_one_sentence(redis: Redis, redis_url: str) -> None:
    empty = await asyncio.to_thread(fleet_llm, redis_url, "status")
    assert (empty.returncode, "No worker has announced" in empty.stderr) == (2, True), empty.stderr
    gone = await asyncio.to_thread(fleet_llm, "redis://127.0.0.1:1/0", "status")
    assert (gone.returncode, "Redis does not answer" in gone.stderr) == (2, True), gone.stderr


async def test_the_day_book_adds_up_over_processes_and_survives_a_redis_that_is_away(redis: Redis) -> None:
    now = datetime.now(UTC)
    one, other = DayBook(), DayBook()
    for book in (one, other):
        for _ in range(3):
            book.note("first:big", Usage(10, 2), money=0.5, now=now)
    away = Redis(port=1, socket_connect_timeout=0.2)
    assert not await one.flush(away)
    assert await one.flush(redis) and await other.flush(redis) and await other.flush(redis)
    page = (await spent(redis, now.date()))["first:big"]
    assert (page.calls, page.input_tokens, page.output_tokens, page.money) == (6, 60, 12, 3.0)
    await away.aclose()
