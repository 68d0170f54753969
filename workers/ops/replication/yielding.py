"""How a primary yields: it stops once its replicas have all it wrote, and its folder tells how far that was."""

import asyncio
import re
from collections.abc import Sequence

from workers.ops.replication.group import Group
from workers.ops.replication.look import connected
from workers.ops.replication.node import Node

STATE = re.compile(r"^Database cluster state: +(.+)$", re.MULTILINE)
CHECKPOINT = re.compile(r"^Latest checkpoint location: +([0-9A-F]+)/([0-9A-F]+)$", re.MULTILINE)


async def forsake(node: Node, silent: Sequence[str], *, within_s: float) -> None:
    """End the streams to replicas that do not answer: a primary would wait for them. Raises: NotReady."""
    if not silent:
        return
    async with connected(node.port, within_s=within_s) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = ANY(%s)", [list(silent)]
        )


async def last_lsn(group: Group, node: Node) -> int | None:
    """Where the last record of a node that was stopped in order begins; None when it was not."""
    asking = await asyncio.create_subprocess_exec(
        str(group.tools / "pg_controldata"), "-D", str(node.cluster), env={"LC_ALL": "C"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    told, _ = await asking.communicate()
    return last_lsn_in(told.decode(errors="replace"))


def last_lsn_in(told: str) -> int | None:
    """Read what pg_controldata says."""
    state, place = STATE.search(told), CHECKPOINT.search(told)
    if state is None or place is None or state[1] != "shut down":
        return None
    return int(place[1], 16) << 32 | int(place[2], 16)
