"""What every chat port does, over the fake and over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMUnavailable
from shared.llm.adapters import DialectName, open_adapter
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall
from shared.llm.port import ChatPort, StreamPort
from tests.fakes.chat_server import ChatServer, completion, says, stays_silent
from tests.fakes.fake_chat import FakeChat
from tests.fakes.odd_provider import DONE, chunk, event, messages_told, streams, told, tool_chunk

QUESTION = ChatRequest((Message("system", "Be brief."), Message("user", "Hello?")))
CALL = ToolCall("call_7", "weather", '{"city": "Oslo"}')


class Port(ChatPort, StreamPort, Protocol):
    """Both ways to ask."""


@dataclass
class World:
    """A port and the ways to tell its far side what to do next."""

    port: Port
    will_say: Callable[[str], None]
    will_call: Callable[[ToolCall], None]
    will_fail: Callable[[type[FleetError]], None]
    will_hang: Callable[[], None]
    asked: Callable[[], int]


def fake_world() -> World:
    fake = FakeChat()

    def fail(kind: type[FleetError]) -> None:
        fake.script.append(LLMRateLimited("slow down", retry_after_s=7.0) if kind is LLMRateLimited else kind("no"))

    def hang() -> None:
        fake.release = asyncio.Event()

    return World(fake, fake.script.append, fake.script.append, fail, hang, lambda: len(fake.requests))


def wire_world(server: ChatServer, port: Port, *, dialect: str, is_streamed: bool) -> World:
    faults = {
        LLMRateLimited: says({"error": {"message": "slow"}}, status=429, retry_after="7"),
        LLMUnavailable: says({"error": {"message": "down"}}, status=503),
        LLMRefused: says({"error": {"message": "bad"}}, status=400),
    }

    def say(text: str) -> None:
        words = [word if number == 0 else f" {word}" for number, word in enumerate(text.split(" "))]
        if is_streamed:
            server.script.append(streams(told(*words) if dialect == "openai" else messages_told(*words)))
        elif dialect == "openai":
            server.script.append(says(completion(text)))
        else:
            server.script.append(says(message({"type": "text", "text": text})))

    def call(tool: ToolCall) -> None:
        function = {"name": tool.name, "arguments": tool.arguments}
        if dialect == "anthropic":
            use = {"type": "tool_use", "id": tool.id, "name": tool.name, "input": json.loads(tool.arguments)}
            start = {"type": "content_block_start", "index": 0, "content_block": {**use, "input": {}}}
            delta = {"type": "input_json_delta", "partial_json": tool.arguments}
            events = [
                event(start),
                event({"type": "content_block_delta", "index": 0, "delta": delta}),
                event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
                event({"type": "message_stop"}),
            ]
            server.script.append(streams(events) if is_streamed else says(message(use, stop_reason="tool_use")))
        elif is_streamed:
            events = [event(tool_chunk(0, id=tool.id, **function)), event(chunk(finish_reason="tool_calls")), DONE]
            server.script.append(streams(events))
        else:
            turn = {"role": "assistant", "content": None, "tool_calls": [{"id": tool.id, "function": function}]}
            server.script.append(says(completion(choices=[{"message": turn, "finish_reason": "tool_calls"}])))

    return World(
        port,
        say,
        call,
        lambda kind: server.script.append(faults[kind]),
        lambda: server.script.append(stays_silent()),
        lambda: len(server.requests),
    )


def message(block: dict[str, Any], *, stop_reason: str = "end_turn") -> dict[str, Any]:
    usage = {"input_tokens": 11, "output_tokens": 7}
    return {"type": "message", "model": "claude", "content": [block], "stop_reason": stop_reason, "usage": usage}


@asynccontextmanager
async def opened(dialect: DialectName, *, is_streamed: bool) -> AsyncIterator[World]:
    async with ChatServer() as server:
        knobs = LLMKnobs(
            base_url=server.base_url,
            api_key=SecretStr("sk-contract"),
            stream_answers=is_streamed,
        )
        adapter = open_adapter(knobs, dialect=dialect)
        yield wire_world(server, adapter, dialect=dialect, is_streamed=is_streamed)
        await adapter.aclose()


@pytest_asyncio.fixture(params=["fake", "openai", "openai streamed", "anthropic", "anthropic streamed"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield fake_world()
        return
    dialect, _, streamed = request.param.partition(" ")
    async with opened(dialect, is_streamed=bool(streamed)) as world:
        yield world


@pytest_asyncio.fixture(params=["fake", "openai", "anthropic"])
async def streaming(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield fake_world()
        return
    async with opened(request.param, is_streamed=True) as world:
        yield world


async def test_an_answer_comes_back_whole_and_survives_the_journal(world: World) -> None:
    world.will_say("Hello, Bergen: 你好 ☂")
    reply = await world.port.chat(QUESTION)
    assert (reply.text, reply.finish_reason, reply.level) == ("Hello, Bergen: 你好 ☂", "stop", "L0")
    assert reply.usage.input_tokens > 0 and reply.usage.output_tokens > 0 and reply.endpoint and reply.model
    assert ChatReply.from_json(reply.to_json()) == reply


async def test_a_tool_call_comes_back_as_the_model_wrote_it(world: World) -> None:
    world.will_call(CALL)
    reply = await world.port.chat(QUESTION)
    assert (reply.tool_calls, reply.text, reply.finish_reason) == ((CALL,), "", "tool_calls")


@pytest.mark.parametrize("kind", [LLMRateLimited, LLMUnavailable, LLMRefused])
async def test_a_failure_is_named_and_the_next_call_starts_afresh(world: World, kind: type[FleetError]) -> None:
    world.will_fail(kind)
    world.will_say("again")
    with pytest.raises(kind) as caught:
        await world.port.chat(QUESTION)
    if isinstance(caught.value, LLMRateLimited):
        assert caught.value.retry_after_s == 7.0
    assert (await world.port.chat(QUESTION)).text == "again"
    assert world.asked() == 2, "one call is one request: nothing behind the port retries"


async def test_a_cancelled_call_ends_at_once_as_cancelled(world: World) -> None:
    world.will_hang()
    call = asyncio.create_task(world.port.chat(QUESTION))
    while not world.asked():
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def pieces_of(world: World) -> tuple[list[str], ChatReply]:
    async with aclosing(world.port.stream(QUESTION)) as items:
        heard = [item async for item in items]
    (reply,) = [item for item in heard if isinstance(item, ChatReply)]
    assert heard[-1] is reply, "the reply comes last"
    return [item for item in heard if isinstance(item, str)], reply


async def test_the_pieces_of_a_stream_are_the_text_of_its_reply(streaming: World) -> None:
    streaming.will_say("Hello, Bergen: 你好 ☂")
    pieces, reply = await pieces_of(streaming)
    assert "".join(pieces) == reply.text == "Hello, Bergen: 你好 ☂"
    assert len(pieces) > 1 and all(pieces)
    assert (reply.finish_reason, reply.level) == ("stop", "L0")
    assert reply.usage.input_tokens > 0 and reply.usage.output_tokens > 0


async def test_a_streamed_tool_call_comes_whole_with_the_reply(streaming: World) -> None:
    streaming.will_call(CALL)
    assert (await pieces_of(streaming))[1].tool_calls == (CALL,)


@pytest.mark.parametrize("kind", [LLMRateLimited, LLMUnavailable, LLMRefused])
async def test_a_stream_that_cannot_start_fails_as_a_call_does(streaming: World, kind: type[FleetError]) -> None:
    streaming.will_fail(kind)
    streaming.will_say("again and again")
    with pytest.raises(kind):
        await pieces_of(streaming)
    assert (await pieces_of(streaming))[1].text == "again and again"
    assert streaming.asked() == 2


async def test_whoever_leaves_a_stream_early_may_ask_again(streaming: World) -> None:
    streaming.will_say("one two three")
    streaming.will_say("four")
    async with aclosing(streaming.port.stream(QUESTION)) as items:
        assert await anext(items) == "one"
    assert (await pieces_of(streaming))[1].text == "four"


async def test_a_cancelled_stream_ends_at_once_as_cancelled(streaming: World) -> None:
    streaming.will_hang()
    call = asyncio.create_task(pieces_of(streaming))
    while not streaming.asked():
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
