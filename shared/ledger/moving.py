"""A bucket moves to another shard while the fleet works: nothing of it is lost, and nothing is there twice.

1. The target is told that it is `arriving`, the source that it is `moving`: there it is still read and written, but
   its tasks are not claimed any more, and those that run are waited for.
2. In one transaction the source locks the bucket, which waits for its writers and keeps new ones waiting; its rows are
   copied to the target and committed there; then the source deletes them and says that it has `moved`. That commit is
   the moment of the move.
3. The target opens it.

After an interruption anywhere the same command goes on: until the source's commit the target's copy counts for nothing
and is made anew, after it only the opening is left.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

import psycopg
import structlog

from shared.contracts import BUCKETS
from shared.db.link import Link
from shared.db.shard_map import BucketRow, ShardMap
from shared.db.shards import Shards
from shared.errors import BadInput, DatabaseUnavailable, WrongState
from shared.ledger.bucket_rows import TASKS, clear, copy, lock

log = structlog.get_logger()

LOOK_S = 0.2
"""Seconds between two looks for tasks that still run."""
COPY_S = 600.0
"""Seconds that one statement of the copying may take; so long the bucket's writers wait at the most."""
ARM_LOCK_MS = 5000
"""Milliseconds that the first move waits for the tables' writers, while it keeps new ones waiting."""
ENABLE = (
    "ALTER TABLE tasks ENABLE TRIGGER shard_place, ENABLE TRIGGER shard_claim",
    "ALTER TABLE messages ENABLE TRIGGER shard_place",
)
"""Each waits for the table's writers under way, and each alone: two locks at once could wait for each other."""
ENABLED = """
    SELECT count(*) FROM pg_trigger WHERE tgname IN ('shard_place', 'shard_claim') AND tgenabled <> 'D'
      AND tgrelid IN (to_regclass('tasks'), to_regclass('messages'))"""
SEED = "INSERT INTO shard_buckets SELECT b, 0, %s, %s FROM generate_series(0, %s) b ON CONFLICT DO NOTHING"
RUNNING = f"SELECT id FROM tasks WHERE state = 'running' AND {TASKS.where}"
SET = "UPDATE shard_buckets SET state = %s WHERE bucket = %s AND epoch = %s AND state = ANY(%s)"
MOVED = "UPDATE shard_buckets SET state = 'moved', epoch = %s, shard = %s WHERE bucket = %s"
OPEN = "UPDATE shard_buckets SET state = 'open', epoch = %s, shard = %s WHERE bucket = %s AND state = 'arriving'"
SETTLE = "DELETE FROM shard_strays WHERE fleet_task_bucket(task_id) = %s"
HOLD = f"UPDATE tasks SET dispatch_at = now() + make_interval(secs => %s) WHERE state = 'queued' AND {TASKS.where}"
IN_LINE = f"UPDATE tasks SET published_at = NULL, dispatch_at = now() WHERE state = 'queued' AND {TASKS.where}"


@dataclass(frozen=True, slots=True)
class Move:
    """One bucket on its way, and how often it has moved before."""

    bucket: int
    source: str
    target: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Done:
    """What a move took along; `rows` by table, empty when only its end was left to do."""

    source: str
    target: str
    rows: dict[str, int]


Forget = Callable[[Sequence[tuple[str, str]]], Awaitable[None]]


async def move_bucket(shards: Shards, bucket: int, *, to: str, within_s: float, forget: Forget) -> Done | None:
    """Move a bucket, end a move that was interrupted, or, given the shard that it is on, call that off.

    Args:
        within_s: Seconds to wait for its running tasks.
        forget: Drops what caches keep of these sessions, (tenant, session): their messages have other numbers there.

    Returns: None when it is there already.
    Raises: BadInput for a bucket or shard that is none; WrongState when tasks still run after `within_s`, or it is on
        its way to another shard: nothing is changed then; DatabaseUnavailable: run it again.
    """
    if not 0 <= bucket < BUCKETS:
        raise BadInput(f"bucket must be 0 to {BUCKETS - 1}, not {bucket}")
    if to not in shards.databases:
        raise BadInput(f"no shard {to!r} in the file of FLEET_DB_SHARDS: there are {', '.join(shards.databases)}")
    said = {name: {row.bucket: row for row in await shards.rows(name)} for name in shards.databases}
    move = _plan(shards.first, {name: rows.get(bucket) for name, rows in said.items()}, bucket, to)
    shards.doubt()
    try:
        if move.source == to:
            return await _stay(shards, move, {name: rows.get(bucket) for name, rows in said.items()}, forget)
        for name in (move.source, to):
            await _arm(shards, name)
        return Done(move.source, to, await _carry(shards, move, within_s=within_s, forget=forget))
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"{str(error).splitlines()[0]}: run the same command again to go on") from error
    finally:
        shards.doubt()


def _plan(first: str, said: dict[str, BucketRow | None], bucket: int, to: str) -> Move:
    home = ShardMap(first).merged(row for row in said.values() if row is not None).home_of(bucket)
    for name, row in said.items():
        if row is not None and row.state == "arriving" and name != to and home.shard != to:
            raise WrongState(f"bucket {bucket} is on its way to {name}: end that move first, with --to {name}")
    return Move(bucket, home.shard, to, home.epoch)


async def _carry(shards: Shards, move: Move, *, within_s: float, forget: Forget) -> dict[str, int]:
    until = asyncio.get_running_loop().time() + within_s
    values = [move.bucket, move.epoch]
    async with _link(shards, move.target) as target, _link(shards, move.source) as source:
        await target.execute(
            "UPDATE shard_buckets SET state = 'arriving', shard = %s, epoch = %s WHERE bucket = %s AND epoch <= %s",
            [move.source, move.epoch, move.bucket, move.epoch],
        )
        await source.execute(SET, ["moving", *values, ["open", "moving"]])
        await source.execute(HOLD.format(bucket=move.bucket), [within_s])
        while (rows := await _cut_over(source, target, move)) is None:
            if asyncio.get_running_loop().time() >= until:
                await _abandon(source, target, move, within_s)
            await asyncio.sleep(LOOK_S)
        await _open(target, move.bucket, move.target, epoch=move.epoch + 1, forget=forget)
    log.info("shards.bucket_moved", bucket=move.bucket, source=move.source, target=move.target, **rows)
    return rows


async def _cut_over(source: Link, target: Link, move: Move) -> dict[str, int] | None:
    """The move itself; None while tasks of the bucket run, or when somebody else's locks were in the way."""
    if await _running(source, move.bucket):
        return None
    with suppress(psycopg.errors.DeadlockDetected):
        return await _copied(source, target, move)
    return None


async def _copied(source: Link, target: Link, move: Move) -> dict[str, int] | None:
    async with source.transaction():
        await _patiently(source)
        state = await (
            await source.execute("SELECT state FROM shard_buckets WHERE bucket = %s FOR UPDATE", [move.bucket])
        ).fetchone()
        if state != ("moving",):
            raise WrongState(f"bucket {move.bucket} is being moved by somebody else: look with `fleet db shards`")
        if await _running(source, move.bucket):  # claimed by somebody who had not seen yet that it moves
            return None
        await lock(source, move.bucket)
        async with target.transaction():
            await _patiently(target)
            await target.execute("SET LOCAL fleet.mover = 'on'")
            await target.execute("SELECT FROM shard_buckets WHERE bucket = %s FOR UPDATE", [move.bucket])
            await copy(source, target, move.bucket)
            await target.execute(IN_LINE.format(bucket=move.bucket))
        rows = await clear(source, move.bucket)
        await source.execute(SETTLE, [move.bucket])
        await source.execute(MOVED, [move.epoch + 1, move.target, move.bucket])
    return rows


async def _abandon(source: Link, target: Link, move: Move, within_s: float) -> None:
    """Tasks ran for too long: everything as it was. Raises: WrongState that says so."""
    running = await _running(source, move.bucket)
    values = [move.bucket, move.epoch]
    await _call_off(target, move)
    await source.execute(SET, ["open", *values, ["moving"]])
    await source.execute(HOLD.format(bucket=move.bucket), [0])
    still = f"{len(running)} of its tasks still run, for example {running[0]}" if running else "its tasks ran until now"
    raise WrongState(
        f"bucket {move.bucket} was not moved within {within_s:g} s: {still}; nothing was changed: try again when they"
        " have ended or wait, or give them more time with --within-s"
    )


async def _call_off(target: Link, move: Move) -> None:
    """What was copied counts for nothing; what was handed in there is taken home by its keeper."""
    async with target.transaction():
        state = "SELECT state FROM shard_buckets WHERE bucket = %s FOR UPDATE"
        if await (await target.execute(state, [move.bucket])).fetchone() == ("arriving",):
            await clear(target, move.bucket, but_strays=True)
            await target.execute(SET, ["moved", move.bucket, move.epoch, ["arriving"]])


async def _stay(shards: Shards, move: Move, said: dict[str, BucketRow | None], forget: Forget) -> Done | None:
    """It is where it shall be: open it there, should a move to or from there have been interrupted."""
    own = said[move.target]
    if own is None or own.state == "open":
        return None
    async with _link(shards, move.target) as here:
        if own.state == "arriving":
            await _open(here, move.bucket, move.target, epoch=move.epoch, forget=forget)
        else:
            for name, row in said.items():
                if row is not None and row.state == "arriving":
                    async with _link(shards, name) as other:
                        await _call_off(other, move)
            await here.execute(SET, ["open", move.bucket, move.epoch, ["moving"]])
            await here.execute(HOLD.format(bucket=move.bucket), [0])
    return Done(move.target, move.target, {})


async def _open(target: Link, bucket: int, name: str, *, epoch: int, forget: Forget) -> None:
    """From here on it is read and written there; what was handed in there too early is at home now."""
    sessions = "SELECT DISTINCT tenant, session_id FROM messages WHERE fleet_session_bucket(tenant, session_id) = %s"
    await forget(await (await target.execute(sessions, [bucket])).fetchall())
    await target.execute(OPEN, [epoch, name, bucket])
    await target.execute(SETTLE, [bucket])


async def _running(link: Link, bucket: int) -> list[str]:
    return [str(row[0]) for row in await (await link.execute(RUNNING.format(bucket=bucket))).fetchall()]


async def _arm(shards: Shards, name: str) -> None:
    """From now on every write of the shard asks whose the bucket is; what is under way is waited for."""
    async with _link(shards, name) as link:
        if await (await link.execute(ENABLED)).fetchone() == (3,):
            return
        await link.execute(SEED, ["open" if name == shards.first else "moved", shards.first, BUCKETS - 1])
        await link.execute(f"SET lock_timeout = {ARM_LOCK_MS}")
        for statement in ENABLE:
            await link.execute(statement)


async def _patiently(link: Link) -> None:
    """Time for the copy, and no more: a command that is frozen in it does not keep the bucket locked for ever."""
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
        await link.execute(f"SET LOCAL {limit} = {round(COPY_S * 1000)}")


@asynccontextmanager
async def _link(shards: Shards, name: str) -> AsyncIterator[Link]:
    """A connection to the shard's primary."""
    link = cast(Link, await shards.databases[name].direct())
    link.limit_s = COPY_S + 5
    try:
        yield link
    finally:
        await link.close()
