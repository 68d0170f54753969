"""The loop of callers that have none: results, errors, and an interruption that leaves nothing behind."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from shared.resilience.portal import Portal


def main_thread_waits() -> bool:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code.co_name != "result":
        frame = frame.f_back
    return frame is not None


@pytest.fixture
def portal() -> Iterator[Portal]:
    opened = Portal()
    yield opened
    opened.stop()


def test_results_and_errors_come_back_to_the_caller(portal: Portal) -> None:
    async def halved(number: int) -> int:
        return number // (number % 2 == 0)

    assert portal.run(halved(4)) == 4
    with pytest.raises(ZeroDivisionError):
        portal.run(halved(3))


def test_an_interrupted_caller_cancels_its_work_and_waits_until_it_has_put_things_back(portal: Portal) -> None:
    story = []

    async def work() -> None:
        while not main_thread_waits():
            await asyncio.sleep(0)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append("put back")

    with pytest.raises(KeyboardInterrupt):
        portal.run(work())
    assert story == ["put back"]


def test_a_stopped_portal_leaves_no_thread_and_starts_again(portal: Portal) -> None:
    async def nothing() -> None: ...

    before = threading.active_count()
    portal.run(nothing())
    portal.stop()
    assert (portal.is_running, threading.active_count()) == (False, before)
    portal.run(nothing())


def test_spawned_work_is_waited_for_and_what_does_not_end_is_cancelled(portal: Portal) -> None:
    story = []

    async def short() -> None:
        await asyncio.sleep(0)
        story.append("ended")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            story.append("cancelled")

    portal.spawn(short)
    portal.run(portal.settled(within_s=60))
    assert story == ["ended"]
    portal.spawn(endless)
    portal.run(portal.settled(within_s=0))
    assert story == ["ended", "cancelled"]


def test_a_portal_that_stops_cancels_what_is_under_way(portal: Portal) -> None:
    story = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append("put back")

    portal.spawn(endless)
    portal.stop()
    assert story == ["put back"]
