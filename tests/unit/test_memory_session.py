"""Session memory when its cache fails: what it does, what it asks, and what it says about it."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from shared.errors import DatabaseUnavailable
from shared.llm.messages import Message
from shared.memory.knobs import MemoryKnobs
from shared.memory.session import SessionMemory
from tests.fakes.fake_sessions import FakeCache, FakeTruth

HELLO = Message("user", "hello")


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def truth() -> FakeTruth:
    return FakeTruth()


@pytest.fixture
def memory(truth: FakeTruth, cache: FakeCache, clock: HandClock) -> SessionMemory:
    return SessionMemory(truth, cache, knobs=MemoryKnobs(rest_s=5.0, context_characters=100), clock=clock)


async def test_warm_session_is_read_without_the_database(memory: SessionMemory, truth: FakeTruth) -> None:
    await memory.context("default", "s")
    await memory.append("default", "s", [HELLO], task_id=uuid4())
    truth.is_down = True
    assert await memory.context("default", "s") == (HELLO,)


async def test_cache_that_is_down_fails_neither_append_nor_context(memory: SessionMemory, cache: FakeCache) -> None:
    cache.is_down = True
    await memory.append("default", "s", [HELLO], task_id=uuid4())
    assert await memory.context("default", "s") == (HELLO,)


async def test_cache_that_failed_is_left_alone_until_it_has_rested(
    memory: SessionMemory, cache: FakeCache, clock: HandClock
) -> None:
    cache.is_down = True
    for _ in range(50):
        await memory.context("default", "s")
    assert cache.calls == 1
    clock.seconds += 5.0
    await memory.context("default", "s")
    assert cache.calls == 2


async def test_what_the_cache_missed_while_it_was_away_is_there_when_it_is_back(
    memory: SessionMemory, cache: FakeCache, clock: HandClock
) -> None:
    await memory.context("default", "s")
    cache.is_down = True
    await memory.append("default", "s", [HELLO], task_id=uuid4())
    cache.is_down = False  # and it still holds the entry, complete and outdated
    clock.seconds += 5.0
    assert await memory.context("default", "s") == (HELLO,)


async def test_append_cancelled_after_its_commit_leaves_no_gap_in_the_cache(
    memory: SessionMemory, truth: FakeTruth, cache: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.context("default", "s")

    async def cancelled(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(cache, "push", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await memory.append("default", "s", [HELLO], task_id=uuid4())
    assert await memory.context("default", "s") == (HELLO,)


async def test_outage_is_logged_once_a_minute(memory: SessionMemory, cache: FakeCache, clock: HandClock) -> None:
    cache.is_down = True
    with capture_logs() as logs:
        for _ in range(30):
            await memory.context("default", "s")
            clock.seconds += 5.0
    assert [line["event"] for line in logs] == ["memory.cache_unavailable"] * 3


async def test_database_that_is_down_is_an_error_when_the_cache_cannot_answer(
    memory: SessionMemory, truth: FakeTruth
) -> None:
    truth.is_down = True
    with pytest.raises(DatabaseUnavailable):
        await memory.context("default", "s")
    with pytest.raises(DatabaseUnavailable):
        await memory.append("default", "s", [HELLO], task_id=uuid4())


async def test_tool_traffic_and_silence_are_not_remembered(memory: SessionMemory, truth: FakeTruth) -> None:
    talk = [
        HELLO,
        Message("assistant", ""),
        Message("tool", "rain", tool_call_id="1"),
        Message("assistant", "It rains"),
    ]
    task_id = uuid4()
    await memory.append("default", "s", talk, task_id=task_id)
    assert await memory.context("default", "s") == (talk[0], talk[3])
    assert truth.numbers == {(task_id, 0), (task_id, 3)}, "a skipped message keeps its number"


async def test_cache_holds_no_more_of_a_message_than_a_context_shows(memory: SessionMemory, cache: FakeCache) -> None:
    await memory.context("default", "s")
    await memory.append("default", "s", [Message("user", "x" * 5000)], task_id=uuid4())
    assert [len(one.message.content) for one in cache.entries["ctx:s"].values()] == [100]


def test_doubts_about_sessions_are_bounded() -> None:
    memory = SessionMemory(FakeTruth(), FakeCache())
    for number in range(10_050):
        memory._suspect(f"ctx:{number}")
    assert len(memory._suspects) == 10_000
