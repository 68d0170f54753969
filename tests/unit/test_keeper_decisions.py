"""What the keeper decides about workers and messages, with the sentence it logs."""

from uuid import UUID

import pytest

from shared.ledger.dispatch import Fresh, Slots
from shared.ledger.parking import Wanting
from shared.ledger.rescue import Pulse
from workers.keeper.decisions import Decision, dispatch, judge, prompt, put_aside, relieve

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


@pytest.mark.parametrize(
    ("held", "slots", "ready", "limit", "reason"),
    [
        (0, Slots(1, 9, 0), 0, 0, "no held task is overdue"),
        (5, Slots(1, 9, 0), None, 0, "5 held tasks are overdue, but the broker does not answer"),
        (5, Slots(1, 9, 2), 3, 0, "5 held tasks are overdue, but workers have 3 messages to come for first"),
        (5, Slots(1, 9, 9), 0, 0, "5 held tasks are overdue, but all 9 slots are taken"),
        (5, Slots(1, 9, 6), 0, 3, "5 held tasks are overdue although 3 slots are free"),
        (2, Slots(1, 9, 6), 0, 2, "2 held tasks are overdue although 3 slots are free"),
        (99, Slots(9, 99, 0), 0, 10, "99 held tasks are overdue although 99 slots are free"),
        (5, Slots(0, 0, 0), 0, 5, "5 held tasks are overdue and no worker is alive: 0 messages call for one"),
        (99, Slots(0, 0, 0), 8, 2, "99 held tasks are overdue and no worker is alive: 8 messages call for one"),
        (99, Slots(0, 0, 0), 80, 0, "99 held tasks are overdue and no worker is alive: 80 messages call for one"),
    ],
)
def test_held_tasks_are_published_only_when_nobody_polls_them(
    held: int, slots: Slots, ready: int | None, limit: int, reason: str
) -> None:
    decision = relieve(held=held, slots=slots, ready=ready, batch=10)
    assert (decision.limit, decision.reason) == (limit, reason)


def test_what_is_queued_now_goes_to_the_queue_within_its_tenants_share() -> None:
    fresh = [Fresh(UUID(int=number), tenant) for number, tenant in enumerate("aaabbc")]
    chosen = prompt(fresh, standing={"a": 1, "c": 3}, fair_window=3)
    assert [one.int for one in chosen] == [0, 1, 3, 4]


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


@pytest.mark.parametrize(
    ("silent_s", "workers", "watched_s", "action", "reason"),
    [
        (200.4, 2, 500, "park", "no worker has offered agent 'a' for 200 s: start one that has it, or cancel the task"),
        (None, 2, 500, "park", "no worker has offered agent 'a' ever: start one that has it, or cancel the task"),
        (9999, 0, 500, "leave", "no worker has offered agent 'a' for 9999 s, but no worker is alive at all"),
        (9999, 2, 179, "leave", "no worker has offered agent 'a' for 9999 s, but the database has just come back"),
    ],
)
def test_tasks_are_put_aside_when_living_workers_have_long_had_their_say_and_none_has_the_agent(
    silent_s: float | None, workers: int, watched_s: float, action: str, reason: str
) -> None:
    found = [Wanting("a", (UUID(int=7),), silent_s)]
    (decision,) = put_aside(found, workers=workers, watched_s=watched_s, after_s=180)
    assert (decision.action, decision.reason) == (action, reason)
