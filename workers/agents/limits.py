"""Time limits by cancellation: the soft one surfaces inside the agent as an exception that it may handle.

The hard one holds for an agent too that does not take a cancellation for an answer: it is cancelled every second
again, and in the end left where it stands.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import structlog
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

log = structlog.get_logger()

AGAIN_S = 1.0
CANCELLATIONS = 5
"""At the hard limit and after it, `AGAIN_S` apart; work that outlives them is closed."""


async def limited(work: Coroutine[Any, Any, Any], *, soft_s: float, hard_s: float) -> Any:
    """Await work under Celery's two limits.

    Args:
        soft_s: Seconds until SoftTimeLimitExceeded is raised at the await where the work stands.
        hard_s: Seconds until the work is cancelled.

    Raises: TimeLimitExceeded at the hard limit; what the work raises.
    """
    try:
        async with asyncio.timeout(hard_s) as hard:
            return await _Limited(work, soft_s, hard_s)
    except TimeoutError:
        if hard.expired():
            raise TimeLimitExceeded(hard_s) from None
        raise


class _Limited:
    """Drives a coroutine; at the soft limit the task's cancellation is turned into another exception inside it."""

    def __init__(self, work: Coroutine[Any, Any, Any], soft_s: float, hard_s: float) -> None:
        self._work = work
        self._soft_s = soft_s
        self._hard_s = hard_s
        self._is_due = False
        self._insisted = 0
        self._left = CANCELLATIONS
        self._asked_before = 0
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._others: _Others | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        self._task = asyncio.current_task()
        self._asked_before = self._task.cancelling() if self._task is not None else 0
        loop = asyncio.get_running_loop()
        soft = loop.call_later(self._soft_s, self._expire)
        self._timer = loop.call_later(self._hard_s + AGAIN_S, self._insist)
        try:
            return (yield from self._drive())
        finally:
            soft.cancel()
            self._timer.cancel()
            if self._is_due and self._task is not None:  # a task of the work's own let it pass
                self._task.uncancel()

    def _drive(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(value) if error is None else self._work.throw(error)
            except StopIteration as ended:
                return ended.value
            try:
                if waits_for is None or type(waits_for) is asyncio.Future:  # a cancellation ends it at once
                    value, error = (yield waits_for), None
                else:
                    yield from self._wait_for_others(waits_for)
                    value, error = None, None
            except BaseException as raised:  # cancellation included: it is for the work to see, or to be exchanged
                value, error = None, self._exchanged(raised)
            self._forget_insisting()
            if self._left <= 0:
                self._abandon()
                raise TimeLimitExceeded(self._hard_s)

    def _wait_for_others(self, task: "asyncio.Future[Any]") -> Generator[Any, Any, None]:
        task._asyncio_future_blocking = False  # it is no longer what the work's own task waits for
        self._others = _Others(task)
        try:
            yield from self._others
            if task.done():
                task.result()
        finally:
            self._others = None

    def _exchanged(self, raised: BaseException) -> BaseException:
        if self._task is None or not isinstance(raised, asyncio.CancelledError):
            return raised
        self._forget_insisting()
        if self._is_due:
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

    def _insist(self) -> None:
        """Past the hard limit: once more."""
        if self._task is not None:
            self._left -= 1
            self._insisted += 1
            self._task.cancel()
            self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._insist)
            if self._left <= 0 and self._others is not None:
                self._others.leave()

    def _forget_insisting(self) -> None:
        """The work is awake: however often it was asked meanwhile, whoever awaits it is asked by the limit alone."""
        while self._task is not None and self._insisted:
            self._insisted -= 1
            self._task.uncancel()

    def _abandon(self) -> None:
        """End the work where it stands: it has let every cancellation pass."""
        log.error("run.abandoned", cancellations=CANCELLATIONS, hint="agents must let CancelledError through")
        try:
            self._work.close()
        except Exception as error:  # the work's own, on its way out: nobody waits for it any more
            log.info("run.abandoned_loudly", cause=repr(error))


class _Others(asyncio.Future[None]):
    """Waits for tasks of the work's own as if it were they, until they are left behind.

    Unlike any other future, a task or a group of them may let a cancellation pass, and its waiter sleeps on.
    """

    def __init__(self, task: "asyncio.Future[Any]") -> None:
        super().__init__(loop=task.get_loop())
        self._awaited = task
        task.add_done_callback(lambda _: self.leave())

    def cancel(self, msg: Any | None = None) -> bool:
        """For them, who wake the waiter."""
        return self._awaited.cancel(msg=msg)

    def leave(self) -> None:
        """Wake the waiter."""
        if not self.done():
            self.set_result(None)
