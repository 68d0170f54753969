"""Which error of the tree an endpoint's refusal is: pure, from a status, headers and the endpoint's own words."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from shared.errors import FleetError, LLMRateLimited, LLMRefused, LLMTimeout, LLMUnavailable

MESSAGE_CHARACTERS = 300

# A 429 that no waiting cures: the account is out of money, not out of breath.
SPENT_CODES = frozenset({"insufficient_quota", "credit_balance_exhausted", "enforced_spend_limit_reached"})


def failure_for_status(
    status: int, *, headers: Mapping[str, str], detail: Any, endpoint: str, now: datetime
) -> FleetError:
    """Name the failure behind an HTTP status.

    Args:
        status: The HTTP status, or the code inside an error body that came with a 200.
        headers: Response headers, lower case names.
        detail: The decoded body, whatever it is; only its error code and message are used.
        endpoint: Host and port, for the message.
        now: The wall clock, for a Retry-After given as a date.

    Returns: LLMRateLimited (429), LLMTimeout (408), LLMUnavailable (5xx), LLMRefused (everything else).
    """
    code, words = error_words(detail)
    said = f": {words}" if words else ""
    context: dict[str, Any] = {"endpoint": endpoint, "status": status, **({"provider_code": code} if code else {})}
    if status == 429 and code not in SPENT_CODES:
        wait_s = retry_after_s(headers, now=now)
        return LLMRateLimited(f"{endpoint} asked to slow down{said}", retry_after_s=wait_s, **context)
    if status == 408:
        return LLMTimeout(f"{endpoint} gave up waiting{said}", **context)
    if status >= 500:
        wait_s = retry_after_s(headers, now=now)
        return LLMUnavailable(f"{endpoint} answered {status}{said}", retry_after_s=wait_s, **context)
    return LLMRefused(f"{endpoint} refused the request with {status}{said}", **context)


def failure_in_body(detail: Any, *, headers: Mapping[str, str], endpoint: str, now: datetime) -> FleetError | None:
    """The error a 200 carries instead of an answer, or None when the body is no error.

    Source: OpenRouter documents `{"error": {"code", "message"}}` inside 200; vLLM sends `{"object": "error", …}`.
    """
    if not isinstance(detail, dict) or not (detail.get("error") or detail.get("object") == "error"):
        return None
    code, _ = error_words(detail)
    status = int(code) if code is not None and code.isdigit() and 400 <= int(code) <= 599 else 502
    return failure_for_status(status, headers=headers, detail=detail, endpoint=endpoint, now=now)


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


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
