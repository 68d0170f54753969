"""Streams through the ladder: one that breaks in the middle goes on at the next model, and says that it starts over."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable
from shared.llm.guarded import Restarted
from shared.llm.messages import ChatReply, ChatRequest, Message
from tests.fakes.fake_plane import PlaneWorld

HELLO = ChatRequest((Message("user", "one two three"),), temperature=0.0)


async def heard(world: PlaneWorld) -> list[str | Restarted | ChatReply]:
    async with aclosing(world.door().stream(HELLO)) as stream:
        return [piece async for piece in stream]


def breaks_after(world: PlaneWorld, pieces: int, error: FleetError) -> None:
    """The first model's stream breaks after so many pieces, every time."""
    adapter = world.first

    async def stream(request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        adapter.requests.append(request)
        for number in range(pieces):
            yield f"lost{number}"
        raise error

    adapter.stream = stream  # type: ignore[method-assign]


async def test_a_stream_comes_in_pieces_and_last_of_all_whole() -> None:
    *pieces, reply = await heard(PlaneWorld())
    assert pieces == ["first:", "one", "two", "three"]
    assert isinstance(reply, ChatReply) and (reply.text, reply.level) == ("first: one two three", "L0")


@pytest.mark.parametrize(
    "error",
    [
        LLMUnavailable("cut after some tokens", broken="cut"),
        LLMUnavailable("Overloaded in the stream", status=529),
        LLMTimeout("the stream stalled", phase="idle", limit_s=20.0),
        LLMTimeout("too slow", phase="throughput", limit_s=20.0),
        LLMRateLimited("429 in the stream", retry_after_s=30.0),
    ],
)
async def test_a_stream_that_breaks_after_its_first_pieces_fails_over(error: FleetError) -> None:
    world = PlaneWorld(retries_before_fallback=0)
    breaks_after(world, 2, error)
    found = await heard(world)
    assert found[:2] == ["lost0", "lost1"]
    assert isinstance(found[2], Restarted) and found[2].reason == error.message
    assert found[3:-1] == ["second:", "one", "two", "three"]
    assert isinstance(found[-1], ChatReply) and (found[-1].level, found[-1].endpoint) == ("L1", "second")


async def test_a_stream_that_breaks_before_its_first_piece_fails_over_unseen() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    breaks_after(world, 0, LLMUnavailable("no"))
    assert not any(isinstance(piece, Restarted) for piece in await heard(world))


async def test_broken_streams_open_the_breaker_like_any_failure() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    breaks_after(world, 3, LLMUnavailable("cut", broken="cut"))
    for _ in range(12):
        await heard(world)
    assert world.asked()["first"] == 5


async def test_when_every_stream_breaks_the_last_words_are_static_and_what_was_shown_is_void() -> None:
    world = PlaneWorld(retries_before_fallback=0)
    breaks_after(world, 2, LLMUnavailable("cut", broken="cut"))
    world.second.script.extend(LLMUnavailable("down") for _ in range(50))
    found = await heard(world)
    assert found[:2] == ["lost0", "lost1"] and isinstance(found[2], Restarted)
    assert isinstance(found[-1], ChatReply) and found[-1].level == "L4" and found[3] == found[-1].text


async def test_a_refusal_in_a_stream_is_raised_to_the_reader() -> None:
    world = PlaneWorld()
    breaks_after(world, 1, LLMRefused("filtered", subject="content"))
    with pytest.raises(LLMRefused):
        await heard(world)


async def test_a_reader_that_leaves_ends_the_call_and_teaches_nothing() -> None:
    world = PlaneWorld(first="limits: {concurrency: 1}")
    gone = asyncio.Event()

    async def stream(request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            gone.set()

    world.first.stream = stream  # type: ignore[method-assign]
    async with aclosing(world.door().stream(HELLO)) as pieces:
        assert await anext(pieces) == "first"
    assert gone.is_set()
    stats = await world.plane.gate.stats("first:big-2")
    assert (stats.in_flight, stats.failure_count, stats.total_calls) == (0, 0, 0)


async def test_a_slow_reader_keeps_the_model_waiting_instead_of_filling_memory() -> None:
    world = PlaneWorld()
    written = 0

    async def stream(request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        nonlocal written
        for _ in range(1000):
            written += 1
            yield "x"
        raise LLMUnavailable("cut")

    world.first.stream = stream  # type: ignore[method-assign]
    async with aclosing(world.door().stream(HELLO)) as pieces:
        await anext(pieces)
        for _ in range(200):
            await asyncio.sleep(0)
        assert written < 100
