"""Time limits by cancellation: the soft one surfaces inside the agent as an exception that it may handle."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded


async def limited(work: Coroutine[Any, Any, Any], *, soft_s: float, hard_s: float) -> Any:
    """Await work under Celery's two limits.

    Args:
        soft_s: Seconds until SoftTimeLimitExceeded is raised at the await where the work stands.
        hard_s: Seconds until the work is cancelled.

    Raises: TimeLimitExceeded at the hard limit; what the work raises.
    """
    try:
        async with asyncio.timeout(hard_s) as hard:
            return await _SoftLimited(work, soft_s)
    except TimeoutError:
        if hard.expired():
            raise TimeLimitExceeded(hard_s) from None
        raise


class _SoftLimited:
    """Drives a coroutine; at the soft limit the task's cancellation is turned into another exception inside it."""

    def __init__(self, work: Coroutine[Any, Any, Any], soft_s: float) -> None:
        self._work = work
        self._soft_s = soft_s
        self._is_due = False
        self._asked_before = 0
        self._task: asyncio.Task[Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        self._task = asyncio.current_task()
        self._asked_before = self._task.cancelling() if self._task is not None else 0
        timer = asyncio.get_running_loop().call_later(self._soft_s, self._expire)
        try:
            return (yield from self._drive())
        finally:
            timer.cancel()

    def _drive(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(value) if error is None else self._work.throw(error)
            except StopIteration as ended:
                return ended.value
            try:
                value, error = (yield waits_for), None
            except BaseException as raised:  # cancellation included: it is for the work to see, or to be exchanged
                value, error = None, self._exchanged(raised)

    def _exchanged(self, raised: BaseException) -> BaseException:
        if self._is_due and isinstance(raised, asyncio.CancelledError) and self._task is not None:
            self._is_due = False
            if self._task.uncancel() > self._asked_before:  # the hard limit, or somebody outside, asked at that moment
                return raised
            reached: BaseException = SoftTimeLimitExceeded(self._soft_s)
            return reached
        return raised

    def _expire(self) -> None:
        if self._task is not None:
            self._is_due = True
            self._task.cancel()
