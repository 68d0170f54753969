"""Who is the primary and who may be read from, decided from looks alone."""

from dataclasses import replace

import pytest

from shared.db.admission import Terms, conclude
from shared.db.facts import Cluster, Facts, Standing, read_history

TERMS = Terms(max_lag_s=10, return_after_s=1)
SYSTEM = 7


def primary(at: float, *, lsn: int = 100, timeline: int = 1, system_id: int = SYSTEM) -> Facts:
    return Facts(at, is_primary=True, system_id=system_id, timeline=timeline, lsn=lsn, clock_s=1000 + at)


def replica(at: float, *, lsn: int = 100, timeline: int = 1, beat_s: float | None = None) -> Facts:
    return Facts(
        at, is_primary=False, system_id=SYSTEM, timeline=timeline, lsn=lsn, is_streaming=True, receiver="streaming",
        beat_s=beat_s,
    )  # fmt: skip


def nobody(*names: str, weight: int = 1) -> Cluster:
    return Cluster(others=tuple(Standing(name, weight, None) for name in names))


def seen(before: Cluster, now: float, **facts: Facts | None) -> Cluster:
    return conclude(before, facts, terms=TERMS, now=now, preferred="a")


def healthy() -> Cluster:
    return seen(nobody("a", "b", "c"), 1.0, a=primary(1), b=replica(1), c=replica(1))


def why(cluster: Cluster, name: str) -> str:
    return next(one.why for one in cluster.standings if one.name == name)


def admitted(cluster: Cluster) -> set[str]:
    return {one.name for one in cluster.replicas}


def test_roles_are_as_seen_not_as_configured() -> None:
    cluster = seen(nobody("a", "b"), 1.0, a=replica(1), b=primary(1))
    assert cluster.primary is not None and cluster.primary.name == "b"
    assert admitted(cluster) == {"a"}


def test_at_the_start_a_good_replica_is_admitted_at_once() -> None:
    assert admitted(healthy()) == {"b", "c"}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (None, "it does not answer"),
        (replace(replica(2), system_id=8), "another cluster's"),
        (replace(replica(2), is_streaming=False, timeline=0, receiver="none"), "does not stream"),
        (replace(replica(2), is_streaming=False, timeline=0, receiver="waiting"), "receiver: waiting"),
        (replace(replica(2), receiver="hidden", is_streaming=False), "grant pg_monitor"),
        (replica(2, timeline=3), "on another timeline"),
        (primary(2), "takes writes beside the primary"),
    ],
)
def test_a_replica_that_cannot_be_trusted_is_taken_out_at_once_and_says_why(facts: Facts | None, reason: str) -> None:
    cluster = seen(healthy(), 2.0, a=primary(2), b=facts, c=replica(2))
    if reason == "on another timeline":  # a node ahead of the primary: the primary's time is over
        assert cluster.primary is None
        assert why(cluster, "a") == "it takes writes on timeline 1, which ended: 3 is known"
        return
    assert admitted(cluster) == {"c"}
    assert reason in why(cluster, "b")


def test_an_answer_does_not_become_silence_by_growing_old() -> None:
    """Nobody may have asked meanwhile; what was asked and not answered is None."""
    cluster = seen(healthy(), 9.0, a=primary(1), b=replica(9), c=replica(1))
    assert cluster.primary is not None and cluster.primary.name == "a"
    assert admitted(cluster) == {"b", "c"}


def test_a_replica_that_fell_behind_leaves_and_returns_later_and_nearer() -> None:
    cluster = healthy()
    for second in range(2, 13):
        cluster = seen(
            cluster, second, a=primary(second, lsn=100 + second), b=replica(second, lsn=100), c=replica(second, lsn=200)
        )
    assert admitted(cluster) == {"c"}
    assert "behind, more than 10 s" in why(cluster, "b")
    cluster = seen(cluster, 13, a=primary(13, lsn=113), b=replica(13, lsn=106), c=replica(13, lsn=200))  # 7 s behind
    assert "more than 5 s" in why(cluster, "b")
    cluster = seen(cluster, 13.5, a=primary(13.5, lsn=113), b=replica(13.5, lsn=113), c=replica(13.5, lsn=200))
    assert why(cluster, "b") == "well again for 0.0 s of 1 s"
    cluster = seen(cluster, 14.5, a=primary(14.5, lsn=113), b=replica(14.5, lsn=113), c=replica(14.5, lsn=200))
    assert admitted(cluster) == {"b", "c"}


def beating(at: float, beat_s: float, *, lsn: int = 500, timeline: int = 1) -> Facts:
    return replace(primary(at, lsn=lsn, timeline=timeline), beat_s=beat_s)


def test_the_heartbeat_counts_where_the_log_says_too_little_and_no_other_clock_does() -> None:
    cluster = seen(healthy(), 1.5, a=beating(1.5, 1000.4), b=replica(1.5), c=replica(1.5))
    cluster = seen(cluster, 2, a=beating(2, 1001.5), b=replica(2, lsn=99, beat_s=1001.5), c=replica(2, lsn=99))
    assert admitted(cluster) == {"b"}
    facts = next(one.facts for one in cluster.replicas)
    assert facts is not None and cluster.lag_s(facts, now=2.25) == pytest.approx(0.75)
    assert why(cluster, "c") == "how far it is behind is unknown"


def test_a_heartbeat_of_an_earlier_primary_says_nothing_however_its_clock_went() -> None:
    ahead_s = 3.0
    cluster = seen(healthy(), 2, a=beating(2, 1002 + ahead_s), b=replica(2), c=replica(2))
    after = seen(
        cluster, 10, a=None, b=beating(10, 1002 + ahead_s, timeline=2),
        c=replica(10, lsn=99, timeline=2, beat_s=1002 + ahead_s),
    )  # fmt: skip
    assert why(after, "c") == "how far it is behind is unknown"
    after = seen(
        after, 11, a=None, b=beating(11, 1011, timeline=2), c=replica(11, lsn=99, timeline=2, beat_s=1002 + ahead_s)
    )
    assert why(after, "c") == "how far it is behind is unknown"
    c = replica(11.5, lsn=99, timeline=2, beat_s=1011)
    after = seen(after, 11.5, a=None, b=beating(11.5, 1011, timeline=2), c=c)
    assert after.lag_s(c, now=11.5) == pytest.approx(0.5)


def test_positions_beyond_a_new_primarys_are_forgotten() -> None:
    cluster = seen(healthy(), 2, a=primary(2, lsn=900), b=replica(2), c=replica(2))
    cluster = seen(cluster, 3, a=None, b=primary(3, lsn=200, timeline=2), c=replica(3, timeline=2))
    assert cluster.flushed == ((1, 100), (3, 200))
    assert cluster.lag_s(replica(3, lsn=250, timeline=2), now=4) == pytest.approx(1)


def test_a_node_of_another_cluster_that_answers_first_is_not_taken_for_ours() -> None:
    cluster = seen(nobody("a", "b", "c"), 1, b=primary(1, system_id=8))
    assert (cluster.system_id, cluster.primary) == (None, None)
    assert "is not known yet" in why(cluster, "b")
    cluster = seen(cluster, 2, a=primary(2), b=primary(2, system_id=8), c=replica(2))
    assert cluster.system_id == SYSTEM
    assert "another cluster's" in why(cluster, "b")


def test_while_the_configured_primary_is_silent_and_the_others_are_of_two_clusters_nothing_is_decided() -> None:
    cluster = seen(nobody("a", "b", "c"), 1, a=None, b=primary(1, system_id=8), c=primary(1))
    assert (cluster.system_id, cluster.primary, cluster.replicas) == (None, None, ())
    cluster = seen(cluster, 2, a=None, b=None, c=primary(2))
    assert cluster.primary is not None and cluster.primary.name == "c"


def test_without_the_configured_primary_its_replicas_agree_on_whose_they_are() -> None:
    cluster = seen(nobody("a", "b", "c"), 1, a=None, b=primary(1, timeline=2))
    assert cluster.primary is None, "c may be another's"
    cluster = seen(cluster, 1, a=None, b=primary(1, timeline=2), c=replica(1, timeline=2))
    assert cluster.primary is not None and cluster.primary.name == "b"


def test_while_no_primary_answers_its_replicas_are_read_until_they_are_too_old() -> None:
    def cut(at: float) -> Facts:
        return replace(replica(at), is_streaming=False, timeline=0, receiver="none")

    cluster = seen(healthy(), 2, a=None, b=cut(2), c=None)
    assert cluster.primary is None
    assert (admitted(cluster), why(cluster, "b")) == ({"b"}, "admitted while no primary answers")
    cluster = seen(cluster, 20, a=None, b=cut(20), c=None)
    assert admitted(cluster) == set()


def test_after_a_promotion_those_who_do_not_follow_are_out_and_the_old_primary_stays_out() -> None:
    cluster = seen(healthy(), 2, a=None, b=primary(2, timeline=2), c=replica(2))
    assert cluster.primary is not None and (cluster.primary.name, cluster.timeline) == ("b", 2)
    assert why(cluster, "c") == "it streams timeline 1, not 2"
    cluster = seen(cluster, 3, a=primary(3), b=None, c=replica(3, timeline=2))
    assert cluster.primary is None
    assert why(cluster, "a") == "it takes writes on timeline 1, which ended: 2 is known"


def test_of_two_who_take_writes_on_one_timeline_the_one_that_was_known_stays() -> None:
    cluster = seen(healthy(), 2, a=primary(2), b=primary(2), c=replica(2))
    assert cluster.primary is not None and cluster.primary.name == "a"
    assert why(cluster, "b") == "it takes writes beside the primary, on the same timeline 1"


def test_the_configured_primarys_cluster_is_the_one() -> None:
    cluster = seen(nobody("b", "a"), 1, b=primary(1, system_id=8, timeline=9), a=primary(1))
    assert cluster.system_id == SYSTEM
    assert cluster.primary is not None and cluster.primary.name == "a"


def test_weight_0_is_never_read_from_and_may_be_the_primary() -> None:
    cluster = seen(nobody("a", "b", weight=0), 1, a=primary(1), b=replica(1))
    assert (admitted(cluster), why(cluster, "b")) == (set(), "weight 0: it is kept for promotion")
    cluster = seen(cluster, 2, a=None, b=primary(2, timeline=2))
    assert cluster.primary is not None and cluster.primary.name == "b"


def test_a_history_file_is_read() -> None:
    text = "1\t0/3000110\tno recovery target specified\n\n2\t1/5\tbefore 2000-01-01\n# 3\t0/1\n"
    assert read_history(text) == {1: 0x3000110, 2: (1 << 32) + 5}
