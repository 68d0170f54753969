"""What can be tuned about the ledger."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerKnobs:
    """FLEET_LEDGER_*."""

    heartbeat_s: float = 5.0
    """Seconds between two heartbeats of a worker."""
    dead_after_s: float = 15.0
    """Seconds without a heartbeat until a worker's runs are given away; it stops itself at the same age."""
    batch_max: int = 256
    """Writes that share one transaction at the most."""
    redispatch_s: float = 30.0
    """Seconds until the keeper publishes a task again whose message was confirmed but never claimed."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s * 2 <= self.dead_after_s:
            raise ValueError("dead_after_s must be at least twice heartbeat_s, so that one late beat kills nobody")
        if self.batch_max < 1:
            raise ValueError("batch_max must be at least 1")
        if self.redispatch_s <= 0:
            raise ValueError("redispatch_s must be positive")
