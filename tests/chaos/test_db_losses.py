"""What failovers cost: acknowledged writes are noted outside the database, and looked for in it afterwards.

With a synchronous standby none may be missing. Without one, what the primary alone had is lost with it: counted, shown.
In every other death the primary had not sent its last writes on: as over a slow network.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from shared.db.database import Database
from shared.errors import CommitUnknown, DatabaseUnavailable
from tests.integration.live import eventually
from tests.integration.nodes import ask, group_of, nodes_in
from tests.integration.trio import door_to, router_of
from workers.ops.background import BackgroundSupervisor
from workers.ops.replication.failover import Wish

FAILOVERS = 20 if os.environ.get("CHAOS") == "long" else 2
WRITERS = 4
UNSENT_S = 0.3


@dataclass(slots=True)
class Books:
    """What was promised, by number."""

    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    is_over: bool = False
    _next: int = 0

    def number(self) -> int:
        self._next += 1
        return self._next


async def write(database: Database, books: Books) -> None:
    """One number after the other, through the router, until it is over."""
    while not books.is_over:
        number = books.number()
        try:
            async with database.unit() as unit:
                await unit.execute(text("INSERT INTO kept VALUES (:n)"), {"n": number})
        except CommitUnknown:
            books.unknown.add(number)
        except DatabaseUnavailable:
            await asyncio.sleep(0.02)
        else:
            books.acknowledged.add(number)


async def more(books: Books) -> None:
    """Thirty more are acknowledged."""
    goal = len(books.acknowledged) + 30
    async with asyncio.timeout(60):
        while len(books.acknowledged) < goal:
            await asyncio.sleep(0.01)


def kill_primary(servers: BackgroundSupervisor, books: Books, *, unsent: bool, synchronous: bool) -> None:
    """Dead, and replaced; `unsent`: for a moment before it sent nothing on, and took writes."""
    leader = group_of(servers).leader.name
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'"
    senders = [pid for (pid,) in ask(servers, leader, query)] if unsent else []
    assert bool(senders) == unsent
    for pid in senders:
        os.kill(pid, signal.SIGSTOP)
    if unsent and synchronous:
        time.sleep(UNSENT_S)  # nothing can be acknowledged
    elif unsent:
        seen = len(books.acknowledged)
        eventually(lambda: len(books.acknowledged) > seen + 2 * WRITERS)  # one of each may have been sent on before
    servers.suspend(leader)
    servers.kill(leader)
    for pid in senders:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    servers.failover_db(Wish(force=True))
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    eventually(lambda: ask(servers, group_of(servers).leader.name, streaming) == [(2,)], within_s=60)


@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "asynchronous"])
async def test_no_acknowledged_write_is_lost_with_a_synchronous_standby_and_those_without_one_are_counted(
    synchronous: bool, run_folder: Callable[[], Path]
) -> None:
    books = Books()
    with nodes_in(run_folder(), replicas=2, synchronous=synchronous) as servers:
        ask(servers, group_of(servers).leader.name, "CREATE TABLE kept (number int)")
        async with (
            door_to(servers, statement_timeout_s=5.0, pool_size=WRITERS) as database,
            asyncio.TaskGroup() as writers,
        ):
            for _ in range(WRITERS):
                writers.create_task(write(database, books))
            await more(books)
            timeline = router_of(database).cluster.timeline
            for count in range(FAILOVERS):
                await asyncio.to_thread(
                    kill_primary, servers, books, unsent=count % 2 == 1, synchronous=synchronous
                )  # fmt: skip
                await more(books)
            assert router_of(database).cluster.timeline == timeline + FAILOVERS
            books.is_over = True
        rows = ask(servers, group_of(servers).leader.name, "SELECT number FROM kept")
    there = {number for (number,) in rows}
    lost, late = books.acknowledged - there, books.unknown & there
    print(f"\n{FAILOVERS} failovers, {'with' if synchronous else 'without'} a synchronous standby:")
    print(f"  {len(books.acknowledged)} writes acknowledged, {len(lost)} of them lost")
    print(
        f"  {len(books.unknown)} of unknown end, {len(late)} of them there; no number twice: {len(rows) == len(there)}"
    )
    assert len(rows) == len(there)
    assert there <= books.acknowledged | books.unknown, "what is there was acknowledged, or said to be unknown"
    if synchronous:
        assert lost == set()
    else:
        assert lost, "the dead primary had acknowledged what it had not sent: this test sees losses"
