"""What a node's start does: the leader is promoted if it must be, any other follows, and a fenced one is taken back.

Both halves look at the marks and the note alone, so a start after any interruption goes on where the last one ended.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable

from workers.ops.census import remove_stale_lock
from workers.ops.probes import NotReady
from workers.ops.replication.group import DATABASE, USER, Group, slot
from workers.ops.replication.look import TIMELINE, Connection, connected
from workers.ops.replication.node import Node
from workers.ops.spec import RunTool, ServerFailed

POLL_S = 0.005
FIRST_WORDS_S = 20.0


def before_start(group: Group, node: Node) -> Callable[[RunTool], Awaitable[None]]:
    """Make a node's folder into what the note wants it to be."""

    async def prepare(run: RunTool) -> None:
        leader = group.leader
        if node == leader:
            _take_office(group, node)
        elif not node.is_made:
            await _copy(group, node, leader=leader, run=run)
        elif node.is_fenced or not node.is_standby:
            await _take_back(group, node, leader=leader, run=run)
        if node != leader:
            follow(group, node, leader=leader)

    return prepare


def on_ready(group: Group, node: Node) -> Callable[[], Awaitable[None]]:
    """What a node needs once it answers."""

    async def settle() -> None:
        if node == group.leader:
            await promote(group, node)
            await equip(group, node)
        else:
            await _serve_reads(node)

    return settle


def follow(group: Group, node: Node, *, leader: Node) -> None:
    """Write whom the node follows, and that it is a standby; what fenced it is settled."""
    node.configure(group.settings_of(node, behind=leader))
    node.set_standby(True)
    node.lift_fence()


async def promote(group: Group, node: Node) -> int:
    """Make the node a primary unless it is one; return its timeline. Raises: NotReady."""
    async with connected(node.port, within_s=group.knobs.promote_s) as connection:
        if await _is_standby(connection):
            await connection.execute("SELECT pg_promote(false)")  # waiting for it inside looks ten times a second only
        while await _is_standby(connection):
            await asyncio.sleep(POLL_S)
        row = await (await connection.execute(f"SELECT {TIMELINE}")).fetchone()
        return int(row[0]) if row else 0


async def equip(group: Group, node: Node) -> None:
    """Give a primary what it needs: a slot for every replica, the fleet's database. Raises: NotReady."""
    node.configure(group.settings_of(node, behind=None))
    async with connected(node.port, within_s=FIRST_WORDS_S) as connection:
        await connection.execute("SET synchronous_commit = local")  # the standbys come after it
        for other in group.followers:
            await connection.execute(
                "SELECT pg_create_physical_replication_slot(%(slot)s, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)",
                {"slot": slot(other.name)},
            )
        found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
        if await found.fetchone() is None:
            await connection.execute(f"CREATE DATABASE {DATABASE}")


def _take_office(group: Group, node: Node) -> None:
    """A leader that is still fenced was fenced for a successor that never was: nothing was promoted meanwhile."""
    if node.is_fenced:
        node.set_standby(False)
        node.lift_fence()
    if node.is_made:
        node.configure(group.settings_of(node, behind=None))


async def _is_standby(connection: Connection) -> bool:
    row = await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()
    return bool(row and row[0])


async def _serve_reads(node: Node) -> None:
    async with connected(node.port, within_s=FIRST_WORDS_S) as connection:
        if not await _is_standby(connection):
            raise NotReady(f"{node.name} is a primary, and another node leads")
        await connection.execute(  # those it made as a primary would keep WAL for ever
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"
        )


async def _take_back(group: Group, node: Node, *, leader: Node, run: RunTool) -> None:
    """Undo what the node alone has; where that cannot be done, copy the leader anew."""
    async with connected(leader.port, within_s=group.knobs.checkpoint_s) as connection:
        if await _is_standby(connection):
            raise NotReady(f"{leader.name} has not been promoted yet")
        await connection.execute("CHECKPOINT")  # before it pg_rewind sees the old timeline and finds nothing to do
    remove_stale_lock(node.cluster / "postmaster.pid")
    node.set_standby(False)  # pg_rewind lets a killed cluster recover alone, which a standby refuses; the fence stays
    source = f"host=127.0.0.1 port={leader.port} user={USER} dbname=postgres application_name={node.name}-rewind"
    rewind = (str(group.tools / "pg_rewind"), "--target-pgdata", str(node.cluster), "--source-server", source)
    try:
        await run((*rewind, "--no-sync", "--progress"), within_s=group.knobs.backup_s)
        group.returns[node.name] = "pg_rewind"
    except ServerFailed:
        await _copy(group, node, leader=leader, run=run)


async def _copy(group: Group, node: Node, *, leader: Node, run: RunTool) -> None:
    node.set_made(False)
    shutil.rmtree(node.cluster, ignore_errors=True)
    source = group.conninfo(f"{node.name}-backup", of=leader)
    backup = (str(group.tools / "pg_basebackup"), "--pgdata", str(node.cluster), "--dbname", source)
    try:
        await run(
            (*backup, "--checkpoint", "fast", "--wal-method", "stream", "--no-sync"), within_s=group.knobs.backup_s
        )
    except ServerFailed:
        shutil.rmtree(node.cluster, ignore_errors=True)
        raise
    node.set_made(True)
    group.returns[node.name] = "pg_basebackup"
