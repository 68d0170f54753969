"""Two dialects, one meaning: streamed or whole, an answer reads the same."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm.answer import read_completion
from shared.llm.anthropic_dialect import AnthropicDialect
from shared.llm.dialect import Fold
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall, ToolSpec, Usage
from shared.llm.openai_dialect import ChunkFold, OpenAIDialect
from tests.fakes.odd_provider import chunk, tool_chunk, usage_chunk

OPENAI = OpenAIDialect(max_tokens_field="max_tokens", stream_usage=True, extra={})
ANTHROPIC = AnthropicDialect(extra={})
CALL = ToolCall("t1", "weather", '{"city": "Oslo"}')
TURNS = (
    Message("system", "Be brief."),
    Message("system", "Be kind."),
    Message("user", "Weather?"),
    Message("assistant", "", (CALL,)),
    Message("tool", "rain", tool_call_id="t1"),
    Message("user", "And now?"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def read(completion: Any) -> ChatReply:
    return read_completion(completion, request=ChatRequest(TURNS), asked_model="asked", endpoint="e", seconds=0.1)


def folded(fold: Fold, events: list[dict[str, Any]]) -> ChatReply:
    for event in events:
        fold.add(event)
    assert fold.is_whole
    return read(fold.completion())


def test_a_stream_of_chunks_is_the_answer_it_spells() -> None:
    reply = folded(ChunkFold(), [chunk(""), chunk("Hel"), chunk("lo"), chunk(finish_reason="stop"), usage_chunk(5, 2)])
    assert (reply.text, reply.finish_reason, reply.usage, reply.model) == ("Hello", "stop", Usage(5, 2), "served-model")


def test_what_is_no_token_is_no_progress() -> None:
    silent: list[dict[str, Any]] = [chunk(""), chunk(), usage_chunk(1, 1), {"choices": []}, {"choices": None}, {}]
    for idle in silent:
        assert ChunkFold().add(idle).tokens == 0
    for busy in ({"content": "x"}, {"reasoning_content": "hm"}, {"refusal": "no"}):
        assert ChunkFold().add(chunk(choices=[{"index": 0, "delta": busy}])).tokens == 1


def test_thinking_is_progress_but_not_the_answer() -> None:
    fold = ChunkFold()
    assert fold.add(chunk(choices=[{"delta": {"reasoning_content": "hm"}}])).text == ""
    assert folded(fold, [chunk("yes", finish_reason="stop")]).text == "yes"


def test_other_choices_than_the_first_do_not_mix_in() -> None:
    other = {"index": 1, "delta": {"content": "X"}, "finish_reason": None}
    assert folded(ChunkFold(), [chunk(choices=[other]), chunk("a", finish_reason="stop")]).text == "a"


TOOL_STREAMS: dict[str, list[dict[str, Any]]] = {
    "by index": [
        tool_chunk(0, id="t1", name="weather", arguments=""),
        tool_chunk(1, id="t2", name="time", arguments="{}"),
        tool_chunk(0, arguments='{"city": '),
        tool_chunk(0, arguments='"Oslo"}'),
    ],
    "without indexes, whole": [
        tool_chunk(None, id="t1", name="weather", arguments='{"city": "Oslo"}'),
        tool_chunk(None, id="t2", name="time", arguments="{}"),
    ],
    "without indexes, in pieces": [
        tool_chunk(None, id="t1", name="weather", arguments='{"city": '),
        tool_chunk(None, arguments='"Oslo"}'),
        tool_chunk(None, id="t2", name="time", arguments="{}"),
    ],
    "as objects": [
        tool_chunk(0, id="t1", name="weather", arguments={"city": "Oslo"}),
        tool_chunk(1, id="t2", name="time", arguments={}),
    ],
}


@pytest.mark.parametrize("name", TOOL_STREAMS)
def test_tool_calls_come_together_whichever_way_they_are_sent(name: str) -> None:
    reply = folded(ChunkFold(), [*TOOL_STREAMS[name], chunk(finish_reason="tool_calls")])
    assert reply.tool_calls == (CALL, ToolCall("t2", "time", "{}"))


def test_a_stream_asks_for_its_usage_unless_the_server_minds() -> None:
    modest = OpenAIDialect(max_tokens_field="max_tokens", stream_usage=False, extra={"top_k": 3})
    request = ChatRequest(TURNS)
    asked = OPENAI.body(request, model="m", max_tokens=5, stream=True)
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in modest.body(request, model="m", max_tokens=5, stream=True)
    assert modest.body(request, model="m", max_tokens=5, stream=False)["top_k"] == 3


def test_anthropic_hears_system_apart_and_turns_of_one_side_merged() -> None:
    tool = ToolSpec("weather", "Says it.", {"type": "object"})
    body = ANTHROPIC.body(ChatRequest(TURNS, tools=(tool,), temperature=0.5), model="m", max_tokens=9, stream=True)
    assert body["system"] == "Be brief.\n\nBe kind."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    ]
    assert [block["type"] for block in body["messages"][2]["content"]] == ["tool_result", "text"]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0.5, True)
    assert body["tools"] == [{"name": "weather", "description": "Says it.", "input_schema": {"type": "object"}}]


def test_arguments_that_are_no_object_are_told_back_as_they_were() -> None:
    turns = (Message("user", "?"), Message("assistant", "", (ToolCall("1", "f", "oops"),)))
    body = ANTHROPIC.body(ChatRequest(turns), model="m", max_tokens=9, stream=False)
    assert body["messages"][1]["content"][0]["input"] == {"arguments": "oops"}


def message(*blocks: dict[str, Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 40, "cache_creation_input_tokens": None, "output_tokens": 2}
    return {"type": "message", "model": "claude", "content": list(blocks), "stop_reason": stop_reason, "usage": usage}


def test_a_message_reads_as_a_completion_and_cached_input_is_input() -> None:
    thinking = {"type": "thinking", "thinking": "hm"}
    reply = read(ANTHROPIC.completion(message(thinking, {"type": "text", "text": "Hi"})))
    assert (reply.text, reply.finish_reason, reply.usage, reply.model) == ("Hi", "stop", Usage(43, 2), "claude")


def test_a_tool_use_reads_as_a_tool_call() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    reply = read(ANTHROPIC.completion(message(block, stop_reason="tool_use")))
    assert (reply.tool_calls, reply.finish_reason) == ((CALL,), "tool_calls")


def test_a_streamed_tool_use_reads_the_same() -> None:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "weather"},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city": '}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Oslo"}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    ]
    reply = folded(ANTHROPIC.fold(), events)
    assert (reply.tool_calls, reply.finish_reason, reply.usage) == ((CALL,), "tool_calls", Usage(3, 9))


def test_a_message_that_only_counts_on_has_not_ended() -> None:
    fold = ANTHROPIC.fold()
    fold.add({"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 3}})
    assert not fold.is_whole


@pytest.mark.parametrize(("said", "means"), [("max_tokens", "length"), ("stop_sequence", "stop"), ("novel", "novel")])
def test_why_it_stopped_is_said_in_the_words_of_everybody_else(said: str, means: str) -> None:
    assert read(ANTHROPIC.completion(message({"type": "text", "text": "x"}, stop_reason=said))).finish_reason == means


@given(st.dictionaries(st.sampled_from(["choices", "usage", "model", "type", "delta", "message", "index"]), JSON))
@pytest.mark.parametrize("fold", [OPENAI.fold, ANTHROPIC.fold])
def test_an_event_of_any_shape_is_taken_or_refused_by_a_known_error(
    fold: Callable[[], Fold], data: dict[str, Any]
) -> None:
    one = fold()
    try:
        one.add(data)
        json.dumps(one.completion())
    except (KeyError, TypeError, AttributeError, ValueError):
        return
