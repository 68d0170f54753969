"""Which error a status is, and how long an endpoint asks to wait."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable
from shared.llm.failures import error_words, failure_for_status, failure_in_body, retry_after_s

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def failure(status: int, detail: Any = None, **headers: str) -> FleetError:
    return failure_for_status(status, headers=headers, detail=detail, endpoint="e:1", now=NOW)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, LLMRefused),
        (401, LLMRefused),
        (402, LLMRefused),
        (404, LLMRefused),
        (408, LLMTimeout),
        (413, LLMRefused),
        (429, LLMRateLimited),
        (500, LLMUnavailable),
        (503, LLMUnavailable),
        (529, LLMUnavailable),
    ],
)
def test_status_names_the_failure(status: int, kind: type[FleetError]) -> None:
    named = failure(status, {"error": {"message": "words", "code": "why"}})
    assert type(named) is kind
    assert named.context == {"endpoint": "e:1", "status": status, "provider_code": "why"}
    assert "words" in named.message


@given(st.integers(100, 599), st.none() | st.text() | st.dictionaries(st.text(), st.text() | st.none()))
def test_no_status_and_no_body_is_without_a_name(status: int, detail: Any) -> None:
    assert isinstance(failure(status, detail), FleetError)


def test_an_empty_account_is_no_rate_limit() -> None:
    assert type(failure(429, {"code": "insufficient_quota"})) is LLMRefused


def test_tokens_a_minute_at_alibaba_go_by_the_name_of_an_empty_account() -> None:
    detail = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    hosts = ("dashscope.aliyuncs.com", "api.openai.com")
    failures = [failure_for_status(429, headers={}, detail=detail, endpoint="e", now=NOW, host=host) for host in hosts]
    assert [type(one) for one in failures] == [LLMRateLimited, LLMRefused]


def test_whether_to_retry_is_the_endpoints_word() -> None:
    assert failure(503, None, **{"x-should-retry": "false"}).context["should_retry"] is False
    assert failure(409, None, **{"x-should-retry": "true"}).context["should_retry"] is True
    assert "should_retry" not in failure(503).context


def test_overload_may_say_when_to_come_back() -> None:
    named = failure(503, None, **{"retry-after": "4"})
    assert isinstance(named, LLMUnavailable)
    assert named.retry_after_s == 4.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 -0000"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_and_nonsense_is_ignored(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert retry_after_s(headers, now=NOW) == wait_s


@given(st.text(max_size=20))
def test_any_retry_after_is_a_wait_or_nothing(said: str) -> None:
    wait_s = retry_after_s({"retry-after": said}, now=NOW)
    assert wait_s is None or 0 <= wait_s < float("inf")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"code": 429, "message": "slow"}}, LLMRateLimited),
        ({"error": {"code": "400", "message": "bad"}}, LLMRefused),
        ({"error": "out of memory"}, LLMUnavailable),
        ({"object": "error", "message": "no"}, LLMUnavailable),
        ({"error": {"code": 200, "message": "odd"}}, LLMUnavailable),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, LLMUnavailable),
        ({"error": {"code": None, "type": "rate_limit_error"}}, LLMRateLimited),
        ({"error": {"code": "odd", "type": "invalid_request_error"}}, LLMRefused),
        ({"object": "error", "code": 400, "type": "BadRequestError"}, LLMRefused),
    ],
)
def test_error_inside_a_200_is_the_error_it_names(body: dict[str, Any], kind: type[FleetError]) -> None:
    assert type(failure_in_body(body, headers={}, endpoint="e:1", now=NOW)) is kind


@pytest.mark.parametrize("body", [{"choices": []}, {"error": None}, [], "x", None])
def test_body_without_an_error_is_left_to_the_reader(body: Any) -> None:
    assert failure_in_body(body, headers={}, endpoint="e:1", now=NOW) is None


def test_long_words_of_an_endpoint_are_cut() -> None:
    assert len(error_words({"error": {"message": "x" * 5000}})[1]) == 300
