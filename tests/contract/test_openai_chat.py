"""The OpenAI-compatible adapter against a server that misbehaves in every way a provider has."""

import asyncio
import gzip
import json
import socket
import traceback
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatRequest, Message, ToolCall, ToolSpec
from shared.llm.openai_chat import OpenAIChat
from tests.fakes.chat_server import ChatServer, Fault, completion, drips, http, says, sends, stays_silent

KEY = "sk-very-secret-0123456789"
QUESTION = ChatRequest((Message("user", "Hello?"),))
WHOLE = json.dumps(completion()).encode()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest_asyncio.fixture
async def chat(server: ChatServer) -> AsyncIterator[OpenAIChat]:
    chat = OpenAIChat(LLMKnobs(base_url=server.base_url, api_key=SecretStr(KEY), model="asked-model"))
    yield chat
    await chat.aclose()


async def test_the_request_carries_model_bounds_tools_and_the_whole_conversation(
    chat: OpenAIChat, server: ChatServer
) -> None:
    call = ToolCall("call_1", "weather", "{}")
    messages = (Message("user", "?"), Message("assistant", "", (call,)), Message("tool", "rain", tool_call_id="call_1"))
    tool = ToolSpec("weather", "Says the weather.", {"type": "object", "properties": {}})
    await chat.chat(ChatRequest(messages, max_tokens=5, temperature=0.0, tools=(tool,)))
    sent = server.requests[0]
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("asked-model", 5, 0.0)
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert sent["messages"][2] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}
    assert "stream" not in sent
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_credentials_in_the_environment_of_the_process_are_not_sent(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-somebody")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    chat = OpenAIChat(LLMKnobs(base_url=server.base_url))
    await chat.chat(QUESTION)
    await chat.aclose()
    assert not any("somebody" in value for value in server.headers[0].values())


BAD_ANSWERS: dict[str, Fault] = {
    "html in a 200": sends(http(200, b"<html>gateway</html>", content_type="text/html")),
    "an empty 200": sends(http(200, b"")),
    "broken JSON": sends(http(200, WHOLE[:-9])),
    "JSON that is no object": says(["hello"]),
    "an error in a 200": says({"error": {"message": "overloaded", "code": 502}}),
    "an error object in a 200": says({"object": "error", "message": "no workers", "code": "internal"}),
    "no choices": says(completion(choices=[])),
    "choices null": says({**completion(), "choices": None}),
    "a choice that failed": says(completion(choices=[{"message": {"content": "x"}, "finish_reason": "error"}])),
    "a choice without message": says(completion(choices=[{"finish_reason": "stop"}])),
    "nothing said": says(completion("")),
    "a tool call without a function": says(
        completion(choices=[{"message": {"tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}])
    ),
    "a body cut short": sends(http(200, WHOLE)[:-20], hang_up=True),
    "no answer at all": sends(b"", hang_up=True),
    "not HTTP": sends(b"SSH-2.0-OpenSSH_9.2\r\n", hang_up=True),
    "500": says({"error": {"message": "boom"}}, status=500),
    "502 in HTML": sends(http(502, b"<html>bad gateway</html>", content_type="text/html")),
    "529": says({"error": {"type": "overloaded_error", "message": "busy"}}, status=529),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_is_none_is_unavailable(chat: OpenAIChat, server: ChatServer, name: str) -> None:
    server.script.append(BAD_ANSWERS[name])
    with pytest.raises(LLMUnavailable):
        await chat.chat(QUESTION)
    assert (await chat.chat(QUESTION)).text == "hello", "the client is usable afterwards"
    assert len(server.requests) == 2


REFUSALS: dict[str, Fault] = {
    "400": says({"error": {"message": "context too long", "code": "context_length_exceeded"}}, status=400),
    "401": says({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401),
    "404": says({"error": {"message": "no such model"}}, status=404),
    "422": says({"detail": [{"loc": ["body"]}]}, status=422),
    "a redirect": sends(http(307, b"", location="http://127.0.0.1:1/v1")),
    "429 of an empty account": says({"error": {"message": "pay", "code": "insufficient_quota"}}, status=429),
    "400 in a 200": says({"error": {"message": "bad", "code": 400}}),
    "an answer filtered away": says(
        completion(choices=[{"message": {"content": None}, "finish_reason": "content_filter"}])
    ),
    "tokens spent in silence": says(completion(choices=[{"message": {"content": ""}, "finish_reason": "length"}])),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_what_would_be_refused_again_is_refused(chat: OpenAIChat, server: ChatServer, name: str) -> None:
    server.script.append(REFUSALS[name])
    with pytest.raises(LLMRefused) as caught:
        await chat.chat(QUESTION)
    shown = "".join(traceback.format_exception(caught.value)) + json.dumps(caught.value.as_dict()) + repr(chat.__dict__)
    assert KEY not in shown


async def test_rate_limits_carry_the_wait_the_endpoint_named(chat: OpenAIChat, server: ChatServer) -> None:
    server.script += [
        says({}, status=429, retry_after="12"),
        says({}, status=429, retry_after_ms="250"),
        says({}, status=429, retry_after="soon"),
        says({"error": {"message": "slow", "code": 429}}, retry_after="3"),
    ]
    waits = []
    for _ in range(4):
        with pytest.raises(LLMRateLimited) as caught:
            await chat.chat(QUESTION)
        waits.append(caught.value.retry_after_s)
    assert waits == [12.0, 0.25, None, 3.0]


@pytest.mark.parametrize("fault", [stays_silent(), drips(http(200, WHOLE), every_s=0.01)], ids=["silence", "drip"])
async def test_the_whole_call_ends_at_its_timeout(chat: OpenAIChat, server: ChatServer, fault: Fault) -> None:
    server.script.append(fault)
    with pytest.raises(LLMTimeout) as caught:
        await chat.chat(ChatRequest(QUESTION.messages, timeout_s=0.2))
    assert caught.value.context["phase"] == "total"
    assert await asyncio.wait_for(server.hang_ups.get(), 60) == 1


async def test_a_silent_endpoint_ends_at_the_read_timeout(server: ChatServer) -> None:
    server.script.append(stays_silent())
    chat = OpenAIChat(LLMKnobs(base_url=server.base_url, read_timeout_s=0.1))
    with pytest.raises(LLMTimeout) as caught:
        await chat.chat(QUESTION)
    assert caught.value.context["phase"] == "read"
    await chat.aclose()


async def test_a_refused_connection_is_unavailable() -> None:
    async with ChatServer() as gone:
        url = gone.base_url
    chat = OpenAIChat(LLMKnobs(base_url=url))
    with pytest.raises(LLMUnavailable, match="could not be reached"):
        await chat.chat(QUESTION)
    await chat.aclose()


async def test_cancelling_the_task_closes_the_connection(chat: OpenAIChat, server: ChatServer) -> None:
    server.script.append(stays_silent())
    call = asyncio.create_task(chat.chat(QUESTION))
    while not server.requests:
        await asyncio.sleep(0)
    call.cancel()
    assert await asyncio.wait_for(server.hang_ups.get(), 60) == 1
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_cancelled_calls_give_their_connections_back(server: ChatServer) -> None:
    chat = OpenAIChat(LLMKnobs(base_url=server.base_url, max_connections=2))
    for number in range(1, 7):
        server.script.append(stays_silent())
        call = asyncio.create_task(chat.chat(QUESTION))
        while len(server.requests) < number:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert (await chat.chat(ChatRequest(QUESTION.messages, timeout_s=5))).text == "hello"
    await chat.aclose()


async def test_more_calls_than_connections_wait_their_turn_and_all_are_answered(server: ChatServer) -> None:
    chat = OpenAIChat(LLMKnobs(base_url=server.base_url, max_connections=20))
    replies = await asyncio.gather(*[chat.chat(QUESTION) for _ in range(100)])
    assert {reply.text for reply in replies} == {"hello"}
    assert len(replies) == len(server.requests) == 100
    await chat.aclose()


async def test_a_connection_serves_one_call_after_the_other(chat: OpenAIChat, server: ChatServer) -> None:
    for _ in range(3):
        await chat.chat(QUESTION)
    assert (len(server.requests), server.connections) == (3, 1)


async def test_a_connection_of_an_unread_answer_is_not_used_again(chat: OpenAIChat, server: ChatServer) -> None:
    server.script.append(drips(http(200, WHOLE), every_s=1.0))
    with pytest.raises(LLMTimeout):
        await chat.chat(ChatRequest(QUESTION.messages, timeout_s=0.2))
    assert (await chat.chat(QUESTION)).text == "hello"
    assert server.connections == 2


async def test_a_compressed_answer_is_read(chat: OpenAIChat, server: ChatServer) -> None:
    server.script.append(sends(http(200, gzip.compress(WHOLE), content_encoding="gzip")))
    assert (await chat.chat(QUESTION)).text == "hello"
    assert "gzip" in server.headers[0]["accept-encoding"]


async def test_a_call_goes_by_way_of_its_endpoint_s_proxy(server: ChatServer) -> None:
    """The server plays the proxy: it is asked for the endpoint's whole address."""
    proxy = server.base_url.removesuffix("/v1")
    chat = OpenAIChat(LLMKnobs(base_url="http://192.0.2.1/v1", proxy_url=proxy, model="m"))
    assert (await chat.chat(QUESTION)).text == "hello"
    assert server.paths == ["http://192.0.2.1/v1/chat/completions"]
    await chat.aclose()


async def test_an_endpoint_that_takes_no_connections_fails_a_crowd_soon() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        full = [socket.socket() for _ in range(3)]  # what the system still accepts for a listener that never does
        for one in full:
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        chat = OpenAIChat(LLMKnobs(base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", connect_timeout_s=0.3))
        async with asyncio.timeout(20):  # one after the other they would take 30 s
            failures = await asyncio.gather(*[chat.chat(QUESTION) for _ in range(100)], return_exceptions=True)
        assert all(isinstance(failure, LLMTimeout) for failure in failures)
        await chat.aclose()
        for one in full:
            one.close()


async def test_usage_that_is_missing_is_estimated_and_marked(chat: OpenAIChat, server: ChatServer) -> None:
    server.script.append(says(completion("12345678", usage=None)))
    reply = await chat.chat(QUESTION)
    assert (reply.usage.output_tokens, reply.usage.estimated) == (2, True)
    assert (await chat.chat(QUESTION)).usage.estimated is False


async def test_text_that_no_database_takes_is_cleaned(chat: OpenAIChat, server: ChatServer) -> None:
    server.script.append(says(completion("a\x00b\ud800c")))
    assert (await chat.chat(QUESTION)).text == "ab?c"


async def test_the_reply_names_who_answered(chat: OpenAIChat, server: ChatServer) -> None:
    reply = await chat.chat(QUESTION)
    assert (reply.model, reply.endpoint) == ("served-model", f"127.0.0.1:{server.port}")
    assert reply.seconds > 0
