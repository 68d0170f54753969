"""What is known of PostgreSQL's nodes, by all processes of the fleet: for people and for machines."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from sqlalchemy.engine import URL

from shared.db.database import Database
from shared.db.facts import Standing
from shared.db.look import TELL_EVERY_S
from shared.db.router import Router
from shared.errors import DatabaseUnavailable

CONNECTIONS = """
    SELECT split_part(application_name, '@', 1), count(*), count(*) FILTER (WHERE state <> 'idle')
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    GROUP BY 1 ORDER BY 1"""
READS = """
    SELECT node, sum(reads)::float8 FROM db_reads
    WHERE told_at > clock_timestamp() - make_interval(secs => %s) GROUP BY node"""
ONLY = """
    SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery()
        THEN (SELECT received_tli FROM pg_stat_wal_receiver)
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END"""


@dataclass(frozen=True, slots=True)
class Connections:
    """What one kind of process has open on a node."""

    open: int
    busy: int
    """Inside a statement or a transaction."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node, as it was just seen."""

    name: str
    url: str
    """Without the password."""
    role: Literal["primary", "replica", "unknown"]
    timeline: int | None
    lag_bytes: int | None
    lag_s: float | None
    admitted: bool
    """Whether reads go there as to a replica."""
    reason: str
    """Why, or why not."""
    connections: Mapping[str, Connections] | None
    """Of all processes, by their kind (`fleet-worker`), as the node says; None when it does not answer."""
    share_of_reads: float | None
    """Of the reads that all processes have sent somewhere in the last seconds; None when there were none."""


async def database_status(database: Database) -> list[NodeStatus]:
    """Look at every node, and say what was seen; the primary first.

    Raises: DatabaseUnavailable when there is a single node and it does not answer.
    """
    router = database.router
    if router is None:
        return [await _only(database)]
    await router.ready()
    await router.look_again()
    standings = router.cluster.standings
    connections = await asyncio.gather(
        *(_connections(database, router.nodes[one.name].writer.direct_url) for one in standings)
    )
    shares = await _shares(database, router)
    return [_of(router, one, found, shares) for one, found in zip(standings, connections, strict=True)]


async def _only(database: Database) -> NodeStatus:
    url = database.url
    rows = await _asked(database, database.pool.direct_url, ONLY)
    if rows is None:
        raise DatabaseUnavailable(f"PostgreSQL at {url.host}:{url.port or 5432} does not answer")
    [(in_recovery, timeline)] = rows
    return NodeStatus(
        name=f"{url.host}:{url.port or 5432}",
        url=url.render_as_string(hide_password=True),
        role="replica" if in_recovery else "primary",
        timeline=timeline,
        lag_bytes=None if in_recovery else 0,
        lag_s=None if in_recovery else 0.0,
        admitted=False,
        reason="the only node",
        connections=await _connections(database, database.pool.direct_url),
        share_of_reads=1.0,
    )


async def _connections(database: Database, url: URL) -> Mapping[str, Connections] | None:
    rows = await _asked(database, url, CONNECTIONS)
    return None if rows is None else {name: Connections(count, busy) for name, count, busy in rows}


async def _shares(database: Database, router: Router) -> Mapping[str, float]:
    if router.cluster.primary is None:
        return {}
    rows = await _asked(database, router.writer.direct_url, READS, 2 * TELL_EVERY_S) or []
    total = sum(reads for _, reads in rows)
    return {node: reads / total for node, reads in rows} if total else {}


async def _asked(database: Database, url: URL, statement: str, *values: Any) -> list[Any] | None:
    """Rows, asked past pools and poolers, so that it counts nowhere; None when there is no answer in time."""
    try:
        link = await database.link_to(url, limit_s=database.knobs.answer_timeout_s)
    except (psycopg.Error, OSError):
        return None
    try:
        return await (await link.execute(statement, values)).fetchall()
    except (psycopg.Error, OSError):  # a table that is not there yet, too
        return None
    finally:
        await link.close()


def _of(
    router: Router, standing: Standing, connections: Mapping[str, Connections] | None, shares: Mapping[str, float]
) -> NodeStatus:
    cluster, facts = router.cluster, standing.facts
    is_primary = router.view.leads(standing.name)
    lag_bytes, lag_s = (0, 0.0) if is_primary else (None, None)
    if facts is not None and not is_primary and facts.system_id == cluster.system_id:
        lag_s = cluster.lag_s(facts, now=time.monotonic())
        lag_bytes = max(0, cluster.flushed[-1][1] - facts.lsn) if cluster.flushed else None
    return NodeStatus(
        name=standing.name,
        url=router.nodes[standing.name].writer.url.render_as_string(hide_password=True),
        role="unknown" if facts is None else "primary" if facts.is_primary else "replica",
        timeline=facts.timeline or None if facts else None,
        lag_bytes=lag_bytes,
        lag_s=lag_s,
        admitted=standing.is_admitted,
        reason=standing.why,
        connections=connections,
        share_of_reads=shares.get(standing.name, 0.0) if shares else None,
    )
