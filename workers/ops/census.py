"""Who is who among processes: identity is a pid with its start time; membership is a session or a log file.

A pid alone is reused by the kernel; a pid with the start time of its process (field 22 of /proc/<pid>/stat) is not.
A server's helpers are found by two marks that survive the death of their parent: the session of the server, and an
output that goes to the server's log (PostgreSQL's backends and RabbitMQ's ports leave the session, never the log).
Standard library only: the guard process loads this file and nothing else.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever: a pid and when it started (clock ticks since boot)."""

    pid: int
    started_ticks: int


@dataclass(frozen=True, slots=True)
class _Row:
    pid: int
    session: int
    started_ticks: int


def _row(pid: int) -> _Row | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may hold spaces and brackets: count from its end
    if fields[0] in "ZX":  # dead, not yet collected by its parent
        return None
    return _Row(pid=pid, session=int(fields[3]), started_ticks=int(fields[19]))


def identify(pid: int) -> Identity | None:
    """Name a living process; None when it is gone or a zombie."""
    row = _row(pid)
    return Identity(pid=pid, started_ticks=row.started_ticks) if row else None


def is_alive(identity: Identity) -> bool:
    """Whether exactly this process still runs (not another one that inherited its pid)."""
    return identify(identity.pid) == identity


def send(identity: Identity, signum: int) -> bool:
    """Signal exactly this process; False when it is gone. A pidfd holds the process still between look and signal.

    Raises: PermissionError when it belongs to another user.
    """
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def remove_stale_lock(lock_file: Path) -> bool:
    """Remove a lock file whose first line names no living process: a zombie that nobody collects would hold it.

    Returns: Whether it was removed.
    """
    try:
        pid = int(lock_file.read_text(encoding="utf-8", errors="replace").partition("\n")[0])
    except (OSError, ValueError):
        return False
    if identify(pid) is not None:
        return False
    lock_file.unlink(missing_ok=True)
    return True


def members(leader: Identity, *, log: str = "") -> list[Identity]:
    """List a server's living processes: its session, and whatever else writes its output to `log`.

    A leader that is gone leaves its pid to be reused: the session of a stranger who has it now is not the leader's.
    """
    found = []
    has_session = identify(leader.pid) in (None, leader)
    for entry in Path("/proc").iterdir():
        row = _row(int(entry.name)) if entry.name.isdigit() else None
        if row is None or row.pid == os.getpid() or row.started_ticks < leader.started_ticks:
            continue
        if (has_session and row.session == leader.pid) or (log and _writes_to(row.pid, log)):
            found.append(Identity(pid=row.pid, started_ticks=row.started_ticks))
    return found


def _writes_to(pid: int, log: str) -> bool:
    for stream in (2, 1):
        try:
            if str(Path(f"/proc/{pid}/fd/{stream}").readlink()) == log:
                return True
        except OSError:
            continue
    return False
