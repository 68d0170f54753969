"""What every chat port does, over the fake and over a real socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMUnavailable
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall
from shared.llm.openai_chat import OpenAIChat
from shared.llm.port import ChatPort
from tests.fakes.chat_server import ChatServer, completion, says, stays_silent
from tests.fakes.fake_chat import FakeChat

QUESTION = ChatRequest((Message("system", "Be brief."), Message("user", "Hello?")))
CALL = ToolCall("call_7", "weather", '{"city": "Oslo"}')


@dataclass
class World:
    """A port and the ways to tell its far side what to do next."""

    port: ChatPort
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


def wire_world(server: ChatServer, port: ChatPort) -> World:
    faults = {
        LLMRateLimited: says({"error": {"message": "slow"}}, status=429, retry_after="7"),
        LLMUnavailable: says({"error": {"message": "down"}}, status=503),
        LLMRefused: says({"error": {"message": "bad"}}, status=400),
    }

    def call(tool: ToolCall) -> None:
        function = {"name": tool.name, "arguments": tool.arguments}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": tool.id, "function": function}]}
        server.script.append(says(completion(choices=[{"message": message, "finish_reason": "tool_calls"}])))

    return World(
        port,
        lambda text: server.script.append(says(completion(text))),
        call,
        lambda kind: server.script.append(faults[kind]),
        lambda: server.script.append(stays_silent()),
        lambda: len(server.requests),
    )


@pytest_asyncio.fixture(params=["fake", "openai"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield fake_world()
        return
    async with ChatServer() as server:
        chat = OpenAIChat(LLMKnobs(base_url=server.base_url, api_key=SecretStr("sk-contract")))
        yield wire_world(server, chat)
        await chat.aclose()


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
