"""Causal reads while replicas and the primary are paused, cut, stopped, killed and promoted: none is stale."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from shared.db.database import Database
from shared.db.tokens import carrying
from shared.errors import DatabaseUnavailable, ReplicaStale
from tests.integration.live import eventually
from tests.integration.nodes import ask, group_of, nodes_in
from tests.integration.trio import NODES, door_to, router_of
from workers.ops.background import BackgroundSupervisor
from workers.ops.replication.failover import Wish

READS = 10_000 if os.environ.get("FLEET_CHAOS") == "long" else 1_200
KEYS = 6


@pytest.fixture(scope="module")
def synchronous(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """Three nodes that lose no acknowledged write in a failover: what is missing then was read stale."""
    with nodes_in(run_folder(), replicas=2, synchronous=True) as servers:
        ask(servers, group_of(servers).leader.name, "CREATE TABLE kept (id int PRIMARY KEY, value int NOT NULL)")
        yield servers


@dataclass(slots=True)
class Tally:
    """What the readers saw."""

    reads: int = 0
    stale: list[str] = field(default_factory=list)
    writes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    by_role: Counter[bool] = field(default_factory=Counter)


async def live(database: Database, key: int, tally: Tally) -> None:
    """Write a growing number to a row of one's own; read it back, twice, wherever the router says."""
    acknowledged = 0
    with carrying(None):
        for attempt in range(1, 1_000_000):
            if tally.reads >= READS:
                return
            try:
                async with database.unit() as unit:
                    await unit.execute(
                        text("INSERT INTO kept VALUES (:k, :v) ON CONFLICT (id) DO UPDATE SET value = :v"),
                        {"k": key, "v": attempt},
                    )
                acknowledged = attempt
                tally.writes += 1
            except DatabaseUnavailable as error:
                tally.refused[error.code] += 1
                await asyncio.sleep(0.02)
            for _ in range(2):
                await read(database, key, acknowledged, tally)


async def read(database: Database, key: int, acknowledged: int, tally: Tally) -> None:
    try:
        async with database.unit(mode="ro", consistency="causal") as unit:
            row = (
                await unit.execute(
                    text("SELECT (SELECT value FROM kept WHERE id = :k), pg_is_in_recovery(), current_setting('port')"),
                    {"k": key},
                )
            ).one()
    except (DatabaseUnavailable, ReplicaStale) as error:
        tally.refused[error.code] += 1
        await asyncio.sleep(0.02)
        return
    tally.reads += 1
    tally.by_role[row[1]] += 1
    if (row[0] or 0) < acknowledged:
        tally.stale.append(f"key {key}: {row[0]} < {acknowledged} on {row[2]} (standby: {row[1]})")


class Faults:
    """What befalls the nodes, one after the other, for as long as the readers read."""

    def __init__(self, servers: BackgroundSupervisor) -> None:
        self.servers = servers
        self.done: Counter[str] = Counter()

    @property
    def leader(self) -> str:
        return group_of(self.servers).leader.name

    @property
    def replicas(self) -> list[str]:
        return [name for name in NODES if name != self.leader]

    async def strike(self) -> None:
        """All of them, in turn, until cancelled."""
        while True:
            for fault in (self.pause, self.cut, self.stop_backend, self.kill_replica, self.fail_over):
                await asyncio.to_thread(fault)
                self.done[fault.__name__] += 1
                await asyncio.sleep(0.3)

    def pause(self) -> None:
        replica = self.replicas[0]
        ask(self.servers, replica, "SELECT pg_wal_replay_pause()")
        self._linger(0.5)
        ask(self.servers, replica, "SELECT pg_wal_replay_resume()")

    def cut(self) -> None:
        """A receiver that is stopped: its server goes on calling it streaming."""
        rows = ask(self.servers, self.replicas[1], "SELECT pid FROM pg_stat_wal_receiver")
        self._stop([pid for (pid,) in rows])

    def stop_backend(self) -> None:
        rows = ask(
            self.servers, self.replicas[0],
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'trio' AND backend_type = 'client backend'",
        )  # fmt: skip
        self._stop([pid for (pid,) in rows[:1]])

    def kill_replica(self) -> None:
        replica = self.replicas[1]
        self.servers.suspend(replica)
        self.servers.kill(replica)
        self.servers.start(replica)

    def fail_over(self) -> None:
        self.servers.suspend(self.leader)
        self.servers.kill(self.leader)
        self.servers.failover_db(Wish(force=True))
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        eventually(lambda: ask(self.servers, self.leader, streaming) == [(2,)], within_s=60)

    def _stop(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self._linger(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    @staticmethod
    def _linger(seconds: float) -> None:
        asyncio.run(asyncio.sleep(seconds))


async def test_no_causal_read_is_stale_whatever_befalls_the_nodes(synchronous: BackgroundSupervisor) -> None:
    tally, faults = Tally(), Faults(synchronous)
    async with door_to(synchronous, statement_timeout_s=3.0, answer_timeout_s=0.5, pool_size=KEYS) as database:
        striking = asyncio.create_task(faults.strike())
        async with asyncio.timeout(60 + READS / 10), asyncio.TaskGroup() as readers:
            for key in range(KEYS):
                readers.create_task(live(database, key, tally))
        if striking.done():
            striking.result()
        striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)
        print(tally.reads, "reads", dict(tally.by_role), tally.writes, "writes", dict(tally.refused), dict(faults.done))
        print("timeline", router_of(database).cluster.timeline)
    assert tally.stale == []
    assert tally.by_role[True] > 0
