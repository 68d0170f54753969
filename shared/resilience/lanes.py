"""The arithmetic of limits: token buckets, places for calls under way, and a queue that spreads those who must wait.

A lane is one key, or one tenant at one key. All methods take the time; nothing here waits, locks or does I/O.
"""

from typing import Literal, NamedTuple

from shared.resilience.knobs import AdaptKnobs, Limits, RetryBudgetKnobs

Cause = Literal["requests", "input_tokens", "output_tokens", "concurrency"]
DIMENSIONS: tuple[Cause, Cause, Cause] = ("requests", "input_tokens", "output_tokens")
QUEUE_MAX_S = 60.0
"""Furthest point at which a caller is told to come back: those told before it may never come."""
GUESS_S = 1.0
"""How long a call takes while nobody knows."""


class Full(NamedTuple):
    """A limit that refuses a call, and when to come back."""

    cause: Cause
    wait_s: float


class Bucket:
    """Fills with `rate` a second up to `cap`, may go below zero: a debt."""

    __slots__ = ("at_s", "level")

    def __init__(self, level: float, at_s: float) -> None:
        self.level = level
        self.at_s = at_s

    def fill(self, rate: float, cap: float, now: float) -> float:
        """The level now."""
        if now > self.at_s:
            self.level = min(cap, self.level + (now - self.at_s) * rate)
            self.at_s = now
        return self.level


def rates(limits: Limits, share: float = 1.0) -> tuple[float | None, float | None, float | None]:
    """Each dimension's rate a second."""
    each = (limits.requests_per_min, limits.input_tokens_per_min, limits.output_tokens_per_min)
    return tuple(None if one is None else one * share / 60.0 for one in each)  # type: ignore[return-value]


def places(limits: Limits, share: float = 1.0) -> int | None:
    """Calls that may be under way."""
    return None if limits.concurrency is None else max(1, int(limits.concurrency * share))


class Lane:
    """What is under way and what is left of the rates."""

    def __init__(self) -> None:
        self.buckets: list[Bucket | None] = [None, None, None]
        self.flying: dict[str, float] = {}
        self.rate_queue_s = 0.0
        self.place_queue_s = 0.0

    def refused(
        self, limits: Limits, share: float, costs: tuple[float, ...], now: float, *, limit: int | None, call_s: float
    ) -> Full | None:
        """Which limit refuses a call now, if one does.

        Args:
            costs: Requests, input tokens, output tokens.
            limit: Calls that may be under way; None: any number.
            call_s: How long a call takes on average.
        """
        wait_s, spacing_s, cause = 0.0, 0.0, None
        for position, rate in enumerate(rates(limits, share)):
            if rate is None or costs[position] <= 0:
                continue
            cap = max(rate * limits.burst_s, 1.0)
            missing = min(costs[position], cap) - self._level(position, rate, cap, now)
            if missing > 0 and missing / rate > wait_s:
                wait_s, spacing_s, cause = missing / rate, costs[position] / rate, DIMENSIONS[position]
        if cause is not None:
            self.rate_queue_s = _queued(self.rate_queue_s, now, wait_s, spacing_s)
            return Full(cause, self.rate_queue_s - now)
        if limit is not None and self.under_way(now) >= limit:
            self.place_queue_s = _queued(self.place_queue_s, now, call_s / limit, call_s / limit)
            return Full("concurrency", self.place_queue_s - now)
        return None

    def take(self, limits: Limits, share: float, costs: tuple[float, ...], now: float) -> None:
        """Reserve, or give back with negative costs."""
        for position, rate in enumerate(rates(limits, share)):
            if rate is not None and costs[position]:
                cap = max(rate * limits.burst_s, 1.0)
                level = self._level(position, rate, cap, now)
                bucket = self.buckets[position]
                if bucket is not None:
                    bucket.level = min(cap, level - costs[position])

    def lower(
        self,
        limits: Limits,
        share: float,
        left: tuple[float | None, ...],
        resets_s: tuple[float | None, ...],
        now: float,
    ) -> float:
        """Believe a provider that says less is left; its reset is when the bucket holds something again.

        Returns: Seconds until then where a rate that is not limited here is used up there, else 0.
        """
        closed_s = 0.0
        for position, rate in enumerate(rates(limits, share)):
            said = left[position]
            if said is None:
                continue
            if rate is None:
                closed_s = max(closed_s, (resets_s[position] or 0.0) if said <= 0 else 0.0)
                continue
            level = self._level(position, rate, max(rate * limits.burst_s, 1.0), now)
            bucket = self.buckets[position]
            if bucket is not None:
                back_s = (resets_s[position] or 0.0) if said <= 0 else 0.0
                bucket.level = min(level, max(0.0, said) - rate * back_s)
        return closed_s

    def under_way(self, now: float) -> int:
        """Calls under way; those whose process died are no longer counted."""
        if self.flying and min(self.flying.values()) <= now:
            self.flying = {permit: expires for permit, expires in self.flying.items() if expires > now}
        return len(self.flying)

    def left(self, limits: Limits, share: float, now: float) -> tuple[float | None, float | None, float | None]:
        """What is left of each rate."""
        each = [
            None if rate is None else self._level(position, rate, max(rate * limits.burst_s, 1.0), now)
            for position, rate in enumerate(rates(limits, share))
        ]
        return (each[0], each[1], each[2])

    def _level(self, position: int, rate: float, cap: float, now: float) -> float:
        bucket = self.buckets[position]
        if bucket is None:
            bucket = self.buckets[position] = Bucket(cap, now)
        return bucket.fill(rate, cap, now)


def _queued(last_s: float, now: float, wait_s: float, spacing_s: float) -> float:
    """When the next in the queue is told to come back: not all at once."""
    return min(max(now + wait_s, last_s + spacing_s), max(now + wait_s, now + QUEUE_MAX_S))


class Adapted(NamedTuple):
    """Additive increase, multiplicative decrease of the calls under way."""

    limit: float | None = None
    """None: not cut."""
    peak: float = 0.0
    """Where it was cut from, and where it ends."""
    good: int = 0
    """Successes since the last step."""
    cut_s: float = 0.0


def cut(
    adapted: Adapted, knobs: AdaptKnobs, *, configured: int | None, under_way: int, began_s: float, now: float
) -> Adapted:
    """After an overload; calls that began before the last cut say nothing new.

    Args:
        under_way: Calls in flight, the overloaded one included.
    """
    if not knobs.enabled or (adapted.limit is not None and began_s < adapted.cut_s):
        return adapted
    if adapted.limit is not None:
        return Adapted(max(float(knobs.floor), adapted.limit * knobs.factor), adapted.peak, 0, now)
    peak = float(under_way if configured is None else min(configured, max(under_way, 1)))
    top = float(peak if configured is None else configured)
    return Adapted(max(float(knobs.floor), peak * knobs.factor), top, 0, now)


def grown(adapted: Adapted) -> Adapted:
    """After a success."""
    if adapted.limit is None:
        return adapted
    good = adapted.good + 1
    if good < adapted.limit:
        return adapted._replace(good=good)
    limit = adapted.limit + 1
    return Adapted(cut_s=adapted.cut_s) if limit >= adapted.peak else Adapted(limit, adapted.peak, 0, adapted.cut_s)


def concurrency(adapted: Adapted, configured: int | None) -> int | None:
    """Calls that may be under way."""
    if adapted.limit is None:
        return configured
    return int(adapted.limit) if configured is None else min(configured, int(adapted.limit))


class Retries:
    """The retry budget of one key."""

    def __init__(self, knobs: RetryBudgetKnobs, now: float) -> None:
        self._bucket = Bucket(knobs.cap, now)

    def left(self, knobs: RetryBudgetKnobs, now: float) -> float:
        """Retries there are."""
        return self._bucket.fill(knobs.floor_per_s, knobs.cap, now)

    def book(self, attempt: int, knobs: RetryBudgetKnobs, now: float) -> None:
        """A first attempt earns, a retry pays."""
        level = self.left(knobs, now)
        self._bucket.level = min(knobs.cap, level + knobs.ratio) if attempt <= 1 else level - 1
