"""Patience with an answer: a busy process is not a silent server, and silence is not waited for."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.resilience.line import Line, heard_within


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


ECHO = b"*2\r\n$4\r\nECHO\r\n$1\r\na\r\n"


@asynccontextmanager
async def line_to(says: bytes) -> AsyncIterator[Line]:
    """A line to a server that greets like Redis and then answers whatever it is asked with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(says if b"ECHO" in data else b"+OK\r\n" * data.count(b"*"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        line = Line(Redis(port=server.sockets[0].getsockname()[1], protocol=2))
        yield line
        await line.aclose()


@pytest.mark.parametrize("says", [b":1\r\n", b"-LOADING wait\r\n"])
async def test_a_line_that_hears_what_no_script_answers_is_given_up_and_the_next_is_new(says: bytes) -> None:
    async with line_to(says) as line:
        for _ in range(2):
            with pytest.raises(RedisError):
                await line.ask(ECHO, within_s=30.0)


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    async with line_to(b"$1\r\na\r\n$1\r\nb\r\n") as line:
        for _ in range(3):
            assert await line.ask(ECHO, within_s=30.0) == [b"a"]


async def test_silence_drops_the_line_for_all_who_wait() -> None:
    async with line_to(b"") as line:
        asks = [line.ask(ECHO, within_s=within_s) for within_s in (60.0, 0.05)]
        ended = await asyncio.wait_for(asyncio.gather(*asks, return_exceptions=True), 30)
        assert [type(one) for one in ended] == [TimeoutError, TimeoutError]
