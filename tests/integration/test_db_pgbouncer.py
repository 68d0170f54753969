"""Units of work through a real PgBouncer in transaction mode: all clients share two connections to each server."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import carrying
from shared.errors import Misconfigured, ReadOnlyUnit
from shared.ledger.roster import enlist
from shared.ledger.rows import accept_statement
from tests.integration.by_hand import ByHand
from tests.integration.live import eventually
from tests.integration.nodes import ask, dsn, group_of
from tests.integration.trio import FIRST, PATIENT_S, PRIMARY, migrate, trio, url_of
from workers.ops.background import BackgroundSupervisor
from workers.ops.ports import free_port

__all__ = ["trio"]
BEHIND = (PRIMARY, FIRST)
CONFIG = """
[databases]
fleet = host=127.0.0.1 port={to} dbname=fleet user=fleet
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
logfile = {log}
"""
Urls = dict[str, str]


@pytest.fixture(scope="module")
def poolers(trio: BackgroundSupervisor, run_folder: Callable[[], Path]) -> Iterator[Urls]:
    """A PgBouncer before the primary and one before a replica; their addresses."""
    ask(trio, PRIMARY, "CREATE TABLE kept (id int PRIMARY KEY)")
    migrate(url_of(trio, PRIMARY))
    ask(trio, PRIMARY, "UPDATE db_heartbeat SET beat_at = clock_timestamp() - interval '1 hour'")
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    with pooler(trio, PRIMARY, folder) as first, pooler(trio, FIRST, folder) as second:
        yield {PRIMARY: first, FIRST: second}


@contextmanager
def pooler(servers: BackgroundSupervisor, node: str, folder: Path) -> Iterator[str]:
    port, binary = free_port(taken=set()), shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert binary, "run deploy/servers"
    file = folder / f"{node}.ini"
    file.write_text(CONFIG.format(to=group_of(servers).node(node).port, port=port, log=folder / f"{node}.log"))
    file.chmod(0o644)
    process = subprocess.Popen([*servers.around.privileges.prefix, binary, "-q", str(file)], cwd=folder)
    try:
        eventually(lambda: is_up(port))
        yield f"postgresql+psycopg://fleet@127.0.0.1:{port}/fleet"
    finally:
        process.terminate()
        process.wait(timeout=10)


def is_up(port: int) -> bool:
    try:
        psycopg.connect(dsn(port), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@asynccontextmanager
async def door(servers: BackgroundSupervisor, poolers: Urls, *nodes: str) -> AsyncIterator[Database]:
    direct = ",".join(url_of(servers, node) for node in nodes)
    urls = [poolers[node] for node in nodes]
    knobs = DbKnobs(
        url=urls[0], replicas=",".join(urls[1:]), pooler="pgbouncer", direct_url=direct, look_every_s=0.05,
        answer_timeout_s=PATIENT_S,
    )  # fmt: skip
    database = Database(knobs, application_name="pooled")
    with carrying(None):
        try:
            yield database
        finally:
            await database.close()


@pytest_asyncio.fixture
async def database(trio: BackgroundSupervisor, poolers: Urls) -> AsyncIterator[Database]:
    async with door(trio, poolers, *BEHIND) as database:
        yield database


async def each_connection(database: Database, question: str) -> set[Any]:
    """What several units at once, which share the pooler's few connections, are told."""

    async def one() -> Any:
        async with database.unit() as unit:
            return await unit.scalar(text(question))

    return set(await asyncio.gather(*(one() for _ in range(8))))


@pytest.mark.parametrize("nodes", [(PRIMARY,), BEHIND])
async def test_units_write_and_read_and_nothing_of_a_reading_one_stays_behind(
    trio: BackgroundSupervisor, poolers: Urls, nodes: tuple[str, ...]
) -> None:
    async with door(trio, poolers, *nodes) as database:
        for number in range(30):  # more often than psycopg would take to prepare a statement
            async with database.unit() as unit:
                identity = {"id": 1000 * len(nodes) + number}
                await unit.execute(text("INSERT INTO kept VALUES (:id)"), identity)
            async with database.unit(mode="ro") as read:
                assert await read.scalar(text("SHOW transaction_read_only")) == "on"
                assert await read.scalar(text("SELECT count(*) FROM kept WHERE id = :id"), identity) == 1
                with pytest.raises(ReadOnlyUnit):
                    await read.execute(text("DELETE FROM kept"))
        assert await each_connection(database, "SHOW transaction_read_only") == {"off"}
        assert await each_connection(database, "SHOW default_transaction_read_only") == {"off"}
        assert await each_connection(database, "SELECT count(*) FROM pg_prepared_statements") == {0}


async def test_reads_on_a_replica_are_causal_and_read_only(database: Database) -> None:
    went = set()
    for number in range(900):
        async with database.unit() as unit:
            await unit.execute(text("INSERT INTO kept VALUES (:id)"), {"id": number})
        async with database.unit(mode="ro", consistency="causal") as read:
            assert await read.scalar(text("SELECT count(*) FROM kept WHERE id = :id"), {"id": number}) == 1
            link: Any = (await (await read.connection()).get_raw_connection()).driver_connection
            assert link.read_only, "it begins its transactions so: the server may be promoted meanwhile"
            went.add(await read.scalar(text("SELECT pg_is_in_recovery()")))
        if number >= 30 and True in went:
            break
    assert True in went


async def test_heartbeats_wait_for_no_standby_and_other_clients_still_do(
    database: Database, trio: BackgroundSupervisor
) -> None:
    async with database.unit() as unit:
        await unit.execute(text("SELECT 1"))
    deadline = time.monotonic() + 20
    fresh = "SELECT clock_timestamp() - beat_at < interval '10 s' FROM db_heartbeat"
    while await asyncio.to_thread(ask, trio, PRIMARY, fresh) != [(True,)]:
        assert time.monotonic() < deadline
    assert await each_connection(database, "SHOW synchronous_commit") == {"on"}


async def test_a_task_is_accepted_claimed_journaled_and_finished_through_it(database: Database) -> None:
    worker = ByHand(database)
    message = TaskMessage("a")
    try:
        await enlist(database, worker=worker.id, name="pooled", host="here", pid=1, slots=10)
        async with database.unit() as unit:
            await unit.execute(accept_statement(message, dispatch_after_s=1.0))
        claim = await worker.claim(message.id)
        assert await worker.steps(claim, "one", "two") == ["one", "two"]
        await worker.runs.succeed(claim, {"said": "hi"}, {})
        assert (await worker.row(message.id)).state == "succeeded"
        assert len(await worker.all("SELECT 1 FROM steps WHERE task_id = :id", id=message.id)) == 2
    finally:
        await worker.commit.close()


async def test_what_needs_a_connection_of_its_own_goes_past_the_pooler(
    database: Database, trio: BackgroundSupervisor
) -> None:
    link = await database.direct()
    try:
        await link.execute("SELECT pg_advisory_lock(7)")
        pid = link.info.backend_pid
        await each_connection(database, "SELECT 1")
        held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
        assert ask(trio, PRIMARY, held) == [(pid,)]
        assert link.info.port == group_of(trio).node(PRIMARY).port
    finally:
        await link.close()


def test_behind_a_pooler_the_way_past_it_must_be_known() -> None:
    with pytest.raises(Misconfigured, match="behind a pooler it must name the 1 nodes"):
        Database(DbKnobs(pooler="pgbouncer"))
