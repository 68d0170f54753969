"""Knobs, budgets and deadlines: nonsense is refused by name, promises are the defaults."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import DeadlineSpent
from shared.resilience import deadline
from shared.resilience.deadline import Deadline, clamped, within
from shared.resilience.knobs import (
    AdaptKnobs,
    BreakerKnobs,
    KeyRules,
    Limits,
    RetryBudgetKnobs,
    RetryKnobs,
    StoreKnobs,
)
from shared.resilience.spending import Budget


def test_the_defaults_are_those_that_were_promised() -> None:
    breaker, retry = BreakerKnobs(), RetryKnobs()
    assert (breaker.failures_in_a_row, breaker.window, breaker.min_calls, breaker.failure_rate) == (5, 100, 20, 0.5)
    assert (breaker.open_s, breaker.open_factor, breaker.open_max_s, breaker.slow_rate) == (30, 2, 300, 0.8)
    assert (breaker.probes, breaker.successes_to_close) == (3, 2)
    assert (retry.retries, retry.first_wait_s, retry.factor, retry.cap_s, retry.suspend_after_s) == (3, 1, 2, 30, 5)
    assert 0.1 <= KeyRules().retry_budget.ratio <= 0.2


@pytest.mark.parametrize(
    ("make", "wrong", "words"),
    [
        (BreakerKnobs, {"failures_in_a_row": 0}, "failures_in_a_row must be at least 1"),
        (BreakerKnobs, {"failure_rate": 1.5}, "failure_rate is a share"),
        (BreakerKnobs, {"jitter": 1.0}, "jitter is a share"),
        (BreakerKnobs, {"min_calls": 200}, "min_calls must fit"),
        (BreakerKnobs, {"successes_to_close": 4}, "would never close"),
        (BreakerKnobs, {"open_max_s": 1.0}, "open_max_s must not be shorter"),
        (Limits, {"requests_per_min": 0}, "requests_per_min must be above 0"),
        (Limits, {"concurrency": -1}, "concurrency must be at least 1"),
        (Limits, {"burst_s": float("nan")}, "burst_s must be above 0"),
        (AdaptKnobs, {"factor": 1.0}, "it cuts"),
        (RetryBudgetKnobs, {"ratio": 2.0}, "storm"),
        (RetryKnobs, {"retries": -1}, "retries must be at least 0"),
        (KeyRules, {"not_before_max_s": 0}, "not_before_max_s"),
        (StoreKnobs, {"redis_url": "http://x"}, "redis_url must start with"),
        (StoreKnobs, {"alone_share": 2.0}, "alone_share is a share"),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Callable[..., Any], wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"tokens": -1}, {"money": -0.01}, {"money": float("nan")}, {"period_s": 0}, {"ttl_s": -1}]
)
def test_a_negative_budget_is_refused_and_names_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"budget run r7: {next(iter(wrong))}"):
        Budget(level="run", name="r7", **wrong)


async def test_a_deadline_only_comes_nearer_and_reaches_the_tasks_inside() -> None:
    assert deadline.current() is None and clamped(7.0) == 7.0
    with within(10.0) as outer:
        assert outer is not None and 9.9 < clamped(60.0) <= 10.0
        with within(100.0) as inner:
            assert inner is outer
        with within(1.0) as inner:
            assert await asyncio.create_task(_seen()) is inner
        with within(None) as inner:
            assert inner is outer
    assert deadline.current() is None


def test_a_deadline_that_has_passed_leaves_nothing() -> None:
    past = Deadline.after(-1.0)
    assert (past.left_s(), past.clamp(5.0), past.is_past) == (0.0, 0.0, True)
    with pytest.raises(DeadlineSpent):
        past.check()
    Deadline.after(5.0).check()


async def _seen() -> Deadline | None:
    return deadline.current()
