"""What a server's own words mean to a unit of work: no writes here, a standby, standbys that may lack a commit."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from sqlalchemy import text

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import carrying
from shared.errors import CommitUnknown, PrimaryLost, ReplicaStale
from tests.integration.live import eventually
from tests.integration.nodes import ask
from tests.integration.trio import FIRST, PRIMARY, admitted, trio, url_of
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
PID = text("SELECT pg_backend_pid()")
WAITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def table(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    ask(trio, PRIMARY, "CREATE TABLE kept (id int PRIMARY KEY)")
    ask(trio, PRIMARY, "CREATE TABLE warned (id int)")
    ask(
        trio, PRIMARY, "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE WARNING 'somebody warns'; RETURN NULL; END $$",
    )  # fmt: skip
    ask(
        trio, PRIMARY, "CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON warned DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION warn()",
    )  # fmt: skip
    eventually(lambda: ask(trio, FIRST, "SELECT to_regclass('warned') IS NOT NULL") == [(True,)])
    return trio


@asynccontextmanager
async def door(servers: BackgroundSupervisor, *nodes: str) -> AsyncIterator[Database]:
    urls = [url_of(servers, node) for node in nodes]
    database = Database(DbKnobs(url=urls[0], replicas=",".join(urls[1:]), look_every_s=0.05))
    with carrying(None):
        try:
            yield database
        finally:
            await database.close()


@contextmanager
def setting(servers: BackgroundSupervisor, node: str, name: str, value: str) -> Iterator[None]:
    """A server's setting, changed for a while; sessions that are open hear of it."""

    def change(statement: str, wanted: str | None) -> None:
        was = ask(servers, node, f"SHOW {name}")[0][0]
        ask(servers, node, statement)
        ask(servers, node, "SELECT pg_reload_conf()")
        eventually(lambda: ask(servers, node, f"SHOW {name}")[0][0] == (wanted or was) or wanted is None)

    change(f"ALTER SYSTEM SET {name} = '{value}'", value)
    try:
        yield
    finally:
        change(f"ALTER SYSTEM RESET {name}", None)


async def test_a_server_that_refuses_a_write_is_no_primary_any_more_and_its_connection_is_not_used_again(
    table: BackgroundSupervisor,
) -> None:
    async def write(number: int) -> int:
        async with database.unit() as unit:
            pid = int(await unit.scalar(PID) or 0)
            await unit.execute(text("INSERT INTO kept VALUES (:id)"), {"id": number})
            return pid

    async with door(table, PRIMARY) as database:
        pid = await write(1)
        with (
            setting(table, PRIMARY, "default_transaction_read_only", "on"),
            pytest.raises(PrimaryLost, match="takes no writes any more"),
        ):
            await write(2)
        eventually(lambda: ask(table, PRIMARY, "SHOW default_transaction_read_only") == [("off",)])
        assert await write(3) != pid


async def test_a_connection_to_a_standby_is_not_handed_out_for_writes(table: BackgroundSupervisor) -> None:
    async with door(table, FIRST) as database:
        with pytest.raises(PrimaryLost, match="is a standby now"):
            async with database.unit():
                pass
        link = await database.direct()
        with pytest.raises(psycopg.OperationalError, match="takes no writes"):
            await link.execute("INSERT INTO kept VALUES (9)")
        assert link.closed


async def test_a_commit_whose_wait_for_standbys_was_cancelled_is_unknown_and_no_other_warning_is(
    table: BackgroundSupervisor,
) -> None:
    async def write(number: int) -> None:
        async with database.unit() as unit:
            await unit.execute(text("INSERT INTO kept VALUES (:id)"), {"id": number})

    async def release() -> None:
        async with asyncio.timeout(20):
            while not (waiting := await asyncio.to_thread(ask, table, PRIMARY, WAITS)):
                await asyncio.sleep(0.02)
        await asyncio.to_thread(ask, table, PRIMARY, "SELECT pg_cancel_backend(%s)", waiting[0][0])

    async with door(table, PRIMARY) as database:
        link = await database.direct()
        with setting(table, PRIMARY, "synchronous_standby_names", "nobody"):
            ask(table, PRIMARY, "CHECKPOINT")  # commits wait once the checkpointer has heard of it: then it has
            releasing = asyncio.create_task(release())
            with pytest.raises(CommitUnknown, match="they may not have it"):
                await write(11)
            await releasing
            releasing = asyncio.create_task(release())
            with pytest.raises(psycopg.OperationalError, match="they may not have it"):
                await link.execute("INSERT INTO kept VALUES (12)")
            await releasing
        await link.execute("DO $$ BEGIN RAISE WARNING 'somebody warns'; END $$")
        await link.close()
        assert ask(table, PRIMARY, "SELECT count(*) FROM kept WHERE id IN (11, 12)") == [(2,)]
        async with database.unit() as unit:
            await unit.execute(text("INSERT INTO warned VALUES (1)"))


async def test_a_read_that_replay_takes_back_is_stale_and_may_be_tried_at_once(table: BackgroundSupervisor) -> None:
    ask(table, PRIMARY, "INSERT INTO kept SELECT generate_series(1000, 1999)")

    async def read() -> None:
        async with database.unit(mode="ro", consistency="eventual") as unit:
            assert await unit.scalar(text("SELECT pg_is_in_recovery()")) is True
            reading.set()
            await unit.execute(text("SELECT count(*), pg_sleep(30) FROM kept GROUP BY id"))

    reading = asyncio.Event()
    with setting(table, FIRST, "max_standby_streaming_delay", "0"):
        async with door(table, PRIMARY, FIRST) as database:
            await admitted(database)
            task = asyncio.create_task(read())
            await reading.wait()
            while not task.done():
                await asyncio.to_thread(ask, table, PRIMARY, "DELETE FROM kept WHERE id >= 1000")
                await asyncio.to_thread(ask, table, PRIMARY, "VACUUM kept")
                await asyncio.to_thread(ask, table, PRIMARY, "INSERT INTO kept SELECT generate_series(1000, 1999)")
                await asyncio.wait([task], timeout=0.3)
            with pytest.raises(ReplicaStale, match="took back what this read saw") as caught:
                await task
            assert caught.value.retry_after_s == 0.0
