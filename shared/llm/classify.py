"""What one call's end means: for the breaker, for a retry here, and for where to go next. Pure.

Called as `classify(error_or_reply)`; the rows below are the whole truth, and each has its test.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import (
    BreakerOpen,
    FleetError,
    LLMRateLimited,
    LLMRefused,
    LLMTimeout,
    LLMUnavailable,
    RetryLater,
    Throttled,
)
from shared.llm.messages import ChatReply, Usage
from shared.resilience.outcome import Learn

Kind = Literal[
    "ok",
    "server_error",
    "overloaded",
    "unreachable",
    "timeout",
    "clamped",
    "invalid_answer",
    "rate_limited",
    "quota_spent",
    "unauthorized",
    "context_too_long",
    "filtered",
    "bad_request",
    "local",
    "cancelled",
    "unknown",
]
Next = Literal["done", "retry", "next_endpoint", "stop", "disable"]

OVERLOADED = frozenset({503, 529})
KEY_REFUSED = frozenset({401, 403, 407})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    Attributes:
        learn: What the breaker learns about the endpoint.
        next: `retry` here while the policy allows it, then the next endpoint; `next_endpoint` at once (of kind
            `context_too_long`: only to a model that reads more); `disable` the endpoint, alert, and go to the next;
            `stop`: nobody else would do better, or nobody waits; `done`.
        reason: A sentence for logs and results.
        retry_after_s: The floor of any wait. After kind `rate_limited` the key is closed until then, for everyone.
        retries_at_most: A bound below the policy's own; None leaves it to the policy.
        slows: Whether the endpoint asks for fewer calls at a time.
        usage: Tokens to book, also of a call that failed; None when nothing was spent.
    """

    kind: Kind
    learn: Learn
    next: Next
    reason: str
    retry_after_s: float | None = None
    retries_at_most: int | None = None
    slows: bool = False
    usage: Usage | None = None

    @property
    def retry_here(self) -> bool:
        """Whether the same endpoint may be asked again."""
        return self.next == "retry"


def classify(what: BaseException | ChatReply, *, usual_s: float = 1.0) -> Outcome:
    """Judge a reply, or the error that came instead of one.

    Args:
        usual_s: How long an answer of this endpoint usually takes: a timeout under a shorter limit says something
            about the caller's patience and nothing about the endpoint.
    """
    if isinstance(what, ChatReply):
        return Outcome("ok", "ok", "done", f"{what.endpoint} answered", usage=what.usage)
    if not isinstance(what, Exception) or isinstance(what, asyncio.CancelledError):
        return Outcome("cancelled", "neutral", "stop", f"the call was ended from outside ({type(what).__name__})")
    if not isinstance(what, FleetError):
        return Outcome("unknown", "neutral", "stop", f"not an endpoint's failure ({type(what).__name__})")
    match what:
        case LLMRateLimited():
            return _of(what, "rate_limited", "neutral", "retry", slows=True)
        case LLMTimeout():
            return _timeout(what, usual_s=usual_s)
        case LLMUnavailable():
            return _unavailable(what)
        case LLMRefused():
            return _refused(what)
        case BreakerOpen() | Throttled():
            return _of(what, "local", "neutral", "next_endpoint")
        case RetryLater():
            return _of(what, "local", "neutral", "stop")
        case _:  # spent budgets and deadlines, fenced runs: nothing another endpoint could change
            return _of(what, "unknown", "neutral", "stop")


def _timeout(error: LLMTimeout, *, usual_s: float) -> Outcome:
    phase, limit_s = error.context.get("phase"), _number(error.context, "limit_s")
    if phase == "pool":  # no free connection of our own
        return _of(error, "local", "neutral", "next_endpoint")
    if phase in ("total", "deadline") and limit_s is not None and limit_s < usual_s:
        return _of(error, "clamped", "neutral", "stop")
    if phase == "deadline":
        return _of(error, "timeout", "failure", "stop")
    return _again(error, "timeout")


def _unavailable(error: LLMUnavailable) -> Outcome:
    status = _number(error.context, "status")
    if status in OVERLOADED:
        return _again(error, "overloaded", slows=True)
    if "broken" in error.context:
        return _again(error, "invalid_answer", retries_at_most=1)
    return _again(error, "unreachable" if status is None else "server_error")


def _refused(error: LLMRefused) -> Outcome:
    status, subject = _number(error.context, "status"), error.context.get("subject")
    if subject == "account" or status == 402:
        return _of(error, "quota_spent", "neutral", "disable")
    if subject == "context" or status == 413:
        return _of(error, "context_too_long", "neutral", "next_endpoint")
    if subject == "content":
        return _of(error, "filtered", "neutral", "stop")
    if status in KEY_REFUSED:
        return _of(error, "unauthorized", "neutral", "disable")
    if status is not None and 300 <= status < 400:  # a login page or a moved endpoint: not the request's fault
        return _of(error, "invalid_answer", "failure", "next_endpoint")
    if error.context.get("should_retry") is True:
        return _again(error, "server_error")
    return _of(error, "bad_request", "neutral", "stop")


def _again(error: FleetError, kind: Kind, *, retries_at_most: int | None = None, slows: bool = False) -> Outcome:
    return _of(error, kind, "failure", "retry", retries_at_most=retries_at_most, slows=slows)


def _of(
    error: FleetError,
    kind: Kind,
    learn: Learn,
    following: Next,
    *,
    retries_at_most: int | None = None,
    slows: bool = False,
) -> Outcome:
    if following == "retry" and error.context.get("should_retry") is False:  # the endpoint's own word: x-should-retry
        following = "next_endpoint"
    return Outcome(
        kind,
        learn,
        following,
        error.message,
        retry_after_s=getattr(error, "retry_after_s", None),
        retries_at_most=retries_at_most,
        slows=slows,
        usage=_usage(error.context),
    )


def _number(context: dict[str, Any], name: str) -> float | None:
    """A fact that is a number; an error that was read back from a ledger may carry anything."""
    value = context.get(name)
    return value if isinstance(value, int | float) else None


def _usage(context: dict[str, Any]) -> Usage | None:
    usage = context.get("usage")
    return Usage.from_json(usage) if isinstance(usage, dict) else None
