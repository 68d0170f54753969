"""What can be tuned about the ledger."""

from dataclasses import dataclass, field

from pydantic import SecretStr

from shared.ledger.vault_knobs import MasterKey, read_keys


@dataclass(frozen=True, slots=True)
class LedgerKnobs:
    """FLEET_LEDGER_*."""

    heartbeat_s: float = 5.0
    """Seconds between two heartbeats of a worker."""
    dead_after_s: float = 15.0
    """Seconds without a heartbeat until a worker's runs are given away; it stops itself at the same age."""
    batch_max: int = 256
    """Writes that share one transaction at the most."""
    window_s: float = 0.0
    """Seconds that a commit waits for more writes; 0 measured best: a batch grows while the last one commits."""
    fair_window: int = 256
    """Tasks of one tenant on the queue; its further ones are held in the ledger for a fair turn."""
    poll_s: float = 1.0
    """Seconds between two looks of an idle worker for held tasks and for messages that got lost."""
    lost_after_s: float = 3.0
    """Seconds after which an idle worker takes a published task whose message has not come."""
    suspend_after_s: float = 5.0
    """Waits longer than this give their slot back; shorter ones are sat out."""
    blob_bytes: int = 262_144
    """Step results above this go to a table of their own."""
    input_max_bytes: int = 262_144
    """Inputs above this are refused: a message carries its whole task."""
    redispatch_s: float = 30.0
    """Seconds until the keeper publishes a task again whose message was confirmed but never claimed."""
    keys: SecretStr = field(default_factory=lambda: SecretStr(""))
    """Master keys `id:base64,id:base64` (32 bytes each) that seal inputs, results, outputs and conversations at rest:
    the first seals, all open. Empty: nothing is sealed. `fleet keys new` makes one. Every producer and worker needs the
    same; the keeper needs none."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s * 2 <= self.dead_after_s:
            raise ValueError("dead_after_s must be at least twice heartbeat_s, so that one late beat kills nobody")
        if self.batch_max < 1:
            raise ValueError("batch_max must be at least 1")
        for name in ("redispatch_s", "fair_window", "poll_s", "lost_after_s", "blob_bytes", "input_max_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.window_s < 0 or self.suspend_after_s < 0:
            raise ValueError("window_s and suspend_after_s must not be negative")
        read_keys(self.keys.get_secret_value())

    @property
    def master_keys(self) -> tuple[MasterKey, ...]:
        """What `keys` says, the key that seals first."""
        return read_keys(self.keys.get_secret_value())
