"""The rows of one bucket: which they are, and how they are copied from one cluster to another, to the letter."""

from dataclasses import dataclass

from sqlalchemy import Table

from shared.db import tables
from shared.db.link import Link

OF_TASK = "fleet_task_bucket(task_id) = {bucket}"


@dataclass(frozen=True, slots=True)
class Part:
    """One table's share of a bucket.

    Attributes:
        where: Which rows, with `{bucket}` for its number.
        numbered: Whether its rows have a number that is each cluster's own: then their order is kept, not the numbers.
    """

    table: Table
    where: str
    numbered: bool = False

    @property
    def columns(self) -> str:
        """What is copied."""
        return ", ".join(column.name for column in self.table.columns if not (self.numbered and column.primary_key))

    def of(self, bucket: int) -> str:
        """Which rows are the bucket's."""
        return self.where.format(bucket=int(bucket))


TASKS = Part(tables.tasks, "fleet_task_bucket(id) = {bucket}")
BESIDE = (
    Part(tables.steps, OF_TASK),
    Part(tables.blobs, OF_TASK),
    Part(tables.signals, OF_TASK, numbered=True),
    Part(tables.messages, "fleet_session_bucket(tenant, session_id) = {bucket}", numbered=True),
)
PARTS = (TASKS, *BESIDE)


async def lock(link: Link, bucket: int) -> None:
    """Let nobody change a row of the bucket until the transaction ends."""
    for part in PARTS:
        await link.execute(f"SELECT FROM {part.table.name} WHERE {part.of(bucket)} FOR UPDATE")


async def clear(link: Link, bucket: int, *, but_strays: bool = False) -> dict[str, int]:
    """Delete the bucket's rows, with or without the tasks that were handed in here before it came.

    Returns: How many, by table.
    """
    gone = {}
    for part in PARTS:
        where = part.of(bucket)
        if but_strays and part is TASKS:
            where += " AND id NOT IN (SELECT task_id FROM shard_strays)"
        gone[part.table.name] = (await link.execute(f"DELETE FROM {part.table.name} WHERE {where}")).rowcount
    return gone


async def copy(source: Link, target: Link, bucket: int) -> None:
    """Put the source's rows of the bucket in place of what the target has, within both transactions.

    A task that the target alone has, handed in there before its bucket came, stays. Messages and signals get numbers of
    the target's own, in the order of those that they had.
    """
    await target.execute("CREATE TEMP TABLE arriving (LIKE tasks) ON COMMIT DROP")
    await pipe(source, target, TASKS, into="arriving", where=TASKS.of(bucket))
    known = "id IN (SELECT id FROM arriving) OR id NOT IN (SELECT task_id FROM shard_strays)"
    await target.execute(f"DELETE FROM tasks WHERE {TASKS.of(bucket)} AND ({known})")
    await target.execute(f"INSERT INTO tasks ({TASKS.columns}) SELECT {TASKS.columns} FROM arriving")
    for part in BESIDE:
        await target.execute(f"DELETE FROM {part.table.name} WHERE {part.of(bucket)}")  # of a copy that counts no more
        await pipe(source, target, part, into=part.table.name, where=part.of(bucket))


async def pipe(source: Link, target: Link, part: Part, *, into: str, where: str) -> None:
    """Stream rows from one cluster to the other."""
    order = "ORDER BY id" if part.numbered else ""
    taken = f"COPY (SELECT {part.columns} FROM {part.table.name} WHERE {where} {order}) TO STDOUT"
    async with (
        source.cursor() as reading,
        target.cursor() as writing,
        reading.copy(taken) as out,
        writing.copy(f"COPY {into} ({part.columns}) FROM STDIN") as put,
    ):
        async for block in out:
            await put.write(block)
