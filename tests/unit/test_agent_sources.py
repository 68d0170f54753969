"""Who gets the next slot: tenants in turn, priorities by weight, messages and held tasks beside each other."""

from collections import Counter

import pytest

from shared.contracts import Priority
from workers.agents.sources import Grant, Sources, parse_queues

WEIGHTS: dict[Priority, int] = {"interactive": 8, "normal": 4, "batch": 1}


def taken(sources: Sources[str], count: int) -> list[str | Grant | None]:
    return [sources.next() for _ in range(count)]


def test_tenants_of_a_priority_take_turns_whoever_came_first() -> None:
    sources: Sources[str] = Sources({"normal": 1})
    for number in range(4):
        sources.add("normal", "crowd", f"crowd-{number}")
    sources.add("normal", "single", "single")
    assert taken(sources, 6) == ["crowd-0", "single", "crowd-1", "crowd-2", "crowd-3", None]
    assert sources.waiting == 0


def test_priorities_share_by_weight_and_none_starves() -> None:
    sources: Sources[str] = Sources(WEIGHTS)
    for priority in WEIGHTS:
        for _ in range(130):
            sources.add(priority, "t", priority)
    assert Counter(taken(sources, 130)) == {"interactive": 80, "normal": 40, "batch": 10}


def test_messages_and_held_tasks_of_a_priority_count_alike_until_the_wish_is_fulfilled() -> None:
    sources: Sources[str] = Sources({"normal": 4})
    for _ in range(10):
        sources.add("normal", "t", "message")
    sources.ask("normal", 3)
    first = taken(sources, 6)
    assert Counter(one if isinstance(one, str) else "held" for one in first) == {"message": 3, "held": 3}
    assert sources.asked() == 0
    assert taken(sources, 4) == ["message"] * 4


def test_a_wish_is_for_what_could_be_used_now_and_not_a_sum() -> None:
    sources: Sources[str] = Sources(WEIGHTS)
    sources.ask("batch", 5)
    sources.ask("batch", 2)
    assert taken(sources, 3) == [Grant("batch"), Grant("batch"), None]
    sources.ask("batch", 2)
    sources.ask("batch", 0)
    assert taken(sources, 1) == [None]


def test_a_message_of_a_priority_that_is_not_served_waits_with_the_least_urgent() -> None:
    sources: Sources[str] = Sources({"interactive": 8, "batch": 1})
    sources.add("normal", "t", "stray")
    sources.add("batch", "u", "own")
    assert taken(sources, 2) == ["stray", "own"]


def test_what_had_nothing_to_start_saves_no_turns_up() -> None:
    sources: Sources[str] = Sources(WEIGHTS)
    for _ in range(200):
        sources.add("batch", "t", "batch")
    taken(sources, 100)
    for _ in range(200):
        sources.add("interactive", "t", "interactive")
    assert Counter(taken(sources, 90)) == {"interactive": 80, "batch": 10}


@pytest.mark.parametrize(
    ("queues", "weights", "told"),
    [
        ("", "8:4:1", "queues must name"),
        ("normal,normal", "8:4:1", "at most once"),
        ("urgent", "8:4:1", "queues must name"),
        ("normal", "8:4", "weights must be"),
        ("normal", "8:0:1", "weights must be"),
        ("normal", "8:x:1", "weights must be"),
    ],
)
def test_nonsense_is_refused(queues: str, weights: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_queues(queues, weights)


def test_a_worker_serves_what_it_is_told_to_with_the_weights_of_all() -> None:
    assert parse_queues(" batch, interactive", "8:4:1") == {"interactive": 8, "batch": 1}
