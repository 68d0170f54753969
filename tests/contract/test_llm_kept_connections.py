"""Kept connections that the other side closes: nobody is written to who has left, and nothing is sent twice."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.errors import LLMUnavailable
from shared.llm.adapters import open_adapter
from shared.llm.classify import classify
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatRequest, Message
from shared.llm.port import Adapter
from tests.fakes.chat_server import ChatServer, Fault, completion, says, sends
from tests.fakes.odd_provider import streams, told

QUESTION = ChatRequest((Message("user", "Hello?"),))
CALLS = 5


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest_asyncio.fixture(params=[True, False], ids=["streamed", "whole"])
async def chat(server: ChatServer, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    chat = open_adapter(LLMKnobs(base_url=server.base_url, stream_answers=request.param), name="primary")
    yield chat
    await chat.aclose()


@pytest_asyncio.fixture
async def stream(server: ChatServer) -> AsyncIterator[Adapter]:
    chat = open_adapter(LLMKnobs(base_url=server.base_url, stream_answers=True), name="primary")
    yield chat
    await chat.aclose()


def hangs_up(answer: Fault, *, turns: int = 0) -> Fault:
    """Answer as a server does that keeps connections, and close this one after so many turns of the loop."""

    async def act(writer: asyncio.StreamWriter) -> None:
        await answer(writer)
        for _ in range(turns):
            await asyncio.sleep(0)
        writer.close()

    return act


def leave(server: ChatServer) -> None:
    """The server closes what it has kept, now; nobody has had a turn to see it."""
    for writer in server.asked:
        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    server.asked.clear()


STREAM, WHOLE = streams(told("a"), first_after_s=0.01), says(completion("a"))


async def test_a_server_that_hangs_up_behind_each_answer_is_asked_each_time_over_a_new_connection(
    chat: Adapter, server: ChatServer
) -> None:
    server.script += [hangs_up(WHOLE)] * CALLS
    assert [(await chat.chat(QUESTION)).text for _ in range(CALLS)] == ["a"] * CALLS
    assert (len(server.requests), server.connections) == (CALLS, CALLS)


async def test_a_connection_that_is_closed_just_before_the_next_request_is_not_written_to(
    chat: Adapter, server: ChatServer
) -> None:
    for number in range(1, CALLS + 1):
        server.script.append(WHOLE)
        assert (await chat.chat(QUESTION)).text == "a"
        assert server.connections == number
        leave(server)


async def test_a_server_that_hangs_up_behind_a_stream_is_told_beforehand_that_no_more_will_come(
    stream: Adapter, server: ChatServer
) -> None:
    server.script += [hangs_up(STREAM, turns=20)] * CALLS
    assert [(await stream.chat(QUESTION)).text for _ in range(CALLS)] == ["a"] * CALLS
    asked = [headers.get("connection") for headers in server.headers]
    assert (asked, server.connections) == ([None, *["close"] * (CALLS - 1)], CALLS)


async def test_who_keeps_connections_or_announces_their_end_is_not_asked_to_close_them(
    stream: Adapter, server: ChatServer
) -> None:
    server.script += [says(completion("a"), connection="close"), *[STREAM] * 3]
    assert [(await stream.chat(QUESTION)).text for _ in range(4)] == ["a"] * 4
    assert [headers.get("connection") for headers in server.headers] == [None] * 4
    assert server.connections == 2


async def test_a_request_that_may_have_been_read_is_not_sent_again(chat: Adapter, server: ChatServer) -> None:
    server.script += [WHOLE, sends(b"", hang_up=True)]
    await chat.chat(QUESTION)
    with pytest.raises(LLMUnavailable) as caught:
        await chat.chat(QUESTION)
    assert classify(caught.value).kind == "unreachable"
    assert (len(server.requests), server.connections) == (2, 1), "on the kept connection, once"
