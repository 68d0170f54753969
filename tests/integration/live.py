"""What integration tests share: a database of their own, and patience."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UnknownTask


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated database of one test."""

    name: str
    url: str
    """On the primary, as SQLAlchemy takes it."""

    replica_url: str
    """The same database on the streaming replica."""

    @property
    def dsn(self) -> str:
        """The primary, as psycopg takes it."""
        return self.url.replace("+psycopg", "")


def eventually(check: Callable[[], Any], *, within_s: float = 30.0) -> Any:
    """Poll until `check` returns something true, and return it; the limit is generous, it only ends a broken test.

    A task that the broker was quicker to accept than the ledger may be unknown there until a worker has claimed it.
    """
    end = time.monotonic() + within_s
    while True:
        try:
            if found := check():
                return found
        except UnknownTask:
            if time.monotonic() >= end:
                raise
        assert time.monotonic() < end, f"did not come true within {within_s} s"
        time.sleep(0.02)


DAY_S = 86_400


def let_midnight_pass(*, last_s: float = 60.0) -> None:
    """A test of what belongs to one day (in UTC) does not begin in the last seconds of one."""
    left_s = DAY_S - time.time() % DAY_S
    if left_s < last_s:
        time.sleep(left_s + 0.1)


def users_of(pid: int) -> set[int]:
    """The users that a process is, or can become again: real, effective, saved and of files."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("Uid:")]
    return {int(uid) for uid in line.split()[1:]}
