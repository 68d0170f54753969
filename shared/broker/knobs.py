"""What can be tuned about the broker, and which configurations are refused because they lose work."""

from dataclasses import dataclass
from typing import Literal

Profile = Literal["embedded", "full"]


@dataclass(frozen=True, slots=True)
class BrokerKnobs:
    """FLEET_BROKER_*."""

    url: str = "amqp://guest:guest@127.0.0.1:5672//"
    """One URL (a load balancer or DNS name for a cluster, never a list)."""
    queue_type: Literal["quorum", "classic"] = "quorum"
    """Only `quorum` survives the loss of a node; anything else refuses to start."""
    confirm_publish: bool = True
    """Publisher confirms; without them a publish can vanish, so False refuses to start."""
    confirm_timeout_s: float = 5.0
    """Seconds to wait for the broker's confirmation before a publish counts as failed."""
    connect_timeout_s: float = 2.0
    """Seconds for one connection attempt."""
    socket_timeout_s: float = 10.0
    """Seconds for one read or write on an open connection."""
    heartbeat_s: int = 10
    """AMQP heartbeat; after two of them the broker takes a frozen worker's unclaimed messages back."""
    delivery_limit: int = 20
    """Redeliveries until RabbitMQ moves a message to the dead-letter queue."""
    retry_after_s: float = 1.0
    """After a failed connection, publishes fail at once for this long instead of each waiting again."""

    def __post_init__(self) -> None:
        if ";" in self.url:
            raise ValueError("url must be one URL: put a load balancer or a DNS name in front of a cluster")
        if not self.url.startswith(("amqp://", "amqps://", "redis://", "rediss://")):
            raise ValueError("url must start with amqp://, amqps:// or (embedded profile only) redis://")
        if self.queue_type != "quorum":
            raise ValueError("queue_type must be 'quorum': a classic queue loses messages with its node")
        if not self.confirm_publish:
            raise ValueError("confirm_publish must be true: an unconfirmed publish can be lost without an error")
        for name in ("confirm_timeout_s", "connect_timeout_s", "socket_timeout_s", "heartbeat_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if not 1 <= self.delivery_limit <= 1000:
            raise ValueError("delivery_limit must be between 1 and 1000")

    @property
    def is_amqp(self) -> bool:
        """Whether this is RabbitMQ rather than the embedded profile's Valkey."""
        return self.url.startswith("amqp")

    def check_profile(self, profile: Profile) -> None:
        """Refuse a broker that the profile does not allow.

        Raises: ValueError when Redis is the broker outside the embedded profile.
        """
        if profile == "full" and not self.is_amqp:
            raise ValueError(
                "url must be amqp:// in profile 'full': Redis has no confirms and no quorum; "
                "set FLEET_PROFILE=embedded to accept that on one machine"
            )
