"""Retries: how long, how often, when not at all, and never with another call's numbers."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tenacity

from shared.errors import BreakerOpen, BudgetSpent, DeadlineSpent, LLMRateLimited, LLMUnavailable, RetryLater, Throttled
from shared.resilience import deadline
from shared.resilience.knobs import RetryKnobs
from shared.resilience.retry import Again, judge_gate, retried, retrying, wait_s

KNOBS = RetryKnobs()


def judge(error: BaseException) -> Again:
    """As a classification would."""
    return Again(isinstance(error, LLMUnavailable | LLMRateLimited), getattr(error, "retry_after_s", None), "as said")


class Endpoint:
    """Fails as often as it is told, then answers."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.attempts: list[int] = []

    async def __call__(self, attempt: int) -> str:
        self.attempts.append(attempt)
        if self.troubles:
            raise self.troubles.pop(0)
        return "answer"


def test_waits_are_fully_jittered_and_grow_to_their_cap() -> None:
    assert [wait_s(attempt, None, knobs=KNOBS, dice=lambda: 1.0) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert wait_s(3, None, knobs=KNOBS, dice=lambda: 0.0) == 0.0
    assert wait_s(100_000, None, knobs=KNOBS, dice=lambda: 1.0) == 30.0


@pytest.mark.parametrize("dice", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("floor_s", [0.5, 4.0, 45.0, 3600.0])
def test_retry_after_is_a_floor_that_neither_dice_nor_cap_shorten(floor_s: float, dice: float) -> None:
    waited = wait_s(1, floor_s, knobs=KNOBS, dice=lambda: dice)
    assert floor_s <= waited <= max(floor_s * 1.1, 1.0)


async def test_three_retries_and_then_the_calls_own_error(waits: list[float]) -> None:
    endpoint = Endpoint(*(LLMUnavailable(str(number)) for number in range(9)))
    with pytest.raises(LLMUnavailable, match=r"^3$"):
        await retried(endpoint, judge=judge)
    assert endpoint.attempts == [1, 2, 3, 4]
    assert len(waits) == 3 and all(0 <= wait <= bound for wait, bound in zip(waits, (1, 2, 4), strict=True))


async def test_an_answer_ends_it(waits: list[float]) -> None:
    told: list[tuple[int, float]] = []
    endpoint = Endpoint(LLMUnavailable("a"), LLMRateLimited("b", retry_after_s=3.0))
    answer = await retried(endpoint, judge=judge, before_wait=lambda attempt, wait, _: told.append((attempt, wait)))
    assert answer == "answer" and endpoint.attempts == [1, 2, 3]
    assert [wait for _, wait in told] == waits and waits[1] >= 3.0


@pytest.mark.parametrize("error", [ValueError("bug"), asyncio.CancelledError(), BudgetSpent("no")])
async def test_what_is_not_worth_it_is_raised_at_once(waits: list[float], error: BaseException) -> None:
    async def call(attempt: int) -> None:
        raise error

    with pytest.raises(type(error)):
        await retried(call, judge=judge)
    assert waits == []


async def test_a_wait_of_more_than_five_seconds_suspends_instead_of_sleeping(waits: list[float]) -> None:
    error = LLMRateLimited("slow down", retry_after_s=20.0)
    with pytest.raises(RetryLater) as caught:
        await retried(Endpoint(error), judge=judge, what="openai:gpt")
    assert caught.value.__cause__ is error
    assert 20.0 <= (caught.value.retry_after_s or 0) <= 22.0
    assert caught.value.context == {"cause": "llm_rate_limited"}
    assert waits == []


async def test_nothing_is_waited_for_beyond_the_deadline(waits: list[float]) -> None:
    for seconds, floor_s in ((2.0, 3.0), (10.0, 20.0)):
        with deadline.within(seconds), pytest.raises(LLMRateLimited):
            await retried(Endpoint(LLMRateLimited("x", retry_after_s=floor_s)), judge=judge)
    with deadline.within(0.0), pytest.raises(DeadlineSpent):
        await retried(Endpoint(), judge=judge)
    assert waits == []


async def test_without_a_retry_budget_the_endpoints_error_is_raised(waits: list[float]) -> None:
    down = LLMUnavailable("down")
    endpoint = Endpoint(down, Throttled("none left", retry_after_s=0.1, cause="retry_budget"))
    with pytest.raises(LLMUnavailable) as caught:
        await retried(endpoint, judge=judge)
    assert caught.value is down and endpoint.attempts == [1, 2]


async def test_a_limit_of_our_own_is_waited_for_and_the_attempt_stays_the_first(waits: list[float]) -> None:
    endpoint = Endpoint(Throttled("full", retry_after_s=0.5, cause="requests"), LLMUnavailable("down"))
    assert await retried(endpoint, judge=judge) == "answer"
    assert endpoint.attempts == [1, 1, 2] and waits[0] >= 0.5


@pytest.mark.parametrize("error", [BreakerOpen("open", retry_after_s=1.0), BudgetSpent("spent")])
async def test_what_the_gate_refuses_for_good_is_not_tried_again(waits: list[float], error: Exception) -> None:
    with pytest.raises(type(error)):
        await retried(Endpoint(error), judge=lambda _: Again(True))
    assert waits == [] and judge_gate(error) is not None and judge_gate(OSError()) is None


async def test_retrying_alone_is_a_tenacity_loop(waits: list[float]) -> None:
    endpoint = Endpoint(LLMUnavailable("a"))

    async def attempt() -> str:
        return await endpoint(0)

    assert await retrying(judge)(attempt) == "answer"
    assert len(waits) == 1


def test_a_shared_decorator_shows_one_thread_the_numbers_of_another() -> None:
    """The defect that a loop per call avoids: tenacity's wrapper keeps one dictionary for all threads."""
    second_try, other_began = threading.Event(), threading.Event()
    seen: list[int] = []

    @tenacity.retry(stop=tenacity.stop_after_attempt(2), reraise=True)
    def shared(tries: Iterator[int]) -> None:
        if next(tries) == 1:
            raise OSError
        second_try.set()
        assert other_began.wait(5.0)
        seen.append(shared.statistics["attempt_number"])

    def other() -> None:
        assert second_try.wait(5.0)
        shared(iter([2]))

    thread = threading.Thread(target=other)
    first = threading.Thread(target=shared, args=(iter([1, 2]),))
    first.start()
    thread.start()
    assert second_try.wait(5.0)
    while shared.statistics.get("attempt_number") != 1:
        pass
    other_began.set()
    first.join()
    thread.join()
    assert seen == [1, 1], "the first call was in its second attempt"


def test_every_call_has_numbers_of_its_own_in_many_threads() -> None:
    wrong: list[Any] = []
    knobs = RetryKnobs(first_wait_s=0.0)

    async def one() -> None:
        for troubles in (0, 1, 2, 3, 3, 2, 1):
            endpoint = Endpoint(*(LLMUnavailable("x") for _ in range(troubles)))
            await retried(endpoint, judge=judge, knobs=knobs)
            if endpoint.attempts != list(range(1, troubles + 2)):
                wrong.append(endpoint.attempts)

    threads = [threading.Thread(target=asyncio.run, args=(one(),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
