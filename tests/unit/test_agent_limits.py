"""Time limits on a loop whose time belongs to the test: the soft one surfaces inside, the hard one ends the work."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.fakes.hand_loop import at_once, block
from workers.agents.limits import limited


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


async def value_after(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "value"


async def tidy() -> tuple[str, float]:
    """Notice the soft limit and end well."""
    try:
        await asyncio.sleep(999)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(1)
        return "tidied up", now()
    return "slept through", now()


async def stubborn() -> str:
    """Ignore the soft limit."""
    for _ in range(2):
        try:
            await asyncio.sleep(999)
        except SoftTimeLimitExceeded:
            continue
    return "slept through"


def test_work_that_ends_in_time_gives_its_value() -> None:
    assert at_once(limited(value_after(9), soft_s=10, hard_s=20)) == "value"


def test_no_cancellation_is_left_behind_by_a_limit_that_was_not_reached() -> None:
    async def main() -> float:
        await limited(value_after(9), soft_s=10, hard_s=20)
        await asyncio.sleep(100)
        return now()

    assert at_once(main()) == 109


def test_the_soft_limit_surfaces_inside_where_the_work_may_tidy_up() -> None:
    assert at_once(limited(tidy(), soft_s=10, hard_s=20)) == ("tidied up", 11)


def test_the_soft_limit_ends_work_that_does_not_handle_it() -> None:
    async def main() -> float:
        with pytest.raises(SoftTimeLimitExceeded):
            await limited(value_after(99), soft_s=10, hard_s=20)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "the caller is not cancelled"
        return now()

    assert at_once(main()) == 10


def test_the_hard_limit_ends_work_that_ignores_the_soft_one() -> None:
    async def main() -> float:
        with pytest.raises(TimeLimitExceeded):
            await limited(stubborn(), soft_s=10, hard_s=20)
        return now()

    assert at_once(main()) == 20


def test_the_soft_limit_surfaces_once() -> None:
    surfaced = []

    async def counts() -> None:
        while True:
            try:
                await asyncio.sleep(999)
            except SoftTimeLimitExceeded:
                surfaced.append(now())

    with pytest.raises(TimeLimitExceeded):
        at_once(limited(counts(), soft_s=10, hard_s=500))
    assert surfaced == [10]


def test_work_that_never_suspends_gives_its_value_however_long_it_takes() -> None:
    async def busy() -> str:
        block(999)
        return "value"

    assert at_once(limited(busy(), soft_s=10, hard_s=20)) == "value"


def test_work_that_was_too_busy_for_its_limit_learns_of_it_at_its_next_await() -> None:
    async def busy() -> str:
        await asyncio.sleep(0)
        block(15)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "value"

    with pytest.raises(SoftTimeLimitExceeded):
        at_once(limited(busy(), soft_s=10, hard_s=20))


@pytest.mark.parametrize("error", [ValueError("own"), TimeoutError("own"), SoftTimeLimitExceeded("own")])
def test_what_the_work_raises_passes(error: Exception) -> None:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise error

    with pytest.raises(type(error), match="own"):
        at_once(limited(fails(), soft_s=10, hard_s=20))


def test_a_timeout_of_the_works_own_stays_its_own() -> None:
    async def patient() -> str:
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(999)
        except TimeoutError:
            return "mine"
        return "none"

    assert at_once(limited(patient(), soft_s=10, hard_s=20)) == "mine"


async def cancelled_at(
    seconds: float, work: Callable[[], Coroutine[Any, Any, Any]], *, soft_s: float = 10, hard_s: float = 20
) -> Awaitable[Any]:
    task = asyncio.create_task(limited(work(), soft_s=soft_s, hard_s=hard_s))
    asyncio.get_running_loop().call_at(seconds, task.cancel)
    await asyncio.wait({task})
    return task


def test_a_cancellation_from_outside_passes_through_as_itself() -> None:
    for work in (stubborn, tidy, lambda: value_after(99)):
        task: Any = at_once(cancelled_at(5, work))
        assert task.cancelled()


def test_a_cancellation_from_outside_passes_after_the_soft_limit_too() -> None:
    task: Any = at_once(cancelled_at(15, stubborn))
    assert task.cancelled()


def test_work_sees_a_cancellation_from_outside_and_may_tidy_up() -> None:
    seen = []

    async def careful() -> None:
        try:
            await asyncio.sleep(999)
        except asyncio.CancelledError:
            seen.append(now())
            raise

    task: Any = at_once(cancelled_at(5, careful))
    assert (task.cancelled(), seen) == (True, [5])


def test_work_with_tasks_of_its_own_gets_the_soft_limit_and_they_are_cancelled() -> None:
    ends = []

    async def part() -> None:
        try:
            await asyncio.sleep(999)
        except asyncio.CancelledError:
            ends.append(now())
            raise

    async def both() -> str:
        try:
            await asyncio.gather(part(), part())
        except SoftTimeLimitExceeded:
            return "tidied up"
        return "slept through"

    assert at_once(limited(both(), soft_s=10, hard_s=20)) == "tidied up"
    assert ends == [10, 10]


def test_the_hard_limit_holds_when_it_is_reached_together_with_the_soft_one() -> None:
    async def main() -> float:
        with pytest.raises(TimeLimitExceeded):
            await limited(stubborn(), soft_s=10, hard_s=10)
        return now()

    assert at_once(main()) == 10


def test_a_cancellation_from_outside_at_the_moment_of_the_soft_limit_is_not_lost() -> None:
    for work in (stubborn, tidy):
        task: Any = at_once(cancelled_at(10, work))
        assert task.cancelled()


class Mule:
    """Work that takes no cancellation for an answer."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.is_closed = False

    async def __call__(self, awakes: int = 1000) -> str:
        try:
            for _ in range(awakes):
                try:
                    await asyncio.sleep(999)
                except (SoftTimeLimitExceeded, asyncio.CancelledError):
                    self.asked.append(now())
        finally:
            self.is_closed = True
        return "gave in"


def test_work_that_takes_no_cancellation_for_an_answer_is_asked_every_second_and_then_left() -> None:
    mule = Mule()

    async def main() -> tuple[float, int]:
        with pytest.raises(TimeLimitExceeded):
            await limited(mule(), soft_s=10, hard_s=20)
        task = asyncio.current_task()
        assert task is not None
        return now(), task.cancelling()

    assert at_once(main()) == (25, 0)
    assert mule.asked == [10, 20, 21, 22, 23, 24]
    assert mule.is_closed


def test_work_that_gives_in_after_its_hard_limit_leaves_no_cancellation_behind() -> None:
    mule = Mule()

    async def main() -> tuple[str, int]:
        output = await limited(mule(awakes=3), soft_s=10, hard_s=20)
        await asyncio.sleep(100)
        task = asyncio.current_task()
        assert task is not None
        return output, task.cancelling()

    assert at_once(main()) == ("gave in", 0)
    assert mule.asked == [10, 20, 21]


def test_work_that_awaits_even_on_its_way_out_is_left_all_the_same() -> None:
    told_to_go: list[str] = []

    async def clinging() -> None:
        while len(told_to_go) < 2:  # the second time it is the garbage collector
            try:
                await asyncio.sleep(999)
            except GeneratorExit:
                told_to_go.append("now")
            except (SoftTimeLimitExceeded, asyncio.CancelledError):
                continue

    async def main() -> float:
        with pytest.raises(TimeLimitExceeded):
            await limited(clinging(), soft_s=10, hard_s=20)
        return now()

    assert at_once(main()) == 25


async def deaf(until_s: float) -> None:
    """A branch that lets every cancellation pass until then."""
    while now() < until_s:
        try:
            await asyncio.sleep(until_s - now())
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("how", ["gather", "task", "wait", "group"])
def test_work_that_waits_for_deaf_tasks_of_its_own_is_left_too(how: str) -> None:
    async def waits() -> None:
        match how:
            case "gather":
                await asyncio.gather(deaf(500), deaf(500))
            case "task":
                await asyncio.create_task(deaf(500))
            case "wait":
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([asyncio.create_task(deaf(500))])
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(deaf(500))

    async def main() -> tuple[float, int]:
        with pytest.raises(TimeLimitExceeded):
            await limited(waits(), soft_s=20, hard_s=20)
        task = asyncio.current_task()
        assert task is not None
        return now(), task.cancelling()

    assert at_once(main()) == (25, 0)


def test_tasks_that_tidy_up_for_longer_than_it_is_waited_between_cancellations_end_at_the_hard_limit() -> None:
    async def tidies() -> None:
        await asyncio.gather(deaf(23.5))

    async def main() -> tuple[float, int]:
        with pytest.raises(TimeLimitExceeded):
            await limited(tidies(), soft_s=20, hard_s=20)
        task = asyncio.current_task()
        assert task is not None
        return now(), task.cancelling()

    assert at_once(main()) == (23.5, 0)


def test_tasks_of_the_works_own_give_it_their_values_and_errors() -> None:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise ValueError("own")

    async def main() -> list[str]:
        found = await asyncio.gather(value_after(2), asyncio.create_task(value_after(3)))
        with pytest.raises(ValueError, match="own"):
            await asyncio.create_task(fails())
        gone = asyncio.create_task(value_after(99))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return list(found)

    assert at_once(limited(main(), soft_s=10, hard_s=20)) == ["value", "value"]


def test_the_soft_limit_that_a_task_of_the_works_own_let_pass_is_not_left_behind() -> None:
    async def plainly() -> None:
        await asyncio.create_task(deaf(12))

    async def main() -> tuple[float, int]:
        await limited(plainly(), soft_s=10, hard_s=20)
        task = asyncio.current_task()
        assert task is not None
        return now(), task.cancelling()

    assert at_once(main()) == (12, 0)
