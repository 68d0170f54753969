"""A task as a row: whether it comes from a producer, a message or the table, it is the same task."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import Row
from sqlalchemy.dialects import postgresql

from shared.contracts import FleetHeader, TaskMessage, keyed_task_id
from shared.errors import BadInput
from shared.ledger.rows import StepView, TaskView, accept_statement, message_of, refuse_nul, task_row

AT = datetime(2031, 1, 1, tzinfo=UTC)
PARENT = UUID(int=1)
MESSAGE = TaskMessage(
    "chat",
    {"message": "hi"},
    (1,),
    keyed_task_id("acme", "k", "s"),
    FleetHeader(
        tenant="acme",
        session="s",
        idempotency_key="k",
        deadline_at=AT,
        max_attempts=5,
        priority="batch",
        parent_id=PARENT,
        root_agent="family",
    ),
)


def stored(row: dict[str, Any]) -> Row[Any]:
    """The row as the database would give it back."""
    typed = {"id": UUID(row["id"]), "deadline_at": row["deadline_at"] and datetime.fromisoformat(row["deadline_at"])}
    typed["parent_id"] = row["parent_id"] and UUID(row["parent_id"])
    return cast(Row[Any], SimpleNamespace(**{**row, **typed}))


def view(**changes: Any) -> TaskView:
    given: dict[str, Any] = {
        "id": MESSAGE.id, "tenant": "t", "agent": "a", "session": None, "state": "running", "attempt": 1, "epoch": 1,
        "output": None, "error": None, "report": None, "created_at": AT, "started_at": None, "finished_at": None,
    }  # fmt: skip
    return TaskView(**given | changes)


def step(repeats: int = 0, executions: int = 1, *, in_doubt: int = 0, state: str = "done") -> StepView:
    return StepView("s", 0, "step", state, executions, repeats, in_doubt, AT, AT, None)


@pytest.mark.parametrize("message", [MESSAGE, TaskMessage("a")], ids=["full", "bare"])
def test_a_row_is_json_and_gives_the_message_back(message: TaskMessage) -> None:
    row = json.loads(json.dumps(task_row(message)))
    assert message_of(stored(row)) == message


def test_a_row_has_the_ledgers_columns() -> None:
    assert task_row(MESSAGE) == {
        "id": str(MESSAGE.id),
        "tenant": "acme",
        "agent": "chat",
        "session_id": "s",
        "idempotency_key": "k",
        "input": {"args": [1], "kwargs": {"message": "hi"}},
        "max_attempts": 5,
        "deadline_at": AT.isoformat(),
        "priority": "batch",
        "parent_id": str(PARENT),
        "root_agent": "family",
        "available_at": None,
    }


@pytest.mark.parametrize("given", [{"a": "x\x00y"}, {"x\x00": 1}, {"a": [{"b": ["\x00"]}]}])
def test_a_character_that_postgresql_cannot_store_is_refused_at_the_door(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"the input holds the character U\+0000"):
        refuse_nul(task_row(TaskMessage("a", given)))
    with pytest.raises(BadInput):
        accept_statement(TaskMessage("a", given), dispatch_after_s=1)


@pytest.mark.parametrize("given", [{}, {"a": "\x01\U0001f600é\n\t\\"}, {"a": "u0000"}])
def test_any_other_text_passes(given: dict[str, Any]) -> None:
    refuse_nul(task_row(TaskMessage("a", given)))


def test_accepting_a_task_twice_is_accepting_it_once() -> None:
    sql = str(accept_statement(MESSAGE, dispatch_after_s=1.5).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert sql.startswith("INSERT INTO tasks (id, tenant, agent, session_id, idempotency_key, input")
    assert sql.rstrip().endswith("ON CONFLICT DO NOTHING")
    assert "now() + make_interval(" in sql


@pytest.mark.parametrize(
    ("state", "is_finished"), [("queued", False), ("running", False), ("succeeded", True), ("failed", True)]
)
def test_a_task_is_finished_when_it_succeeded_or_failed(state: str, is_finished: bool) -> None:
    assert view(state=state).is_finished is is_finished


def test_a_step_in_doubt_is_not_counted_as_repeated() -> None:
    assert view(steps=(step(0, executions=3), step(0))).repeated_steps == 0
    assert view(steps=(step(1, executions=2), step(2, executions=3))).repeated_steps == 3


@pytest.mark.parametrize(
    ("state", "last", "in_doubt"), [("running", "intent", 2), ("failed", "intent", 2), ("succeeded", "done", 2)]
)
def test_calls_in_doubt_are_those_that_were_made_anew_and_those_that_never_were(
    state: str, last: str, in_doubt: int
) -> None:
    is_over = state == "failed"
    assert view(state=state, steps=(step(in_doubt=2), step(state=last))).in_doubt_steps == in_doubt + is_over
    twice = step(state=last, in_doubt=1)
    assert view(state=state, steps=(twice,)).in_doubt_steps == 1 + is_over, "two workers died in the same call"
