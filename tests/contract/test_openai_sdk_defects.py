"""What the openai SDK does by itself, and why the adapter reads and times for itself.

Each test runs twice. `adapter` is ours and passes. `sdk` is the SDK alone and must fail: on the day that it passes, the
SDK has been repaired, and the part of the adapter that works around it can go.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from openai import APITimeoutError, AsyncOpenAI, OpenAIError
from pydantic import SecretStr

from shared.errors import FleetError, LLMTimeout, LLMUnavailable
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatRequest, Message
from shared.llm.openai_chat import OpenAIChat
from tests.fakes.chat_server import ChatServer, Fault, completion, drips, http, says, sends
from tests.fakes.odd_provider import COMMENT, chunk, event, streams, told

KEY = "sk-very-secret-0123456789"
TIMEOUT_S = 1.5
Ask = Callable[[bool], Awaitable[Any]]


def alone(reason: str) -> pytest.MarkDecorator:
    """The two askers, the SDK marked as broken for this reason."""
    failed = (AssertionError, ValueError, pytest.fail.Exception)  # the reason, and no slip of the test itself
    marks = pytest.mark.xfail(reason=reason, strict=True, raises=failed)
    return pytest.mark.parametrize("ask", ["adapter", pytest.param("sdk", marks=marks)], indirect=True)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest_asyncio.fixture
async def ask(
    request: pytest.FixtureRequest, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ask]:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-of: somebody")
    if request.param == "adapter":
        knobs = {
            streamed: LLMKnobs(
                base_url=server.base_url,
                api_key=SecretStr(KEY),
                stream_answers=streamed,
                first_token_timeout_s=TIMEOUT_S,
                total_timeout_s=TIMEOUT_S,
            )
            for streamed in (False, True)
        }
        chats = {streamed: OpenAIChat(one) for streamed, one in knobs.items()}
        yield lambda streamed: chats[streamed].chat(ChatRequest((Message("user", "Hello?"),)))
        for chat in chats.values():
            await chat.aclose()
        return
    http_client = httpx2.AsyncClient(trust_env=False)
    client = AsyncOpenAI(
        base_url=server.base_url, api_key=KEY, max_retries=0, timeout=TIMEOUT_S, http_client=http_client
    )

    async def create(streamed: bool) -> Any:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}
        if not streamed:
            return await client.chat.completions.create(**asked)
        return [one async for one in await client.chat.completions.create(**asked, stream=True)]

    yield create
    await client.close()


async def times_out(ask: Ask, *, streamed: bool) -> None:
    """Before the answer has come to an end by itself."""
    with pytest.raises((LLMTimeout, APITimeoutError)):
        await ask(streamed)


@alone("timeouts are per socket operation: a body that drips never times out")
async def test_a_dribbled_body_ends_on_time(ask: Ask, server: ChatServer) -> None:
    server.script.append(drips(http(200, b'{"id": "' + b" " * 60), every_s=0.05))
    await times_out(ask, streamed=False)


@alone("keep-alive comments count as an answer")
async def test_a_stream_of_comments_ends_on_time(ask: Ask, server: ChatServer) -> None:
    server.script.append(streams([COMMENT] * 60 + told("late"), every_s=0.05))
    await times_out(ask, streamed=True)


INVALID: dict[str, Fault] = {
    "html": sends(http(200, b"<html>gateway</html>", content_type="text/html")),
    "an error body": says({"error": {"message": "overloaded", "code": 502}}),
    "no choices": says(completion(choices=[])),
    "choices null": says({**completion(), "choices": None}),
}


@alone("a 200 is taken for an answer, whatever is in it")
@pytest.mark.parametrize("name", INVALID)
async def test_a_200_that_is_no_answer_is_a_failure(ask: Ask, server: ChatServer, name: str) -> None:
    server.script.append(INVALID[name])
    with pytest.raises((OpenAIError, LLMUnavailable)):
        await ask(False)


@alone("a bare JSONDecodeError passes every `except OpenAIError`")
async def test_broken_json_is_an_error_of_the_family(ask: Ask, server: ChatServer) -> None:
    server.script.append(sends(http(200, b'{"id": "c1", "cho')))
    with pytest.raises((OpenAIError, LLMUnavailable)):
        await ask(False)


@alone("a stream that ends early raises nothing")
async def test_a_stream_that_ends_cleanly_without_a_reason_is_a_failure(ask: Ask, server: ChatServer) -> None:
    server.script.append(streams([event(chunk("Half an ")), event(chunk("answer"))]))
    with pytest.raises((OpenAIError, LLMUnavailable)):
        await ask(True)


@alone("a broken event is a bare JSONDecodeError")
async def test_a_broken_event_is_an_error_of_the_family(ask: Ask, server: ChatServer) -> None:
    server.script.append(streams([event("{oops")]))
    with pytest.raises((OpenAIError, LLMUnavailable)):
        await ask(True)


@alone("the environment of the process is sent to any endpoint")
async def test_headers_of_the_environment_go_to_nobody(ask: Ask, server: ChatServer) -> None:
    await ask(False)
    assert "x-of" not in server.headers[0]


@alone("what the SDK knows of the machine is sent to any endpoint")
async def test_no_endpoint_is_told_what_machine_is_asking(ask: Ask, server: ChatServer) -> None:
    await ask(False)
    assert [name for name in server.headers[0] if name.startswith("x-stainless")] == []


@alone("an error holds the request, and the request holds the key")
async def test_an_error_holds_no_key(ask: Ask, server: ChatServer) -> None:
    server.script.append(says({"error": {"message": "no"}}, status=401))
    with pytest.raises((OpenAIError, FleetError)) as caught:
        await ask(False)
    assert getattr(caught.value, "request", None) is None
    assert KEY not in str(vars(caught.value))
