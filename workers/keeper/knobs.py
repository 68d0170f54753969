"""What can be tuned about the keeper."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeeperKnobs:
    """FLEET_KEEPER_*."""

    round_s: float = 1.0
    """Seconds between two rounds: also the delay of a task whose message was never sent."""
    publish_batch: int = 500
    """Tasks that one round publishes again at the most."""
    again_after_s: float = 5.0
    """Seconds until a task that was published again, and still not claimed, is published once more."""

    def __post_init__(self) -> None:
        if self.round_s <= 0 or self.again_after_s <= 0:
            raise ValueError("round_s and again_after_s must be positive")
        if self.publish_batch < 1:
            raise ValueError("publish_batch must be at least 1")
