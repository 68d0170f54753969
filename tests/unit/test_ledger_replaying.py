"""Which steps a second try keeps: a pure decision."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import BadInput, ChildFailed, LLMRefused
from shared.ledger.replaying import Past, kept

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
REFUSED = LLMRefused("no").as_dict()
CHILD = ChildFailed("a child failed").as_dict()


def past(*steps: tuple[str, int, int], failed: dict[str, object] | None = None) -> list[Past]:
    """Steps as (name, ordinal, second in which it began); the last one may have failed."""
    made = [Past(name, ordinal, "done", NOON + timedelta(seconds=at)) for name, ordinal, at in steps]
    if failed is None:
        return made
    last = made[-1]
    return [*made[:-1], Past(last.name, last.ordinal, "failed", last.started_at, {"error": failed})]


def labels(steps: list[Past]) -> list[str]:
    return [one.label for one in steps]


def test_without_a_step_only_the_failure_that_ended_the_task_is_left_out() -> None:
    steps = past(("a", 0, 0), ("b", 0, 1), failed=REFUSED)
    assert labels(kept(steps, from_step=None, error=REFUSED)) == ["a"]
    assert labels(kept(steps, from_step=None, error=CHILD)) == ["a", "b"], "the agent has dealt with it"
    assert labels(kept(steps, from_step=None, error=None)) == ["a", "b"]


@pytest.mark.parametrize(
    ("from_step", "expected"),
    [("a", []), ("b", ["a"]), ("b#1", ["a", "b"]), ("b #1", ["a", "b"]), ("c", ["a", "b", "b#1"])],
)
def test_from_a_step_on_everything_is_left_out(from_step: str, expected: list[str]) -> None:
    steps = past(("a", 0, 0), ("b", 0, 1), ("b", 1, 2), ("c", 0, 3))
    assert labels(kept(steps, from_step=from_step, error=None)) == expected


def test_what_began_at_once_with_the_step_is_left_out_too() -> None:
    steps = past(("a", 0, 0), ("left", 0, 1), ("right", 0, 1))
    assert labels(kept(steps, from_step="right", error=None)) == ["a"]


def test_a_step_may_be_named_like_a_place() -> None:
    steps = past(("a", 0, 0), ("a", 1, 1), ("a#1", 0, 2))
    assert labels(kept(steps, from_step="a#1", error=None)) == ["a", "a#1"]


def test_a_step_that_is_not_there_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(BadInput, match="there is no step 'x' to begin from; the task has a, b#1"):
        kept(past(("a", 0, 0), ("b", 1, 1)), from_step="x", error=None)
    with pytest.raises(BadInput, match="the task has no steps"):
        kept([], from_step="x", error=None)
