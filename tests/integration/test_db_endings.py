"""How units of work end: cancelled, on a frozen server, by the caller's mistake, or on a primary that is no more."""

import asyncio
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text

from shared.db.absence import PROTOCOL_3
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import CausalToken, carrying
from shared.errors import DatabaseUnavailable, PrimaryLost, ReadOnlyUnit
from shared.telemetry import db_metrics as metrics
from tests.integration.nodes import ask
from tests.integration.trio import FIRST, PATIENT_S, PRIMARY, door_to, node_name, router_of, standing_of, trio, url_of
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
PID = text("SELECT pg_backend_pid()")
AT_ONCE_S = 8.0
"""Less than psycopg waits for a frozen server by itself (10 s), far more than is needed here."""


@pytest.fixture(scope="module")
def table(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    ask(trio, PRIMARY, "CREATE TABLE kept (id int PRIMARY KEY)")
    return trio


@pytest_asyncio.fixture
async def database(table: BackgroundSupervisor) -> AsyncIterator[Database]:
    async with door_to(table) as database:
        yield database


@pytest.fixture(params=["one node", "three nodes"])
async def any_door(table: BackgroundSupervisor, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    if request.param == "three nodes":
        async with door_to(table) as database:
            yield database
        return
    database = Database(DbKnobs(url=url_of(table, PRIMARY), answer_timeout_s=PATIENT_S), application_name="single")
    yield database
    await database.close()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A backend that keeps its connection open and says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("mistake", [FileNotFoundError, TimeoutError, ConnectionResetError])
async def test_the_callers_own_mistakes_pass_unchanged(any_door: Database, mistake: type[Exception]) -> None:
    async def work() -> None:
        async with any_door.unit() as unit:
            await unit.execute(text("SELECT 1"))
            raise mistake("the caller's own")

    with pytest.raises(mistake) as caught:
        await work()
    assert type(caught.value) is mistake
    async with any_door.unit() as unit:
        assert await unit.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("where", ["in a statement", "elsewhere"])
async def test_a_unit_on_a_frozen_server_ends_when_its_caller_says_so(any_door: Database, where: str) -> None:
    async with any_door.unit() as unit:  # the nodes have been looked at, a connection is there
        await unit.execute(text("SELECT 1"))

    async def work() -> None:
        async with asyncio.timeout(1), any_door.unit() as unit:
            until_its_end.enter_context(frozen(int(await unit.scalar(PID) or 0)))
            await (unit.execute(text("SELECT 1")) if where == "in a statement" else asyncio.Event().wait())

    with ExitStack() as until_its_end:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await work()
        assert time.monotonic() - began < AT_ONCE_S
    async with any_door.unit() as unit:
        assert await unit.scalar(text("SELECT 1")) == 1


async def test_a_statement_that_its_caller_gives_up_ends_on_the_server_too(any_door: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), any_door.unit() as unit:
            await unit.execute(text("SELECT pg_sleep(30), 'given up'"))
    async with any_door.unit() as unit:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%given up%' AND state = 'active' AND pid <> "
        async with asyncio.timeout(10):  # its own limit is 15 s
            while await unit.scalar(text(f"{busy} pg_backend_pid()")):
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("goes_on_with", ["a statement", "its end"])
async def test_a_process_that_stands_still_in_a_unit_keeps_its_rows_from_nobody_for_long(
    database: Database, table: BackgroundSupervisor, goes_on_with: str
) -> None:
    insert = text("INSERT INTO kept VALUES (77)")

    async def stand_still(still: Database) -> None:
        async with still.unit() as unit:
            await unit.execute(insert)
            async with asyncio.timeout(60), database.unit() as other:  # waits for the first one's end
                await other.execute(insert)
            if goes_on_with == "a statement":
                await unit.execute(text("SELECT 1"))

    async with door_to(table, idle_in_transaction_s=0.5) as still:
        with pytest.raises(DatabaseUnavailable):
            await stand_still(still)
        async with still.unit() as unit:
            assert len((await unit.execute(text("DELETE FROM kept WHERE id = 77 RETURNING id"))).all()) == 1


async def test_who_is_cancelled_while_a_connection_is_opened_is_cancelled_and_nothing_else(
    table: BackgroundSupervisor,
) -> None:
    async with door_to(table, pool_size=1) as database:
        release = asyncio.Event()

        async def hold() -> None:
            async with database.unit():
                await release.wait()

        holders = [asyncio.create_task(hold()) for _ in range(3)]  # two have a connection, the third waits for one
        pool = router_of(database).writer
        while pool.in_use < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        for holder in holders:
            holder.cancel()
        ended = await asyncio.gather(*holders, return_exceptions=True)
        assert [type(one) for one in ended] == [asyncio.CancelledError] * 3
        assert pool.in_use == 0


async def test_a_server_that_lets_in_and_then_says_nothing_has_a_limit_from_its_first_question_on() -> None:
    """The driver asks some before a unit has begun."""
    has_ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in_and_fall_silent(reader, writer)
        has_ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        knobs = DbKnobs(url=f"postgresql+psycopg://fleet@127.0.0.1:{port}/fleet", answer_timeout_s=0.5)
        database = Database(knobs)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"silent for 0\.5 s"):
            async with database.unit():
                pass
        assert time.monotonic() - began < AT_ONCE_S
        await database.close()
        await has_ended.wait()


async def let_in_and_fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    is_encryption_asked = True
    while is_encryption_asked:
        size, code = struct.unpack("!ii", await reader.readexactly(8))
        await reader.readexactly(size - 8)
        is_encryption_asked = code != PROTOCOL_3
        writer.write(
            b"N" if is_encryption_asked else b"R" + struct.pack("!ii", 8, 0) + b"Z" + struct.pack("!ic", 5, b"I")
        )
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_a_unit_inside_one_that_sees_less_is_refused_with_both_named(any_door: Database) -> None:
    token = CausalToken(7, 1, 100)
    async with any_door.unit(mode="ro", consistency="eventual"):
        with pytest.raises(ReadOnlyUnit, match=r"='primary' was opened inside .*='eventual'"):
            any_door.unit(mode="ro")
        with carrying(token), pytest.raises(ReadOnlyUnit, match=r"='causal'.* inside .*='eventual'"):
            any_door.unit(mode="ro", consistency="causal")
        async with any_door.unit(mode="ro", consistency="eventual"):
            pass
    async with any_door.unit(mode="ro"), any_door.unit(mode="ro", consistency="causal", token=token):
        pass


@pytest.mark.parametrize(("consistency", "is_marked"), [("primary", True), ("causal", True), ("eventual", False)])
async def test_reads_of_the_primary_bind_those_after_them_and_reads_of_any_age_do_not(
    database: Database, consistency: Literal["primary", "causal", "eventual"], is_marked: bool
) -> None:
    with carrying(None) as trail:
        async with database.unit(mode="ro", consistency=consistency) as read:
            await read.execute(text("SELECT 1"))
        assert (trail.token is not None) == is_marked


async def test_a_causal_read_does_not_join_one_that_may_lack_its_token(database: Database) -> None:
    async with database.unit() as unit:
        await unit.execute(text("INSERT INTO kept VALUES (1)"))
    system_id = router_of(database).cluster.system_id
    assert system_id is not None
    early, late = CausalToken(system_id, 1, 1), CausalToken(system_id, 1, 1 << 40)
    with carrying(None):
        async with database.unit(mode="ro", consistency="causal", token=early):
            async with database.unit(mode="ro", consistency="causal"):
                pass
            with pytest.raises(ReadOnlyUnit, match=r"='causal' at 100/0 on .*='causal' at 0/1 on"):
                database.unit(mode="ro", consistency="causal", token=late)


async def test_impossible_tokens_are_ignored_and_counted(database: Database) -> None:
    async with database.unit() as unit:
        await unit.execute(text("SELECT 1"))
    system_id = router_of(database).cluster.system_id
    assert system_id is not None
    hostile = {
        "future": CausalToken(system_id, 999, 1),
        "beyond": CausalToken(system_id, 1, (1 << 64) - 1),
        "foreign": CausalToken(system_id ^ 1, 1, 1, 10**14),
    }
    for why, token in hostile.items():
        before = counted(metrics.TOKENS_LOST, why)
        with carrying(token) as trail:
            async with database.unit(mode="ro", consistency="causal") as read:
                assert await read.scalar(text("SELECT pg_is_in_recovery()")) is False
            assert trail.token is not None
            assert trail.token.place[:2] == (system_id, 1) and trail.token.lsn < 1 << 40, "it knows its own end now"
        assert counted(metrics.TOKENS_LOST, why) == before + 1
    before = counted(metrics.TOKENS_UNREADABLE, "unit")
    async with database.unit(mode="ro", consistency="causal", token="wt1.garbage"):
        pass
    assert counted(metrics.TOKENS_UNREADABLE, "unit") == before + 1


async def test_a_foreign_token_does_not_displace_ones_own(database: Database, table: BackgroundSupervisor) -> None:
    async with database.unit() as unit:
        await unit.execute(text("INSERT INTO kept VALUES (2)"))
    own = router_of(database).believed(None)
    assert own is not None
    assert router_of(database).believed(CausalToken(own.system_id ^ 1, 1, 1, 10**14)) == own


async def test_a_node_of_another_cluster_is_never_the_primary(
    table: BackgroundSupervisor, servers: BackgroundSupervisor
) -> None:
    own, foreign = url_of(table, PRIMARY), servers.db_url
    away = url_of(table, PRIMARY).replace(f":{node_name(table, PRIMARY).split(':')[1]}/", ":1/")
    database = Database(DbKnobs(url=own, replicas=foreign, look_every_s=0.05))
    try:
        async with database.unit() as unit:
            assert await unit.scalar(text("SELECT to_regclass('kept') IS NOT NULL")) is True
        deadline = time.monotonic() + 20
        while "another cluster's" not in standing_of(database, name_of(foreign)).why:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    finally:
        await database.close()
    database = Database(DbKnobs(url=away, replicas=f"{foreign},{own}", look_every_s=0.05))
    try:
        with pytest.raises(PrimaryLost, match="is not known yet"):
            async with database.unit():
                pass
    finally:
        await database.close()


def name_of(url: str) -> str:
    return url.rpartition("@")[2].partition("/")[0]


async def test_a_primary_that_was_replaced_commits_nothing_more_and_its_connections_are_cut(
    table: BackgroundSupervisor,
) -> None:
    """The last of this module: it leaves two primaries behind."""
    async with door_to(table) as database:
        router = router_of(database)
        failovers = metrics.FAILOVERS._value.get()
        kept = await database.direct()

        async def write() -> None:
            async with database.unit() as unit:
                await unit.execute(text("INSERT INTO kept VALUES (99)"))
                await asyncio.to_thread(ask, table, FIRST, "SELECT pg_promote()")
                async with asyncio.timeout(20):
                    while router.cluster.primary is None or router.cluster.primary.name != node_name(table, FIRST):
                        await asyncio.sleep(0.01)

        with pytest.raises(PrimaryLost, match="is not the primary any more"):
            await write()
        assert ask(table, PRIMARY, "SELECT count(*) FROM kept WHERE id = 99") == [(0,)]
        with pytest.raises(psycopg.OperationalError):
            await kept.execute("SELECT 1")
        await kept.close()
        assert metrics.FAILOVERS._value.get() == failovers + 1
        why = standing_of(database, node_name(table, PRIMARY)).why
        assert why == "it takes writes on timeline 1, which ended: 2 is known"
        async with database.unit() as unit:
            assert await unit.scalar(text("SELECT current_setting('port')")) == node_name(table, FIRST).split(":")[1]


async def test_a_write_that_was_lost_in_a_failover_is_said_to_be_lost(table: BackgroundSupervisor) -> None:
    """Goes on where the one before left off: the old primary is alive, and takes a write that the new one never had."""
    ask(table, PRIMARY, "INSERT INTO kept VALUES (100)")
    position, system_id = ask(
        table, PRIMARY, "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn, system_identifier FROM pg_control_system()"
    )[0]
    lost = CausalToken(system_id, 1, int(position))
    async with door_to(table) as database:
        before = counted(metrics.TOKENS_LOST, "lost")
        async with database.unit(mode="ro", consistency="causal", token=lost) as read:
            assert await read.scalar(text("SELECT current_setting('port')")) == node_name(table, FIRST).split(":")[1]
        assert counted(metrics.TOKENS_LOST, "lost") == before + 1


def counted(counter: object, label: str) -> float:
    return float(counter.labels(label)._value.get())  # type: ignore[attr-defined]
