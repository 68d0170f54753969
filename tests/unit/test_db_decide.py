"""Where a unit of work goes, and the sentence that says why."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db.decide import Consistency, Decision, Wish, decide, refuted
from shared.db.facts import Cluster, Facts, Standing
from shared.db.tokens import CausalToken

SYSTEM = 7
consistencies: list[Consistency] = ["primary", "causal", "bounded", "eventual"]


def standing(name: str, *, lsn: int, weight: int = 1, is_primary: bool = False) -> Standing:
    facts = Facts(10.0, is_primary=is_primary, system_id=SYSTEM, timeline=2, lsn=lsn, is_streaming=not is_primary)
    return Standing(name, weight, facts, is_admitted=not is_primary)


def cluster(*positions: int, has_primary: bool = True, flushed: int = 100) -> Cluster:
    replicas = tuple(standing(f"r{number}", lsn=lsn) for number, lsn in enumerate(positions, 1))
    return Cluster(
        system_id=SYSTEM,
        timeline=2,
        primary=standing("p", lsn=flushed, is_primary=True) if has_primary else None,
        replicas=replicas,
        switches={1: 40},
        flushed=((8.0, 50), (10.0, flushed)),
    )


def go(wish: Wish, among: Cluster, token: CausalToken | None = None, roll: float = 0.0) -> Decision:
    return decide(wish, among, token, now=10.5, rolls=(roll, roll))


def token(lsn: int, *, timeline: int = 2, system_id: int = SYSTEM) -> CausalToken:
    return CausalToken(system_id, timeline, lsn)


RW = Wish()
CAUSAL = Wish("ro", "causal")
EVENTUAL = Wish("ro", "eventual")


@pytest.mark.parametrize(
    ("wish", "given_token", "node", "verdict", "reason"),
    [
        (RW, None, "p", "go", "a write"),
        (Wish("ro"), None, "p", "go", "a read that wants the primary"),
        (EVENTUAL, None, "r1", "go", "any age will do"),
        (Wish("ro", "eventual", reads="primary"), None, "p", "go", "a read that wants the primary"),
        (Wish("ro", "bounded", 1.0), None, "r1", "go", "within 1 s of the primary"),
        (Wish("ro", "bounded", 0.1), None, "p", "overflow", "no replica is known to be within 0.1 s: the primary"),
        (CAUSAL, None, "p", "overflow", "no token"),
        (CAUSAL, token(90), "r1", "go", "known to have reached the token"),
        (CAUSAL, token(101), "r1", "wait", "no replica is known to have reached 0/65 on timeline 2 yet"),
        (Wish("ro", "causal", waits=False), token(101), "p", "overflow", "no replica has reached 0/65"),
        (CAUSAL, token(1, system_id=8), "p", "overflow", "the token is of another cluster"),
        (CAUSAL, token(1, timeline=3), None, "refuse", "the token is of timeline 3; no node has been seen on it yet"),
        (CAUSAL, token(40, timeline=1), "r1", "go", "known to have reached the token"),
        (CAUSAL, token(41, timeline=1), "p", "overflow", "the token's write was lost when timeline 1 ended"),
    ],
)
def test_each_wish_has_its_node_and_its_sentence(
    wish: Wish, given_token: CausalToken | None, node: str | None, verdict: str, reason: str
) -> None:
    decision = go(wish, cluster(100, 60), given_token)
    assert (decision.node, decision.verdict) == (node, verdict)
    assert decision.reason.startswith(reason)


@pytest.mark.parametrize(("lsn", "timeline", "system_id", "lost"), [
    (41, 1, SYSTEM, "lost"), (40, 1, SYSTEM, None), (1, 2, 8, "foreign"), (1, 2, SYSTEM, None)
])  # fmt: skip
def test_a_token_of_a_lost_past_is_said_to_be_so(lsn: int, timeline: int, system_id: int, lost: str | None) -> None:
    assert go(CAUSAL, cluster(100), token(lsn, timeline=timeline, system_id=system_id)).lost == lost


def test_where_a_timeline_ended_may_be_hidden_and_then_nothing_is_assumed() -> None:
    decision = go(CAUSAL, replace(cluster(100), switches={}), token(1, timeline=1))
    assert (decision.node, decision.verdict, decision.lost) == ("p", "overflow", "unknown")


@pytest.mark.parametrize(
    ("given_token", "since", "refuted_as"),
    [
        (token(100), 10.0, None),
        (token(101), 10.0, "beyond"),
        (token((1 << 64) - 1), 10.0, "beyond"),
        (token(101), 10.1, None),  # the looks are older than the token
        (token(1, timeline=3), 10.0, "future"),
        (token(1, timeline=3), 10.1, None),
        (token(1 << 62, timeline=1), 10.0, None),
    ],
)
def test_a_token_is_refuted_only_by_looks_that_came_after_it(
    given_token: CausalToken, since: float, refuted_as: str | None
) -> None:
    assert refuted(given_token, cluster(100), since=since) == refuted_as


def test_while_a_node_is_silent_a_later_timeline_may_be_its() -> None:
    among = cluster(100)
    silent = replace(among, others=(Standing("r2", 1, None),))
    assert refuted(token(1, timeline=3), silent, since=10.0) is None
    assert refuted(token(101), replace(silent, primary=None), since=10.0) is None


def test_without_a_primary_nothing_is_written_and_fresh_enough_replicas_are_read() -> None:
    away = cluster(100, has_primary=False)
    assert go(RW, away).verdict == "refuse"
    assert go(CAUSAL, away, token(100)).node == "r1"
    assert go(EVENTUAL, away).node == "r1"
    assert go(Wish("ro", "causal", waits=False), away, token(101)).verdict == "refuse"


def test_without_replicas_reads_go_to_the_primary_only_as_overflow() -> None:
    bounded = Wish("ro", "bounded", 5.0)
    for wish, given_token in ((EVENTUAL, None), (bounded, None), (CAUSAL, token(1)), (CAUSAL, None)):
        assert go(wish, cluster(), given_token).verdict == "overflow"


def test_reads_are_shared_by_weight() -> None:
    among = replace(cluster(), replicas=(standing("a", lsn=1, weight=3), standing("b", lsn=1), standing("c", lsn=1)))
    chance = random.Random(1)
    went = [go(EVENTUAL, among, roll=chance.random()).node for _ in range(5000)]
    assert went.count("a") / 5000 == pytest.approx(0.6, abs=0.03)


def test_of_two_drawn_the_less_loaded_is_taken() -> None:
    among = cluster(1, 1)
    load = {"r1": 0.8, "r2": 0.2}.__getitem__
    assert decide(EVENTUAL, among, None, now=10.5, rolls=(0.0, 0.9), load=load).node == "r2"
    assert decide(EVENTUAL, among, None, now=10.5, rolls=(0.0, 0.0), load=load).node == "r1"


positions = st.lists(st.integers(0, 120), max_size=4)
rolls = st.floats(0, 1, exclude_max=True)


@given(positions, st.integers(0, 130), st.integers(1, 3), st.booleans(), st.booleans(), rolls, rolls)
def test_a_causal_read_never_goes_where_the_token_may_not_be(
    replicas: list[int], lsn: int, timeline: int, has_primary: bool, waits: bool, one: float, other: float
) -> None:
    among = cluster(*replicas, has_primary=has_primary)
    wish = Wish("ro", "causal", waits=waits)
    decision = decide(wish, among, token(lsn, timeline=timeline), now=10.5, rolls=(one, other))
    if decision.verdict == "go" and decision.node != "p":
        facts = next(each.facts for each in among.replicas if each.name == decision.node)
        assert facts is not None and facts.lsn >= lsn
        assert timeline == 2 or (timeline == 1 and lsn <= among.switches[1])
    if decision.node == "p":
        assert has_primary
        assert timeline <= 2


@given(st.sampled_from(consistencies), positions, st.booleans(), rolls, rolls)
def test_a_write_goes_to_the_primary_or_nowhere(
    consistency: Consistency, replicas: list[int], has_primary: bool, one: float, other: float
) -> None:
    decision = decide(
        Wish("rw", consistency), cluster(*replicas, has_primary=has_primary), None, now=1, rolls=(one, other)
    )
    assert decision.node == ("p" if has_primary else None)


@given(st.floats(0.1, 5), positions, rolls)
def test_a_bounded_read_never_goes_to_a_replica_that_may_be_older(
    limit: float, replicas: list[int], roll: float
) -> None:
    among = cluster(*replicas)
    decision = go(Wish("ro", "bounded", limit), among, roll=roll)
    if decision.node != "p":
        facts = next(one.facts for one in among.replicas if one.name == decision.node)
        assert facts is not None
        lag_s = among.lag_s(facts, now=10.5)
        assert lag_s is not None and lag_s <= limit


def test_a_read_waits_for_the_less_loaded_of_the_near_replicas_and_for_none_that_stands_still() -> None:
    loads = {"r1": 1.0, "r2": 0.5, "r3": 0.0}
    for still in ((), (60,)):
        among = cluster(110, 100, *still)
        for rolls in ((0.0, 0.9), (0.9, 0.0)):
            found = decide(CAUSAL, among, token(111), now=10.5, rolls=rolls, load=loads.__getitem__)
            assert (found.verdict, found.node) == ("wait", "r2")
        assert {go(CAUSAL, among, token(111), roll).node for roll in (0.0, 0.9)} == {"r1", "r2"}
