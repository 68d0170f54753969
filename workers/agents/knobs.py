"""What can be tuned about a worker process."""

from dataclasses import dataclass

from shared.contracts import Priority
from workers.agents.sources import parse_queues


@dataclass(frozen=True, slots=True)
class WorkerKnobs:
    """FLEET_WORKER_*."""

    concurrency: int = 200
    """Runs in flight at once; `celery worker -c N` overrides it. A waiting model call costs memory, not CPU."""
    prefetch: int = 128
    """Messages reserved beyond the running tasks: enough to refill slots, too few to hoard others' work."""
    queues: str = "interactive,normal,batch"
    """Priorities that this worker serves; `celery worker -Q agent.tasks.batch` overrides it."""
    weights: str = "8:4:1"
    """Shares of interactive:normal:batch in the slots while all of them have work; none ever starves."""
    poll_batch: int = 128
    """Held tasks that are claimed at once: enough to outrun the queue, few enough to share with other workers."""
    cancel_poll_s: float = 0.5
    """Seconds between two looks into the ledger for cancelled runs: without Redis they end within a second all the
    same."""
    soft_limit_s: float = 1500.0
    """Seconds after which SoftTimeLimitExceeded is raised inside the agent; an agent may state its own."""
    hard_limit_s: float = 1800.0
    """Seconds after which the run is cancelled and the task fails; an agent may state its own."""
    drain_s: float = 30.0
    """Seconds after SIGTERM in which running tasks may finish; then each is put down at its next step."""
    cut_s: float = 5.0
    """Seconds more until what is still in a call is cut off and handed back: its call is in doubt."""
    lag_warn_s: float = 0.5
    """Lag of the event loop that is logged: some agent blocks the loop."""
    metrics_port: int = 0
    """Port on loopback for /metrics, /livez and /readyz; 0 serves none."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "prefetch", "poll_batch"):
            if not 1 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} must be between 1 and 65535")
        if not 0 < self.soft_limit_s <= self.hard_limit_s:
            raise ValueError("soft_limit_s must be positive and not above hard_limit_s")
        for name in ("drain_s", "cut_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.cancel_poll_s <= 0:
            raise ValueError("cancel_poll_s must be positive")
        if self.lag_warn_s <= 0 or not 0 <= self.metrics_port <= 65_535:
            raise ValueError("lag_warn_s must be positive, metrics_port a port or 0")
        _ = self.served

    @property
    def served(self) -> dict[Priority, int]:
        """The priorities of `queues` with their weights."""
        return parse_queues(self.queues, self.weights)
