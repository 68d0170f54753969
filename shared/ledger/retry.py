"""When a step that failed is tried again: a pure decision."""

import random
from dataclasses import dataclass

from shared.errors import RetryLater, Transient

LATER_LEAST_S = 1.0
"""A step that asks for a later try is put back for as long, as often as it asks: its task's deadline ends it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a step is tried again. Waits over `suspend_after_s` give the slot back meanwhile.

    Attributes:
        attempts: Tries in all, the first included.
        base_s, factor, cap_s: Full jitter: uniform in [0, min(cap_s, base_s * factor ** (tries - 1))] seconds, never
            below what the failure itself asks for.
        on: What is worth another try.
    """

    attempts: int = 4
    base_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 30.0
    on: tuple[type[Exception], ...] = (Transient, OSError, TimeoutError)


ONCE = Retry(attempts=1)


def next_wait_s(error: Exception, *, tries: int, retry: Retry, rng: random.Random) -> float | None:
    """Seconds until the next try; None: the failure stands.

    Args:
        tries: Tries so far, from 1.
    Source: AWS Architecture Blog, "Exponential Backoff and Jitter" (full jitter).
    """
    asked_s = getattr(error, "retry_after_s", None) or 0.0
    if isinstance(error, RetryLater):
        return float(max(asked_s, LATER_LEAST_S))
    if tries >= retry.attempts or not isinstance(error, retry.on):
        return None
    jitter_s = rng.uniform(0, min(retry.cap_s, retry.base_s * retry.factor ** (tries - 1)))
    return float(max(asked_s, jitter_s))
