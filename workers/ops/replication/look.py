"""What a PostgreSQL node says about itself, within a deadline: a frozen one accepts connections and never answers."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from workers.ops.probes import HOST, NotReady
from workers.ops.replication.group import USER
from workers.ops.replication.node import Node

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int"
"""Of a primary, at once; pg_control_checkpoint() would tell the old one until the next checkpoint."""

LOOK = f"""
SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery()
    THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END - '0/0',
  CASE WHEN NOT pg_is_in_recovery() THEN {TIMELINE}
    ELSE (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming') END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One node at one moment."""

    name: str
    answers: bool
    is_standby: bool = False
    system_id: int = 0
    lsn: int = 0
    """What is on its disk: flushed by a primary, received by a standby (bytes since the beginning of WAL)."""

    timeline: int | None = None
    """A primary's own; that of the stream a standby receives, None while it receives none."""

    detail: str = ""
    """Why it does not answer."""

    @property
    def is_primary(self) -> bool:
        """Whether it would accept a write."""
        return self.answers and not self.is_standby


async def look(node: Node, *, within_s: float) -> Look:
    """Ask a node; what it does not say within the time is `answers=False`, never an error."""
    try:
        async with connected(node.port, within_s=within_s) as connection:
            row = await (await connection.execute(LOOK)).fetchone()
    except NotReady as error:
        return Look(name=node.name, answers=False, detail=str(error))
    is_standby, system_id, lsn, timeline = row or (True, 0, 0, None)
    return Look(
        name=node.name, answers=True, is_standby=is_standby, system_id=system_id, lsn=int(lsn or 0), timeline=timeline
    )


@asynccontextmanager
async def connected(port: int, *, within_s: float) -> AsyncIterator[Connection]:
    """A connection of one's own in autocommit; whatever waits on it ends when the time is over.

    Raises: NotReady, also for what goes wrong inside.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    try:
        async with asyncio.timeout_at(end):
            connection = await psycopg.AsyncConnection.connect(
                host=HOST, port=port, user=USER, dbname="postgres", autocommit=True, application_name="fleet-ops"
            )
    except (psycopg.Error, TimeoutError) as error:
        raise NotReady(_sentence(error, within_s=within_s)) from error
    late = loop.call_at(end, _cut, connection)
    try:
        yield connection
    except psycopg.Error as error:
        raise NotReady(_sentence(error, within_s=within_s) if loop.time() < end else _late(within_s)) from error
    finally:
        late.cancel()
        await connection.close()


def _cut(connection: Connection) -> None:
    """End a wait from this side: cancelling it would make the driver ask the silent server to cancel, and wait."""
    with contextlib.suppress(OSError, psycopg.Error):
        wire = socket.socket(fileno=os.dup(connection.fileno()))
        with wire:
            wire.shutdown(socket.SHUT_RDWR)


def _sentence(error: BaseException, *, within_s: float) -> str:
    if isinstance(error, TimeoutError):
        return _late(within_s)
    return (str(error) or type(error).__name__).splitlines()[0].rpartition(" failed: ")[2]


def _late(within_s: float) -> str:
    return f"no answer within {within_s:g} s"
