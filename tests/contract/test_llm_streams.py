"""Streams that go wrong in every way that providers have shown, in both dialects."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.errors import FleetError, LLMRateLimited, LLMTimeout, LLMUnavailable
from shared.llm.adapters import open_adapter
from shared.llm.classify import classify
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Message, Usage
from shared.llm.port import Adapter
from shared.resilience.deadline import within
from shared.resilience.exchange import LimitsSeen
from tests.fakes.chat_server import ChatServer, Fault, completion, http, says, sends, stays_silent
from tests.fakes.odd_provider import (
    COMMENT,
    DONE,
    chunk,
    dribbles_headers,
    event,
    messages_told,
    repeats,
    resets,
    streams,
    told,
    usage_chunk,
)

QUESTION = ChatRequest((Message("user", "12345678"),))
HALF = [event(chunk("Half an ")), event(chunk("answer"))]
FINISHED = [*HALF, event(chunk(finish_reason="stop"))]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest_asyncio.fixture
async def chat(server: ChatServer) -> AsyncIterator[Adapter]:
    """As patient as it comes: what it says of an endpoint is not that this process was busy."""
    knobs = LLMKnobs(base_url=server.base_url, api_key=SecretStr("sk-very-secret-0123456789"))
    adapter = open_adapter(knobs, name="primary")
    yield adapter
    await adapter.aclose()


async def heard(chat: Adapter, question: ChatRequest = QUESTION) -> tuple[str, ChatReply | FleetError]:
    """What was handed out, and how it ended."""
    pieces: list[str] = []
    try:
        async with aclosing(chat.stream(question)) as items:
            async for item in items:
                if isinstance(item, ChatReply):
                    return "".join(pieces), item
                pieces.append(item)
    except FleetError as failure:
        return "".join(pieces), failure
    raise AssertionError("a stream ends with a reply or an error")


BROKEN: dict[str, tuple[Fault, str]] = {
    "ends cleanly in the middle": (streams(HALF), "cut"),
    "says done without a reason": (streams([*HALF, DONE]), "cut"),
    "hangs up in the middle": (streams(HALF, end="hang up"), "cut"),
    "is reset in the middle": (streams(HALF, end="reset"), "cut"),
    "never says a word": (streams([DONE]), "empty_stream"),
    "is empty": (streams([]), "empty_stream"),
    "only counts": (streams([event(usage_chunk(1, 0)), DONE]), "empty_stream"),
    "sends no JSON": (streams([*HALF, event("{oops"), *FINISHED]), "not_json"),
    "sends no object": (streams([*HALF, event("[1]")]), "no_object"),
    "sends another dialect": (streams([event({"choices": [{"delta": "text"}]})]), "shape"),
    "fails in the middle": (streams([*HALF, event({"error": {"message": "boom", "code": 500}})]), "error_in_200"),
    "fails in vLLM's words": (streams([*HALF, event({"object": "error", "message": "boom"})]), "error_in_200"),
    "fails by name": (streams([*HALF, event({"message": "boom"}, name="error")]), "error_in_200"),
    "is a page of HTML": (sends(http(200, b"<html>hi</html>", content_type="text/html")), "not_json"),
    "is a page of HTML that claims to be events": (streams([b"<html>\n\nhi</html>"]), "empty_stream"),
    "is an error in JSON": (says({"error": {"message": "boom"}}), "error_in_200"),
    "finishes with an error": (streams([*HALF, event(chunk(finish_reason="error"))]), "no_message"),
    "finishes without a word": (streams([event(chunk(finish_reason="stop")), DONE]), "nothing_said"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_stream_that_is_no_whole_answer_is_a_failure(chat: Adapter, server: ChatServer, name: str) -> None:
    fault, why = BROKEN[name]
    server.script += [fault, streams(told("whole"))]
    pieces, failure = await heard(chat)
    assert isinstance(failure, LLMUnavailable)
    assert failure.context["broken"] == why
    assert failure.context.get("written", 0) == len(pieces)
    outcome = classify(failure)
    assert (outcome.kind, outcome.learn, outcome.retries_at_most) == ("invalid_answer", "failure", 1)
    assert (await heard(chat))[0] == "whole", "the client is usable afterwards"


async def test_an_error_in_a_stream_is_the_error_it_names(chat: Adapter, server: ChatServer) -> None:
    errors = [
        {"code": 429, "message": "slow down"},
        {"type": "rate_limit_error"},
        {"type": "overloaded_error", "message": "Overloaded"},
        {"code": "context_length_exceeded"},
        {"type": "authentication_error"},
    ]
    server.script += [streams([*HALF, event({"error": error})]) for error in errors]
    outcomes = [classify(failure) for _, failure in [await heard(chat) for _ in errors]]
    kinds = [one.kind for one in outcomes]
    assert kinds == ["rate_limited", "rate_limited", "overloaded", "context_too_long", "unauthorized"]


async def test_what_half_an_answer_has_cost_is_booked(chat: Adapter, server: ChatServer) -> None:
    server.script.append(streams(HALF, end="reset"))
    _, failure = await heard(chat)
    assert isinstance(failure, LLMUnavailable)
    assert classify(failure).usage == Usage(2, 4, estimated=True)


SLOW: dict[str, tuple[Fault, str, float]] = {
    "never answers": (stays_silent(), "first_token", 0.3),
    "dribbles its headers": (dribbles_headers(every_s=0.02), "first_token", 0.3),
    "sends comments only": (repeats(COMMENT, every_s=0.02), "first_token", 0.3),
    "sends empty deltas only": (repeats(event(chunk("")), every_s=0.02), "first_token", 0.3),
    "stalls after two tokens": (streams(HALF, end="stall"), "idle", 0.2),
    "comments instead of going on": (streams([*HALF, *[COMMENT] * 200], every_s=0.02), "idle", 0.2),
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_stream_without_tokens_ends_on_time(server: ChatServer, name: str) -> None:
    fault, phase, seconds = SLOW[name]
    only: dict[str, Any] = {f"{phase}_timeout_s": seconds}
    chat = open_adapter(LLMKnobs(base_url=server.base_url, **only))
    server.script.append(fault)
    started = asyncio.get_running_loop().time()
    _, failure = await heard(chat)
    took_s = asyncio.get_running_loop().time() - started
    assert isinstance(failure, LLMTimeout)
    assert failure.context["phase"] == phase
    assert took_s >= seconds
    assert await asyncio.wait_for(server.hang_ups.get(), 60) == 1, "the endpoint is told to stop"
    await chat.aclose()


async def test_an_endless_stream_ends_at_the_requests_total(chat: Adapter, server: ChatServer) -> None:
    server.script.append(repeats(event(chunk("x")), every_s=0.02))
    pieces, failure = await heard(chat, ChatRequest(QUESTION.messages, timeout_s=1.0))
    assert isinstance(failure, LLMTimeout) and failure.context["phase"] == "total"
    usage = classify(failure).usage
    assert len(pieces) >= 5 and usage is not None and usage.output_tokens == len(pieces)


@pytest.mark.parametrize("streamed", [True, False])
async def test_no_call_outlives_the_deadline_of_its_work(chat: Adapter, server: ChatServer, streamed: bool) -> None:
    server.script.append(repeats(event(chunk("x")), every_s=0.02) if streamed else stays_silent())
    with within(0.25):
        failure = (await heard(chat))[1] if streamed else await failure_of(chat)
    assert isinstance(failure, LLMTimeout) and failure.context["phase"] == "deadline"
    assert classify(failure, usual_s=0.1).next == "stop"


async def failure_of(chat: Adapter) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await chat.chat(QUESTION)
    return caught.value


async def test_a_call_whose_deadline_has_passed_is_not_sent(chat: Adapter, server: ChatServer) -> None:
    with within(0.0), pytest.raises(LLMTimeout):
        await chat.chat(QUESTION)
    assert server.requests == []


async def test_a_trickle_above_the_idle_limit_falls_under_the_floor(server: ChatServer) -> None:
    knobs = LLMKnobs(base_url=server.base_url, min_tokens_per_s=40, throughput_window_s=0.3)
    chat = open_adapter(knobs)
    server.script.append(repeats(event(chunk("x")), every_s=0.1))
    _, failure = await heard(chat)
    assert isinstance(failure, LLMTimeout) and failure.context["phase"] == "throughput"
    await chat.aclose()


async def test_an_answer_that_ends_too_slowly_but_whole_is_an_answer(server: ChatServer) -> None:
    server.script.append(streams([event(chunk("x")), event(chunk("!", finish_reason="stop")), DONE], every_s=0.3))
    chat = open_adapter(LLMKnobs(base_url=server.base_url, min_tokens_per_s=50, throughput_window_s=0.2))
    text, reply = await heard(chat)
    assert isinstance(reply, ChatReply), reply
    assert (text, reply.finish_reason) == ("x!", "stop")
    await chat.aclose()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_call_that_finds_no_free_connection_of_its_own_process_says_nothing_about_the_endpoint(
    server: ChatServer, streamed: bool
) -> None:
    server.script.append(repeats(event(chunk("x")), every_s=0.05))
    full = LLMKnobs(base_url=server.base_url, max_connections=1, stream_answers=streamed, total_timeout_s=0.5)
    chat = open_adapter(full)
    holding = asyncio.create_task(chat.chat(ChatRequest(QUESTION.messages, timeout_s=30.0)))
    while not server.requests:
        await asyncio.sleep(0.01)
    with pytest.raises(LLMTimeout) as caught:
        await chat.chat(QUESTION)
    outcome = classify(caught.value)
    assert (outcome.kind, outcome.learn, outcome.next) == ("local", "neutral", "next_endpoint")
    assert caught.value.context["phase"] == "pool" and outcome.usage == Usage(0, 0)
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    server.script.append(stays_silent())
    with pytest.raises(LLMTimeout) as sent:
        await chat.chat(QUESTION)
    outcome = classify(sent.value, usual_s=0.1)
    assert (outcome.kind, outcome.learn) == ("timeout", "failure"), "this one was sent"
    assert outcome.usage is not None and outcome.usage.input_tokens > 0
    assert len(server.requests) == 2
    await chat.aclose()


async def test_a_reader_who_takes_his_time_is_not_the_endpoints_fault(server: ChatServer) -> None:
    chat = open_adapter(LLMKnobs(base_url=server.base_url, idle_timeout_s=0.5))
    server.script.append(streams(told("a", "b", "c"), every_s=0.02))
    async with aclosing(chat.stream(QUESTION)) as items:
        assert await anext(items) == "a"
        await asyncio.sleep(1.5)  # three times the idle limit
        rest = [item async for item in items]
    assert rest[:-1] == ["b", "c"]
    await chat.aclose()


WHOLE: dict[str, tuple[Fault, bool]] = {
    "done is missing": (streams(FINISHED), True),
    "done is missing and the line is cut": (streams(FINISHED, end="reset"), True),
    "the count comes late": (streams([*FINISHED, event(usage_chunk(5, 2)), DONE], every_s=0.01), False),
    "nothing ends the stream": (streams([*FINISHED, event(usage_chunk(5, 2)), DONE], end="stall"), False),
    "a queue comments first": (streams([COMMENT, COMMENT, *FINISHED, event(usage_chunk(5, 2)), DONE]), False),
    "the last event has no end": (streams([*FINISHED, event(usage_chunk(5, 2)).rstrip()]), False),
    "the whole answer comes at once": (says(completion("Half an answer")), False),
    "the type is missing": (streams([*FINISHED, event(usage_chunk(5, 2)), DONE], content_type=""), False),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_that_is_whole_is_kept_whatever_happens_after_it(
    chat: Adapter, server: ChatServer, name: str
) -> None:
    fault, is_estimated = WHOLE[name]
    server.script.append(fault)
    pieces, reply = await heard(chat)
    assert isinstance(reply, ChatReply)
    assert (pieces, reply.text, reply.finish_reason, reply.endpoint) == (
        "Half an answer",
        "Half an answer",
        "stop",
        "primary",
    )
    assert reply.usage.estimated is is_estimated
    assert reply.usage.output_tokens > 0


async def test_one_connection_carries_one_stream_after_the_other(chat: Adapter, server: ChatServer) -> None:
    for _ in range(5):
        server.script.append(streams(told("a")))
        await heard(chat)
    assert len(server.requests) == 5
    assert server.connections == 1


async def test_streams_that_are_left_early_give_their_connections_back(server: ChatServer) -> None:
    chat = open_adapter(LLMKnobs(base_url=server.base_url, max_connections=1))
    for number in range(1, 5):
        server.script.append(streams(told("a", "b"), end="stall"))
        async with aclosing(chat.stream(QUESTION)) as items:
            assert await anext(items) == "a"
        assert await asyncio.wait_for(server.hang_ups.get(), 60) == number
    assert (await chat.chat(ChatRequest(QUESTION.messages, timeout_s=5))).text == "hello"
    await chat.aclose()


async def test_a_reset_before_the_first_byte_is_unreachable(chat: Adapter, server: ChatServer) -> None:
    server.script.append(resets())
    _, failure = await heard(chat)
    assert isinstance(failure, LLMUnavailable)
    assert (classify(failure).kind, classify(failure).usage) == ("unreachable", None)


async def test_limits_that_headers_name_are_handed_on(server: ChatServer) -> None:
    seen: list[LimitsSeen] = []
    chat = open_adapter(LLMKnobs(base_url=server.base_url), on_limits=seen.append)
    server.script.append(says(completion(), x_ratelimit_remaining_requests="9", x_ratelimit_reset_requests="2s"))
    server.script.append(says({}, status=429, x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="500ms"))
    await chat.chat(QUESTION)
    with pytest.raises(LLMRateLimited):
        await chat.chat(QUESTION)
    assert [(one.requests_left, one.requests_reset_s) for one in seen] == [(9.0, 2.0), (None, None)]
    assert (seen[1].input_tokens_left, seen[1].input_tokens_reset_s) == (0.0, 0.5)
    await chat.aclose()


async def test_azure_gets_its_own_header_and_the_version_in_every_address(server: ChatServer) -> None:
    knobs = LLMKnobs(
        base_url=f"{server.base_url}/deployments/d?api-version=2026-01-01",
        api_key=SecretStr("azure-key"),
        key_header="api-key",
        extra_body=json.dumps({"user": "fleet"}),
    )
    chat = open_adapter(knobs)
    await chat.chat(QUESTION)
    assert server.paths == ["/v1/deployments/d/chat/completions?api-version=2026-01-01"]
    assert server.headers[0]["api-key"] == "azure-key"
    assert "authorization" not in server.headers[0]
    assert server.requests[0]["user"] == "fleet"
    await chat.aclose()


async def test_anthropics_pings_do_not_keep_a_dead_stream_alive(server: ChatServer) -> None:
    chat = open_adapter(LLMKnobs(base_url=server.base_url, first_token_timeout_s=1.0), dialect="anthropic")
    server.script.append(repeats(event({"type": "ping"}, name="ping"), every_s=0.02))
    _, failure = await heard(chat)
    assert isinstance(failure, LLMTimeout) and failure.context["phase"] == "first_token"
    await chat.aclose()


@pytest.mark.parametrize("events_kept", range(1, 13))
async def test_anthropics_stream_is_whole_only_once_it_says_why_it_stopped(
    server: ChatServer, events_kept: int
) -> None:
    chat = open_adapter(LLMKnobs(base_url=server.base_url), dialect="anthropic")
    server.script.append(streams(messages_told("Hi")[:events_kept]))
    _, ended = await heard(chat)
    assert isinstance(ended, ChatReply if events_kept >= 9 else LLMUnavailable)
    await chat.aclose()


async def test_anthropics_refusals_and_errors_are_named_like_everybody_elses(server: ChatServer) -> None:
    chat = open_adapter(LLMKnobs(base_url=server.base_url), dialect="anthropic")
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    empty = {"type": "message", "model": "c", "content": [], "stop_reason": "refusal", "usage": {}}
    server.script += [
        streams([*messages_told("Hi")[:5], event(overloaded, name="error")]),
        says(overloaded, status=529, retry_after="3"),
        says(empty),
        says(
            {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}}, status=400
        ),
    ]
    failures = [(await heard(chat))[1], *[await failure_of(chat) for _ in range(3)]]
    assert [classify(one).kind for one in failures] == ["overloaded", "overloaded", "filtered", "context_too_long"]
    await chat.aclose()
