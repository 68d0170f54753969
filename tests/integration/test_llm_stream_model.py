"""The stream port over a real, small language model on a real llama.cpp server."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import LLMRefused
from shared.llm.adapters import open_adapter
from shared.llm.classify import classify
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Message
from shared.llm.port import Adapter

GREETING = ChatRequest((Message("user", "Say hello to the fleet."),), max_tokens=24, temperature=0.0)


@pytest_asyncio.fixture
async def chat(model: str) -> AsyncIterator[Adapter]:
    chat = open_adapter(LLMKnobs(base_url=model, api_key=SecretStr("local"), stream_answers=True), name="local")
    yield chat
    await chat.aclose()


async def test_a_real_model_is_heard_token_by_token_and_counts_for_itself(chat: Adapter) -> None:
    async with aclosing(chat.stream(GREETING)) as items:
        heard = [item async for item in items]
    *pieces, reply = heard
    assert isinstance(reply, ChatReply)
    assert len(pieces) > 3 and "".join(map(str, pieces)) == reply.text
    assert not reply.usage.estimated and 0 < reply.usage.output_tokens <= 24
    assert abs(reply.usage.output_tokens - len(pieces)) <= 2, "a piece is a token, so the floor counts tokens"
    assert reply.finish_reason in ("stop", "length")


async def test_a_streamed_answer_is_the_answer(chat: Adapter, model: str) -> None:
    plain = open_adapter(LLMKnobs(base_url=model), name="local")
    streamed, whole = await chat.chat(GREETING), await plain.chat(GREETING)
    assert (streamed.text, streamed.usage, streamed.model) == (whole.text, whole.usage, whole.model)
    await plain.aclose()


async def test_whoever_stops_listening_frees_the_model(chat: Adapter, model: str) -> None:
    endless = ChatRequest((Message("user", "Count to a thousand."),), max_tokens=900)
    async with aclosing(chat.stream(endless)) as items:
        await anext(items)
    beside = await chat.chat(GREETING)
    other = open_adapter(LLMKnobs(base_url=model, stream_answers=True), name="local")
    alone = await other.chat(GREETING)
    await other.aclose()
    assert beside.seconds < 10 * alone.seconds, "nine hundred words take longer than that"


async def test_a_stream_that_is_too_long_to_read_is_refused_as_what_it_is(chat: Adapter) -> None:
    with pytest.raises(LLMRefused) as caught:
        await chat.chat(ChatRequest((Message("user", "word " * 20_000),), max_tokens=4))
    assert classify(caught.value).kind == "context_too_long"
