"""What three real nodes with the fleet's tables are told and asked: heartbeats, reads, status, and no more."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import event, text

from shared.db import tokens
from shared.db import view as viewing
from shared.db.database import Database
from shared.db.facts import Facts
from shared.db.knobs import DbKnobs
from shared.db.pools import process_name
from shared.db.status import NodeStatus, database_status
from shared.db.tokens import CausalToken, carrying
from shared.ledger.roster import enlist
from tests.integration.live import eventually
from tests.integration.nodes import ask, group_of
from tests.integration.trio import (
    FIRST,
    NODES,
    PRIMARY,
    SECOND,
    admitted,
    door_to,
    migrate,
    node_name,
    router_of,
    standing_of,
    trio,
    url_of,
)
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
BEAT = "SELECT extract(epoch FROM beat_at)::float8 FROM db_heartbeat"


@pytest.fixture(scope="module")
def tables(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    migrate(url_of(trio, PRIMARY))
    for replica in (FIRST, SECOND):
        eventually(partial(has_tables, trio, replica))
    return trio


def has_tables(servers: BackgroundSupervisor, node: str) -> bool:
    return ask(servers, node, "SELECT to_regclass('db_reads') IS NOT NULL") == [(True,)]


@pytest_asyncio.fixture
async def database(tables: BackgroundSupervisor) -> AsyncIterator[Database]:
    async with door_to(tables) as database:
        await admitted(database)
        yield database


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.02)


def facts_of(database: Database, servers: BackgroundSupervisor, node: str) -> Facts:
    facts = standing_of(database, node_name(servers, node)).facts
    assert facts is not None
    return facts


async def test_the_primary_has_a_heartbeat_every_second_which_replicas_show(
    database: Database, tables: BackgroundSupervisor
) -> None:
    first = ask(tables, PRIMARY, BEAT)[0][0]
    await until(lambda: ask(tables, PRIMARY, BEAT)[0][0] >= first + 2)
    beats = router_of(database).cluster.beats
    assert all(later - earlier > 0.9 for earlier, later in pairwise(beats[1:]))
    await until(lambda: (facts_of(database, tables, FIRST).beat_s or 0) >= first + 2)


async def test_a_heartbeat_of_a_clock_that_was_ahead_is_overwritten_at_once(
    database: Database, tables: BackgroundSupervisor
) -> None:
    ask(tables, PRIMARY, "UPDATE db_heartbeat SET beat_at = clock_timestamp() + interval '1 hour'")
    await until(lambda: ask(tables, PRIMARY, "SELECT beat_at <= clock_timestamp() FROM db_heartbeat") == [(True,)])


async def test_a_replica_that_stands_still_grows_older_by_the_heartbeat_alone(
    database: Database, tables: BackgroundSupervisor
) -> None:
    router = router_of(database)
    await until(lambda: len(router.cluster.beats) > 2)
    await until(lambda: facts_of(database, tables, FIRST).beat_s in router.cluster.beats[1:])
    ask(tables, FIRST, "SELECT pg_wal_replay_pause()")
    try:
        await until(lambda: ask(tables, FIRST, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)])
        paused_at = time.monotonic()  # a look before may not have seen the last beat that was replayed
        await until(lambda: facts_of(database, tables, FIRST).seen_at > paused_at)
        stopped = facts_of(database, tables, FIRST)
        await until(lambda: router.cluster.beats[-1] >= (stopped.beat_s or 0) + 2)
        view = replace(router.cluster, flushed=())
        by_beats = view.lag_s(facts_of(database, tables, FIRST), now=time.monotonic())
        assert by_beats is not None
        assert by_beats >= 2
    finally:
        ask(tables, FIRST, "SELECT pg_wal_replay_resume()")


async def test_the_status_is_of_all_processes(tables: BackgroundSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "TELL_EVERY_S", 0.05)
    nodes = [url_of(tables, name) for name in NODES]
    knobs = DbKnobs(url=nodes[0], replicas=",".join(nodes[1:]), look_every_s=0.05)
    reading = Database(knobs, application_name=process_name("fleet-worker"))
    asking = Database(knobs, application_name=process_name("fleet-client"))
    try:
        with carrying(None):
            for _ in range(4):
                async with reading.unit(mode="ro", consistency="eventual") as unit:
                    await unit.execute(text("SELECT 1"))
            async with reading.unit(mode="ro") as unit:
                await unit.execute(text("SELECT 1"))
                told = "SELECT coalesce(sum(reads), 0) FROM db_reads"
                await until(lambda: ask(tables, PRIMARY, told)[0][0] > 0)
                await admitted(asking)
                async with asyncio.timeout(30):
                    while busy_of(await database_status(asking)) != 1:
                        await asyncio.sleep(0.05)  # the reader's looks at the primary are statements as well
                first, *others = await database_status(asking)
        assert (first.role, first.timeline, first.lag_s, first.admitted) == ("primary", 1, 0.0, False)
        assert [(one.role, one.admitted) for one in others] == [("replica", True)] * 2
        assert sum(one.share_of_reads or 0 for one in (first, *others)) == pytest.approx(1)
    finally:
        await reading.close()
        await asking.close()


def busy_of(nodes: list[NodeStatus]) -> int:
    """How many of the readers' connections to the primary are inside a statement or a transaction."""
    connections = nodes[0].connections
    assert connections is not None
    return connections["fleet-worker"].busy


async def test_the_status_of_a_single_node_knows_its_timeline(tables: BackgroundSupervisor) -> None:
    for node, role in ((PRIMARY, "primary"), (FIRST, "replica")):
        database = Database(DbKnobs(url=url_of(tables, node)))
        [only] = await database_status(database)
        await database.close()
        assert (only.role, only.timeline, only.reason) == (role, 1, "the only node")


async def test_a_worker_whose_enlisting_may_have_been_committed_enlists_again(database: Database) -> None:
    worker = uuid4()
    for _ in range(2):
        await enlist(database, worker=worker, name="w", host="h", pid=1, slots=1)
    async with database.unit() as unit:
        assert await unit.scalar(text("SELECT count(*) FROM workers WHERE id = :id"), {"id": worker}) == 1


async def test_the_nodes_of_a_file_are_the_nodes(tables: BackgroundSupervisor, tmp_path: Path) -> None:
    ports = {name: group_of(tables).node(name).port for name in NODES}
    file = tmp_path / "db.yaml"
    file.write_text(
        f"primary: {{host: 127.0.0.1, port: {ports[SECOND]}, pool_size: 2}}\n"  # who leads is looked up
        f"replicas:\n  - {{host: 127.0.0.1, port: {ports[PRIMARY]}, weight: 3}}\n"
        f"  - {{host: 127.0.0.1, port: {ports[FIRST]}, name: near, weight: 1}}\n"
    )
    database = Database(DbKnobs(url=url_of(tables, PRIMARY), config=str(file), look_every_s=0.05))
    try:
        with carrying(None):
            async with database.unit() as unit:
                assert await unit.scalar(text("SELECT current_setting('port')::int")) == ports[PRIMARY]
            await admitted(database)
            async with database.unit(mode="ro", consistency="eventual") as unit:
                assert await unit.scalar(text("SELECT pg_is_in_recovery()")) is True
        assert router_of(database).nodes[f"127.0.0.1:{ports[SECOND]}"].reader.size == 2
        assert {one.name for one in router_of(database).cluster.replicas} == {"near", f"127.0.0.1:{ports[SECOND]}"}
    finally:
        await database.close()


async def test_a_causal_read_that_is_known_to_be_fresh_sends_nothing_beside_itself(
    database: Database, tables: BackgroundSupervisor
) -> None:
    async with database.unit() as unit:
        await unit.execute(text("SELECT 1"))
    token = tokens.current()
    assert token is not None
    router = router_of(database)
    name = node_name(tables, FIRST)
    pool = router.nodes[name].reader
    async with pool.engine.connect() as connection:  # there before the node is looked at again
        await connection.execute(text("SELECT 1"))
        link: Any = (await connection.get_raw_connection()).driver_connection
        opened_at = link.opened_at
    await until(lambda: has_been_seen(router.cluster.replicas, name, token, since=opened_at))
    sent: Counter[str] = Counter()
    waited = link.wait

    async def counted(gen: Any, *how: Any, **more: Any) -> Any:
        sent["exchanges"] += 1
        return await waited(gen, *how, **more)

    link.wait = counted
    for node in router.nodes.values():
        event.listen(node.reader.engine.sync_engine, "before_cursor_execute", lambda *_: sent.update(["statements"]))

    async def exchanges(consistency: Any) -> int:
        """Of one read on that replica."""
        sent.clear()
        while not sent["exchanges"]:  # until it is its turn
            sent.clear()
            with carrying(token):
                async with database.unit(mode="ro", consistency=consistency) as read:
                    await read.execute(text("SELECT 1"))
        assert sent["statements"] == 1
        return sent["exchanges"]

    await exchanges("causal")
    for consistency in ("causal", "eventual"):
        assert await exchanges(consistency) == 3, "BEGIN, which says that the server is there; the statement; COMMIT"


def has_been_seen(replicas: Any, name: str, token: CausalToken, *, since: float) -> bool:
    facts = next((one.facts for one in replicas if one.name == name), None)
    return facts is not None and facts.lsn >= token.lsn and facts.seen_at >= since
