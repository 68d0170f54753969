"""What `fleet submit` makes of words, and what the command line tells of times and steps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from shared.errors import Misconfigured
from shared.ledger.rows import StepView, TaskView
from workers.ops.demo import told
from workers.ops.moments import rounded
from workers.ops.submit import read_inputs
from workers.ops.task_screen import summary

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def inputs(*pairs: str, given: str | None = None, stdin: str = "") -> dict[str, Any]:
    return read_inputs(pairs, given=given, stdin=lambda: stdin)


def step(name: str, state: str, *, executions: int = 1, repeats: int = 0) -> StepView:
    return StepView(name, 0, "step", state, executions, repeats, 0, NOON, None, None)


def task(*steps: StepView) -> TaskView:
    return TaskView(
        UUID(int=1), "default", "chat", None, "running", 1, 1, None, None, None, NOON, NOON, None, steps=steps
    )


def test_values_that_read_as_json_are_json_and_all_others_are_text() -> None:
    words = ("a=text", "b=3", 'c="3"', "d=[1, 2]", "e=", "f=x=y", "g=true")
    assert inputs(*words) == {"a": "text", "b": 3, "c": "3", "d": [1, 2], "e": "", "f": "x=y", "g": True}


def test_words_win_over_the_object_given() -> None:
    assert inputs("a=2", given='{"a": 1, "b": 1}') == {"a": 2, "b": 1}
    assert inputs(given="-", stdin='{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(("pairs", "given"), [(["a"], None), (["=a"], None), ([], "{"), ([], "3"), ([], "[" * 100_000)])
def test_what_cannot_be_read_is_refused_with_an_example(pairs: list[str], given: str | None) -> None:
    with pytest.raises(Misconfigured, match=r"\.$"):
        inputs(*pairs, given=given)


def test_an_age_is_told_in_its_largest_unit() -> None:
    ages = [timedelta(seconds=-1), timedelta(seconds=59), timedelta(minutes=3), timedelta(hours=30)]
    assert [rounded(age) for age in ages] == ["0 s", "59 s", "3 min", "1 d"]


def test_a_summary_leaves_out_what_is_not_known_yet() -> None:
    assert summary(replace(task(), started_at=None)) == "chat"
    assert summary(task(), now=NOON + timedelta(seconds=2)) == "chat · 2.0 s"


def test_steps_after_a_kill_are_told_by_what_the_ledger_had_before_it() -> None:
    before = task(step("a", "done"), step("b", "intent"), step("r", "done"))
    after = task(
        step("a", "done"),
        step("b", "done", executions=2),
        step("c", "done"),
        step("r", "done", executions=2, repeats=1),
    )
    assert [(tale.before, tale.after) for tale in told(before, after)] == [
        ("done", "read back from the journal"),
        ("in doubt", "run again (2 executions)"),
        ("", "run"),
        ("done", "run again although it was done, 1x"),
    ]
