"""What a provider's headers say about the limits that are left: pure, and forgiving about nonsense."""

import re
from collections.abc import Mapping
from datetime import datetime

from shared.resilience.exchange import LimitsSeen

_GO_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def limits_seen(headers: Mapping[str, str], *, now: datetime) -> LimitsSeen | None:
    """Read `x-ratelimit-*` (OpenAI and who follows it) or `anthropic-ratelimit-*`; None when neither is there.

    OpenAI counts input and output tokens as one: what it says is read as input, which is what a request adds first.
    Negative numbers mean unknown (Azure answers -1 for the other API's limit).
    """
    if "anthropic-ratelimit-requests-remaining" in headers or "anthropic-ratelimit-tokens-remaining" in headers:
        return _anthropic(headers, now=now)
    if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers:
        return LimitsSeen(
            requests_left=_count(headers.get("x-ratelimit-remaining-requests")),
            requests_reset_s=_duration_s(headers.get("x-ratelimit-reset-requests")),
            input_tokens_left=_count(headers.get("x-ratelimit-remaining-tokens")),
            input_tokens_reset_s=_duration_s(headers.get("x-ratelimit-reset-tokens")),
        )
    return None


def _anthropic(headers: Mapping[str, str], *, now: datetime) -> LimitsSeen:
    name = "anthropic-ratelimit"
    both_left = _count(headers.get(f"{name}-tokens-remaining"))
    both_reset_s = _until_s(headers.get(f"{name}-tokens-reset"), now=now)
    input_left = _count(headers.get(f"{name}-input-tokens-remaining"))
    input_reset_s = _until_s(headers.get(f"{name}-input-tokens-reset"), now=now)
    return LimitsSeen(
        requests_left=_count(headers.get(f"{name}-requests-remaining")),
        requests_reset_s=_until_s(headers.get(f"{name}-requests-reset"), now=now),
        input_tokens_left=input_left if input_left is not None else both_left,
        input_tokens_reset_s=input_reset_s if input_left is not None else both_reset_s,
        output_tokens_left=_count(headers.get(f"{name}-output-tokens-remaining")),
        output_tokens_reset_s=_until_s(headers.get(f"{name}-output-tokens-reset"), now=now),
    )


def _count(said: str | None) -> float | None:
    return float(said) if said is not None and said.isascii() and said.isdigit() else None


def _duration_s(said: str | None) -> float | None:
    """Seconds in Go's form (`12ms`, `6m0s`), or as a bare number."""
    if not said:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return float(said)
    parts = _GO_DURATION.findall(said)
    if "".join(number + unit for number, unit in parts) != said:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _until_s(said: str | None, *, now: datetime) -> float | None:
    """Seconds until an RFC 3339 moment."""
    try:
        return max(0.0, (datetime.fromisoformat(said) - now).total_seconds()) if said else None
    except (ValueError, TypeError):
        return None
