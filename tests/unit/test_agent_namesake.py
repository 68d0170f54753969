"""Who counts as a living worker of the same name, and what the second one says."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from shared.errors import Misconfigured
from shared.ledger.roster import Elder
from tests.fakes.hand_loop import at_once
from workers.agents.namesake import is_surely_gone, refuse_second

THEN = datetime(2031, 1, 1, tzinfo=UTC)


def elder(host: str = "elsewhere", pid: int = 7, *, beats: int = 0) -> Elder:
    return Elder(UUID(int=1), host, pid, THEN + timedelta(seconds=beats))


@pytest.mark.parametrize(
    ("host", "pid", "is_gone"),
    [("here", 7, False), ("here", 8, True), ("here", 1, True), ("elsewhere", 8, False), ("elsewhere", 1, False)],
)
def test_a_worker_is_surely_gone_when_its_process_is(host: str, pid: int, is_gone: bool) -> None:
    assert is_surely_gone(elder(host, pid), host="here", own_pid=1, runs=lambda pid: pid == 7) is is_gone


def test_a_second_worker_is_refused_once_the_first_shows_that_it_lives() -> None:
    looks = iter([[elder()], [elder()], [elder(beats=5)]])

    async def look() -> list[Elder]:
        return next(looks)

    with pytest.raises(Misconfigured) as caught:
        at_once(refuse_second("w@h", look, heartbeat_s=5))
    assert caught.value.message == (
        "another worker named 'w@h' is running (process 7 on elsewhere): give each its own name, for example "
        "-n worker-2@%h"
    )


def test_one_that_shows_no_sign_of_life_stands_in_nobodys_way() -> None:
    async def look() -> list[Elder]:
        return [elder()]

    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        await refuse_second("w@h", look, heartbeat_s=5)
        return asyncio.get_running_loop().time() - began

    assert 7.5 <= at_once(timed()) < 8


def test_a_killed_worker_is_replaced_under_its_name_at_once() -> None:
    async def look() -> list[Elder]:
        return [elder(socket.gethostname(), 2**22 + 1)]

    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        await refuse_second("w@h", look, heartbeat_s=5)
        return asyncio.get_running_loop().time() - began

    assert at_once(timed()) == 0
