"""`causal_read.*`: reads from a replica that must not miss what their token knows of.

`p50`: a causal read whose replica is known to have reached the token, beside the same read by a plain SQLAlchemy engine
on that replica with the same pool options; in turns, each order as often as the other. `stale`: of ten thousand causal
reads beside writes, while replicas stop replaying now and then, how many missed an acknowledged write.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import carrying
from shared.errors import DatabaseUnavailable, ReplicaStale
from tests.bench.figures import Figure, percentile
from tests.bench.own_nodes import own_nodes
from tests.bench.site import BenchFailed, Site, say
from tests.integration.nodes import ask, group_of
from workers.ops.background import BackgroundSupervisor

PAIRS = 3000
WARM_UP = 200
READS = 10_000
CLIENTS = 8
READS_A_WRITE = 8
PAUSE_S = 0.3
GIVE_UP_S = 120.0
GOAL_RATIO = 1.1
READ = text("SELECT value FROM kept WHERE key = :key")
WRITE = text("UPDATE kept SET value = :value WHERE key = :key")


def measure(site: Site) -> list[Figure]:
    """Costs first, then doubts."""
    with own_nodes() as servers:
        leader = group_of(servers).leader.name
        ask(servers, leader, "CREATE TABLE kept (key int PRIMARY KEY, value int NOT NULL)")
        ask(servers, leader, "INSERT INTO kept SELECT k, 0 FROM generate_series(0, 99) k")
        ours, theirs = site.run(_costs(servers))
        stale, on_replicas = site.run(_doubts(servers))
    plain = percentile(theirs, 50)
    say(
        f"  causal p50 {percentile(ours, 50):.3f} ms, plain {plain:.3f} ms; {on_replicas:.1%} of the others on replicas"
    )
    return [
        Figure(
            name="causal_read.p50", what="causal read from a replica, p50", value=percentile(ours, 50), unit="ms",
            goal=GOAL_RATIO * plain, goal_words=f"≤ {GOAL_RATIO} × the peer", better="lower",
            peer="plain replica read", peer_value=plain,
        ),
        Figure(
            name="causal_read.stale", what=f"stale among {READS} causal reads", value=float(stale), unit="", goal=0.0,
            better="lower",
        ),
    ]  # fmt: skip


def _door(servers: BackgroundSupervisor) -> Database:
    url, replicas = servers.env["FLEET_DB_URL"], servers.env["FLEET_DB_REPLICAS"]
    return Database(DbKnobs(url=url, replicas=replicas))


async def _costs(servers: BackgroundSupervisor) -> tuple[list[float], list[float]]:
    """Milliseconds of causal reads and of plain ones."""
    ours: list[float] = []
    theirs: list[float] = []
    database = _door(servers)
    plain = create_async_engine(servers.env["FLEET_DB_REPLICAS"].split(",")[0], pool_size=5, pool_pre_ping=True)
    try:
        with carrying(None):
            async with database.unit() as unit:
                await unit.execute(WRITE, {"key": 1, "value": 1})
            await asyncio.sleep(1.0)  # every look sees it replayed
            for number in range(WARM_UP + PAIRS):
                order = [(lambda: _causal(database), ours), (lambda: _plain(plain), theirs)]
                for call, samples in order if number % 2 else reversed(order):
                    samples.append(await _milliseconds(call))
        assert database.router is not None
        served = database.router.served
        primary = database.router.cluster.primary
        if primary is None or served[primary.name] > len(ours) / 20:
            raise BenchFailed(f"causal reads went to the primary: {dict(served)}")
    finally:
        await database.close()
        await plain.dispose()
    return ours[WARM_UP:], theirs[WARM_UP:]


async def _causal(database: Database) -> None:
    async with database.unit(mode="ro", consistency="causal") as unit:
        (await unit.execute(READ, {"key": 1})).scalar_one()


async def _plain(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        (await session.execute(READ, {"key": 1})).scalar_one()


async def _milliseconds(call: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000


async def _doubts(servers: BackgroundSupervisor) -> tuple[int, float]:
    """How many reads were stale, and the share that replicas served."""
    database = _door(servers)
    clients = [_Client(database, key) for key in range(CLIENTS)]
    pausing = asyncio.create_task(_pause(servers))
    try:
        async with asyncio.timeout(GIVE_UP_S), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.live(READS // CLIENTS))
        assert database.router is not None and database.router.cluster.primary is not None
        on_primary = database.router.served[database.router.cluster.primary.name]
    finally:
        pausing.cancel()
        await asyncio.gather(pausing, return_exceptions=True)
        await database.close()
    return sum(client.stale for client in clients), 1 - on_primary / sum(client.reads for client in clients)


class _Client:
    """Writes growing numbers to a row of its own, and reads them."""

    def __init__(self, database: Database, key: int) -> None:
        self.stale = self.reads = 0
        self._database = database
        self._key = key
        self._written = 0

    async def live(self, reads: int) -> None:
        with carrying(None):
            while self.reads < reads:
                await self._write()
                for _ in range(READS_A_WRITE):
                    await self._read()

    async def _write(self) -> None:
        try:
            async with self._database.unit() as unit:
                await unit.execute(WRITE, {"key": self._key, "value": self._written + 1})
        except DatabaseUnavailable:
            return
        self._written += 1

    async def _read(self) -> None:
        try:
            async with self._database.unit(mode="ro", consistency="causal") as unit:
                value = (await unit.execute(READ, {"key": self._key})).scalar_one()
        except (DatabaseUnavailable, ReplicaStale):
            await asyncio.sleep(0.01)
            return
        self.reads += 1
        self.stale += value < self._written


async def _pause(servers: BackgroundSupervisor) -> None:
    """One replica after the other stands still for a moment."""
    while True:
        for node in group_of(servers).followers:
            await asyncio.to_thread(ask, servers, node.name, "SELECT pg_wal_replay_pause()")
            try:
                await asyncio.sleep(PAUSE_S)
            finally:
                await asyncio.to_thread(ask, servers, node.name, "SELECT pg_wal_replay_resume()")
            await asyncio.sleep(PAUSE_S)
