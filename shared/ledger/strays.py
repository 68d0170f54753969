"""Tasks that were handed in on a shard that has not their bucket are taken to the one that has it.

They come from a producer whose map was old, from a message that stood in a queue while its bucket moved, or from a
schedule. They wait: no worker can claim them here. A task that is at home already was only handed in twice.
"""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

import psycopg

from shared.contracts import bucket_in
from shared.db.link import Link
from shared.db.shards import Shards
from shared.errors import DatabaseUnavailable
from shared.ledger.bucket_rows import TASKS, pipe

SETTLED = """
    DELETE FROM shard_strays WHERE task_id = ANY(%s)
      AND fleet_task_bucket(task_id) IN (SELECT bucket FROM shard_buckets WHERE state IN ('open', 'moving'))"""
"""They were handed in here while their bucket was on its way here."""


async def take_home(shards: Shards, here: str, *, limit: int) -> int:
    """Take a batch of them home. Returns: How many have left.

    Raises: DatabaseUnavailable when a shard does not answer: they stay, and are taken later.
    """
    try:
        source = cast(Link, await shards.databases[here].direct())
        try:
            found = await source.execute("SELECT task_id FROM shard_strays ORDER BY task_id LIMIT %s", [limit])
            ids = [row[0] for row in await found.fetchall()]
            if not ids:
                return 0
            shards.doubt()
            by_home: dict[str, list[UUID]] = {}
            for one in ids:
                by_home.setdefault((await shards.home_of(bucket_in(one))).shard, []).append(one)
            left = 0
            for home, strays in by_home.items():
                if home == here:
                    await source.execute(SETTLED, [strays])
                else:
                    left += await _take(source, shards, home, strays)
            return left
        finally:
            await source.close()
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"a shard does not answer: {str(error).splitlines()[0]}") from error


async def _take(source: Link, shards: Shards, home: str, ids: Sequence[UUID]) -> int:
    """Copied and committed at home first: taken twice is once."""
    target = cast(Link, await shards.databases[shards.known(home)].direct())
    listed = ", ".join(f"'{one}'" for one in ids)
    try:
        async with source.transaction():
            await source.execute(f"SELECT FROM tasks WHERE id IN ({listed}) FOR UPDATE")
            async with target.transaction():
                await target.execute("CREATE TEMP TABLE stray (LIKE tasks) ON COMMIT DROP")
                await pipe(source, target, TASKS, into="stray", where=f"id IN ({listed})")
                await target.execute("UPDATE stray SET published_at = NULL, dispatch_at = now() WHERE state = 'queued'")
                await target.execute(
                    f"INSERT INTO tasks ({TASKS.columns}) SELECT {TASKS.columns} FROM stray ORDER BY id"
                    " ON CONFLICT DO NOTHING"
                )
            await source.execute(f"DELETE FROM tasks WHERE id IN ({listed})")
            await source.execute(f"DELETE FROM shard_strays WHERE task_id IN ({listed})")
    finally:
        await target.close()
    return len(ids)
