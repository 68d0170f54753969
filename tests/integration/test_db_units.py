"""Units of work on real servers: how they nest, wait, fail and end."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import event, text

from shared.db import tokens
from shared.db.database import Database
from shared.db.explain import explain
from shared.db.sessions import WriteSession
from shared.db.status import database_status
from shared.db.tokens import CausalToken, carrying
from shared.errors import CommitUnknown, DatabaseUnavailable, PoolExhausted, ReadOnlyUnit, ReplicaStale
from tests.integration.live import eventually
from tests.integration.nodes import ask
from tests.integration.trio import FIRST, PRIMARY, SECOND, admitted, door_to, node_name, router_of, trio
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
PID = text("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def table(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    ask(trio, PRIMARY, "CREATE TABLE kept (id int PRIMARY KEY, value int NOT NULL)")
    ask(
        trio,
        PRIMARY,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); END $$",
    )
    ask(trio, PRIMARY, "CREATE TABLE slow (id int)")
    ask(
        trio, PRIMARY, "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()",
    )  # fmt: skip
    return trio


@pytest_asyncio.fixture
async def database(table: BackgroundSupervisor) -> AsyncIterator[Database]:
    async with door_to(table) as database:
        yield database


async def test_a_unit_inside_a_unit_is_the_same_one(database: Database) -> None:
    async with database.unit() as outer:
        async with database.unit() as inner, database.unit(mode="ro", consistency="causal") as reading:
            assert inner is outer
            assert reading is outer  # type: ignore[comparison-overlap]
        await outer.execute(text("SELECT 1"))


async def test_a_writing_unit_inside_a_reading_one_is_a_mistake(database: Database) -> None:
    async with database.unit(mode="ro"):
        with pytest.raises(ReadOnlyUnit, match="open the outer as 'rw'"):
            database.unit()


async def test_a_type_checker_refuses_a_reader_where_a_writer_is_needed(database: Database) -> None:
    """Were the comment below not needed, mypy would complain of it."""

    async def store(unit: WriteSession) -> None:
        await unit.execute(text("INSERT INTO kept VALUES (90, 1)"))

    async with database.unit(mode="ro") as reader:
        with pytest.raises(ReadOnlyUnit):
            await store(reader)  # type: ignore[arg-type]


async def test_a_unit_of_a_child_task_is_its_own(database: Database) -> None:
    async def pid() -> int:
        async with database.unit() as unit:
            return int(await unit.scalar(PID) or 0)

    async with database.unit() as unit:
        assert await asyncio.create_task(pid()) != await unit.scalar(PID)


async def test_a_write_is_seen_by_the_next_causal_read_wherever_it_goes(database: Database) -> None:
    async with database.unit() as unit:
        await unit.execute(text("INSERT INTO kept VALUES (1, 0)"))
    went = set()
    for value in range(1, 1000):
        async with database.unit() as unit:
            await unit.execute(text("UPDATE kept SET value = :value WHERE id = 1"), {"value": value})
        async with database.unit(mode="ro", consistency="causal") as read:
            assert await read.scalar(text("SELECT value FROM kept WHERE id = 1")) == value
            went.add(await read.scalar(text("SELECT pg_is_in_recovery()")))
        if value >= 60 and True in went:
            break
    assert True in went


async def test_a_token_binds_another_process(database: Database, table: BackgroundSupervisor) -> None:
    async with database.unit() as unit:
        await unit.execute(text("INSERT INTO kept VALUES (2, 7)"))
    written = str(tokens.current())
    async with door_to(table) as other, other.unit(mode="ro", consistency="causal", token=written) as read:
        assert await read.scalar(text("SELECT value FROM kept WHERE id = 2")) == 7


async def test_while_replay_is_paused_causal_reads_go_to_the_primary_and_eventual_ones_do_not(
    database: Database, table: BackgroundSupervisor
) -> None:
    await admitted(database)
    for replica in (FIRST, SECOND):
        ask(table, replica, "SELECT pg_wal_replay_pause()")
    try:
        async with database.unit() as unit:
            await unit.execute(text("INSERT INTO kept VALUES (3, 7)"))
        async with database.unit(mode="ro", consistency="causal") as read:
            assert await read.scalar(text("SELECT value FROM kept WHERE id = 3")) == 7
            assert await read.scalar(text("SELECT pg_is_in_recovery()")) is False
        async with database.unit(mode="ro", consistency="eventual") as read:
            assert await read.scalar(text("SELECT value FROM kept WHERE id = 3")) is None
    finally:
        for replica in (FIRST, SECOND):
            ask(table, replica, "SELECT pg_wal_replay_resume()")


async def test_reads_that_no_replica_takes_do_not_all_fall_on_the_primary(table: BackgroundSupervisor) -> None:
    async with door_to(table, overflow=2, overflow_wait_s=0.1) as database:
        async with database.unit() as unit:
            await unit.execute(text("SELECT 1"))
        far = tokens.current()
        assert far is not None
        beyond = CausalToken(far.system_id, far.timeline, far.lsn + (1 << 40))
        started = asyncio.Event()

        async def read() -> str:
            with carrying(beyond):
                try:
                    async with database.unit(mode="ro", consistency="causal") as unit:
                        await started.wait()
                        await unit.execute(text("SELECT 1"))
                        return "read"
                except ReplicaStale as error:
                    return error.message

        readers = [asyncio.create_task(read()) for _ in range(6)]
        done: set[asyncio.Task[str]] = set()
        async with asyncio.timeout(30):
            while len(done) < 4:  # two are on the primary until `started`
                done = {one for one in readers if one.done()}
                await asyncio.sleep(0.01)
        started.set()
        answers = await asyncio.gather(*readers)
        assert answers.count("read") == 2
        assert any("and 2 such reads are on the primary" in answer for answer in answers)


async def test_a_commit_whose_answer_is_lost_is_its_own_result(database: Database, table: BackgroundSupervisor) -> None:
    async def cut(pid: int) -> None:
        commits = "SELECT pid FROM pg_stat_activity WHERE pid = %s AND query LIKE 'COMMIT%%'"
        await asyncio.to_thread(eventually, lambda: ask(table, PRIMARY, commits, pid))
        await asyncio.to_thread(ask, table, PRIMARY, "SELECT pg_terminate_backend(%s)", pid)

    async def write() -> None:
        async with database.unit() as unit:
            pid = int(await unit.scalar(PID) or 0)
            await unit.execute(text("INSERT INTO slow VALUES (1)"))
            tasks.append(asyncio.create_task(cut(pid)))

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(CommitUnknown, match="look whether it is there"):
        await write()
    await tasks[0]
    async with database.unit() as unit:
        assert await unit.scalar(text("SELECT count(*) FROM slow")) == 0


async def test_a_connection_lost_before_commit_is_no_such_thing(
    database: Database, table: BackgroundSupervisor
) -> None:
    async def write() -> None:
        async with database.unit() as unit:
            await asyncio.to_thread(ask, table, PRIMARY, "SELECT pg_terminate_backend(%s)", await unit.scalar(PID))
            await unit.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable) as caught:
        await write()
    assert not isinstance(caught.value, CommitUnknown)


@pytest.mark.parametrize("mode", ["idle", "in use"])
async def test_a_stopped_backend_holds_nobody_beyond_the_limit(table: BackgroundSupervisor, mode: str) -> None:
    async with door_to(table, statement_timeout_s=1.0, answer_timeout_s=0.5) as database:
        async with database.unit() as unit:
            pid = int(await unit.scalar(PID) or 0)
        began = time.monotonic()

        async def work() -> None:
            nonlocal pid
            if mode == "idle":
                os.kill(pid, signal.SIGSTOP)
            async with database.unit() as unit:
                if mode == "in use":
                    pid = int(await unit.scalar(PID) or 0)
                    os.kill(pid, signal.SIGSTOP)
                await unit.execute(text("SELECT 1"))

        try:
            if mode == "idle":  # the ping is cut, another connection is opened
                await work()
            else:
                with pytest.raises(DatabaseUnavailable, match=r"silent for 1\.5 s"):
                    await work()
            assert time.monotonic() - began < 10
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_connection_that_ended_while_nobody_had_it_is_replaced_before_anything_is_asked(
    database: Database, table: BackgroundSupervisor
) -> None:
    async with database.unit() as unit:
        pid = int(await unit.scalar(PID) or 0)
    await asyncio.to_thread(ask, table, PRIMARY, "SELECT pg_terminate_backend(%s, 5000)", pid)
    async with database.unit() as unit:
        assert await unit.scalar(PID) != pid


async def test_a_unit_that_has_asked_nothing_yet_holds_nothing_back_and_may_still_be_of_any_kind(
    database: Database, table: BackgroundSupervisor
) -> None:
    """Its transaction has begun: that says whether the server is there."""
    how = {"isolation_level": "REPEATABLE READ", "postgresql_deferrable": True}
    async with database.unit() as unit:
        pid = int(await unit.scalar(PID) or 0)
    async with database.unit() as unit:
        held = "SELECT state, backend_xid, backend_xmin FROM pg_stat_activity WHERE pid = %s"
        assert await asyncio.to_thread(ask, table, PRIMARY, held, pid) == [("idle in transaction", None, None)]
        await unit.connection(execution_options=how)
        assert await unit.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert await unit.scalar(text("SHOW transaction_deferrable")) == "on"
    async with database.unit(mode="ro") as read:
        await read.connection(execution_options=how)
        assert await read.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert await read.scalar(text("SHOW transaction_read_only")) == "on"
    async with database.unit() as unit:
        kinds = [text(f"SHOW transaction_{kind}") for kind in ("isolation", "read_only", "deferrable")]
        assert [await unit.scalar(kind) for kind in kinds] == ["read committed", "off", "off"]
        assert await unit.scalar(PID) == pid


async def test_a_connection_in_use_while_its_door_closes_is_closed_when_it_comes_back(
    table: BackgroundSupervisor,
) -> None:
    async with door_to(table) as database:
        async with database.unit() as unit:
            raw = await (await unit.connection()).get_raw_connection()
            link: Any = raw.driver_connection
            await database.close()
            assert await unit.scalar(PID)
        assert link.closed


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_a_connection_that_is_cut_right_after_its_begin_is_an_outage_like_any_other(
    database: Database, mode: Any
) -> None:
    def cut(_connection: Any, record: Any, _proxy: Any) -> None:
        record.driver_connection._hang_up()

    async with database.unit() as unit:
        assert await unit.scalar(PID)
    event.listen(database.pool.engine.sync_engine.pool, "checkout", cut)
    with pytest.raises(DatabaseUnavailable):
        async with database.unit(mode=mode) as unit:
            await unit.scalar(PID)


async def test_an_exhausted_pool_says_who_holds_it(table: BackgroundSupervisor) -> None:
    async with door_to(table, pool_size=1, connect_timeout_s=2) as database:
        release, held = asyncio.Event(), asyncio.Semaphore(0)

        async def hold() -> None:
            async with database.unit() as unit:
                await unit.execute(text("SELECT 1"))
                held.release()
                await release.wait()

        holders = [asyncio.create_task(hold(), name=f"holder-{number}") for number in (1, 2)]
        async with asyncio.timeout(30):
            for _ in holders:
                await held.acquire()
        with pytest.raises(PoolExhausted, match=r"all 2 of this process are in use.*holder-[12], holder-[12], waiter"):
            await asyncio.create_task(hold(), name="waiter")
        release.set()
        await asyncio.gather(*holders)


async def test_the_status_names_each_node_and_the_decision_is_explained(
    database: Database, table: BackgroundSupervisor
) -> None:
    await admitted(database)
    first, *others = await database_status(database)
    assert (first.name, first.role, first.timeline, first.lag_bytes) == (node_name(table, PRIMARY), "primary", 1, 0)
    assert [(one.role, one.admitted, one.reason) for one in others] == [("replica", True, "streaming and fresh")] * 2
    found = await explain(database, mode="ro", consistency="causal", token="garbage")
    assert found.node == node_name(table, PRIMARY)
    assert found.reason.endswith("the token cannot be read: it is ignored")
    assert len(found.considered) == 3


async def test_reads_never_use_a_writing_connection_of_a_replica(database: Database) -> None:
    await admitted(database)
    async with database.unit(mode="ro", consistency="eventual") as unit:
        assert await unit.scalar(text("SHOW default_transaction_read_only")) == "on"
    assert all(node.writer.in_use == 0 for node in router_of(database).nodes.values())
