"""Blocking steps: many at once, with what the run knows, and never in the way of those who leave."""

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest

from tests.fakes.fake_world import FakeWorld
from workers.agents.threads import DaemonThreads, in_thread

WITHIN_S = 20
told: ContextVar[str] = ContextVar("told")


async def test_twenty_blocking_steps_run_at_once() -> None:
    run, all_of_them = FakeWorld().run(), threading.Barrier(20)
    ended = await asyncio.gather(*(run.step("block", lambda _: all_of_them.wait(WITHIN_S), n) for n in range(20)))
    assert sorted(ended) == list(range(20))


async def test_blocking_code_knows_what_its_caller_knows_and_its_error_comes_back() -> None:
    told.set("hello")
    assert await in_thread(told.get) == "hello"
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


@pytest.mark.parametrize("error", [StopIteration(7), SystemExit(3), KeyboardInterrupt()])
async def test_what_no_future_can_carry_fails_the_step_and_not_the_worker(error: BaseException) -> None:
    def ends() -> None:
        raise error

    async def ends_here() -> None:
        raise error

    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await FakeWorld().run().step("ends", ends)
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await asyncio.gather(FakeWorld().run().step("ends", ends_here))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await in_thread(next, iter(()))


def test_a_thread_that_cannot_be_started_leaves_no_call_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = DaemonThreads(2, name="few")
    called: list[str] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.submit(called.append, "refused")
    threads.submit(called.append, "taken").result(WITHIN_S)
    assert called == ["taken"]
    both = threading.Barrier(2)
    for one in [threads.submit(both.wait, WITHIN_S) for _ in range(2)]:
        one.result(WITHIN_S)


def test_no_more_threads_than_allowed_are_made_and_idle_ones_are_used_again() -> None:
    threads, used = DaemonThreads(2, name="few"), set()
    for _ in range(20):
        used.add(threads.submit(threading.get_ident).result(WITHIN_S))
    for one in [threads.submit(threading.get_ident) for _ in range(20)]:
        used.add(one.result(WITHIN_S))
    assert len(used) <= 2


def test_a_process_ends_although_a_blocking_call_does_not() -> None:
    program = (
        "import time; from workers.agents.threads import STEPS; "
        "from threading import Event; begun = Event(); "
        "STEPS.submit(lambda: (begun.set(), time.sleep(600))); begun.wait()"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
