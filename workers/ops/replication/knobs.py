"""What can be tuned about a failover on this machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverKnobs:
    """Patience, part by part: nothing waits for a node without a limit."""

    look_s: float = 0.7
    """Seconds a node may take to say what it is. A frozen one never does, and all of them are asked at once."""

    polite_s: float = 3.0
    """Seconds for a primary that answers to stop in order, which hands all its WAL over; then it is killed."""

    kill_s: float = 15.0
    """Seconds for killed processes to be gone; until the last one is, nothing is promoted."""

    drain_s: float = 0.3
    """Seconds for replicas to read what the dead primary's sockets still hold."""

    catch_up_s: float = 5.0
    """Seconds for the replica of `--to` to fetch from another one what it lacks; then that other one is promoted."""

    promote_s: float = 30.0
    """Seconds until a promotion counts as unconfirmed: replay of what was received comes first."""

    follow_s: float = 10.0
    """Seconds for a replica to stream from the new primary; then it is taken back like an old primary."""

    checkpoint_s: float = 120.0
    """Seconds for the new primary's checkpoint, without which pg_rewind does not see the new timeline."""

    backup_s: float = 600.0
    """Seconds for pg_rewind or pg_basebackup."""

    max_behind_bytes: int = 16 * 1024 * 1024
    """WAL that a candidate may lack before `--force` is asked for: one segment."""
