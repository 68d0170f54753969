"""What can be tuned about the keeper."""

from dataclasses import dataclass, fields

CHORES = (
    "bury", "deadlines", "timers", "children", "orphans", "schedules", "release", "park", "unpark", "retention",
    "backlog", "strays", "lost", "held", "dead_letters",
)  # fmt: skip
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeeperKnobs:
    """FLEET_KEEPER_*."""

    order: str = ",".join(CHORES)
    """Chores in the order in which those that are due together are done. The last three talk to the broker, and have a
    lane of their own: a broker that hangs delays no timer."""
    round_s: float = 1.0
    """Seconds between two looks for dead workers, spent deadlines, lost messages, overdue held tasks, dead letters."""
    timers_s: float = 0.25
    """Seconds between two looks for waits that are over: what a wake may be late. One index lookup."""
    schedules_s: float = 0.5
    """Seconds between two looks for schedules that are due: what a tick may be late."""
    release_s: float = 0.2
    """Seconds between two releases while something waits under a limit; `round_s` while nothing does."""
    children_s: float = 5.0
    """Seconds between two looks for parents that nobody told of their children's end: a rare accident."""
    orphans_s: float = 2.0
    """Seconds between two looks for children spawned while their parent was being cancelled: a rare accident."""
    park_s: float = 30.0
    """Seconds between two looks for queued tasks whose agent nobody offers; 0.25 s where 1000 tenants hold 100 000."""
    park_after_s: float = 180.0
    """Seconds without an offer until an agent counts as gone and its tasks are parked; workers offer every 60 s."""
    unpark_s: float = 5.0
    """Seconds between two looks for parked tasks whose agent is offered again."""
    strays_s: float = 1.0
    """Seconds between two looks for tasks that were handed in here and belong to another shard; only with several."""
    batch: int = 500
    """Tasks that one chore changes in one transaction at the most: short enough for nobody to wait behind it."""
    publish_batch: int = 500
    """Tasks that one round publishes again at the most."""
    again_after_s: float = 5.0
    """Seconds until a task that the keeper published, and that is still not claimed, is published once more."""
    held_after_s: float = 5.0
    """Seconds after which a held task that no worker has polled, although some have room, is published instead."""
    deadline_grace_s: float = 10.0
    """Seconds after its deadline until a running task is ended here: its worker does it first, and knows more."""
    retention_s: float = 30 * DAY_S
    """Seconds that a finished task is kept; 0: for ever."""
    retention_every_s: float = 60.0
    """Seconds between two passes of retention."""
    retention_batch: int = 1000
    """Tasks that one transaction of retention deletes."""
    retention_pause_s: float = 0.1
    """Seconds between two batches of one pass: leaves the disk to those who work."""
    renew_s: float = 1.0
    """Seconds between two signs of life of the leader."""
    stale_after_s: float = 6.0
    """Seconds without one after which a standby takes over, though the leader's connection is open (a frozen one)."""
    look_s: float = 0.5
    """Seconds between two looks of a standby: also how soon it follows a leader whose connection has ended."""
    stuck_after_s: float = 60.0
    """Seconds that one chore may take until the leader stops giving signs of life, so that another one tries."""
    backlog_s: float = 15.0
    """Seconds between two counts of the ledger's backlog for the metrics."""
    metrics_port: int = 0
    """Port on loopback for /metrics, /livez and /readyz; 0 serves none."""

    @property
    def chores(self) -> tuple[str, ...]:
        """The chores in their order."""
        return tuple(name.strip() for name in self.order.split(","))

    def __post_init__(self) -> None:
        if sorted(self.chores) != sorted(CHORES):
            raise ValueError(f"order must name each chore once: {', '.join(CHORES)}")
        for knob in fields(self):
            if knob.name in ("batch", "publish_batch", "retention_batch") and getattr(self, knob.name) < 1:
                raise ValueError(f"{knob.name} must be at least 1")
            may_be_zero = knob.name in ("retention_s", "deadline_grace_s", "retention_pause_s", "metrics_port")
            value = getattr(self, knob.name)
            if isinstance(value, float | int) and (value < 0 or (value == 0 and not may_be_zero)):
                raise ValueError(f"{knob.name} must be {'0 or more' if may_be_zero else 'positive'}")
        if self.metrics_port > 65_535:
            raise ValueError("metrics_port must be a port or 0")
        if self.stale_after_s < 3 * self.renew_s:
            raise ValueError("stale_after_s must be at least three times renew_s, so that one late sign deposes nobody")
