"""Waiting for a server: patient with outages, impatient with mistakes, and audible."""

import asyncio

import pytest
from structlog.testing import capture_logs

from shared.errors import BadInput, DatabaseUnavailable, ShardMoved
from shared.resilience.reconnect import until_available


class Server:
    """Fails as often as it is told, then answers."""

    def __init__(self, *troubles: BaseException) -> None:
        self.troubles = list(troubles)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.troubles:
            raise self.troubles.pop(0)
        return "here"


async def test_a_server_that_is_there_is_asked_once(waits: list[float]) -> None:
    assert await until_available(Server(), what="PostgreSQL") == "here"
    assert waits == []


async def test_an_outage_is_waited_out_however_long_it_lasts(waits: list[float]) -> None:
    server = Server(*(DatabaseUnavailable("down") for _ in range(200)))
    assert await until_available(server, what="PostgreSQL", cap_s=5.0) == "here"
    assert (server.calls, len(waits)) == (201, 200)
    assert max(waits) <= 5.0
    assert len(set(waits[20:])) > 100, "full jitter: workers that lost one server do not come back together"


@pytest.mark.parametrize("mistake", [BadInput("no"), ValueError("no"), OSError("no"), ShardMoved("no")])
async def test_anything_but_an_outage_is_raised_at_once(waits: list[float], mistake: Exception) -> None:
    server = Server(DatabaseUnavailable("down"), mistake)
    with pytest.raises(type(mistake), match=r"^no$"):
        await until_available(server, what="PostgreSQL")
    assert (server.calls, len(waits)) == (2, 1)


async def test_every_wait_is_logged_with_who_is_awaited_and_why(waits: list[float]) -> None:
    with capture_logs() as lines:
        await until_available(Server(DatabaseUnavailable("no route"), DatabaseUnavailable("refused")), what="the moon")
    told = [(line["event"], line["what"], line["attempt"], line["cause"]) for line in lines]
    assert told == [
        ("resilience.waiting", "the moon", 1, "no route"),
        ("resilience.waiting", "the moon", 2, "refused"),
    ]
    assert [line["wait_s"] for line in lines] == [round(wait, 2) for wait in waits]


async def test_a_cancelled_wait_ends() -> None:
    async def never() -> None:
        raise DatabaseUnavailable("down")

    waiting = asyncio.create_task(until_available(never, what="PostgreSQL"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
