"""`read_scaling.*`: reads a second with no, one and two replicas beside one primary, while one unit in five writes.

On one machine the nodes share its processors, so what scales here is their connections: each node has few, and a read
keeps one for 50 ms, as one that waits for its disk does. Causal reads: each client sees what it wrote. In turns, the
median round.
"""

import asyncio
from statistics import median

from sqlalchemy import text

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import carrying
from shared.errors import DatabaseUnavailable, ReplicaStale
from tests.bench.figures import Figure
from tests.bench.own_nodes import own_nodes
from tests.bench.site import Site, say
from tests.integration.nodes import ask, group_of
from workers.ops.background import BackgroundSupervisor

CLIENTS = 24
CONNECTIONS = 2
"""A node; as many more at need."""
ROUNDS = 3
ROUND_S = 3.0
WRITE_EVERY = 5
READ = text("SELECT value FROM kept, pg_sleep(0.05) WHERE key = :key")
WRITE = text("UPDATE kept SET value = value + 1 WHERE key = :key")
GOALS = {0: 0.0, 1: 1.0, 2: 1.7}
"""Times the reads without a replica."""


def measure(site: Site) -> list[Figure]:
    """Three doors to the same nodes: each knows of more replicas."""
    with own_nodes() as servers:
        leader = group_of(servers).leader.name
        ask(servers, leader, "CREATE TABLE kept (key int PRIMARY KEY, value int NOT NULL)")
        ask(servers, leader, "INSERT INTO kept SELECT k, 0 FROM generate_series(0, %s) k", CLIENTS - 1)
        rates = site.run(_rounds(servers))
    say(f"  reads/s by replicas: {', '.join(f'{count}: {rate:.0f}' for count, rate in rates.items())}")
    return [
        Figure(
            name=f"read_scaling.r{count}", what=f"reads/s under 20 % writes, {count} replicas", value=rate,
            unit="reads/s", goal=GOALS[count] * rates[0],
            goal_words="what the others are measured by" if not count else f"≥ {GOALS[count]} × r0", better="higher",
        )
        for count, rate in rates.items()
    ]  # fmt: skip


async def _rounds(servers: BackgroundSupervisor) -> dict[int, float]:
    replicas = servers.env["FLEET_DB_REPLICAS"].split(",")
    doors = {
        count: Database(
            DbKnobs(url=servers.env["FLEET_DB_URL"], replicas=",".join(replicas[:count]), pool_size=CONNECTIONS)
        )
        for count in GOALS
    }
    rates: dict[int, list[float]] = {count: [] for count in GOALS}
    try:
        for round_ in range(-1, ROUNDS):
            for count, door in doors.items():
                rate = await _rate(door)
                if round_ >= 0:
                    rates[count].append(rate)
    finally:
        for door in doors.values():
            await door.close()
    return {count: median(found) for count, found in rates.items()}


async def _rate(door: Database) -> float:
    loop = asyncio.get_running_loop()
    end = loop.time() + ROUND_S
    reads = 0

    async def live(key: int) -> None:
        nonlocal reads
        number = key
        with carrying(None):
            while loop.time() < end:
                number += 1
                try:
                    if number % WRITE_EVERY == 0:
                        async with door.unit() as writing:
                            await writing.execute(WRITE, {"key": key})
                    else:
                        async with door.unit(mode="ro", consistency="causal") as reading:
                            await reading.execute(READ, {"key": key})
                        reads += 1
                except (DatabaseUnavailable, ReplicaStale):
                    await asyncio.sleep(0.01)

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for key in range(CLIENTS):
            group.create_task(live(key))
    return reads / (loop.time() - began)
