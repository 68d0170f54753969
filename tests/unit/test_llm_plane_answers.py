"""Which answers may be kept, and what makes two questions the same."""

from dataclasses import replace

import pytest

from shared.llm.answer_key import Asker, answer_key, is_worth_keeping, may_keep, tenant_mark
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall, ToolSpec, Usage

ASKER = Asker(tenant="acme", agent="chat")
QUESTION = ChatRequest((Message("system", "Be brief."), Message("user", "Summarise invoice 4711")), temperature=0.0)
REPLY = ChatReply("Paris.", (), "big", "first", Usage(3, 5), "stop", 0.1)
CALL = ToolCall("c", "book", "{}")


def key(request: ChatRequest = QUESTION, *, asker: Asker = ASKER, family: str = "f", secret: bytes = b"s") -> str:
    return answer_key(secret, request, asker=asker, family=family)


def test_the_same_question_has_the_same_key_and_unicode_spelling_does_not_matter() -> None:
    assert key() == key(replace(QUESTION)) and len(key()) == 64
    composed, decomposed = (
        replace(QUESTION, messages=(Message("user", text),)) for text in ("caf\u00e9", "cafe\u0301")
    )
    assert key(composed) == key(decomposed)


def test_the_time_that_a_caller_waits_is_no_part_of_the_question() -> None:
    assert key(replace(QUESTION, timeout_s=3.0)) == key()


@pytest.mark.parametrize(
    "other",
    [
        replace(QUESTION, messages=(Message("system", "Be brief."), Message("user", "Summarise invoice 4712"))),
        replace(QUESTION, messages=(Message("user", "Be brief."), Message("user", "Summarise invoice 4711"))),
        replace(QUESTION, messages=(Message("user", "Summarise invoice 4711"),)),
        replace(QUESTION, messages=(Message("system", "Be brief."), Message("user", "summarise invoice 4711"))),
        replace(QUESTION, temperature=0.1),
        replace(QUESTION, max_tokens=10),
        replace(QUESTION, tools=(ToolSpec("book", "Book."),)),
    ],
)
def test_another_question_has_another_key(other: ChatRequest) -> None:
    assert key(other) != key()


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKER, tenant="acme2"),
        replace(ASKER, agent="scribe"),
        replace(ASKER, prompt_version="2"),
        replace(ASKER, scope="admins"),
        replace(ASKER, user="eve"),
        replace(ASKER, corpus="2026-11"),
        replace(ASKER, locale="de"),
    ],
)
def test_the_same_words_from_somebody_else_have_another_key(other: Asker) -> None:
    assert key(asker=other) != key()


def test_another_model_family_and_another_secret_make_another_key() -> None:
    assert len({key(), key(family="g"), key(secret=b"t")}) == 3


def test_words_cannot_be_moved_from_one_field_to_the_next() -> None:
    """Tenant, scope and user are fields of their own: no concatenation makes two askers one."""
    first = key(asker=replace(ASKER, tenant="a", scope="bc"))
    assert first != key(asker=replace(ASKER, tenant="ab", scope="c"))
    assert tenant_mark("a") != tenant_mark("b") and len(tenant_mark("{}:*" * 99)) == 32


@pytest.mark.parametrize(
    "messages",
    [
        (
            Message("user", "Book."),
            Message("assistant", "", tool_calls=(CALL,)),
            Message("tool", "ok", tool_call_id="c"),
        ),
        (Message("user", "Book."), Message("assistant", "", tool_calls=(CALL,))),
        (Message("tool", "ok"), Message("user", "And now?")),
    ],
)
def test_a_conversation_in_which_a_tool_took_part_is_neither_kept_nor_looked_up(messages: tuple[Message, ...]) -> None:
    assert not may_keep(ChatRequest(messages, temperature=0.0), mode="fresh")


def test_what_is_kept_follows_the_agents_policy_and_the_temperature() -> None:
    lively, calm, silent = (ChatRequest(QUESTION.messages, temperature=one) for one in (0.9, 0.3, None))
    assert [may_keep(one, mode="auto") for one in (lively, calm, silent)] == [False, True, False]
    assert all(may_keep(one, mode="degraded") for one in (lively, calm, silent))
    assert not may_keep(calm, mode="never")


@pytest.mark.parametrize(
    "reply",
    [
        replace(REPLY, level="L1"),
        replace(REPLY, level="L2", cached_at="2026-01-01T00:00:00+00:00"),
        replace(REPLY, cached_at="2026-01-01T00:00:00+00:00"),
        replace(REPLY, level="L4"),
        replace(REPLY, finish_reason="length"),
        replace(REPLY, finish_reason="content_filter"),
        replace(REPLY, tool_calls=(CALL,)),
        replace(REPLY, could_not_act=True),
        replace(REPLY, text=""),
        replace(REPLY, text="x" * 64_001),
    ],
)
def test_an_answer_that_is_degraded_cut_or_an_action_is_never_kept(reply: ChatReply) -> None:
    assert is_worth_keeping(REPLY) and not is_worth_keeping(reply)
