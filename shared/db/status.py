"""What a process sees of PostgreSQL's nodes, for people and for machines."""

import time
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from shared.db.database import Database
from shared.db.facts import Standing
from shared.db.router import Router


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node as this process sees it."""

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
    pool: str
    """Connections of this process: `in use/kept`."""
    share_of_reads: float
    """Of the reads that this process has routed."""


async def database_status(database: Database) -> list[NodeStatus]:
    """Look at every node, and say what was seen; the primary first.

    Raises: DatabaseUnavailable when there is a single node and it does not answer.
    """
    router = database.router
    if router is None:
        return [await _only(database)]
    await router.ready()
    await router.look_again()
    return [_of(router, one) for one in router.cluster.standings]


async def _only(database: Database) -> NodeStatus:
    async with database.unit(mode="ro") as unit:
        in_recovery = bool(await unit.scalar(text("SELECT pg_is_in_recovery()")))
    pool, url = database.pool, database.url
    return NodeStatus(
        name=f"{url.host}:{url.port or 5432}",
        url=url.render_as_string(hide_password=True),
        role="replica" if in_recovery else "primary",
        timeline=None,
        lag_bytes=None if in_recovery else 0,
        lag_s=None if in_recovery else 0.0,
        admitted=False,
        reason="the only node",
        pool=f"{pool.in_use}/{pool.size}",
        share_of_reads=1.0,
    )


def _of(router: Router, standing: Standing) -> NodeStatus:
    cluster, node, facts = router.cluster, router.nodes[standing.name], standing.facts
    is_primary = cluster.primary is not None and cluster.primary.name == standing.name
    lag_bytes, lag_s = (0, 0.0) if is_primary else (None, None)
    if facts is not None and not is_primary and facts.system_id == cluster.system_id:
        lag_s = cluster.lag_s(facts, now=time.monotonic())
        lag_bytes = max(0, cluster.flushed[-1][1] - facts.lsn) if cluster.flushed else None
    pool = node.writer if is_primary else node.reader
    return NodeStatus(
        name=standing.name,
        url=pool.url.render_as_string(hide_password=True),
        role="unknown" if facts is None else "primary" if facts.is_primary else "replica",
        timeline=facts.timeline or None if facts else None,
        lag_bytes=lag_bytes,
        lag_s=lag_s,
        admitted=standing.is_admitted,
        reason=standing.why,
        pool=f"{pool.in_use}/{pool.size}",
        share_of_reads=router.served[standing.name] / max(1, router.served.total()),
    )
