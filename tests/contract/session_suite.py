"""What session memory promises, whatever the truth and the cache are made of."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from shared.db.tokens import CausalToken, carrying
from shared.llm.messages import Message, Role
from shared.memory.ports import Cached, SessionCache, SessionTruth
from shared.memory.session import SessionMemory

TENANT = "default"


def says(text: str, role: Role = "user") -> Message:
    """A message."""
    return Message(role, text)


def texts(messages: tuple[Message, ...]) -> list[str]:
    """What was said."""
    return [message.content for message in messages]


def at(lsn: int, *, timeline: int = 1) -> CausalToken:
    """A token."""
    return CausalToken(7, timeline, lsn, 5)


@dataclass
class SessionWorld:
    """Workers that share one truth and one cache, and the ways to break the cache."""

    truth: SessionTruth
    worker: Callable[[], SessionMemory]
    """Another process's memory: same truth, same cache, nothing else in common."""

    cache: SessionCache
    wipe: Callable[[], Awaitable[None]]
    session: str = field(default_factory=lambda: f"s-{uuid4().hex}")


class SessionSuite:
    """Subclass it with a `world` fixture that yields a `SessionWorld` whose knobs are small (40 messages)."""

    async def test_what_one_worker_hears_another_remembers_in_order(self, world: SessionWorld) -> None:
        first, second = world.worker(), world.worker()
        await first.append(TENANT, world.session, [says("hi"), says("hello", "assistant")], task_id=uuid4())
        await second.append(TENANT, world.session, [says("bye")], task_id=uuid4())
        for memory in (first, second):
            context = await memory.context(TENANT, world.session)
            assert [(one.role, one.content) for one in context] == [
                ("user", "hi"),
                ("assistant", "hello"),
                ("user", "bye"),
            ]

    async def test_a_new_session_is_empty(self, world: SessionWorld) -> None:
        assert await world.worker().context(TENANT, world.session) == ()

    async def test_a_step_that_runs_again_adds_nothing(self, world: SessionWorld) -> None:
        task_id, memory = uuid4(), world.worker()
        for worker in (memory, memory, world.worker()):
            await worker.append(TENANT, world.session, [says("once"), says("too", "assistant")], task_id=task_id)
        await memory.append(TENANT, world.session, [says("next")], task_id=task_id, first_ordinal=2)
        assert texts(await memory.context(TENANT, world.session)) == ["once", "too", "next"]

    async def test_a_run_that_died_before_the_cache_heard_is_healed_by_its_repetition(
        self, world: SessionWorld
    ) -> None:
        memory, task_id = world.worker(), uuid4()
        assert await memory.context(TENANT, world.session) == ()  # the entry is complete, and empty
        await world.truth.append(TENANT, world.session, [(0, says("stored, not cached"))], task_id=task_id)
        await memory.append(TENANT, world.session, [says("stored, not cached"), says("more")], task_id=task_id)
        assert texts(await memory.context(TENANT, world.session)) == ["stored, not cached", "more"]

    async def test_messages_of_no_task_are_added_every_time(self, world: SessionWorld) -> None:
        memory = world.worker()
        for _ in range(2):
            await memory.append(TENANT, world.session, [says("same")], task_id=None)
        assert texts(await memory.context(TENANT, world.session)) == ["same", "same"]

    async def test_two_hundred_concurrent_appends_lose_nothing_and_keep_each_writers_order(
        self, world: SessionWorld
    ) -> None:
        workers = [world.worker() for _ in range(10)]

        async def write(writer: int) -> None:
            for number in range(20):
                await workers[writer].append(TENANT, world.session, [says(f"{writer}:{number}")], task_id=uuid4())
                if number % 5 == writer % 5:
                    await workers[writer].context(TENANT, world.session)  # rebuilds race with appends

        wiping = asyncio.create_task(self._wipe_now_and_then(world))
        await asyncio.gather(*[write(writer) for writer in range(10)])
        wiping.cancel()
        await asyncio.gather(wiping, return_exceptions=True)
        stored = await world.truth.latest(TENANT, world.session, limit=1000, characters=1000)
        said = [one.message.content for one in stored]
        assert len(said) == len(set(said)) == 200
        for writer in range(10):
            assert [text for text in said if text.startswith(f"{writer}:")] == [f"{writer}:{n}" for n in range(20)]
        for worker in workers:
            assert texts(await worker.context(TENANT, world.session)) == said[-40:]

    async def test_a_cache_wiped_midway_is_rebuilt_from_the_truth(self, world: SessionWorld) -> None:
        memory = world.worker()
        for number in range(6):
            await memory.append(TENANT, world.session, [says(str(number))], task_id=uuid4())
            if number % 2:
                await memory.context(TENANT, world.session)
            if number == 3:
                await world.wipe()
        assert texts(await memory.context(TENANT, world.session)) == list("012345")

    async def test_a_fill_that_comes_late_does_not_hide_a_newer_message(self, world: SessionWorld) -> None:
        memory, key = world.worker(), f"ctx:{world.session}"
        await memory.append(TENANT, world.session, [says("old")], task_id=uuid4())
        read_before = await world.truth.latest(TENANT, world.session, limit=40, characters=1000)
        await memory.append(TENANT, world.session, [says("new")], task_id=uuid4())
        await world.cache.push(key, read_before, is_fill=True)
        assert texts(await memory.context(TENANT, world.session)) == ["old", "new"]

    async def test_only_the_newest_messages_are_given(self, world: SessionWorld) -> None:
        memory = world.worker()
        for number in range(45):
            await memory.append(TENANT, world.session, [says(str(number))], task_id=uuid4())
            if number == 20:
                await memory.context(TENANT, world.session)
        newest = [str(number) for number in range(5, 45)]
        assert texts(await memory.context(TENANT, world.session)) == newest
        await world.wipe()
        assert texts(await memory.context(TENANT, world.session)) == newest

    async def test_who_reads_a_session_must_not_miss_what_its_writers_wrote_last(self, world: SessionWorld) -> None:
        for lsn in (0x2_0000_0001, 0x1_0000_0000_0000_0000 - 1, 0xFFFF):  # beyond what Lua can count; and out of order
            with carrying(at(lsn)):
                await world.worker().append(TENANT, world.session, [says(f"{lsn:x}")], task_id=uuid4())
        with carrying(at(0xFFFFF)) as trail:
            assert len(await world.worker().context(TENANT, world.session)) == 3
            assert trail.token == at(0x1_0000_0000_0000_0000 - 1)
        with carrying(at(1, timeline=2)) as trail:
            await world.worker().context(TENANT, world.session)
            assert trail.token == at(1, timeline=2)

    async def test_a_fill_that_may_have_missed_a_message_is_not_taken_for_complete(self, world: SessionWorld) -> None:
        memory, key = world.worker(), f"ctx:{world.session}"
        with carrying(at(200)):
            await memory.append(TENANT, world.session, [says("new")], task_id=uuid4())
        for token in (at(100), CausalToken(8, 1, 0xFFFF, 4), None):
            await world.cache.push(key, [], is_fill=True, token=token)
            is_sure = token is None  # the primary was asked
            assert ((await world.cache.read(key)).messages is not None) == is_sure
        await world.cache.drop([key])
        assert await world.cache.read(key) == Cached()
        await world.cache.push(key, [], is_fill=True, token=at(10**6))
        assert (await world.cache.read(key)).messages is None, "it is not known what has been written"

    async def test_a_fill_that_reads_no_less_than_the_last_message_is_complete(self, world: SessionWorld) -> None:
        memory, key = world.worker(), f"ctx:{world.session}"
        for lsn in (200, 300):
            with carrying(at(lsn)):
                await memory.append(TENANT, world.session, [says(str(lsn))], task_id=uuid4())
            with carrying(at(100)):
                assert texts(await memory.context(TENANT, world.session))[-1] == str(lsn)
            cached = await world.cache.read(key)
            assert (cached.messages is not None, cached.token) == (True, at(lsn))

    async def test_a_writer_without_a_token_takes_the_sessions_token_away(self, world: SessionWorld) -> None:
        memory, key = world.worker(), f"ctx:{world.session}"
        with carrying(at(200)):
            await memory.append(TENANT, world.session, [says("a")], task_id=uuid4())
        with carrying(None):
            await memory.append(TENANT, world.session, [says("b")], task_id=uuid4())
        assert (await world.cache.read(key)).token is None

    @pytest.mark.parametrize("other", ["acme", "default:acme", "DEFAULT", ""])
    async def test_tenants_never_read_each_others_sessions(self, world: SessionWorld, other: str) -> None:
        memory, session = world.worker(), world.session
        await memory.append(other, session, [says("theirs")], task_id=uuid4())
        await memory.append(TENANT, f"{other}:{session}", [says("ours")], task_id=uuid4())
        assert texts(await memory.context(other, session)) == ["theirs"]
        assert texts(await memory.context(TENANT, f"{other}:{session}")) == ["ours"]
        assert await memory.context(TENANT, session) == ()

    async def test_text_that_no_database_takes_is_kept_as_far_as_it_can_be(self, world: SessionWorld) -> None:
        memory = world.worker()
        await memory.append(TENANT, world.session, [says("a\x00b \ud800 é 你")], task_id=uuid4())
        assert texts(await memory.context(TENANT, world.session)) == ["ab ? é 你"]

    async def _wipe_now_and_then(self, world: SessionWorld) -> None:
        while True:
            await world.wipe()
            for _ in range(50):
                await asyncio.sleep(0)
