"""`fleet db shards` and `fleet db move-bucket`: which shard has what, and how it gets to another."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shared.contracts import BUCKETS
from shared.errors import BadInput
from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json
from workers.ops.task_screen import console_here

if TYPE_CHECKING:  # see workers.ops.door
    from shared.db.shards import Shards
    from shared.ledger.moving import Done, Forget

WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class ShardLook:
    """One shard as all of them describe it."""

    shard: str
    buckets: int
    moving: tuple[int, ...]
    """Buckets on their way from or to it: their move was interrupted, or is under way."""
    strays: int
    """Tasks that wait there to be taken to their shard."""


def shards(context: typer.Context, folder: Where = None, as_json: AsJson = False) -> None:
    """Show every shard: how many of the 1024 buckets it has, which are on their way, what waits to be taken home."""
    door: Door = context.obj
    with door.client(folder) as client:
        found = client.operate_on_shards(lambda shards, _: _look(shards))
    if as_json:
        print_json([asdict(one) for one in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("shard", "buckets", "on their way", "strays"):
        table.add_column(heading, no_wrap=heading != "on their way")
    for one in found:
        table.add_row(one.shard, str(one.buckets), ", ".join(map(str, one.moving)), str(one.strays))
    console_here().print(table)


def move_bucket(
    context: typer.Context,
    buckets: Annotated[str, typer.Argument(help=f"A bucket, 0 to {BUCKETS - 1}, or a range of them: 512-1023.")],
    to: Annotated[str, typer.Option("--to", help="The shard to move it to.")],
    within_s: Annotated[
        float, typer.Option("--within-s", min=0, help="Seconds to wait for tasks of a bucket that run.")
    ] = WITHIN_S,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Move buckets to another shard while the fleet works. If it is interrupted, the same command goes on."""
    from shared.ledger.moving import move_bucket as move  # imported here: see workers.ops.door

    wanted = _buckets(buckets)
    moved: list[dict[str, Any]] = []

    def one(bucket: int) -> "Done | None":
        async def work(shards: "Shards", forget: "Forget") -> "Done | None":
            return await move(shards, bucket, to=to, within_s=within_s, forget=forget)

        return client.operate_on_shards(work)

    door: Door = context.obj
    with door.client(folder) as client:
        for bucket in wanted:
            done = one(bucket)
            rows = done.rows if done else {}
            moved.append({"bucket": bucket, "to": to, "from": done.source if done else None, "rows": rows})
            if not as_json:
                print(_sentence(bucket, to, done))
    if as_json:
        print_json(moved)


def _sentence(bucket: int, to: str, done: "Done | None") -> str:
    if done is None:
        return f"Bucket {bucket} is on {to} already."
    if not done.rows:
        return f"Bucket {bucket} is on {to}: what was left of its move is done."
    rows = ", ".join(f"{count} {table}" for table, count in done.rows.items() if count)
    return f"Bucket {bucket} has moved from {done.source} to {to}: {rows or 'it was empty'}."


def _buckets(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found or found[0] < 0 or found[-1] >= BUCKETS:
        raise BadInput(f"{text!r} is no bucket: write a number from 0 to {BUCKETS - 1}, or a range such as 512-1023")
    return found


async def _look(shards: "Shards") -> list[ShardLook]:
    from sqlalchemy import text  # imported here: see workers.ops.door

    shards.doubt()
    known = await shards.map()
    counts = Counter(known.home_of(bucket).shard for bucket in range(BUCKETS))
    found = []
    for name, database in shards.databases.items():
        rows = await shards.rows(name)
        async with database.unit(mode="ro") as unit:
            strays = await unit.scalar(text("SELECT count(*) FROM shard_strays"))
        moving = tuple(sorted(row.bucket for row in rows if row.state in ("moving", "arriving")))
        found.append(ShardLook(name, counts[name], moving, int(strays or 0)))
    return found
