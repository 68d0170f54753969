"""Several clusters, each a whole fleet of its own for its buckets; and units of work on the right one.

A worker and a keeper belong to one shard and know no other (the keeper only to take strays home). Producers and
commands know all: a unit of work with a key goes to the shard of its bucket, then to a node there.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import text

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.shard_map import BucketRow, Home, ShardKey, ShardMap, bucket_for, check_here
from shared.db.shards_file import ShardAddress
from shared.errors import DatabaseUnavailable, ShardMoved

MAP_FOR_S = 5.0
"""Seconds for which a map is taken for right, unless somebody finds that it is not."""
READ_S = 0.5
"""Seconds that anybody waits for a map while an older one is known: a shard may hang."""
FIRST_READ_S = 5.0
"""Seconds that a unit of work waits for the first map; a submit, which has less than a second in all, waits READ_S."""
ROWS = text("SELECT bucket, epoch, state, shard FROM shard_buckets")
HOLD = text("SELECT state FROM shard_buckets WHERE bucket = :bucket FOR KEY SHARE")
"""Locks the bucket's row: whoever takes the bucket away waits for this transaction."""
LOOK = text("SELECT state FROM shard_buckets WHERE bucket = :bucket")


def mark(session: Any, bucket: int, home: Home) -> None:
    """Note on a session for which bucket, and on which shard, it was opened."""
    session.info["bucket"], session.info["shard"] = bucket, home.shard


class Shards:
    """Every shard's database. Belongs to one event loop."""

    def __init__(self, addresses: Sequence[ShardAddress], knobs: DbKnobs, *, application_name: str) -> None:
        self.databases = {
            one.name: Database(knobs, application_name=application_name, layout=one.layout, shards=self)
            for one in addresses
        }
        self.first = addresses[0].name
        self._map = ShardMap(self.first)
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._was_read = False

    async def map(self, *, first_within_s: float = FIRST_READ_S) -> ShardMap:
        """Where the buckets are, read anew now and then: of shards that are silent, what is known by then.

        Args:
            first_within_s: Seconds to wait when it was never read before; else READ_S.

        An old map does no harm: each shard knows what it has not, refuses units for it, and keeps tasks for their home.
        """
        now = time.monotonic()
        if self._reading is None or (self._reading.done() and now - self._read_at > MAP_FOR_S):
            self._read_at = now
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda read: read.cancelled() or read.exception())  # heard, awaited or not
        reading = self._reading
        if not reading.done():
            within_s = READ_S if self._was_read else first_within_s
            await asyncio.wait({reading}, timeout=max(0.0, self._read_at + within_s - now))
        if reading.done() and not reading.cancelled():
            reading.result()
        return self._map

    def doubt(self) -> None:
        """The map was wrong: read it anew before it is used again."""
        self._reading = None

    async def home_of(self, bucket: int, *, first_within_s: float = FIRST_READ_S) -> Home:
        """Where a bucket is; see `map`."""
        return (await self.map(first_within_s=first_within_s)).home_of(bucket)

    async def database_of(self, key: ShardKey) -> Database:
        """The database of the shard where the key's bucket is."""
        return self.databases[self.known((await self.home_of(bucket_for(key))).shard)]

    def known(self, shard: str) -> str:
        """The name itself. Raises: ShardMoved when FLEET_DB_SHARDS does not name it."""
        if shard not in self.databases:
            raise ShardMoved(f"shard {shard!r} is not in the file of FLEET_DB_SHARDS: add it there, and start again")
        return shard

    @asynccontextmanager
    async def unit(self, key: ShardKey, **how: Any) -> AsyncIterator[Any]:
        """A unit of work on the key's shard; see `Database.unit`.

        Raises: ShardMoved when the bucket is not there (any more): nothing is done, the next unit looks where it is.
        """
        bucket = bucket_for(key)
        home = await self.home_of(bucket)
        try:
            async with self.databases[self.known(home.shard)].unit(**how) as session:
                mark(session, bucket, home)
                if how.get("mode", "rw") == "rw":
                    await self._check(session, HOLD, bucket, home)
                yield session
                if how.get("mode", "rw") == "ro":  # what was read before this was still there
                    await self._check(session, LOOK, bucket, home)
        except ShardMoved:
            self.doubt()
            raise

    async def close(self) -> None:
        """Close every connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await asyncio.gather(*(database.close() for database in self.databases.values()))

    async def _check(self, session: Any, look: Any, bucket: int, home: Home) -> None:
        state = await session.scalar(look, {"bucket": bucket})
        check_here(state, bucket=bucket, here=home.shard, home=home)

    async def rows(self, shard: str) -> list[BucketRow]:
        """What a shard says of its buckets."""
        async with self.databases[shard].unit(mode="ro") as unit:
            return [BucketRow(*row) for row in await unit.execute(ROWS)]

    async def _read(self) -> None:
        async def merge(name: str) -> None:
            with suppress(DatabaseUnavailable):
                self._map = self._map.merged(await self.rows(name))

        # gather makes tasks of them: a unit that is open here is not theirs
        await asyncio.gather(*(merge(name) for name in self.databases))
        self._was_read = True
