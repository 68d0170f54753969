"""The limits of a call that runs, as arithmetic: when it must end, and which limit ends it."""

from dataclasses import dataclass
from typing import Literal

from shared.llm.knobs import LLMKnobs

Phase = Literal["pool", "first_token", "idle", "throughput", "total", "deadline"]


@dataclass(frozen=True, slots=True)
class Limit:
    """The moment at which a call ends unless something happens first, and why it would."""

    at_s: float
    phase: Phase
    limit_s: float


@dataclass(frozen=True, slots=True)
class TotalLimit:
    """How long one call may take from start to last byte: `phase` says whose wish that is."""

    seconds: float
    phase: Literal["total", "deadline"]


def total_limit(knobs: LLMKnobs, *, wanted_s: float | None, left_s: float | None) -> TotalLimit:
    """The whole call's limit: the request's wish or else the endpoint's, never beyond the deadline of the work."""
    own_s = knobs.total_timeout_s if wanted_s is None else wanted_s
    if left_s is not None and left_s < own_s:
        return TotalLimit(left_s, "deadline")
    return TotalLimit(own_s, "total")


class Pace:
    """The clock of one stream: told what is heard, it says when waiting ends.

    Times are seconds on one monotonic clock. Only tokens count as heard; comments, pings and empty events do not.
    Time in which nobody waits (the caller reads what it got) is the caller's: it moves every limit but the total.
    """

    def __init__(self, knobs: LLMKnobs, *, started_s: float, total: TotalLimit) -> None:
        self._knobs = knobs
        self._total = Limit(started_s + total.seconds, total.phase, total.seconds)
        self._heard_s = started_s
        self._has_begun = False
        self._window_s = started_s
        self._window_tokens = 0

    def limit(self) -> Limit:
        """The next moment at which the call ends if no token comes."""
        patience_s = self._knobs.idle_timeout_s if self._has_begun else self._knobs.first_token_timeout_s
        own = Limit(self._heard_s + patience_s, "idle" if self._has_begun else "first_token", patience_s)
        return min(own, self._total, key=lambda one: one.at_s)

    def heard(self, now_s: float, *, tokens: int) -> Limit | None:
        """Count tokens; the limit that is broken now because they come too slowly, or None."""
        self._heard_s = now_s
        if not self._has_begun:
            self._has_begun = True
            self._window_s, self._window_tokens = now_s, 0
            return None
        self._window_tokens += tokens
        waited_s = now_s - self._window_s
        if waited_s < self._knobs.throughput_window_s:
            return None
        is_too_slow = self._window_tokens < self._knobs.min_tokens_per_s * waited_s
        self._window_s, self._window_tokens = now_s, 0
        return Limit(now_s, "throughput", self._knobs.throughput_window_s) if is_too_slow else None

    def held(self, seconds: float) -> None:
        """The caller kept the stream waiting for so long."""
        self._heard_s += seconds
        self._window_s += seconds
