"""What can be tuned about session memory."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryKnobs:
    """FLEET_MEMORY_*."""

    redis_url: str = "redis://127.0.0.1:6379/1"
    """The session cache; its own database number, apart from the embedded profile's broker."""

    ttl_s: int = 3600
    """Seconds a cached session lives, from the moment it was filled from the truth. Also the longest time the cache
    can be wrong after a double failure."""

    context_messages: int = 40
    """Messages of a session that are cached and given to an agent, newest first to stay: 20 turns."""

    context_characters: int = 32_000
    """Characters of the context given to an agent, about 8000 tokens; older messages are left out, a single message
    that is longer is cut."""

    timeout_s: float = 1.0
    """Seconds for one call to Redis, waiting for a connection included. redis-py's own defaults (5 s a socket
    operation, ten retries) stall a call for tens of seconds when Redis is down."""

    rest_s: float = 5.0
    """Seconds for which Redis is not asked again after it failed: a thousand runs must not each wait for a timeout."""

    max_connections: int = 32
    """Connections to Redis per process; calls beyond it wait their turn, which takes well under a millisecond."""

    def __post_init__(self) -> None:
        if not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis_url must start with redis://, rediss:// or unix://")
        for name in ("ttl_s", "context_messages", "context_characters", "timeout_s", "max_connections"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.rest_s < 0:
            raise ValueError("rest_s must not be negative")
