"""Patience with an answer: a busy process is not a silent server, and silence is not waited for."""

import asyncio
import socket
import time

import pytest

from shared.resilience.line import heard_within


async def test_an_answer_that_came_while_the_loop_was_busy_is_heard() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.send(b"here")
    async with heard_within(0.01):
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)  # the answer and the timer are due in one turn
        assert await reader.readexactly(4) == b"here"
    writer.close()
    theirs.close()


async def test_silence_ends_in_time_and_an_end_in_time_leaves_no_timer() -> None:
    with pytest.raises(TimeoutError):
        async with heard_within(0.0):
            await asyncio.Event().wait()
    async with heard_within(0.0):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


async def test_whoever_is_cancelled_meanwhile_is_cancelled() -> None:
    async def waits() -> None:
        async with heard_within(60.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
