"""Which nodes may be read from, and which one is the primary: pure, from what was last seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shared.db.facts import Cluster, Facts, Standing

KEPT = 128
"""Looks at the primary, and heartbeats of it, that are remembered."""


@dataclass(frozen=True, slots=True)
class Terms:
    """When a replica is taken out, and when it returns."""

    max_lag_s: float = 10.0
    """Further behind: out. Back below half of it."""
    return_after_s: float = 1.0


def conclude(
    before: Cluster, seen: Mapping[str, Facts | None], *, terms: Terms, now: float, preferred: str | None = None
) -> Cluster:
    """What is known after a look.

    Args:
        before: What was known; names its nodes, in the order of the configuration.
        seen: The newest facts of each node; None: it does not answer.
        now: On the clock of `Facts.seen_at`.
        preferred: Who is the primary as long as nobody can tell two of them apart.
    """
    answers = {name: facts for name, facts in seen.items() if facts}
    system_id = before.system_id or _system_of(before.standings, seen, answers, preferred)
    own = {name: facts for name, facts in answers.items() if facts.system_id == system_id}
    timeline = max([before.timeline, *(facts.timeline for facts in own.values())])
    primary = _primary(own, timeline, incumbent=before.primary.name if before.primary else preferred)
    known = replace(before, system_id=system_id, timeline=timeline)
    if primary is not None:
        known = _with_primary(known, primary, own[primary])
    standings = []
    for was in before.standings:
        standings.append(_standing(was, seen.get(was.name), known, primary=primary, terms=terms, now=now))
    return replace(
        known,
        primary=next((one for one in standings if one.name == primary), None),
        replicas=tuple(one for one in standings if one.is_admitted),
        others=tuple(one for one in standings if not one.is_admitted and one.name != primary),
    )


def _system_of(
    nodes: Sequence[Standing], seen: Mapping[str, Facts | None], answers: Mapping[str, Facts], preferred: str | None
) -> int | None:
    """Whose cluster this is, decided once: the configured primary's, or, when that is silent and every node has been
    asked, the one of which all are that answer. A node of another cluster may be the first to answer.
    """
    if preferred is not None and preferred in answers:
        return answers[preferred].system_id
    systems = {facts.system_id for facts in answers.values()}
    return systems.pop() if len(systems) == 1 and all(one.name in seen for one in nodes) else None


def _primary(own: Mapping[str, Facts], timeline: int, *, incumbent: str | None) -> str | None:
    claims = [name for name, facts in own.items() if facts.is_primary and facts.timeline == timeline]
    return incumbent if incumbent in claims else min(claims, default=None)


def _with_primary(known: Cluster, name: str, facts: Facts) -> Cluster:
    flushed, beats = known.flushed, known.beats
    if known.led != (name, facts.timeline):
        beats = ()
    if flushed and flushed[-1][1] > facts.lsn:  # an earlier primary had more: not of this history
        flushed = tuple(look for look in flushed if look[1] <= facts.lsn)
    if not flushed or facts.seen_at > flushed[-1][0]:
        flushed = (*flushed, (facts.seen_at, facts.lsn))[-KEPT:]
    if facts.beat_s is not None and facts.beat_s not in beats[-1:]:
        beats = (*beats, facts.beat_s)[-KEPT:]
    return replace(
        known,
        switches=facts.switches or known.switches,
        flushed=flushed,
        led=(name, facts.timeline),
        beats=beats,
        primary_clock=(facts.seen_at, facts.clock_s),
    )


def _standing(
    was: Standing, facts: Facts | None, known: Cluster, *, primary: str | None, terms: Terms, now: float
) -> Standing:
    if was.name == primary:
        return replace(was, facts=facts, is_admitted=False, why="the primary", well_since=None)
    wrong = _wrong_with(facts, known, was=was, has_primary=primary is not None, terms=terms, now=now)
    if wrong is not None:
        is_out = was.was_taken_out or was.is_admitted
        return replace(was, facts=facts, is_admitted=False, why=wrong, well_since=None, was_taken_out=is_out)
    since = was.well_since if was.well_since is not None else now
    if was.is_admitted or not was.was_taken_out or now - since >= terms.return_after_s:
        coasting = facts is not None and not facts.is_streaming
        why = "admitted while no primary answers" if coasting else "streaming and fresh"
        return replace(was, facts=facts, is_admitted=True, why=why, well_since=since, was_taken_out=False)
    why = f"well again for {now - since:.1f} s of {terms.return_after_s:g} s"
    return replace(was, facts=facts, is_admitted=False, why=why, well_since=since)


def _wrong_with(
    facts: Facts | None, known: Cluster, *, was: Standing, has_primary: bool, terms: Terms, now: float
) -> str | None:
    if facts is None:
        return "it does not answer"
    if known.system_id is None:
        return f"it is of system {facts.system_id}; whose the others are, and which is meant, is not known yet"
    if facts.system_id != known.system_id:
        return f"it is another cluster's (system {facts.system_id}, not {known.system_id})"
    if facts.is_primary:
        if facts.timeline < known.timeline:
            return f"it takes writes on timeline {facts.timeline}, which ended: {known.timeline} is known"
        return f"it takes writes beside the primary, on the same timeline {facts.timeline}"
    if facts.receiver == "hidden":
        return "its receiver cannot be seen: grant pg_monitor to this role"
    if not facts.is_streaming:
        if has_primary or not was.is_admitted:
            return f"it does not stream (receiver: {facts.receiver})"
    elif facts.timeline != known.timeline:
        return f"it streams timeline {facts.timeline}, not {known.timeline}"
    if was.weight == 0:
        return "weight 0: it is kept for promotion"
    lag_s = known.lag_s(facts, now=now)
    limit_s = terms.max_lag_s if was.is_admitted else terms.max_lag_s / 2
    if lag_s is None:
        return "how far it is behind is unknown"
    if lag_s > limit_s:
        return f"it is {lag_s:.1f} s behind, more than {limit_s:g} s"
    return None
