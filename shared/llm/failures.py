"""Which error of the tree an endpoint's refusal is: pure, from a status, headers and the endpoint's own words."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable

MESSAGE_CHARACTERS = 300

Subject = Literal["account", "context", "content"]
"""What a refusal is about, where the status does not say: the account's money, the prompt's length, what it says."""

# A 429 that no waiting cures: the account is out of money, not out of breath.
SPENT_CODES = frozenset({"insufficient_quota", "credit_balance_exhausted", "enforced_spend_limit_reached"})

# Alibaba answers `insufficient_quota` when tokens per minute are used up: over within a minute, no reason to disable
# an endpoint. Its free tier says so in words. Source: Model Studio, "Error codes" and "Rate limits".
PACED_QUOTA_HOSTS = ("aliyuncs.com",)

ACCOUNT_WORDS = ("credit balance is too low", "spend limit", "free allocated quota", "arrearage", "good standing")
ACCOUNT_CODES = frozenset({"billing_error", "Arrearage", "AllocationQuota.FreeTierOnly", "payment_required"})
CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
CONTEXT_WORDS = (
    "maximum context length",
    "context length",
    "context window",
    "context size",
    "prompt is too long",
    "range of input length",
)
CONTENT_CODES = frozenset(
    {"content_filter", "content_policy_violation", "data_inspection_failed", "DataInspectionFailed"}
)
CONTENT_WORDS = ("flagged", "content management policy", "inappropriate content")

# An error that arrives within a 200 has no status of its own, only a word.
STATUS_OF_WORD = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "RateLimitReached": 429,
    "limit_requests": 429,
    "limit_burst_rate": 429,
    "Throttling": 429,
    "Throttling.RateQuota": 429,
    "Throttling.AllocationQuota": 429,
    **dict.fromkeys(SPENT_CODES, 429),
    "overloaded_error": 529,
    "overloaded": 529,
    "timeout_error": 504,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    **dict.fromkeys(CONTEXT_CODES | CONTENT_CODES, 400),
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "request_too_large": 413,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
}


def failure_for_status(
    status: int, *, headers: Mapping[str, str], detail: Any, endpoint: str, now: datetime, host: str = ""
) -> FleetError:
    """Name the failure behind an HTTP status.

    Args:
        status: The HTTP status, or the code inside an error body that came with a 200.
        headers: Response headers, lower case names.
        detail: The decoded body, whatever it is; only its error code and message are used.
        endpoint: The endpoint's name, for the message.
        now: The wall clock, for a Retry-After given as a date.
        host: Who answered: one word means different things to different providers.

    Returns: LLMRateLimited (429), LLMTimeout (408), LLMUnavailable (5xx), LLMRefused (everything else).
    """
    code, words = error_words(detail)
    said = f": {words}" if words else ""
    context: dict[str, Any] = {"endpoint": endpoint, "status": status, **({"provider_code": code} if code else {})}
    if (should_retry := headers.get("x-should-retry")) in ("true", "false"):
        context["should_retry"] = should_retry == "true"
    if (subject := _subject(status, code=code, words=words, host=host)) is not None:
        context["subject"] = subject
    if status == 429 and subject != "account":
        wait_s = retry_after_s(headers, now=now)
        return LLMRateLimited(f"{endpoint} asked to slow down{said}", retry_after_s=wait_s, **context)
    if status == 408:
        return LLMTimeout(f"{endpoint} gave up waiting{said}", **context)
    if status >= 500:
        wait_s = retry_after_s(headers, now=now)
        return LLMUnavailable(f"{endpoint} answered {status}{said}", retry_after_s=wait_s, **context)
    return LLMRefused(f"{endpoint} refused the request with {status}{said}", **context)


def failure_in_body(
    detail: Any, *, headers: Mapping[str, str], endpoint: str, now: datetime, host: str = ""
) -> FleetError | None:
    """The error a 200 carries instead of an answer, or None when the body is no error.

    Source: OpenRouter documents `{"error": {"code", "message"}}` inside 200; vLLM sends `{"object": "error", …}`,
    Anthropic `{"type": "error", "error": {"type", "message"}}` in the middle of a stream.
    """
    if not isinstance(detail, dict) or not (detail.get("error") or detail.get("object") == "error"):
        return None
    status = _status_in(detail)
    failure = failure_for_status(status, headers=headers, detail=detail, endpoint=endpoint, now=now, host=host)
    if isinstance(failure, LLMUnavailable):
        failure.context["broken"] = "error_in_200"
    return failure


def error_words(detail: Any) -> tuple[str | None, str]:
    """Code and message of an error body; (None, "") for a body that says neither."""
    if isinstance(detail, str):
        return None, detail[:MESSAGE_CHARACTERS]
    if not isinstance(detail, dict):
        return None, ""
    error = detail.get("error", detail)
    if isinstance(error, str):
        return None, error[:MESSAGE_CHARACTERS]
    if not isinstance(error, dict):
        return None, ""
    code = error.get("code") or error.get("type")
    message = error.get("message")
    return (str(code) if code else None), (message[:MESSAGE_CHARACTERS] if isinstance(message, str) else "")


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds until the endpoint wants to hear from us again; None when it did not say or said nonsense.

    Reads `retry-after-ms`, then `retry-after` as seconds or as an HTTP date (RFC 9110, 10.2.3).
    """
    if (wait_s := _number(headers.get("retry-after-ms"))) is not None:
        return wait_s / 1000
    said = headers.get("retry-after")
    if said is None:
        return None
    if (wait_s := _number(said)) is not None:
        return wait_s
    try:
        return max(0.0, (parsedate_to_datetime(said) - now).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a zone cannot be subtracted from an aware one
        return None


def _subject(status: int, *, code: str | None, words: str, host: str) -> Subject | None:
    said = words.lower()
    is_paced = host.endswith(PACED_QUOTA_HOSTS)
    if (
        code in ACCOUNT_CODES
        or (status < 500 and any(word in said for word in ACCOUNT_WORDS))
        or (code in SPENT_CODES and not is_paced)
    ):
        return "account"
    if status == 400 and (code in CONTEXT_CODES or any(word in said for word in CONTEXT_WORDS)):
        return "context"
    if status in (400, 403) and (code in CONTENT_CODES or any(word in said for word in CONTENT_WORDS)):
        return "content"
    return None


def _status_in(detail: Mapping[str, Any]) -> int:
    """The status an error body means: its number, else its best known word, else a bad gateway."""
    error = detail.get("error", detail)
    if not isinstance(error, dict):
        return 502
    for said in (error.get("code"), error.get("status"), error.get("status_code"), error.get("type")):
        word = str(said)
        if word.isascii() and word.isdigit() and 400 <= int(word) <= 599:
            return int(word)
        if word in STATUS_OF_WORD:
            return STATUS_OF_WORD[word]
    return 502


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
