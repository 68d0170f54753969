"""Which replica is promoted, and when none is."""

from dataclasses import replace

import pytest

from shared.errors import Misconfigured
from workers.ops.replication.choice import Question, choose
from workers.ops.replication.look import Look
from workers.ops.replication.refusals import AlreadyPrimary, FailoverRefused, NoReplica, ReplicaBehind, ReplicaUnseen

SYSTEM = 7
LIMIT = 1000


def standby(name: str, lsn: int = 5000) -> Look:
    return Look(name=name, answers=True, is_standby=True, system_id=SYSTEM, lsn=lsn, timeline=1)


def primary(name: str = "postgres", lsn: int = 5000) -> Look:
    return Look(name=name, answers=True, system_id=SYSTEM, lsn=lsn, timeline=1)


def silent(name: str) -> Look:
    return Look(name=name, answers=False, detail="no answer within 0.7 s")


def question(*looks: Look) -> Question:
    return Question(looks={one.name: one for one in looks}, leader=looks[0].name, max_behind_bytes=LIMIT)


def test_the_replica_that_has_most_is_promoted() -> None:
    asked = question(silent("postgres"), standby("replica", 5000), standby("replica-2", 5001))
    assert choose(asked).node == "replica-2"


def test_between_equals_the_first_is_promoted() -> None:
    choice = choose(question(primary(), standby("replica"), standby("replica-2")))
    assert (choice.node, choice.reason) == ("replica", "it has all that any replica has")


def test_the_one_replica_is_promoted() -> None:
    assert choose(question(silent("postgres"), standby("replica"))).reason == "it is the one replica"


def test_the_replica_asked_for_is_promoted_although_another_has_a_little_more() -> None:
    asked = question(silent("postgres"), standby("replica", 5000), standby("replica-2", 4000))
    choice = choose(replace(asked, to="replica-2"))
    assert (choice.node, choice.reason) == ("replica-2", "it was asked for, 1000 bytes behind replica")


@pytest.mark.parametrize(
    ("asked", "refusal", "sentence"),
    [
        (question(primary()), NoReplica, "one PostgreSQL and no replica; start it with `fleet up --replicas 1`"),
        (question(primary(), silent("replica")), NoReplica, "replica: no answer within 0.7 s"),
        (question(primary(), primary("replica")), NoReplica, "replica: it is no standby"),
        (
            question(primary(), replace(standby("replica"), system_id=8)),
            NoReplica,
            r"it belongs to another system \(8\)",
        ),
        (replace(question(primary(), standby("replica")), barred=frozenset({"replica"})), NoReplica, "it is fenced"),
        (
            replace(question(primary(), standby("replica"), silent("replica-2")), to="replica-2"),
            NoReplica,
            "replica-2 cannot be promoted: no answer within",
        ),
        (replace(question(silent("postgres"), standby("replica")), to="postgres"), NoReplica, "it leads"),
        (replace(question(primary(), standby("replica")), to="postgres"), AlreadyPrimary, "is the primary already"),
        (question(primary(lsn=9000), standby("replica", 7999)), ReplicaBehind, "lacks 1001 bytes .* postgres has"),
        (
            replace(question(silent("postgres"), standby("replica", 1), standby("replica-2", 5000)), to="replica"),
            ReplicaBehind,
            "lacks 4999 bytes of WAL that replica-2 has",
        ),
        (
            replace(question(silent("postgres"), standby("replica"), silent("replica-2")), synchronous=True),
            ReplicaUnseen,
            "replica-2 cannot be asked .* may hold acknowledged writes",
        ),
    ],
)
def test_what_could_lose_writes_or_cannot_be_done_is_refused(
    asked: Question, refusal: type[FailoverRefused], sentence: str
) -> None:
    with pytest.raises(refusal, match=sentence):
        choose(asked)


def test_force_accepts_the_loss() -> None:
    behind = replace(question(primary(lsn=9000), standby("replica", 1)), force=True)
    unseen = replace(
        question(silent("postgres"), standby("replica"), silent("replica-2")), synchronous=True, force=True
    )
    assert (choose(behind).node, choose(unseen).node) == ("replica", "replica")


def test_a_primary_that_is_well_hands_over_what_a_silent_synchronous_standby_may_have() -> None:
    asked = replace(question(primary(), standby("replica"), silent("replica-2")), synchronous=True)
    assert choose(asked).node == "replica"


def test_an_unknown_node_is_named_beside_the_known_ones() -> None:
    with pytest.raises(Misconfigured, match="no PostgreSQL node named moon; known: postgres, replica"):
        choose(replace(question(primary(), standby("replica")), to="moon"))
