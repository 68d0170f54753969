"""What is known of a node: where it is, as configured, and what it was last seen to be, as observed."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """One node as configured. Nothing here says what it is."""

    name: str
    url: str
    weight: int = 1
    """Its share of the reads among the replicas; 0: never read from, only promoted."""
    pool_size: int = 5
    direct_url: str = ""
    """Past the pooler, where there is one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One look at a node that answered. Positions are the log's, times this process's monotonic clock."""

    seen_at: float
    """When the look began: all that it saw is at least as new."""
    is_primary: bool
    system_id: int
    timeline: int
    """Of a primary the one it writes; of a replica the one it streams, or 0 while it streams none."""
    lsn: int
    """Of a primary what is flushed, of a replica what is replayed: reads there see all of it."""
    is_streaming: bool = False
    receiver: str = "none"
    """The receiver's own word for its state; `hidden` when this role may not look."""
    clock_s: float = 0.0
    """The node's own wall clock."""
    beat_s: float | None = None
    """The newest heartbeat that reads there see, by the clock of the primary that wrote it."""
    switches: Mapping[int, int] = field(default_factory=dict)
    """Earlier timelines of this history, and where each was left; empty when this role may not read it."""


def read_history(text: str) -> dict[int, int]:
    """Where each earlier timeline was left, from the text of a `.history` file.

    Source: PostgreSQL, src/backend/access/transam/timeline.c: `<timeline> <lsn> <reason>` a line.
    """
    switches: dict[int, int] = {}
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) >= 2 and words[0].isdigit():
            high, _, low = words[1].partition("/")
            switches[int(words[0])] = (int(high, 16) << 32) + int(low, 16)
    return switches


@dataclass(frozen=True, slots=True)
class Standing:
    """What the router concludes about one node, until the next look."""

    name: str
    weight: int
    facts: Facts | None
    """None: it did not answer at the last look, or nobody has looked."""
    is_admitted: bool = False
    """Whether reads may go there as to a replica."""
    why: str = "not looked at yet"
    well_since: float | None = None
    """Since when every look found nothing wrong with it; None while something is."""
    was_taken_out: bool = False
    """It was admitted before, and found wanting: it has to be well for a while."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all nodes together are known to be."""

    system_id: int | None = None
    timeline: int = 0
    """The latest that any node of this system was seen on: a primary on an earlier one is over."""
    primary: Standing | None = None
    replicas: tuple[Standing, ...] = ()
    """Those admitted."""
    others: tuple[Standing, ...] = ()
    switches: Mapping[int, int] = field(default_factory=dict)
    flushed: tuple[tuple[float, int], ...] = ()
    """(when, position) of the primary's last looks, both growing: how old a position is, without any clock."""
    led: tuple[str, int] | None = None
    """The last primary and its timeline: whose looks and heartbeats are kept here."""
    beats: tuple[float, ...] = ()
    """Heartbeats that appeared on the primary while it was watched: it wrote them itself, by its own clock. The first
    is only known to be older than the look that saw it, and may be an earlier primary's."""
    primary_clock: tuple[float, float] | None = None
    """(when, the primary's wall clock then)."""

    @property
    def standings(self) -> tuple[Standing, ...]:
        """All nodes."""
        return (*((self.primary,) if self.primary else ()), *self.replicas, *self.others)

    def lag_s(self, facts: Facts, *, now: float) -> float | None:
        """The age of what reads on a replica may miss, at most; None: unknown, as if for ever.

        How long ago the primary was last seen not to be beyond its position; where those looks say too little, the age
        of the newest heartbeat there that this primary wrote: what clocks of other machines say does not matter.
        """
        looks = bisect_right(self.flushed, facts.lsn, key=_position)
        if looks:
            return max(0.0, now - self.flushed[looks - 1][0])
        if facts.beat_s is None or self.primary_clock is None or facts.beat_s not in self.beats[1:]:
            return None
        when, clock_s = self.primary_clock
        return max(0.0, clock_s + (now - when) - facts.beat_s)


def _position(look: tuple[float, int]) -> int:
    return look[1]
