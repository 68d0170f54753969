"""One connection for many callers: everybody gets the own answer, whoever gives up or is cut off meanwhile."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shared.resilience.knobs import StoreKnobs
from shared.resilience.line import Line
from shared.resilience.redis_store import open_redis
from workers.ops.background import BackgroundSupervisor


def echo(text: str) -> bytes:
    return b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(text), text.encode())


@pytest.fixture
def url(servers: BackgroundSupervisor) -> str:
    return f"{servers.redis_url.rpartition('/')[0]}/9"


@pytest_asyncio.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    redis = open_redis(StoreKnobs(redis_url=url))
    yield redis
    await redis.aclose()


@pytest_asyncio.fixture
async def line(redis: Redis) -> AsyncIterator[Line]:
    line = Line(redis)
    yield line
    await line.aclose()


async def test_callers_that_give_up_do_not_shift_the_answers_of_others(line: Line) -> None:
    async def ask(number: int) -> None:
        assert await line.ask(echo(f"{number}a"), echo(f"{number}b")) == [f"{number}a".encode(), f"{number}b".encode()]

    for turn in range(40):
        calls = [asyncio.create_task(ask(number)) for number in range(50)]
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        for number in range(0, 50, 3):
            calls[number].cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in ended} <= {type(None), asyncio.CancelledError}
        assert [one for number, one in enumerate(ended) if number % 3] == [None] * 33


async def test_an_error_of_one_command_is_an_answer_and_the_next_is_right(line: Line) -> None:
    first, second = await line.ask(b"*1\r\n$6\r\nNOSUCH\r\n", echo("x"))
    assert isinstance(first, ResponseError) and second == b"x"


async def test_a_lost_connection_fails_those_who_wait_and_the_next_question_connects_anew(
    line: Line, redis: Redis
) -> None:
    await line.ask(echo("x"))
    waiting = asyncio.create_task(line.ask(b"*3\r\n$5\r\nBLPOP\r\n$4\r\nnone\r\n$1\r\n9\r\n"))
    await asyncio.sleep(0.05)
    await redis.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(RedisError):
        await waiting
    assert await line.ask(echo("again")) == [b"again"]


async def test_a_caller_that_gives_up_while_the_line_connects_leaves_no_connection_behind() -> None:
    greeted, left = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            greeted.set()
        writer.close()
        left.set()

    async with await asyncio.start_server(never_answers, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        line = Line(open_redis(StoreKnobs(redis_url=f"redis://127.0.0.1:{port}/0", timeout_s=60.0)))
        asking = asyncio.create_task(line.ask(echo("x")))
        await greeted.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gc.collect()  # what was left to the collector would warn
        await asyncio.wait_for(left.wait(), 30)


async def test_a_line_that_is_closed_while_it_connects_stays_closed(line: Line) -> None:
    asking = asyncio.create_task(line.ask(echo("x")))
    await asyncio.sleep(0)
    await line.aclose()
    for late in (asking, line.ask(echo("y"))):
        with pytest.raises(RedisError, match="closed"):
            await late
    gc.collect()


def test_a_line_outlives_its_event_loop(url: str) -> None:
    async def ask(line: Line | None) -> Line:
        line = line or Line(open_redis(StoreKnobs(redis_url=url)))
        assert await line.ask(echo("x")) == [b"x"]
        line.drop(RedisError("the loop ends"))
        await asyncio.sleep(0)
        return line

    line = asyncio.run(ask(None))
    asyncio.run(ask(line))
