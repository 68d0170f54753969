"""Where a unit of work goes: pure, one sentence per decision, a few microseconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shared.db.facts import Cluster, Standing
from shared.db.tokens import CausalToken, merged

Mode = Literal["rw", "ro"]
Consistency = Literal["primary", "causal", "bounded", "eventual"]
Verdict = Literal["go", "overflow", "wait", "refuse"]
Lost = Literal["lost", "unknown", "foreign", "future", "beyond"]
NEAR_S = 0.5
"""Two looks at the default pace: so much older may what is known of one replica be than what is known of another."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a unit of work asks for."""

    mode: Mode = "rw"
    consistency: Consistency = "primary"
    max_staleness_s: float | None = None
    waits: bool = True
    """Whether a causal read may wait for a replica."""
    reads: Literal["replicas", "primary"] = "replicas"
    """The configuration's rule for reads."""

    def covers(self, token: CausalToken | None, inner: "Wish", inner_token: CausalToken | None) -> bool:
        """Whether a unit inside this one sees at least what it asks for, wherever this one went."""
        if self.mode == "rw" or self.consistency == "primary" or inner.consistency == "eventual":
            return True
        if self.consistency == "causal" and inner.consistency == "causal":
            if token is None or inner_token is None:
                return True
            ahead = merged(token, inner_token)
            return ahead is not None and ahead.place == token.place
        if self.consistency == "bounded" and inner.consistency == "bounded":
            return (self.max_staleness_s or 0.0) <= (inner.max_staleness_s or 0.0)
        return False

    def words(self, token: CausalToken | None) -> str:
        """As callers write it."""
        what = f"consistency='{self.consistency}'"
        if self.max_staleness_s is not None:
            return f"{what}, max_staleness_s={self.max_staleness_s:g}"
        return f"{what} at {token.position}" if token is not None and self.consistency == "causal" else what

    @property
    def marks_end(self) -> bool:
        """Whether what comes later must not fall behind this unit: reads of any age promise no order."""
        return self.consistency in ("primary", "causal")

    @classmethod
    def checked(cls, mode: Mode, consistency: Consistency, max_staleness_s: float | None) -> "Wish":
        """What a caller asks for. Raises: TypeError for what does not go together."""
        if (max_staleness_s is None) == (consistency == "bounded") or (mode == "rw" and consistency != "primary"):
            raise TypeError("max_staleness_s belongs to consistency='bounded', and both to mode='ro'")
        return cls(mode, consistency, max_staleness_s)


class Decision(NamedTuple):
    """Where to, and why. One is made for every unit of work: a tuple takes a third of a data class's time.

    verdict: `go` there; `overflow`: go there if there is room for one more read that no replica takes; `wait` until the
    node has reached the token, a few milliseconds; `refuse`: no node will do.
    """

    verdict: Verdict
    node: str | None
    reason: str
    lost: Lost | None = None
    """Why a token says nothing about this cluster's present: counted."""


def decide(
    wish: Wish,
    cluster: Cluster,
    token: CausalToken | None,
    *,
    now: float,
    rolls: tuple[float, float] = (0.0, 0.0),
    load: Callable[[str], float] = lambda _: 0.0,
) -> Decision:
    """Choose a node.

    Args:
        now: On the clock of `Facts.seen_at`.
        rolls: Two random numbers in [0, 1): two candidates are drawn by weight, the less loaded one is taken.
        load: How much of a node's pool is in use, 0 to 1 and above.
    """
    if wish.mode == "rw" or wish.consistency == "primary" or wish.reads == "primary":
        return _primary(cluster, "a write" if wish.mode == "rw" else "a read that wants the primary")
    if wish.consistency == "causal":
        return _causal(wish, cluster, token, now, rolls, load)
    candidates: Sequence[Standing] = cluster.replicas
    if wish.consistency == "bounded":
        limit_s = wish.max_staleness_s or 0.0
        candidates = [one for one in candidates if _is_within(one, cluster, limit_s, now)]
        if not candidates:
            return _overflow(cluster, f"no replica is known to be within {limit_s:g} s")
        return _go(candidates, rolls, load, f"within {limit_s:g} s of the primary")
    if not candidates:
        return _overflow(cluster, "no replica is admitted")
    return _go(candidates, rolls, load, "any age will do")


def _causal(
    wish: Wish,
    cluster: Cluster,
    token: CausalToken | None,
    now: float,
    rolls: tuple[float, float],
    load: Callable[[str], float],
) -> Decision:
    if token is None:
        return _overflow(cluster, "no token: only the primary is sure to have what was written")
    if token.system_id != cluster.system_id:
        return _overflow(cluster, "the token is of another cluster", lost="foreign")
    if token.timeline > cluster.timeline:
        return Decision("refuse", None, f"the token is of timeline {token.timeline}; no node has been seen on it yet")
    if token.timeline < cluster.timeline:
        left_at = cluster.switches.get(token.timeline)
        if left_at is None:
            return _overflow(cluster, f"where timeline {token.timeline} ended is not known", lost="unknown")
        if token.lsn > left_at:
            return _overflow(cluster, f"the token's write was lost when timeline {token.timeline} ended", lost="lost")
    lsn = token.lsn
    candidates = [one for one in cluster.replicas if one.facts is not None and one.facts.lsn >= lsn]
    if candidates:
        return _go(candidates, rolls, load, "known to have reached the token")  # its position: a fifth of the time
    if wish.waits and cluster.replicas:
        drawn = _go(_near(cluster, now), rolls, load, f"no replica is known to have reached {token.position} yet")
        return drawn._replace(verdict="wait")
    return _overflow(cluster, f"no replica has reached {token.position}")


def refuted(token: CausalToken, cluster: Cluster, *, since: float) -> Lost | None:
    """Why nothing can have happened where a token says: it comes from strangers, and is then to be ignored.

    Args:
        since: When the token was there already: only looks that began later say anything against it.
    """
    primary = cluster.primary.facts if cluster.primary else None
    if token.timeline > cluster.timeline:
        facts = [one.facts for one in cluster.standings]
        return "future" if all(one is not None and one.seen_at >= since for one in facts) else None
    if token.timeline == cluster.timeline and primary is not None and primary.seen_at >= since:
        return "beyond" if token.lsn > primary.lsn else None
    return None


def _primary(cluster: Cluster, why: str) -> Decision:
    if cluster.primary is None:
        return Decision("refuse", None, f"no node takes writes; {why}")
    return Decision("go", cluster.primary.name, why)


def _overflow(cluster: Cluster, why: str, *, lost: Lost | None = None) -> Decision:
    """The primary, but never for more reads at a time than it can bear: see DbKnobs.overflow."""
    if cluster.primary is None:
        return Decision("refuse", None, f"{why}, and no primary answers", lost)
    return Decision("overflow", cluster.primary.name, f"{why}: the primary, if it has room", lost)


def _near(cluster: Cluster, now: float) -> Sequence[Standing]:
    """Replicas that may be waited for: behind the nearest by no more than when they were looked at explains.

    Not the nearest alone: whoever has just read there is sent there again, and the others would stand idle.
    """
    lags = [None if one.facts is None else cluster.lag_s(one.facts, now=now) for one in cluster.replicas]
    limit_s = min((lag_s for lag_s in lags if lag_s is not None), default=0.0) + NEAR_S
    near = [
        one for one, lag_s in zip(cluster.replicas, lags, strict=True) if lag_s is not None and lag_s <= limit_s
    ]  # fmt: skip
    return near or cluster.replicas


def _is_within(one: Standing, cluster: Cluster, limit_s: float, now: float) -> bool:
    lag_s = None if one.facts is None else cluster.lag_s(one.facts, now=now)
    return lag_s is not None and lag_s <= limit_s


def _go(
    candidates: Sequence[Standing], rolls: tuple[float, float], load: Callable[[str], float], why: str
) -> Decision:  # fmt: skip
    if len(candidates) == 1:
        return Decision("go", candidates[0].name, why)
    total = sum([one.weight for one in candidates])
    first, second = _drawn(candidates, rolls[0] * total), _drawn(candidates, rolls[1] * total)
    chosen = second if second is not first and load(second.name) < load(first.name) else first
    return Decision("go", chosen.name, why)


def _drawn(candidates: Sequence[Standing], left: float) -> Standing:
    for one in candidates:
        left -= one.weight
        if left < 0:
            return one
    return candidates[-1]
