"""A worker's chores: one that fails is told and begun anew, and the worker is not ready without it."""

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.fakes.hand_loop import at_once
from workers.agents.chores import AGAIN_S, LONGEST_S, Chores
from workers.agents.knobs import WorkerKnobs


class Frail:
    """A chore that fails some times, each time after so many seconds, and then goes on for ever."""

    def __init__(self, failures: int, *, after_s: float = 0.1) -> None:
        self.begun: list[float] = []
        self._failures = failures
        self._after_s = after_s

    async def run(self) -> None:
        self.begun.append(asyncio.get_running_loop().time())
        if len(self.begun) <= self._failures:
            await asyncio.sleep(self._after_s)
            raise KeyError("unthought of")
        await asyncio.Event().wait()


def test_a_chore_that_fails_is_told_as_critical_and_begun_anew_and_the_worker_is_not_ready_meanwhile() -> None:
    frail, other = Frail(1), Frail(0)

    async def main() -> None:
        chores = Chores()
        chores.start({"lease": frail.run, "other": other.run})
        await asyncio.sleep(0.05)
        assert chores.are_well
        await asyncio.sleep(0.1)
        assert not chores.are_well
        await asyncio.sleep(AGAIN_S)
        assert chores.are_well
        await chores.stop()

    with capture_logs() as logs:
        at_once(main())
    assert [(one["log_level"], one["chore"], one["cause"]) for one in logs] == [
        ("critical", "lease", "KeyError('unthought of')")
    ]
    assert (len(frail.begun), len(other.begun)) == (2, 1)


@pytest.mark.parametrize(("after_s", "waits"), [(0.0, [1, 2, 4, 8, 16, 30, 30]), (LONGEST_S + 1, [1] * 7)])
def test_one_that_fails_at_once_is_begun_less_and_less_often(after_s: float, waits: list[float]) -> None:
    frail = Frail(7, after_s=after_s)

    async def main() -> None:
        chores = Chores()
        chores.start({"frail": frail.run})
        await asyncio.sleep(7 * after_s + sum(waits) + 1)
        await chores.stop()

    at_once(main())
    gaps = [later - sooner - after_s for sooner, later in zip(frail.begun, frail.begun[1:], strict=False)]
    assert gaps == pytest.approx(waits)


def test_a_warm_up_that_always_fails_is_tried_again_and_leaves_the_worker_ready() -> None:
    frail = Frail(1000)

    async def main() -> None:
        chores = Chores()
        chores.start({"warm-up": frail.run}, are_vital=False)
        for _ in range(100):
            await asyncio.sleep(0.5)
            assert chores.are_well
        await chores.stop()

    at_once(main())
    assert len(frail.begun) > 3


def test_a_chore_that_is_done_is_not_begun_again() -> None:
    begun = []

    async def warm() -> None:
        begun.append(1)

    async def main() -> None:
        chores = Chores()
        chores.start({"warm-up": warm})
        await asyncio.sleep(100)
        assert chores.are_well
        await chores.stop()

    at_once(main())
    assert begun == [1]


def test_a_cancel_is_looked_for_so_often_that_it_takes_less_than_a_second_without_redis() -> None:
    assert WorkerKnobs().cancel_poll_s <= 0.5
    with pytest.raises(ValueError, match="cancel_poll_s must be positive"):
        WorkerKnobs(cancel_poll_s=0)
