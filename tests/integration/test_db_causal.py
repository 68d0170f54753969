"""Causal reads while replicas and the primary are paused, cut, stopped, killed and promoted: none is stale."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from shared.db.database import Database
from shared.db.tokens import carrying
from shared.errors import DatabaseUnavailable, ReplicaStale
from tests.integration.node_faults import FAULTS, Faults
from tests.integration.nodes import ask, group_of, nodes_in
from tests.integration.trio import door_to, router_of
from workers.ops.background import BackgroundSupervisor

READS = 10_000 if os.environ.get("CHAOS") == "long" else 1_200
KEYS = 6
GIVE_UP_S = 180 + READS / 10
PAUSE_S = 0.3
READ = "SELECT (SELECT value FROM kept WHERE id = :k), pg_is_in_recovery(), current_setting('port')"
WRITE = "INSERT INTO kept VALUES (:k, :v) ON CONFLICT (id) DO UPDATE SET value = :v"


@pytest.fixture(scope="module")
def synchronous(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """Three nodes that lose no acknowledged write in a failover: what is missing then was read stale."""
    with nodes_in(run_folder(), replicas=2, synchronous=True) as servers:
        ask(servers, group_of(servers).leader.name, "CREATE TABLE kept (id int PRIMARY KEY, value int NOT NULL)")
        yield servers


@dataclass(slots=True)
class Tally:
    """What the readers saw."""

    is_over: bool = False
    reads: int = 0
    writes: int = 0
    stale: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    by_role: Counter[bool] = field(default_factory=Counter)

    @property
    def is_enough(self) -> bool:
        """All faults have struck, enough was read, and replicas served: busy ones are behind for a while."""
        return self.is_over and self.reads >= READS and self.by_role[True] > READS / 4


@dataclass(slots=True)
class Reader:
    """Writes growing numbers to a row of its own and reads them back, wherever the router says."""

    database: Database
    key: int
    tally: Tally
    acknowledged: int = 0
    seen: int = 0

    async def live(self) -> None:
        """Until all faults have struck and enough has been read: one write, two reads."""
        with carrying(None):
            number = 0
            while not self.tally.is_enough:
                number += 1
                await self.write(number)
                for _ in range(2):
                    await self.read()

    async def write(self, number: int) -> None:
        """The next number; one whose COMMIT was not acknowledged may be there or not."""
        try:
            async with self.database.unit() as unit:
                await unit.execute(text(WRITE), {"k": self.key, "v": number})
        except DatabaseUnavailable as error:
            await self._refused(error)
        else:
            self.acknowledged = number
            self.tally.writes += 1

    async def read(self) -> None:
        """At least what was acknowledged, and what was read before."""
        try:
            async with self.database.unit(mode="ro", consistency="causal") as unit:
                value, is_replica, port = (await unit.execute(text(READ), {"k": self.key})).one()
        except (DatabaseUnavailable, ReplicaStale) as error:
            await self._refused(error)
            return
        self.tally.reads += 1
        self.tally.by_role[is_replica] += 1
        found, where = value or 0, f"key {self.key} at {port} (standby: {is_replica})"
        if found < self.acknowledged:
            self.tally.stale.append(f"{where}: {found} < {self.acknowledged}")
        if found < self.seen:
            self.tally.backwards.append(f"{where}: {found} after {self.seen}")
        self.seen = max(self.seen, found)

    async def _refused(self, error: DatabaseUnavailable | ReplicaStale) -> None:
        self.tally.refused[error.code] += 1
        await asyncio.sleep(0.02)


async def strike(faults: Faults, tally: Tally) -> None:
    """All faults, one after the other, again until enough has been read."""
    while not tally.is_enough:
        for name in FAULTS:
            await asyncio.to_thread(getattr(faults, name))
            await asyncio.sleep(PAUSE_S)
            if tally.is_enough:
                return
        tally.is_over = True


async def test_no_causal_read_is_stale_whatever_befalls_the_nodes(synchronous: BackgroundSupervisor) -> None:
    tally, faults = Tally(), Faults(synchronous, application="trio")
    timeline = faults.timeline()
    async with door_to(synchronous, statement_timeout_s=3.0, answer_timeout_s=0.5, pool_size=KEYS) as database:
        async with asyncio.timeout(GIVE_UP_S), asyncio.TaskGroup() as group:
            group.create_task(strike(faults, tally))
            for key in range(KEYS):
                group.create_task(Reader(database, key, tally).live())
        seen_timeline = router_of(database).cluster.timeline
    print(f"\n{tally.reads} reads, {dict(tally.by_role)} by standby or not, {tally.writes} writes, refused:")
    print(dict(tally.refused), "faults:", dict(faults.done), f"timeline {timeline} -> {seen_timeline}")
    assert (tally.stale, tally.backwards) == ([], [])
    assert tally.reads >= READS
    assert tally.by_role[True] > READS / 4, "replicas served"
    assert {name: faults.done[name] >= 1 for name in FAULTS} == dict.fromkeys(FAULTS, True)
    assert seen_timeline >= timeline + faults.done["fail_over"] + faults.done["resurrect"]
