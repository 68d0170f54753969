"""Two workers of one name: the second one leaves, says why, and does the first no harm.

They would share one mailbox for `celery control` and Flower, and RabbitMQ locks the later one out of it for ever.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from shared.errors import Misconfigured
from shared.ledger.roster import Elder

LOOK_S = 0.25
"""Seconds between two looks for a sign of life."""


def is_surely_gone(elder: Elder, *, host: str, own_pid: int, runs: Callable[[int], bool]) -> bool:
    """Whether a worker whose row looks alive was killed: its process is not there, or its id is this one's."""
    return elder.host == host and (elder.pid == own_pid or not runs(elder.pid))


async def refuse_second(name: str, look: Callable[[], Awaitable[Sequence[Elder]]], *, heartbeat_s: float) -> None:
    """Return once no other worker can have this name; at once where none has left a trace.

    Args:
        look: The workers that had it before.
        heartbeat_s: How often a living one shows that it lives.

    Raises: Misconfigured when one of them lives.
    """
    host, last = socket.gethostname(), asyncio.get_running_loop().time() + heartbeat_s * 1.5
    seen = {
        one.id: one
        for one in await look()
        if not is_surely_gone(one, host=host, own_pid=os.getpid(), runs=_runs)
    }  # fmt: skip
    while seen and asyncio.get_running_loop().time() < last:
        await asyncio.sleep(LOOK_S)
        for one in await look():
            if one.id in seen and one.heartbeat_at != seen[one.id].heartbeat_at:
                raise Misconfigured(
                    f"another worker named {name!r} is running (process {one.pid} on {one.host}): give each its own "
                    "name, for example -n worker-2@%h",
                    name=name, host=one.host, pid=one.pid,
                )  # fmt: skip


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
