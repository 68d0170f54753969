"""The chat port over a real, small language model."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import LLMRefused
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatRequest, Message
from shared.llm.openai_chat import OpenAIChat


@pytest_asyncio.fixture
async def chat(model: str) -> AsyncIterator[OpenAIChat]:
    chat = OpenAIChat(LLMKnobs(base_url=model, api_key=SecretStr("local")))
    yield chat
    await chat.aclose()


async def test_a_real_model_answers_with_its_own_count_of_tokens(chat: OpenAIChat) -> None:
    question = ChatRequest((Message("user", "Say hello to the fleet."),), max_tokens=24, temperature=0.0)
    reply = await chat.chat(question)
    assert reply.text
    assert not reply.usage.estimated
    assert 0 < reply.usage.output_tokens <= 24
    assert reply.finish_reason in ("stop", "length")


async def test_a_question_longer_than_the_model_can_read_is_refused(chat: OpenAIChat) -> None:
    with pytest.raises(LLMRefused) as caught:
        await chat.chat(ChatRequest((Message("user", "word " * 20_000),), max_tokens=4))
    assert caught.value.context["status"] == 400
