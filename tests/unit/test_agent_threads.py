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
