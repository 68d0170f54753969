"""Retries: few, spread at random, never earlier than the server asked, never from a slot that could do other work.

An `AsyncRetrying` is built for every call whose first try fails; one that succeeds at once saves its 50 µs. tenacity's
`@retry` on a shared function keeps one dictionary of statistics for all threads and clears it at every call: 16 threads
read a wrong attempt number in 92 % of the cases, and some calls raised `KeyError` instead of their own error.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from shared.errors import BreakerOpen, BudgetSpent, RetryLater, Throttled
from shared.resilience import deadline
from shared.resilience.knobs import RetryKnobs

log = structlog.get_logger()
T = TypeVar("T")

SPREAD = 0.1
"""Share by which a wait that a server asked for is stretched at random: those it sent away do not return together."""


@dataclass(frozen=True, slots=True)
class Again:
    """Whether a failed call is worth another try at the same place."""

    retry: bool
    floor_s: float | None = None
    """Seconds that must pass first: the server's Retry-After."""
    reason: str = ""


Judge = Callable[[BaseException], Again]
BeforeWait = Callable[[int, float, BaseException], None]


def judge_gate(error: BaseException) -> Again | None:
    """What the gate's own refusals mean for a retry; None: it is none of them."""
    if isinstance(error, Throttled) and error.context.get("cause") != "retry_budget":
        return Again(error.retry_after_s is not None, error.retry_after_s, "a limit of our own")
    if isinstance(error, BreakerOpen | Throttled | BudgetSpent):
        return Again(False, reason="refused before it was sent")
    return None


def wait_s(
    attempt: int, floor_s: float | None, *, knobs: RetryKnobs, dice: Callable[[], float] = random.random
) -> float:
    """How long to wait after so many failed tries.

    Args:
        attempt: Tries that failed, from 1.
        floor_s: What the server asked for.
        dice: Uniform in [0, 1).

    Returns: Seconds: full jitter, uniform in [0, min(cap_s, first_wait_s * factor**(attempt - 1))], but at least the
        floor and up to a tenth of it more, so that a Retry-After is never shortened, by the cap neither.
    Source: AWS Architecture Blog, "Exponential Backoff and Jitter" (full jitter).
    """
    try:
        bound_s = min(knobs.cap_s, knobs.first_wait_s * knobs.factor ** (attempt - 1))
    except OverflowError:
        bound_s = knobs.cap_s
    jittered_s = bound_s * dice()
    if floor_s is None:
        return jittered_s
    return max(jittered_s, floor_s * (1 + SPREAD * dice()))


def retrying(
    judge: Judge,
    *,
    knobs: RetryKnobs | None = None,
    what: str = "",
    before_wait: BeforeWait | None = None,
    dice: Callable[[], float] = random.random,
) -> AsyncRetrying:
    """A tenacity loop for one call; it raises the call's own error when it gives up.

    Args:
        judge: Asked about every error once.
        what: Who is called, for the log.
        before_wait: Told of attempt, seconds and error before every wait.

    Raises, when it is run: RetryLater, from the call's error, when the wait is longer than `suspend_after_s`.
    """
    rules = knobs or RetryKnobs()
    judged: dict[str, Again] = {}

    def is_worth_it(error: BaseException) -> bool:
        judged["last"] = judge(error)
        return judged["last"].retry

    def wait(state: RetryCallState) -> float:
        return wait_s(state.attempt_number, judged["last"].floor_s, knobs=rules, dice=dice)

    def is_over(state: RetryCallState) -> bool:
        if state.attempt_number > rules.retries:
            return True
        within = deadline.current()
        if within is not None and state.upcoming_sleep >= within.left_s():
            return True
        if state.upcoming_sleep > rules.suspend_after_s:
            error = state.outcome.exception() if state.outcome else None
            raise RetryLater(
                f"{what or 'The call'} asked to wait {state.upcoming_sleep:.1f} s: too long to hold a slot",
                retry_after_s=state.upcoming_sleep,
                cause=getattr(error, "code", type(error).__name__),
            ) from error
        return False

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            _log(what, state, error, judged["last"].reason)
            if before_wait is not None:
                before_wait(state.attempt_number, state.upcoming_sleep, error)

    return AsyncRetrying(
        retry=retry_if_exception(is_worth_it), wait=wait, stop=is_over, before_sleep=tell, reraise=True
    )  # fmt: skip


async def retried(
    call: Callable[[int], Awaitable[T]],
    *,
    judge: Judge,
    knobs: RetryKnobs | None = None,
    what: str = "",
    before_wait: BeforeWait | None = None,
    dice: Callable[[], float] = random.random,
) -> T:
    """Call until it succeeds, is not worth another try, or tries or time are used up.

    Args:
        call: Gets the number of the attempt, from 1: the gate wants it.
        judge: What an error means; the gate's own refusals are judged by `judge_gate` before it is asked.

    Raises: the call's last own error, RetryLater, or DeadlineSpent when no time is left for a first try.
    """
    attempt = 0
    own: list[BaseException] = []

    async def attempted() -> T:
        nonlocal attempt
        within = deadline.current()
        if within is not None:
            within.check()
        attempt += 1
        try:
            return await call(attempt)
        except Throttled as error:
            if error.context.get("cause") == "retry_budget" and own:
                raise own[-1] from error
            attempt -= 1  # it was never sent: the next try is this one
            raise
        except Exception as error:
            own.append(error)
            raise

    def judged(error: BaseException) -> Again:
        if own and error is own[-1] and isinstance(error.__cause__, Throttled):
            return Again(False, reason="the retry budget is used up")
        return judge_gate(error) or judge(error)

    try:
        return await attempted()
    except BaseException as error:
        failed: list[BaseException] = [error]

    async def once_more() -> T:
        if failed:
            raise failed.pop()  # the loop hears of the first try as if it had made it
        return await attempted()

    loop = retrying(judged, knobs=knobs, what=what, before_wait=before_wait, dice=dice)
    return await loop(once_more)


def _log(what: str, state: RetryCallState, error: BaseException, reason: str) -> None:
    log.warning(
        "resilience.retry_scheduled",
        what=what,
        attempt=state.attempt_number,
        wait_s=round(state.upcoming_sleep, 2),
        cause=type(error).__name__,
        reason=reason,
    )
