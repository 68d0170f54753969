"""What each end of a call means: one row of the table, one test."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import (
    BreakerOpen,
    BudgetSpent,
    DeadlineSpent,
    FleetError,
    LLMRefused,
    LLMTimeout,
    LLMUnavailable,
    RetryLater,
    Throttled,
)
from shared.llm.answer import broken_answer
from shared.llm.classify import classify
from shared.llm.failures import failure_for_status, failure_in_body
from shared.llm.messages import ChatReply, Usage

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
REPLY = ChatReply("hi", (), "m", "e", Usage(3, 4), "stop", 0.1)


def status(number: int, code: str | None = None, words: str = "", host: str = "", **headers: str) -> FleetError:
    detail = {"error": {"code": code, "message": words}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return failure_for_status(number, headers=named, detail=detail, endpoint="e", now=NOW, host=host)


def in_stream(code: Any = None, kind: str | None = None, words: str = "") -> FleetError:
    body = {"error": {"code": code, "type": kind, "message": words}}
    failure = failure_in_body(body, headers={}, endpoint="e", now=NOW)
    assert failure is not None
    return failure


def late(phase: str, limit_s: float = 20.0) -> LLMTimeout:
    return LLMTimeout("late", endpoint="e", phase=phase, limit_s=limit_s)


def refused(**context: Any) -> LLMRefused:
    return LLMRefused("no", **context)


# name: (what happened, kind, what the breaker learns, where to go)
ROWS: dict[str, tuple[BaseException | ChatReply, str, str, str]] = {
    "an answer": (REPLY, "ok", "ok", "done"),
    "408": (status(408), "timeout", "failure", "retry"),
    "500": (status(500), "server_error", "failure", "retry"),
    "502": (status(502), "server_error", "failure", "retry"),
    "503": (status(503), "overloaded", "failure", "retry"),
    "504": (status(504), "server_error", "failure", "retry"),
    "529": (status(529), "overloaded", "failure", "retry"),
    "no connection": (LLMUnavailable("gone", cause="ConnectError"), "unreachable", "failure", "retry"),
    "hung up": (LLMUnavailable("gone", cause="RemoteProtocolError"), "unreachable", "failure", "retry"),
    "too slow to connect": (late("connect"), "timeout", "failure", "retry"),
    "silent": (late("read"), "timeout", "failure", "retry"),
    "no first token": (late("first_token"), "timeout", "failure", "retry"),
    "idle between tokens": (late("idle"), "timeout", "failure", "retry"),
    "too few tokens a second": (late("throughput"), "timeout", "failure", "retry"),
    "no end": (late("total"), "timeout", "failure", "retry"),
    "the deadline ended a fair chance": (late("deadline"), "timeout", "failure", "stop"),
    "html in a 200": (broken_answer("x", endpoint="e", why="not_json"), "invalid_answer", "failure", "retry"),
    "no choices": (broken_answer("x", endpoint="e", why="no_choices"), "invalid_answer", "failure", "retry"),
    "a stream cut short": (broken_answer("x", endpoint="e", why="cut"), "invalid_answer", "failure", "retry"),
    "an error in a 200": (in_stream(words="odd"), "invalid_answer", "failure", "retry"),
    "overloaded in a stream": (in_stream(kind="overloaded_error"), "overloaded", "failure", "retry"),
    "429 in a stream": (in_stream(code=429), "rate_limited", "neutral", "retry"),
    "rate limit in a stream": (in_stream(kind="rate_limit_error"), "rate_limited", "neutral", "retry"),
    "context overflow in a stream": (
        in_stream(code="context_length_exceeded"), "context_too_long", "neutral", "next_endpoint",
    ),
    "429": (status(429, "rate_limit_exceeded"), "rate_limited", "neutral", "retry"),
    "429 no money": (status(429, "insufficient_quota"), "quota_spent", "neutral", "disable"),
    "429 no credit": (status(429, "credit_balance_exhausted"), "quota_spent", "neutral", "disable"),
    "429 spend limit": (status(429, "enforced_spend_limit_reached"), "quota_spent", "neutral", "disable"),
    "429 tokens a minute at Alibaba": (
        status(429, "insufficient_quota", host="dashscope-intl.aliyuncs.com"), "rate_limited", "neutral", "retry",
    ),
    "403 free quota at Alibaba": (
        status(403, "AllocationQuota.FreeTierOnly", host="dashscope.aliyuncs.com"), "quota_spent", "neutral", "disable",
    ),
    "402": (status(402), "quota_spent", "neutral", "disable"),
    "400 no credit at Anthropic": (
        status(400, "invalid_request_error", "Your credit balance is too low"), "quota_spent", "neutral", "disable",
    ),
    "401": (status(401), "unauthorized", "neutral", "disable"),
    "403": (status(403), "unauthorized", "neutral", "disable"),
    "403 flagged": (status(403, words="Your input was flagged"), "filtered", "neutral", "stop"),
    "400 context": (status(400, "context_length_exceeded"), "context_too_long", "neutral", "next_endpoint"),
    "400 context in words": (
        status(400, words="the maximum context length is 4096"), "context_too_long", "neutral", "next_endpoint",
    ),
    "413": (status(413), "context_too_long", "neutral", "next_endpoint"),
    "400 content filter": (status(400, "content_filter"), "filtered", "neutral", "stop"),
    "400 content filter at Alibaba": (status(400, "data_inspection_failed"), "filtered", "neutral", "stop"),
    "an answer filtered away": (refused(subject="content"), "filtered", "neutral", "stop"),
    "400": (status(400), "bad_request", "neutral", "stop"),
    "404": (status(404), "bad_request", "neutral", "stop"),
    "422": (status(422), "bad_request", "neutral", "stop"),
    "tokens spent in silence": (refused(), "bad_request", "neutral", "stop"),
    "a redirect": (status(307), "invalid_answer", "failure", "next_endpoint"),
    "no free connection of ours": (late("pool"), "local", "neutral", "next_endpoint"),
    "our limiter": (Throttled("wait", retry_after_s=2.0), "local", "neutral", "next_endpoint"),
    "our breaker": (BreakerOpen("open", retry_after_s=9.0), "local", "neutral", "next_endpoint"),
    "too long a wait": (RetryLater("later", retry_after_s=60.0), "local", "neutral", "stop"),
    "no budget": (BudgetSpent("spent"), "unknown", "neutral", "stop"),
    "no time": (DeadlineSpent("late"), "unknown", "neutral", "stop"),
    "cancelled": (asyncio.CancelledError(), "cancelled", "neutral", "stop"),
    "killed": (KeyboardInterrupt(), "cancelled", "neutral", "stop"),
    "a soft time limit": (type("SoftTimeLimitExceeded", (Exception,), {})(), "unknown", "neutral", "stop"),
    "a limit that was no chance": (late("total", 0.2), "clamped", "neutral", "stop"),
    "a deadline that was no chance": (late("deadline", 0.2), "clamped", "neutral", "stop"),
    "503, do not retry": (status(503, x_should_retry="false"), "overloaded", "failure", "next_endpoint"),
    "429, do not retry": (status(429, x_should_retry="false"), "rate_limited", "neutral", "next_endpoint"),
    "409, do retry": (status(409, x_should_retry="true"), "server_error", "failure", "retry"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_end_of_a_call_has_its_row(name: str) -> None:
    what, kind, learn, following = ROWS[name]
    outcome = classify(what)
    assert (outcome.kind, outcome.learn, outcome.next) == (kind, learn, following)
    assert outcome.retry_here == (following == "retry")
    assert outcome.reason


def test_a_broken_answer_is_worth_one_more_try_and_a_server_error_as_many_as_the_policy_says() -> None:
    assert classify(ROWS["html in a 200"][0]).retries_at_most == 1
    assert classify(ROWS["500"][0]).retries_at_most is None


def test_only_endpoints_that_ask_for_it_are_slowed_down() -> None:
    assert {name for name, row in ROWS.items() if classify(row[0]).slows} == {
        name for name, row in ROWS.items() if row[1] in ("overloaded", "rate_limited")
    }


@pytest.mark.parametrize("number", [429, 503])
def test_the_wait_that_an_endpoint_names_is_the_floor(number: int) -> None:
    assert classify(status(number, retry_after="12")).retry_after_s == 12.0
    assert classify(status(number, retry_after_ms="250")).retry_after_s == 0.25


def test_a_limit_shorter_than_usual_teaches_nothing() -> None:
    assert classify(late("total", 4.0), usual_s=5.0).learn == "neutral"
    assert classify(late("total", 6.0), usual_s=5.0).learn == "failure"
    assert classify(late("idle", 0.1), usual_s=5.0).learn == "failure", "the endpoint's own limits are fair"


def test_what_a_failure_has_cost_is_booked() -> None:
    cut = broken_answer("cut", endpoint="e", why="cut")
    cut.context["usage"] = Usage(5, 6, estimated=True).to_json()
    assert classify(cut).usage == Usage(5, 6, estimated=True)
    assert classify(REPLY).usage == REPLY.usage
    assert classify(status(500)).usage is None


def kinds_of_failure(kind: type[FleetError] = FleetError) -> list[type[FleetError]]:
    return [kind, *(one for below in kind.__subclasses__() for one in kinds_of_failure(below))]


@given(
    st.sampled_from(kinds_of_failure()),
    st.dictionaries(
        st.sampled_from(["status", "phase", "limit_s", "broken", "subject", "should_retry", "cause", "usage"]),
        st.none() | st.booleans() | st.integers(0, 999) | st.floats(0, 100) | st.text(max_size=8),
    ),
)
def test_any_failure_has_an_outcome_and_only_an_answer_is_done(kind: type[FleetError], facts: dict[str, Any]) -> None:
    outcome = classify(kind("words", **facts))
    assert outcome.next != "done"
    assert outcome.learn != "ok"
    assert not (outcome.next == "disable" and outcome.learn == "failure")
