"""What crosses the chat port survives the journal, whatever is in it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm.messages import ROLES, ChatReply, ChatRequest, Message, ToolCall, ToolSpec, Usage, clean_text

TEXT = st.text(max_size=30)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
MESSAGES = st.builds(Message, st.sampled_from(ROLES), TEXT, CALLS, st.none() | TEXT)
TOOLS = st.builds(ToolSpec, TEXT, TEXT, st.dictionaries(TEXT, st.booleans() | st.integers() | TEXT, max_size=3))
REQUESTS = st.builds(
    ChatRequest,
    st.lists(MESSAGES, max_size=3).map(tuple),
    st.none() | TEXT,
    st.none() | st.integers(1, 10**6),
    st.none() | st.floats(0, 2),
    st.lists(TOOLS, max_size=2).map(tuple),
    st.none() | st.floats(0.1, 600),
)
USAGES = st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9), st.booleans())
REPLIES = st.builds(
    ChatReply,
    TEXT,
    CALLS,
    TEXT,
    TEXT,
    USAGES,
    TEXT,
    st.floats(0, 1e6),
    st.sampled_from(["L0", "L1"]),
    st.lists(TEXT, max_size=2).map(tuple),
    st.none() | TEXT,
    st.none() | st.floats(0, 1e6),
    st.booleans(),
    st.none() | st.floats(0, 1e6),
)


@given(REQUESTS)
def test_a_request_survives_json(request: ChatRequest) -> None:
    assert ChatRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


@given(REPLIES)
def test_a_reply_survives_json(reply: ChatReply) -> None:
    assert ChatReply.from_json(json.loads(json.dumps(reply.to_json()))) == reply


def test_a_reply_of_an_older_journal_is_read_with_what_it_lacks_left_empty() -> None:
    later = ("reasons", "cached_at", "age_s", "could_not_act", "cost")
    reply = ChatReply("hi", (), "m", "e", Usage(1, 2), "stop", 0.5)
    assert ChatReply.from_json({name: value for name, value in reply.to_json().items() if name not in later}) == reply


@given(REQUESTS, st.none() | st.floats(0.1, 600))
def test_how_long_a_caller_waits_is_no_part_of_the_question(request: ChatRequest, timeout_s: float | None) -> None:
    patient = replace(request, timeout_s=timeout_s)
    assert patient.question_json() == request.question_json()


@given(st.text(alphabet=st.characters()), st.sampled_from(["", "\x00", "\ud800", "\udfff"]))
def test_clean_text_can_be_stored_and_cleaning_twice_changes_nothing(text: str, poison: str) -> None:
    clean = clean_text(text + poison)
    assert "\x00" not in clean
    assert clean.encode().decode() == clean
    assert clean_text(clean) == clean


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="wizard"):
        Message.from_json({"role": "wizard", "content": ""})


def test_a_plain_message_is_stored_without_empty_keys() -> None:
    assert Message("user", "hi").to_json() == {"role": "user", "content": "hi"}


def test_a_reply_is_the_next_turn_of_the_conversation() -> None:
    call = ToolCall("1", "f", "{}")
    reply = ChatReply("hi", (call,), "m", "e", Usage(1, 1), "stop", 0.1)
    assert reply.as_message() == Message("assistant", "hi", (call,))
