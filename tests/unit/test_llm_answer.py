"""Strict reading: a whole answer or an error, never something in between."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LLMRefused, LLMUnavailable
from shared.llm.answer import decode_body, estimate_tokens, read_completion
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall

QUESTION = ChatRequest((Message("user", "12345678"),))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "tool_calls", "usage", "function"]), inner)
    ),
    max_leaves=8,
)


def read(data: dict[str, Any]) -> ChatReply:
    return read_completion(data, request=QUESTION, asked_model="asked", endpoint="e:1", seconds=0.5)


def choice(message: Any, finish_reason: Any = "stop") -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


@given(st.dictionaries(st.sampled_from(["choices", "model", "usage"]), JSON))
def test_any_object_is_either_a_reply_that_says_something_or_a_named_error(data: dict[str, Any]) -> None:
    try:
        reply = read(data)
    except (LLMUnavailable, LLMRefused):
        return
    assert reply.text or reply.tool_calls


@given(st.binary(max_size=40))
def test_any_body_is_either_an_object_or_unavailable(body: bytes) -> None:
    with suppress(LLMUnavailable):
        assert isinstance(decode_body(body, content_type="", endpoint="e:1"), dict)


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking"}, {"type": "text", "text": "b"}]
    assert read(choice({"content": parts})).text == "ab"


def test_a_refusal_of_the_model_is_its_answer() -> None:
    assert read(choice({"content": None, "refusal": "I will not."})).text == "I will not."


def test_tool_arguments_sent_as_an_object_become_their_text() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}]
    assert read(choice({"tool_calls": calls})).tool_calls == (ToolCall("call_0", "f", '{"a": 1}'),)


def test_an_answer_without_a_finish_reason_says_unknown() -> None:
    assert read(choice({"content": "x"}, None)).finish_reason == "unknown"


def test_model_falls_back_to_the_one_that_was_asked() -> None:
    assert read(choice({"content": "x"})).model == "asked"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 2}, "x"])
def test_usage_that_says_nothing_is_estimated_at_four_characters_a_token(usage: Any) -> None:
    counted = read({**choice({"content": "123456789"}), "usage": usage}).usage
    assert (counted.input_tokens, counted.output_tokens, counted.estimated) == (2, 3, True)


def test_estimate_is_zero_only_for_silence() -> None:
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]
