"""The guard: a small process that outlives its supervisor by milliseconds and takes every server with it.

It holds the read end of a pipe whose only writer is the supervisor, so the supervisor's death - SIGKILL included -
reads as end of file. It then kills whatever was registered and still lives, by identity, and removes the directories
it was told of. Standard library only; started as `python -m workers.ops.guard`.
"""

import json
import shutil
import signal
import sys
import time
from typing import Any

from workers.ops.census import Identity, is_alive, members, send

ROUNDS = 200
ROUND_S = 0.02


def main() -> None:
    """Read registrations until the supervisor is gone, then leave nothing behind."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    servers: dict[str, dict[str, Any]] = {}
    folders: list[str] = []
    for line in sys.stdin:
        fact = json.loads(line)
        if "folder" in fact:
            folders.append(fact["folder"])
        else:
            servers[f"{fact['pid']}/{fact['started_ticks']}"] = fact
    for _ in range(ROUNDS):
        if not [fact for fact in servers.values() if _kill(fact)]:
            break
        time.sleep(ROUND_S)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _kill(fact: dict[str, Any]) -> bool:
    leader = Identity(pid=fact["pid"], started_ticks=fact["started_ticks"])
    crowd = members(leader, log=fact["log"])
    if is_alive(leader) and leader not in crowd:
        crowd.append(leader)
    for identity in crowd:
        try:
            send(identity, signal.SIGKILL)
        except PermissionError:
            continue
    return bool(crowd)


if __name__ == "__main__":
    main()
