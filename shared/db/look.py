"""One look at one node over a connection of its own: what it is and how far it is; and the primary's heartbeat."""

import time
from collections.abc import Mapping
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from shared.db.facts import Facts, read_history
from shared.db.link import Link
from shared.db.tokens import lsn_of

BEAT_EVERY_S = 1.0
LOOK = """
    SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
        CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END,
        receiver.pid, receiver.status, receiver.received_tli,
        extract(epoch FROM clock_timestamp())::float8, {beat}
    FROM (SELECT) AS once LEFT JOIN pg_stat_wal_receiver AS receiver ON true"""
BEAT_AGE = "(SELECT extract(epoch FROM beat_at)::float8 FROM db_heartbeat)"
BEAT = """
    UPDATE db_heartbeat SET beat_at = clock_timestamp()
    FROM (SELECT set_config('synchronous_commit', 'local', true)) AS waits_for_no_standby
    WHERE beat_at NOT BETWEEN clock_timestamp() - make_interval(secs => %s) AND clock_timestamp()"""
"""One from the future is an earlier primary's, whose clock was ahead."""
TELL_EVERY_S = 5.0
TELL = """
    WITH old AS (DELETE FROM db_reads WHERE told_at < clock_timestamp() - make_interval(hours => 1))
    INSERT INTO db_reads (process, node, reads)
    SELECT %s, node, reads FROM unnest(%s::text[], %s::bigint[]) AS told (node, reads)
    ON CONFLICT (process, node) DO UPDATE SET reads = excluded.reads, told_at = clock_timestamp()"""
HAS_TABLES = "SELECT to_regclass('db_heartbeat') IS NOT NULL, to_regclass('db_reads') IS NOT NULL"
HISTORY = "SELECT pg_read_file(%s, 0, 100000, true)"
MASK = (1 << 64) - 1


class Eye:
    """Looks at one node again and again; keeps its connection while it lasts."""

    def __init__(self, url: URL, *, process: str, parameters: Mapping[str, Any], limit_s: float) -> None:
        self._url = url
        self._process = process
        self._parameters = {**parameters, "application_name": f"{process}-watch"}
        self._limit_s = limit_s
        self._link: Link | None = None
        self._query = ""
        self._has_reads = False
        self._history: tuple[int, Mapping[int, int]] = (0, {})

    @property
    def is_connected(self) -> bool:
        """Whether the last question was answered."""
        return self._link is not None

    async def look(self) -> Facts | None:
        """What the node says of itself; None when it does not answer in time."""
        try:
            return await self._look(self._link or await self._connected())
        except (psycopg.Error, OSError, TimeoutError, ValueError):
            await self.close()
            return None

    async def beat(self, seen: Facts) -> None:
        """Write a heartbeat where the last look saw an old one: only into a node that is known to be the primary."""
        if self._link is None or seen.beat_s is None or 0 <= seen.clock_s - seen.beat_s <= BEAT_EVERY_S:
            return
        try:
            await self._link.execute(BEAT, [BEAT_EVERY_S])
        except (psycopg.Error, OSError, TimeoutError):
            await self.close()

    async def tell(self, reads: Mapping[str, int]) -> bool:
        """Write down how many reads this process has sent to each node; only into the primary.

        Returns: Whether they are written.
        """
        if self._link is None or not self._has_reads:
            return False
        try:
            await self._link.execute(TELL, [self._process, list(reads), list(reads.values())])
        except (psycopg.Error, OSError, TimeoutError):
            await self.close()
            return False
        return True

    async def close(self) -> None:
        """Close the connection; the next look opens another."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _connected(self) -> Link:
        url = self._url
        self._link = link = await Link.open(
            limit_s=self._limit_s,
            host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database,
            autocommit=True, **self._parameters,
        )  # fmt: skip
        row = await (await link.execute(HAS_TABLES)).fetchone()
        has_beat, self._has_reads = row or (False, False)
        self._query = LOOK.format(beat=BEAT_AGE if has_beat else "NULL::float8")
        return link

    async def _look(self, link: Link) -> Facts:
        seen_at = time.monotonic()
        row = await (await link.execute(self._query)).fetchone()
        if row is None:
            raise ValueError("no row")
        in_recovery, system_id, lsn, wal_file, pid, status, received, clock_s, beat_s = row
        timeline = (received if status == "streaming" else 0) if in_recovery else int(wal_file[:8], 16)
        return Facts(
            seen_at=seen_at,
            is_primary=not in_recovery,
            system_id=system_id & MASK,
            timeline=timeline or 0,
            lsn=lsn_of(lsn) if lsn else 0,
            is_streaming=in_recovery and status == "streaming",
            receiver="none" if pid is None else status or "hidden",
            clock_s=clock_s,
            beat_s=beat_s,
            switches={} if in_recovery else await self._switches(link, timeline),
        )

    async def _switches(self, link: Link, timeline: int) -> Mapping[int, int]:
        """The history of a timeline, read once; empty for a role that may not read the server's files."""
        if self._history[0] != timeline:
            text = ""
            if timeline > 1:
                try:
                    row = await (await link.execute(HISTORY, [f"pg_wal/{timeline:08X}.history"])).fetchone()
                    text = row[0] if row and row[0] else ""
                except (
                    psycopg.DatabaseError,
                    ValueError,
                ):  # not allowed, most of all: tokens from before are not trusted
                    text = ""
            self._history = (timeline, read_history(text))
        return self._history[1]
