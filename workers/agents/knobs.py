"""What can be tuned about a worker process."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerKnobs:
    """FLEET_WORKER_*."""

    concurrency: int = 200
    """Runs in flight at once; `celery worker -c N` overrides it. A waiting model call costs memory, not CPU."""
    prefetch: int = 128
    """Messages reserved beyond the running tasks: enough to refill slots, too few to hoard others' work."""
    soft_limit_s: float = 1500.0
    """Seconds after which SoftTimeLimitExceeded is raised inside the agent; an agent may state its own."""
    hard_limit_s: float = 1800.0
    """Seconds after which the run is cancelled and the task fails; an agent may state its own."""
    drain_s: float = 30.0
    """Seconds after SIGTERM in which running tasks may finish; the others are handed back."""
    lag_warn_s: float = 0.5
    """Lag of the event loop that is logged: some agent blocks the loop."""
    metrics_port: int = 0
    """Port on loopback for Prometheus; 0 serves none."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "prefetch"):
            if not 1 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} must be between 1 and 65535")
        if not 0 < self.soft_limit_s <= self.hard_limit_s:
            raise ValueError("soft_limit_s must be positive and not above hard_limit_s")
        if self.drain_s < 0 or self.lag_warn_s <= 0 or not 0 <= self.metrics_port <= 65_535:
            raise ValueError("drain_s must not be negative, lag_warn_s positive, metrics_port a port or 0")
