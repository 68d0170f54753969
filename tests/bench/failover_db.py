"""`failover_db.*`: from SIGKILL of PostgreSQL's primary to the first acknowledged write of a client that keeps trying.

`fleet failover db` is asked for at once. `failover_db.worst` is the worst of ten. Its parts: `detect` (the nodes are
asked, a successor is chosen, the old primary fenced), `promote`, and `reconnect` (the client has committed there).
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import FleetError
from tests.bench.figures import Figure
from tests.bench.own_nodes import own_nodes
from tests.bench.site import BenchFailed, Site, say
from tests.integration.nodes import ask, group_of
from workers.ops.background import BackgroundSupervisor

TIMES = 10
PAUSE_S = 0.002
GIVE_UP_S = 60.0
GOAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Gap:
    """One failover as the client felt it."""

    detect_s: float
    promote_s: float
    reconnect_s: float
    total_s: float


def measure(site: Site) -> list[Figure]:
    """Ten deaths of whoever leads, with a primary and two replicas of the benchmark's own."""
    with own_nodes() as servers:
        ask(servers, group_of(servers).leader.name, "CREATE TABLE kept (number bigint GENERATED ALWAYS AS IDENTITY)")
        gaps = site.run(_deaths(servers))
    worst = max(gaps, key=lambda one: one.total_s)
    say(f"  totals: {', '.join(f'{one.total_s:.3f}' for one in sorted(gaps, key=lambda one: one.total_s))} s")
    parts = {"detect": worst.detect_s, "promote": worst.promote_s, "reconnect": worst.reconnect_s}
    return [
        Figure(
            name="failover_db.worst", what=f"PostgreSQL killed, failover asked for → first commit, worst of {TIMES}",
            value=worst.total_s, unit="s", goal=GOAL_S, better="lower",
        ),
        *(
            Figure(
                name=f"failover_db.{part}", what=f"of it: {part}", value=seconds, unit="s", goal=GOAL_S, better="lower"
            )
            for part, seconds in parts.items()
        ),
    ]  # fmt: skip


async def _deaths(servers: BackgroundSupervisor) -> list[Gap]:
    url, replicas = servers.env["FLEET_DB_URL"], servers.env["FLEET_DB_REPLICAS"]
    database = Database(DbKnobs(url=url, replicas=replicas))
    try:
        return [await _death(servers, database) for _ in range(TIMES)]
    finally:
        await database.close()


async def _death(servers: BackgroundSupervisor, database: Database) -> Gap:
    await _write(database, until=time.monotonic() + GIVE_UP_S)
    leader = group_of(servers).leader.name
    await asyncio.to_thread(servers.suspend, leader)
    began = time.monotonic()
    await asyncio.to_thread(servers.kill, leader)
    failover = asyncio.create_task(asyncio.to_thread(servers.failover_db))
    await _write(database, until=began + GIVE_UP_S)
    total_s = time.monotonic() - began
    outcome = await failover
    promote_s = outcome.seconds["promote"]
    writable_s = outcome.seconds["writable"]
    await asyncio.to_thread(_settle, servers)
    return Gap(writable_s - promote_s, promote_s, total_s - writable_s, total_s)


async def _write(database: Database, *, until: float) -> None:
    """Try until one write is acknowledged. Raises: BenchFailed."""
    while time.monotonic() < until:
        with suppress(FleetError, DBAPIError):
            async with database.unit() as unit:
                await unit.execute(text("INSERT INTO kept DEFAULT VALUES"))
            return
        await asyncio.sleep(PAUSE_S)
    raise BenchFailed("no write was acknowledged any more")


def _settle(servers: BackgroundSupervisor) -> None:
    leader = group_of(servers).leader.name
    asked = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    while ask(servers, leader, asked) != [(len(group_of(servers).nodes) - 1,)]:
        time.sleep(0.05)
