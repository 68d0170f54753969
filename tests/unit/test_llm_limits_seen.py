"""What providers say about the limits that are left."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm.limits_seen import limits_seen
from shared.resilience.exchange import LimitsSeen

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NAMES = ("remaining-requests", "remaining-tokens", "reset-requests", "reset-tokens")


def openai(
    requests: str = "59", tokens: str = "149984", reset: str = "1s", tokens_reset: str = "6m0s"
) -> dict[str, str]:
    said = (requests, tokens, reset, tokens_reset)
    return {f"x-ratelimit-{name}": value for name, value in zip(NAMES, said, strict=True)}


def test_no_headers_say_nothing() -> None:
    assert limits_seen({"content-type": "x"}, now=NOW) is None


def test_openai_says_what_is_left_and_when_it_is_full_again() -> None:
    assert limits_seen(openai(), now=NOW) == LimitsSeen(
        requests_left=59, requests_reset_s=1.0, input_tokens_left=149984, input_tokens_reset_s=360.0
    )


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("20", 20.0),
        ("0s", 0.0),
        ("soon", None),
        ("", None),
        ("-3s", None),
        ("3s soon", None),
    ],
)
def test_durations_come_in_gos_form_or_as_seconds(said: str, seconds: float | None) -> None:
    seen = limits_seen(openai(reset=said), now=NOW)
    assert seen is not None
    assert seen.requests_reset_s == (pytest.approx(seconds) if seconds is not None else None)


def test_minus_one_means_that_nobody_knows() -> None:
    seen = limits_seen(openai(requests="-1"), now=NOW)
    assert seen is not None and seen.requests_left is None


def test_anthropic_counts_both_directions_and_names_moments() -> None:
    name = "anthropic-ratelimit"
    headers = {
        f"{name}-requests-remaining": "3",
        f"{name}-requests-reset": "2026-11-23T12:00:30Z",
        f"{name}-input-tokens-remaining": "1000",
        f"{name}-input-tokens-reset": "2026-11-23T11:00:00Z",
        f"{name}-output-tokens-remaining": "77",
        f"{name}-output-tokens-reset": "not a moment",
    }
    assert limits_seen(headers, now=NOW) == LimitsSeen(
        requests_left=3,
        requests_reset_s=30.0,
        input_tokens_left=1000,
        input_tokens_reset_s=0.0,
        output_tokens_left=77,
        output_tokens_reset_s=None,
    )


@given(st.dictionaries(st.sampled_from([f"x-ratelimit-{name}" for name in NAMES]), st.text(max_size=12)))
def test_nonsense_is_no_number(headers: dict[str, str]) -> None:
    seen = limits_seen(headers, now=NOW)
    if seen is not None:
        assert all(value is None or value >= 0 for value in (*seen.left(), *seen.resets_s()))
