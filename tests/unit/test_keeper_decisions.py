"""What the keeper decides, with the sentence it logs."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ledger.rescue import Pulse
from workers.keeper.decisions import Decision, dispatch, judge

WORKER = UUID(int=1)


def one(age_s: float, *, watched_s: float = 60) -> Decision:
    (decision,) = judge([Pulse(WORKER, "w1", age_s)], dead_after_s=15, watched_s=watched_s)
    return decision


@pytest.mark.parametrize(
    ("due", "queued", "ready", "limit", "reason"),
    [
        (0, 0, 0, 0, "no task is due"),
        (0, 9, 0, 0, "no task is due"),
        (5, 5, 5, 0, "5 tasks are due, but the queue holds 5 messages for 5 queued tasks"),
        (5, 5, 9, 0, "5 tasks are due, but the queue holds 9 messages for 5 queued tasks"),
        (5, 5, 0, 5, "5 of 5 queued tasks have no message waiting (0 do)"),
        (5, 9, 6, 3, "3 of 9 queued tasks have no message waiting (6 do)"),
        (2, 9, 1, 2, "2 of 9 queued tasks have no message waiting (1 do)"),
        (99, 99, 0, 10, "99 of 99 queued tasks have no message waiting (0 do)"),
    ],
)
def test_only_tasks_without_a_message_are_published_again(
    due: int, queued: int, ready: int, limit: int, reason: str
) -> None:
    decision = dispatch(due=due, queued=queued, ready=ready, batch=10)
    assert (decision.limit, decision.reason) == (limit, reason)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 500))
def test_no_round_publishes_more_than_is_due_or_missing_or_its_batch(
    due: int, queued: int, ready: int, batch: int
) -> None:
    limit = dispatch(due=due, queued=queued, ready=ready, batch=batch).limit
    assert 0 <= limit <= min(due, batch)
    assert limit <= max(0, queued - ready)
    if due and queued > ready:
        assert limit >= 1, "what is missing is published sooner or later"


def test_a_worker_that_beat_in_time_is_left_alone() -> None:
    assert one(15) == Decision("leave", WORKER, "worker w1 beat 15.0 s ago, within 15 s")


def test_a_worker_whose_heartbeat_is_too_old_is_buried() -> None:
    assert one(15.1) == Decision("bury", WORKER, "worker w1 beat 15.1 s ago, more than 15 s")


def test_after_an_outage_of_the_database_nobody_is_buried_for_having_been_unable_to_beat() -> None:
    assert one(600, watched_s=4.9) == Decision(
        "leave", WORKER, "worker w1 beat 600.0 s ago, but the database has just come back"
    )
    assert one(600, watched_s=5).action == "bury"


def test_a_clock_that_ran_backwards_kills_nobody() -> None:
    assert one(-3).action == "leave"


def test_every_worker_gets_a_decision_of_its_own() -> None:
    pulses = [Pulse(UUID(int=n), f"w{n}", n * 10) for n in range(4)]
    decisions = judge(pulses, dead_after_s=15, watched_s=60)
    assert [(one.worker.int, one.action) for one in decisions] == [(0, "leave"), (1, "leave"), (2, "bury"), (3, "bury")]
